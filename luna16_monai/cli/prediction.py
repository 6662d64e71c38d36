"""The verb that runs the networks on CTs: ``predict``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna16_monai.cli import console, detection, pages

if TYPE_CHECKING:
    from luna16_monai.cli.console import Verbs
    from luna16_monai.inference.classifier import Classifier
    from luna16_monai.inference.predict import Listed, Scored, Wanted
    from luna16_monai.interchange.points import Points

THRESHOLD = 0.5
"""Of the reports, where ``luna16 calibrate`` has not chosen one."""
SECOND_BUNDLE = "malignancy_classification"


def add_predict(verbs: Verbs) -> None:
    """Add ``luna16 predict``."""
    verb = console.add_verb(verbs, "predict", run_predict, "score candidates of any CT with a trained bundle")
    console.add_ct(verb)
    text = "seriesuid, coordX, coordY, coordZ; or any format of convert; default: they are detected"
    verb.add_argument("--candidates", type=Path, metavar="FILE", help=text)
    add_stages(verb)
    text = ".csv, .json (grand-challenge) or .mrk.json (Slicer)"
    verb.add_argument("--output", type=Path, required=True, metavar="FILE", help=text)
    verb.add_argument("--format", metavar="F", help="of the output, as convert --to; default: what its suffix says")
    console.add_symlinks(verb)
    verb.add_argument("--ras", action="store_true", help="the candidates are RAS, not LPS as LUNA16's")
    verb.add_argument("--dicom-sr", type=Path, metavar="FILE", help="a structured report about one DICOM series")
    verb.add_argument("--report", type=Path, metavar="HTML", help="a page about one CT, for readers")
    text = (
        f"of the reports; calibrated where known; default: what luna16 calibrate or the bundles say, else {THRESHOLD}"
    )
    verb.add_argument("--threshold", type=float, metavar="P", help=text)
    verb.add_argument("--explain", type=Path, metavar="DIR", help="pictures of what the probability hangs on")
    verb.add_argument("--explain-top", type=int, default=10, metavar="N", help="of the most probable; default: 10")


def run_predict(options: argparse.Namespace) -> int:
    """Run ``luna16 predict``; return its exit code."""
    result = predicted(options)
    return console.tell(options, result, _told(options, result))


def add_stages(verb: argparse.ArgumentParser) -> None:
    """Add what chooses the networks and how they are run: the detector, the classifiers, the malignancy bundle."""
    detection.add_max(verb)
    detection.add_lungs(verb)
    verb.add_argument("--detector", type=Path, metavar="DIR", help="without a list; default: the detection bundle")
    text = "a run's model.pt, for the detector; default: its bundle's own"
    verb.add_argument("--detector-weights", type=Path, metavar="FILE", help=text)
    text = "default: the nodule bundle; several are averaged"
    verb.add_argument("--bundle", type=Path, nargs="+", metavar="DIR", help=text)
    console.add_trust(verb)
    text = "a run's model.pt; several are averaged"
    verb.add_argument("--weights", type=Path, nargs="+", metavar="FILE", help=text)
    text = "also how likely each is a malignant nodule; DIR: another bundle than the malignancy bundle"
    verb.add_argument("--malignancy", nargs="?", const="", metavar="DIR", help=text)
    verb.add_argument("--malignancy-weights", type=Path, metavar="FILE", help="a run's model.pt, for --malignancy")
    verb.add_argument("--backend", default="auto", choices=("auto", "torch", "openvino"), help="what runs it")
    verb.add_argument("--tta", action="store_true", help="average over 16 flips and quarter turns: --views 16")
    console.add_views(verb)
    console.add_device(verb)


def predict_anew(options: argparse.Namespace, output: Path) -> None:
    """Run ``luna16 predict`` without a list, for another verb with --ct, --allow-symlinks and `add_stages`.

    Args:
        options: of that verb.
        output: the table that is written; there is no file yet.
    """
    apart: dict[str, Any] = {
        "candidates": None,
        "output": output,
        "format": None,
        "ras": False,
        "dicom_sr": None,
        "report": None,
    }
    apart |= {"threshold": THRESHOLD, "explain": None, "explain_top": 10}
    result = predicted(argparse.Namespace(**{**vars(options), **apart}))
    print(f"luna16: {result['candidates']} candidates of {result['series']} CTs in {output}", file=sys.stderr)


def predicted(options: argparse.Namespace) -> dict[str, Any]:
    """Predict as the options say; return what is told of it."""
    console.load_monai(options, *(options.bundle or ()), options.detector, options.malignancy or None)
    from luna16_monai.inference.classifier import Classifier
    from luna16_monai.inference.predict import Wanted, predict
    from luna16_monai.phantom.drawn import drawn_near
    from luna16_monai.runs.seen import read_seen, tell_seen, write_seen_by_all

    if options.tta and options.views not in (None, 16):
        raise ValueError(f"--tta with --views {options.views}: --tta is --views 16; give one of them")
    views = 16 if options.tta else options.views
    _check_stages(options)
    _check_files(options)
    bundles = [console.bundle(path, options.trust_bundle) for path in options.bundle or [None]]
    to_format = _format_of_output(options)
    listed, scored = None if options.candidates is None else _listed(options), None
    device = console.device(options.device)
    classifiers = [Classifier(bundle, device, options.weights or (), options.backend) for bundle in bundles]
    malignancy = _malignancy_classifier(options, device)
    both = [*classifiers, *([malignancy] if malignancy else [])]
    if options.candidates is None:
        options.detector = detection.bundle_of(options.detector, options.trust_bundle)
    if options.threshold is None:
        options.threshold = _chosen_threshold(classifiers, options)
    page = None if options.report is None else pages.page_about(options)
    wanted = Wanted(options.dicom_sr, options.threshold, options.explain, options.explain_top, to_format, page)
    if listed is None:
        listed, scored = _detected(options, classifiers, both, views, wanted)
    result = predict(
        classifiers, options.ct, listed, options.output, views, wanted, console.shows_progress(options),
        malignancy=malignancy, allow_symlinks=options.allow_symlinks, scored=scored,
    )  # fmt: skip
    weights = [path for one in both for path in one.weights]
    if listed.detection is not None:
        weights += [listed.detection_weights] if listed.detection_weights else []
    records = [read_seen(path) for path in weights]
    write_seen_by_all(options.output, records)
    print("luna16:", tell_seen(records, listed.table.series_uids, drawn_near(options.ct)), file=sys.stderr)
    console.warn(result.get("left_out", []))
    return result


def _chosen_threshold(classifiers: Sequence[Classifier], options: argparse.Namespace) -> float:
    """Return the threshold that ``luna16 calibrate`` chose, of a list or of both stages; else `THRESHOLD`.

    Without a list, and with the weights that come with both bundles, it is the detection bundle's.
    """
    from luna16_monai.inference.detect import report_threshold

    listed, one = options.candidates is not None, classifiers[0].calibrated
    chosen = one.threshold if listed else one.both_stages
    if chosen is None and not (listed or options.bundle or options.weights or options.detector_weights):
        chosen = report_threshold(options.detector)
    return THRESHOLD if chosen is None or len(classifiers) > 1 else chosen


def _check_stages(options: argparse.Namespace) -> None:
    """Refuse options of the detector beside a list, and those of a list without one."""
    if options.candidates is None:
        if options.ras:
            raise ValueError("--ras is about a table of candidates: add --candidates, or leave it out")
    elif options.detector or options.detector_weights or options.lung_mask or options.no_lung_mask:
        raise ValueError("--candidates with an option of the detector: leave --candidates out, or the other")


def _told(options: argparse.Namespace, result: dict[str, Any]) -> str:
    """Return what is printed of a prediction."""
    where = Path(result["files"][0]).parent if "files" in result else options.output
    lines = [f"predict: {result['candidates']} probabilities in {where}"]
    if "without" in result:
        lines = [f"predict: {result['candidates']} candidates of {result['series']} CTs in {where}"]
    if options.dicom_sr:
        lines.append(f"  {result['reported']} candidates from {options.threshold:g} on in {options.dicom_sr}")
    if options.report:
        lines.append(f"  {result['shown']} candidates from {options.threshold:g} on in {options.report}")
    if options.explain:
        lines.append(f"  {result['explained']} explanations in {options.explain}")
    return "\n".join(lines)


def _listed(options: argparse.Namespace) -> Listed:
    """The candidates of --candidates."""
    from luna16_monai.inference.predict import Listed
    from luna16_monai.tables.points import from_ras

    candidates = _candidates(options)
    table = candidates.table(None)
    points = from_ras(table) if options.ras else table
    return Listed(table, points, candidates.names, candidates.values.get("diameter_mm"), candidates)


def _detected(
    options: argparse.Namespace,
    classifiers: Sequence[Classifier],
    both: Sequence[Classifier],
    views: int | None,
    wanted: Wanted,
) -> tuple[Listed, Scored]:
    """The detector's candidates of the CTs, and their probabilities; what cannot be written is refused before."""
    from luna16_monai.inference.classifier import volumes_of
    from luna16_monai.inference.predict import check_wanted
    from luna16_monai.inference.two_stages import detect_and_score

    # views are the classifiers': of the detector each costs as much as the first, and brings little
    detector, volumes = detection.opened(options, options.detector, options.detector_weights, None)
    links = options.allow_symlinks
    check_wanted(wanted, classifiers, options.ct, options.output, volumes.series_uids, links)
    stores = volumes_of(both, options.ct, links, [volumes])
    found, listed, scored = detect_and_score(
        detector, volumes, both, stores, views, options.max, detection.lungs(options), console.shows_progress(options)
    )
    detection.warn(found)
    return listed, scored


def _check_files(options: argparse.Namespace) -> None:
    """Refuse files that cannot be written, or would replace what is read, before any work."""
    read = [options.candidates, options.detector_weights, options.malignancy_weights, *options.ct]
    read += options.weights or []
    # a folder is checked by the format: several CTs may make one
    console.require_file("--output", options.output, *read, may_be_folder=True)
    console.require_file("--dicom-sr", options.dicom_sr, *read)
    console.require_folder("--explain", options.explain)
    if options.dicom_sr is not None and options.dicom_sr.resolve() == options.output.resolve():
        raise ValueError(f"--output and --dicom-sr are both {options.output}: name two files")


def _format_of_output(options: argparse.Namespace) -> str:
    """The format of --output: --format, else its suffix; any other suffix is our table, as it always was."""
    from luna16_monai.interchange import formats

    if options.format is not None:
        if options.format not in formats.FORMATS:
            raise ValueError(f"--format {options.format}: name one of {', '.join(formats.FORMATS)}")
        return options.format
    return formats.format_for(options.output) if options.output.name.lower().endswith(".json") else formats.LUNA16


def _candidates(options: argparse.Namespace) -> Points:
    """The candidates as they were given, from a file of any format; RAS ones are still RAS."""
    from luna16_monai.interchange import formats
    from luna16_monai.interchange.scans import Scans

    if formats.format_of(options.candidates) == formats.LUNA16:
        return formats.read_candidates(options.candidates)
    if options.ras:
        raise ValueError("--ras is about a table of candidates: turn other formats round with luna16 convert --ras")
    scans = Scans.open(options.ct, options.allow_symlinks)
    points = formats.read(options.candidates, None, formats.Conventions(scans))
    console.warn([f"{options.candidates}: {note}" for note in points.notes])
    return points


def _malignancy_classifier(options: argparse.Namespace, device: str) -> Classifier | None:
    """The second bundle, where it is asked for."""
    from luna16_monai.bundle.folders import bundle_dir
    from luna16_monai.inference.classifier import Classifier

    if options.malignancy is None:
        if options.malignancy_weights:
            raise ValueError("--malignancy-weights without --malignancy: add it, or leave the weights out")
        return None
    bundle = console.bundle(
        Path(options.malignancy) if options.malignancy else bundle_dir(SECOND_BUNDLE), options.trust_bundle
    )
    weights = [options.malignancy_weights] if options.malignancy_weights else ()
    return Classifier(bundle, device, weights, options.backend)
