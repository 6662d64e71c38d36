"""The verbs that meet other programs: ``convert`` and ``challenge``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna16_monai.cli import console, detection

if TYPE_CHECKING:
    from luna16_monai.cli.console import Verbs
    from luna16_monai.interchange.points import Points


def add_convert(verbs: Verbs) -> None:
    """Add ``luna16 convert``."""
    text = "turn points of one program's format into another's"
    verb = console.add_verb(verbs, "convert", run_convert, text)
    verb.add_argument("--input", type=Path, required=True, metavar="FILE", help="a file, or a folder of one a CT")
    text = "several CTs in a format of one CT a file: the folder of that name"
    verb.add_argument("--output", type=Path, required=True, metavar="FILE", help=text)
    names = "luna16|grand-challenge|monai|slicer|luna25|lidc"
    verb.add_argument("--from", dest="from_format", metavar="F", help=f"{names}; default: what the input holds")
    verb.add_argument("--to", dest="to_format", metavar="F", help="default: what the output's suffix says")
    console.add_ct(verb, required=False)
    verb.add_argument("--ras", action="store_true", help="the input's table or boxes are RAS, not LPS")
    text = "the input's table holds voxels of --ct, in this order of axes"
    verb.add_argument("--voxel", choices=("zyx", "xyz"), help=text)
    text = "make a list of candidates: the nodules and the input's points, class 1 on a nodule, else 0"
    verb.add_argument("--nodules", type=Path, metavar="CSV", help=text)
    verb.add_argument("--masks", action="store_true", help="of lidc: also write the readers' consensus masks")
    console.add_symlinks(verb)


def run_convert(options: argparse.Namespace) -> int:
    """Run ``luna16 convert``; return its exit code."""
    from luna16_monai.interchange import formats
    from luna16_monai.interchange.scans import Scans

    from_format = options.from_format or formats.format_of(options.input)
    for name in (from_format, options.to_format):
        if name is not None and name not in formats.FORMATS:
            raise ValueError(f"{name!r} is no format: name one of {', '.join(formats.FORMATS)}")
    is_table = options.input.is_file() and not options.input.name.lower().endswith(".json")
    # a folder is checked by the format: several CTs may make one
    console.require_file("--output", options.output, options.input, *(options.ct or ()), may_be_folder=True)
    if from_format == formats.LIDC or (from_format == formats.LUNA25 and is_table and not options.output.suffix):
        return _convert_to_data_folder(options, from_format)
    if options.nodules is not None:
        return _convert_to_candidates(options, from_format)
    if options.masks:
        raise ValueError(f"--masks of {from_format}: only lidc has readers' outlines: leave --masks out")
    to_format = options.to_format or formats.format_for(options.output)
    scans = Scans.open(options.ct or [], options.allow_symlinks)
    points = formats.read(options.input, from_format, formats.Conventions(scans, options.ras, options.voxel))
    files, notes = formats.write(options.output, points, to_format)
    notes = (*points.notes, *notes)
    result: dict[str, Any] = {
        "from": from_format, "to": to_format, "points": len(points), "series": len(points.series_uids),
        "files": [str(file) for file in files], "left_out": list(notes),
    }  # fmt: skip
    console.warn([f"{options.input}: {note}" for note in notes])
    where = files[0] if len(files) == 1 else files[0].parent
    return console.tell(options, result, f"convert: {len(points)} points, {from_format} to {to_format}, in {where}")


def _convert_to_candidates(options: argparse.Namespace, from_format: str) -> int:
    """Convert points to a list of candidates with their classes: on one of the nodules, or on none."""
    import numpy as np

    from luna16_monai.interchange import formats
    from luna16_monai.interchange.scans import Scans
    from luna16_monai.tables.hits import lies_on
    from luna16_monai.tables.luna16 import read_nodules
    from luna16_monai.tables.points import joined_tables, write_points

    if options.to_format not in (None, formats.LUNA16) or options.output.suffix.lower() != ".csv":
        raise ValueError(f"--nodules makes a list of candidates, a .csv in LUNA16's columns, not {options.output.name}")
    console.require_file("--output", options.output, options.nodules)
    scans = Scans.open(options.ct or [], options.allow_symlinks)
    points = formats.read(options.input, from_format, formats.Conventions(scans, options.ras, options.voxel))
    nodules = read_nodules(console.existing(options.nodules))
    found = points.table(None)
    table = joined_tables([nodules, found])
    label = np.concatenate([np.ones(len(nodules), int), lies_on(found, nodules).astype(int)])
    write_points(options.output, table.row_series(), table.points_xyz, label, "class")
    result: dict[str, Any] = {
        "from": from_format, "to": formats.LUNA16, "points": len(table), "series": len(set(table.row_series())),
        "files": [str(options.output)], "left_out": list(points.notes),
    }  # fmt: skip
    console.warn([f"{options.input}: {note}" for note in points.notes])
    line = f"convert: {len(table)} candidates in {options.output}, {label.sum()} of them on a nodule"
    return console.tell(options, result, line)


def _convert_to_data_folder(options: argparse.Namespace, from_format: str) -> int:
    """Convert what becomes a whole data folder."""
    from luna16_monai.interchange import data_folders, formats
    from luna16_monai.interchange.scans import Scans

    if options.to_format not in (None, formats.LUNA16):
        raise ValueError(f"{from_format} to {options.to_format}: it becomes a data folder: leave --to out")
    if options.ras or options.voxel:
        raise ValueError(f"{from_format} says its frame itself: leave --ras and --voxel out")
    if from_format == formats.LIDC:
        if not options.input.is_dir():
            raise ValueError(f"{options.input} is no folder: name the one that holds LIDC-IDRI's DICOM and XML")
        if options.ct:
            raise ValueError("lidc finds its CTs in the input: leave --ct out")
        data_folders.require_new(options.output)
        read, notes = data_folders.read_lidc(options.input, options.allow_symlinks)
        result = data_folders.write_lidc(options.output, read, options.masks)
    else:
        scans = Scans.open(options.ct or [], options.allow_symlinks)
        result, notes = data_folders.write_luna25(options.output, console.existing(options.input), scans)
    console.warn([f"{options.input}: {note}" for note in notes])
    told = {**result, "from": from_format, "to": formats.LUNA16, "left_out": list(notes)}
    line = f"convert: {result['nodules']} nodules of {result['series']} series in {options.output}"
    return console.tell(options, told, line)


def add_challenge(verbs: Verbs) -> None:
    """Add ``luna16 challenge``."""
    text = "answer a case as a challenge's container gets it: how likely is each nodule malignant"
    verb = console.add_verb(verbs, "challenge", run_challenge, text)
    text = "images/*/*.mha, nodule-locations.json; default: /input"
    verb.add_argument("--input", type=Path, default=Path("/input"), metavar="DIR", help=text)
    verb.add_argument("--output", type=Path, default=Path("/output"), metavar="DIR", help="default: /output")
    verb.add_argument("--serve", action="store_true", help="load the network once, and answer by HTTP")
    verb.add_argument("--bundle", type=Path, metavar="DIR", help="default: the malignancy bundle")
    console.add_trust(verb)
    text = "a run's model.pt; several are averaged"
    verb.add_argument("--weights", type=Path, nargs="+", metavar="FILE", help=text)
    text = "finds the nodules where a case has no list; default: the detection bundle"
    verb.add_argument("--detector", type=Path, metavar="DIR", help=text)
    text = "a run's model.pt, for the detector; default: its bundle's own"
    verb.add_argument("--detector-weights", type=Path, metavar="FILE", help=text)
    detection.add_max(verb)
    verb.add_argument("--backend", default="auto", choices=("auto", "torch", "openvino"), help="what runs it")
    console.add_device(verb)


def run_challenge(options: argparse.Namespace) -> int:
    """Run ``luna16 challenge``; return its exit code."""
    import os

    from luna16_monai.bundle.folders import bundle_dir
    from luna16_monai.inference.challenge import Challenge, ChallengeServer, port_of
    from luna16_monai.inference.classifier import Classifier

    console.require_folder("--output", options.output)
    port = port_of(os.environ)
    bundle = console.bundle(options.bundle or bundle_dir("malignancy_classification"), options.trust_bundle)
    classifier = Classifier(bundle, console.device(options.device), options.weights or (), options.backend)
    challenge = Challenge(classifier, options.input, options.output, _finder(options))
    if not options.serve:
        told = challenge.answer()
        line = f"challenge: {told['points']} nodules in {told['output']} ({told['seconds']} s)"
        return console.tell(options, told, line)
    options.serves = True
    with ChallengeServer(challenge, port) as server:
        console.tell(
            options, {"port": server.server_port}, f"challenge: GET /health, POST /invoke on {server.server_port}"
        )
        # until Ctrl-C, or until the container is stopped
        server.serve_forever()
    return console.DONE


def _finder(options: argparse.Namespace) -> Callable[[Path], Points]:
    """Return what finds the nodules of a case without a list; the detector is read when the first one comes."""
    from functools import lru_cache, partial

    from luna16_monai.inference.challenge import NO_LUNGS, detected
    from luna16_monai.inference.detect import found_lungs, read_detector

    folder = detection.bundle_of(options.detector, options.trust_bundle)
    device = console.device(options.device)
    read = lru_cache(maxsize=1)(lambda: read_detector(folder, device, options.detector_weights, options.backend))

    def find(image: Path) -> Points:
        detector, prepare = read()
        lungs = partial(found_lungs, cure=NO_LUNGS)
        return detected(detector.candidates(prepare([image], False), options.max, lungs=lungs))

    return find
