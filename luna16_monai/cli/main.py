"""The ``luna16`` command: collects the verbs, runs one, and prints an error as one line."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from luna16_monai import __version__
from luna16_monai.cli import bundles, data, experiments, prediction
from luna16_monai.cli import scoring as scoring_room
from luna16_monai.cli.console import FAILED, WRONG_INPUT
from luna16_monai.machine.errors import one_line, root_cause

INPUT_ERRORS = (ValueError, LookupError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong with a call in one line, as every other error."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_INPUT, f"luna16: {message}: see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: the words after ``luna16``; None takes those of the process.

    Returns:
        0 done, 1 the work failed or a check found something wrong, 2 the call or its input is wrong.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    # it greets every user of blosc2 with its number of threads
    logging.getLogger("numexpr").setLevel(logging.WARNING)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("luna16: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except Exception as error:
        # nothing is hidden: the error is told in one line, and raised whole with --debug
        if options.debug:
            raise
        print("luna16:", one_line(error), file=sys.stderr)
        return WRONG_INPUT if isinstance(root_cause(error), INPUT_ERRORS) else FAILED


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="luna16",
        description="Train, evaluate and ship a lung-nodule classifier on LUNA16. For research, not for clinical use.",
        epilog="Folders default to LUNA16_DATA, LUNA16_STORE and LUNA16_RUNS.",
    )
    parser.add_argument("--version", action="version", version=f"luna16_monai {__version__}")
    choices = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = choices.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        added.add_argument("--json", action="store_true", help="print the result as one JSON object")
        added.add_argument("--quiet", action="store_true", help="show no progress bar")
        added.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return added

    def ray(added: argparse.ArgumentParser) -> None:
        added.add_argument("--ray", metavar="ADDRESS|local", help="run on this Ray cluster; local: one of this machine")
        added.add_argument("--dashboard", action="store_true", help="Ray's, of --ray local, for this machine alone")

    def jobs(added: argparse.ArgumentParser) -> None:
        ray(added)
        added.add_argument("--bundle", type=Path, metavar="DIR", help="default: the nodule bundle")
        added.add_argument("--trust-bundle", action="store_true", help="run a --bundle that may hold any code")
        added.add_argument("--output", type=Path, required=True, metavar="DIR")
        added.add_argument("--data", type=Path, metavar="DIR")
        added.add_argument("--store", type=Path, metavar="DIR")
        added.add_argument("--set", nargs="+", action="extend", metavar="KEY=VALUE", help="settings of each training")
        added.add_argument("--overlay", type=Path, nargs="+", metavar="FILE", help="config files on top of train.yaml")
        added.add_argument("--workers", type=int, metavar="N", help="trainings at once; default: 1")
        added.add_argument("--threads", type=int, metavar="N", help="of each process; default: the cores shared")
        added.add_argument("--gpus", type=int, default=0, metavar="N", help="that a training takes for itself")
        added.add_argument("--device", default="auto", metavar="auto|cpu|cuda|cuda:N")
        added.add_argument("--seed", type=int, default=0, metavar="N")

    phantom = verb("phantom", data.run_phantom, "write a synthetic data set in LUNA16's own layout")
    phantom.add_argument("--output", type=Path, metavar="DIR")
    phantom.add_argument("--scans", type=int, metavar="N", help="default: 60, or 10 with --background")
    phantom.add_argument("--seed", type=int, default=0, metavar="N")
    phantom.add_argument("--workers", type=int, metavar="N")
    phantom.add_argument("--difficulty", type=float, metavar="D", help="0 is easy, 1 the default, 2 hard")
    phantom.add_argument("--negatives-per-positive", type=float, metavar="N", help="500 is LUNA16's; default: 10")
    phantom.add_argument("--background", type=Path, metavar="PATH", help="put nodules into this real CT")

    download = verb("download", data.run_download, "fetch LUNA16; goes on where it was stopped")
    download.add_argument("--output", type=Path, metavar="DIR")
    download.add_argument("--subset", type=int, nargs="*", metavar="N", help="0 to 9; default: all; none: tables only")
    download.add_argument("--base-url", metavar="URL", help="of a mirror")
    download.add_argument("--keep-archives", action="store_true", help="leave the zip files after they are unpacked")

    doctor = verb("doctor", data.run_doctor, "look the machine, the data and the store over")
    doctor.add_argument("--data", type=Path, metavar="DIR")
    doctor.add_argument("--store", type=Path, metavar="DIR")

    prepare = verb(
        "prepare", data.run_prepare, "send each CT once through the bundle's transforms into the store; resumable"
    )
    prepare.add_argument("--data", type=Path, metavar="DIR")
    prepare.add_argument("--store", type=Path, metavar="DIR")
    spacing = prepare.add_mutually_exclusive_group()
    spacing.add_argument("--spacing-zyx", type=float, nargs=3, metavar=("Z", "Y", "X"), help="millimetres")
    spacing.add_argument("--native", action="store_true", help="keep each CT's own spacing")
    prepare.add_argument("--config", type=Path, metavar="FILE", help="the transform list; default: the nodule bundle's")
    prepare.add_argument("--trust-bundle", action="store_true", help="run a --config that may hold any code")
    prepare.add_argument("--allow-missing", action="store_true", help="go on without the CTs that are not there")
    prepare.add_argument("--allow-symlinks", action="store_true", help="take CTs that are linked into place")
    prepare.add_argument("--workers", type=int, metavar="N")
    ray(prepare)

    def scoring(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = verb(name, run, text)
        added.add_argument("--annotations", type=Path, required=True, metavar="CSV", help="the nodules")
        excluded = added.add_mutually_exclusive_group(required=True)
        excluded.add_argument("--excluded", type=Path, metavar="CSV", help="findings that count neither way")
        excluded.add_argument("--no-excluded", action="store_true", help="do without; not comparable with LUNA16's CPM")
        added.add_argument(
            "--seriesuids", type=Path, required=True, metavar="CSV", help="the scans to score, no others"
        )
        added.add_argument(
            "--subsets", type=Path, metavar="PATH", help="table of seriesuid, subset; or the CTs' folder"
        )
        added.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="draws; 0 gives no intervals")
        added.add_argument("--seed", type=int, default=0, metavar="N")
        return added

    evaluate = scoring("evaluate", scoring_room.run_evaluate, "score a submission as LUNA16 does")
    evaluate.add_argument("--submission", type=Path, required=True, metavar="CSV")
    evaluate.add_argument("--output", type=Path, metavar="DIR", help="for metrics.json, candidates.csv, nodules.csv")

    compare = scoring(
        "compare", scoring_room.run_compare, "tell whether the second of two submissions is better than the first"
    )
    compare.add_argument("--submission", type=Path, action="append", required=True, metavar="CSV", help="give it twice")
    compare.add_argument("--output", type=Path, metavar="DIR", help="for comparison.json")

    predict = verb("predict", prediction.run_predict, "score candidates of any CT with a trained bundle")
    predict.add_argument("--ct", type=Path, action="extend", nargs="+", required=True, metavar="PATH", help="CTs")
    predict.add_argument(
        "--candidates", type=Path, required=True, metavar="CSV", help="seriesuid, coordX, coordY, coordZ"
    )
    predict.add_argument("--output", type=Path, required=True, metavar="CSV")
    predict.add_argument(
        "--bundle", type=Path, nargs="+", metavar="DIR", help="default: the nodule bundle; several are averaged"
    )
    predict.add_argument("--trust-bundle", action="store_true", help="run a --bundle that may hold any code")
    predict.add_argument(
        "--weights", type=Path, nargs="+", metavar="FILE", help="a run's model.pt; several are averaged"
    )
    predict.add_argument(
        "--malignancy",
        nargs="?",
        const="",
        metavar="DIR",
        help="also how likely each is a malignant nodule; DIR: another bundle than the malignancy bundle",
    )
    predict.add_argument("--malignancy-weights", type=Path, metavar="FILE", help="a run's model.pt, for --malignancy")
    predict.add_argument("--backend", default="auto", choices=("auto", "torch", "openvino"), help="what runs it")
    predict.add_argument("--allow-symlinks", action="store_true", help="take CTs that are linked into place")
    predict.add_argument("--ras", action="store_true", help="the candidates are RAS, not LPS as LUNA16's")
    predict.add_argument("--tta", action="store_true", help="average over flips and quarter turns")
    predict.add_argument("--device", default="auto", metavar="auto|cpu|cuda|cuda:N")
    predict.add_argument("--dicom-sr", type=Path, metavar="FILE", help="a structured report about one DICOM series")
    predict.add_argument(
        "--threshold", type=float, default=0.5, metavar="P", help="of the report; calibrated where known; default: 0.5"
    )
    predict.add_argument("--explain", type=Path, metavar="DIR", help="pictures of what the probability hangs on")
    predict.add_argument("--explain-top", type=int, default=10, metavar="N", help="of the most probable; default: 10")

    review = verb("review", prediction.run_review, "serve a page on this machine to step through a prediction")
    review.add_argument("--predictions", type=Path, required=True, metavar="CSV", help="what predict wrote")
    review.add_argument("--ct", type=Path, action="extend", nargs="+", required=True, metavar="PATH", help="CTs")
    review.add_argument("--port", type=int, default=0, metavar="N", help="default: a free one")
    review.add_argument("--decisions", type=Path, metavar="CSV", help="default: beside the predictions")
    review.add_argument("--reviewer", metavar="NAME", help="default: your login name")
    review.add_argument("--least", type=float, default=0.0, metavar="P", help="leave less probable ones out")
    review.add_argument("--allow-symlinks", action="store_true", help="take CTs that are linked into place")
    review.add_argument("--ras", action="store_true", help="the predictions are RAS, not LPS as LUNA16's")

    export = verb("export", bundles.run_export, "write a trained network in another program's format")
    export.add_argument("--format", required=True, choices=("torchscript", "onnx", "openvino"))
    export.add_argument("--output", type=Path, required=True, metavar="FILE", help="OpenVINO's ends in .xml")
    export.add_argument("--bundle", type=Path, metavar="DIR", help="default: the nodule bundle")
    export.add_argument("--trust-bundle", action="store_true", help="run a --bundle that may hold any code")
    export.add_argument("--weights", type=Path, metavar="FILE", help="a run's model.pt; default: the bundle's own")

    bundle = verb("bundle", bundles.run_bundle, "write a bundle that comes with the package to a folder of your own")
    bundle.add_argument("name", nargs="?", default="nodule_classification")
    bundle.add_argument("--output", type=Path, required=True, metavar="DIR")

    report = verb("report", scoring_room.run_report, "write one self-contained HTML file about a run")
    report.add_argument("--run", dest="run_dir", type=Path, required=True, metavar="DIR", help="its output folder")
    report.add_argument("--output", type=Path, metavar="FILE.html", help="default: report.html in that folder")
    report.add_argument("--store", type=Path, metavar="DIR", help="the prepared volumes, for the pictures")

    crossval = verb("crossval", experiments.run_crossval, "official cross-validation of a bundle; resumable")
    crossval.add_argument("--folds", type=int, nargs="+", metavar="N", help="0 to 9; default: all that are prepared")
    jobs(crossval)
    crossval.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="draws; 0 gives no intervals")

    tune = verb("tune", experiments.run_tune, "search for better settings of a bundle; resumable")
    tune.add_argument("--trials", type=int, required=True, metavar="N")
    tune.add_argument("--search", type=Path, metavar="FILE", help="what is tried; default: the bundle's tune.yaml")
    jobs(tune)

    check = verb("verify", data.run_verify, "check a store against its checksums")
    check.add_argument("--store", type=Path, metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
