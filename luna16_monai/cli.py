"""The ``luna16`` command: read the arguments, call one function, print its result."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from luna16_monai import __version__
from luna16_monai.errors import one_line, root_cause

if TYPE_CHECKING:
    from luna16_monai.inference import Classifier

DONE, FAILED, WRONG_INPUT = 0, 1, 2
SECOND_BUNDLE = "malignancy_classification"
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


def _phantom(options: argparse.Namespace) -> int:
    output = options.output or _folder("LUNA16_DATA", "data/phantom")
    common = {"seed": options.seed, "progress": _progress(options), "workers": options.workers}
    if options.scans is not None:
        common["scans"] = options.scans
    wanted = {"difficulty": options.difficulty, "negatives_per_positive": options.negatives_per_positive}
    settings = {name: value for name, value in wanted.items() if value is not None}
    if options.background is None:
        from luna16_monai.phantom import write_phantom
        from luna16_monai.synthesis import ScanSettings

        result = write_phantom(output, **common, settings=ScanSettings(**settings))
    else:
        if settings:
            raise ValueError(f"--background takes no {', '.join(settings)}: leave it out, or the background")
        from luna16_monai.background import write_background_phantom

        result = write_background_phantom(options.background, output, **common)
    there = "already" if result["cached"] else "written"
    return _print(options, result, f"phantom: {result['scans']} CTs in {output}, {there}")


def _download(options: argparse.Namespace) -> int:
    from luna16_monai.download import download

    output = options.output or _folder("LUNA16_DATA", "data/luna16")
    result = download(output, options.subset, options.base_url, _progress(options), options.keep_archives)
    return _print(options, result, f"download: {result['series']} CTs of {len(result['subsets'])} subsets in {output}")


def _doctor(options: argparse.Namespace) -> int:
    from luna16_monai.doctor import examine, told

    result = examine(_data(options), _store(options), _folder("LUNA16_RUNS", "runs"))
    _print(options, result, told(result))
    return DONE if result["ok"] else FAILED


def _prepare(options: argparse.Namespace) -> int:
    from luna16_monai.bundle import bundle_dir
    from luna16_monai.prepare import Recipe, prepare

    spacing: Any = "file"
    if options.native:
        spacing = None
    elif options.spacing_zyx:
        spacing = options.spacing_zyx
    recipe = Recipe.read(options.config or bundle_dir() / "configs" / "prepare.yaml", spacing)
    if options.config is not None:
        _require_trust(options.config, recipe.config, options.trust_bundle)
    data, store_dir = _data(options), _store(options)
    on_ray: dict[str, Any] = {}
    if options.ray:
        from luna16_monai.cluster import run_tasks

        # each node has a current folder of its own
        data, store_dir = data.absolute(), store_dir.absolute()
        on_ray = {
            "execute": partial(run_tasks, address=options.ray, dashboard=options.dashboard),
            "log_dir": store_dir / "logs",
        }
    store = prepare(
        data,
        store_dir,
        recipe,
        workers=options.workers,
        allow_missing=options.allow_missing,
        allow_symlinks=options.allow_symlinks,
        progress=_progress(options),
        **on_ray,
    )
    result = {
        "store": str(store_dir),
        "series": len(store.series_uids),
        "missing": len(store.missing),
        "spacing_zyx": recipe.spacing_zyx,
    }
    return _print(options, result, f"prepare: {len(store.series_uids)} CTs in {store_dir}")


def _require_trust(path: Path, config: Any, trusted: bool) -> None:
    """A config runs code: what one from elsewhere calls is told, and it is run only on request."""
    from luna16_monai.bundle import called_names, is_packaged

    if is_packaged(path):
        return
    names = ", ".join(called_names(config))
    if not trusted:
        raise ValueError(
            f"{path} does not come with luna16_monai and may run any code (it calls {names}): add --trust-bundle if "
            "you trust it"
        )
    print(f"luna16: {path} calls {names}", file=sys.stderr)


def _verify(options: argparse.Namespace) -> int:
    from luna16_monai.cutouts import verify

    store_dir = _store(options)
    wrong = verify(store_dir, progress=_progress(options))
    for line in wrong:
        print("luna16:", line, file=sys.stderr)
    _print(
        options, {"store": str(store_dir), "wrong": wrong}, f"verify: {len(wrong) or 'nothing'} wrong in {store_dir}"
    )
    return FAILED if wrong else DONE


def _evaluate(options: argparse.Namespace) -> int:
    from luna16_monai.candidates import read_points
    from luna16_monai.evaluation import evaluate
    from luna16_monai.results import write_results

    truth = _truth(options)
    submission = read_points(_existing(options.submission), "probability")
    evaluation = evaluate(submission, truth, options.bootstrap, options.seed)
    if options.output is not None:
        write_results(
            options.output, evaluation.scores, submission, submission.values, evaluation, subsets=truth.subsets
        )
    _warn(evaluation.scores["warnings"])
    return _print(options, evaluation.scores, _told(evaluation.scores))


def _compare(options: argparse.Namespace) -> int:
    from luna16_monai.candidates import read_points
    from luna16_monai.evaluation import compare, evaluate
    from luna16_monai.files import write_json

    if len(options.submission) != 2:
        raise ValueError(f"--submission is given {len(options.submission)} times: compare takes it twice")
    truth = _truth(options)
    one, other = (evaluate(read_points(_existing(path), "probability"), truth, draws=0) for path in options.submission)
    result = {
        "submissions": [path.name for path in options.submission],
        **compare(one, other, options.bootstrap, options.seed),
    }
    if options.output is not None:
        write_json(options.output / "comparison.json", result)
    _warn(result["warnings"])
    low, high = result["cpm_difference_ci95"]
    return _print(
        options,
        result,
        f"compare: CPM {result['cpm'][0]:.4f} and {result['cpm'][1]:.4f} on {result['scans']} scans, "
        f"difference {result['cpm_difference']:+.4f} (95 % {low:+.4f} to {high:+.4f})",
    )


def _truth(options: argparse.Namespace) -> Any:
    from luna16_monai.evaluation import read_truth

    return read_truth(options.annotations, options.excluded, options.seriesuids, options.subsets)


def _told(scores: dict[str, Any]) -> str:
    interval = "" if scores["cpm_ci95"] is None else " (95 % {:.4f} to {:.4f})".format(*scores["cpm_ci95"])
    columns = scores["sensitivity_at"]
    return "\n".join(
        [
            f"evaluate: CPM {scores['cpm']:.4f}{interval} on {scores['scans']} scans with {scores['nodules']} nodules",
            "  false positives a scan " + "".join(f"{rate:>8}" for rate in columns),
            "  sensitivity            " + "".join(f"{value:8.4f}" for value in columns.values()),
            f"  {scores['candidate_ceiling']:.4f} of the nodules have a candidate on them",
        ]
    )


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        print("luna16: warning:", warning, file=sys.stderr)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: name a table that is there")
    return path


def _predict(options: argparse.Namespace) -> int:
    from luna16_monai.candidates import read_points
    from luna16_monai.inference import Classifier, from_ras
    from luna16_monai.prediction import Wanted, predict

    bundles = [_bundle(path, options.trust_bundle) for path in options.bundle or [None]]
    table = read_points(_existing(options.candidates), None)
    device = _device(options.device)
    classifiers = [Classifier(bundle, device, options.weights or (), options.backend) for bundle in bundles]
    points = from_ras(table) if options.ras else table
    wanted = Wanted(options.dicom_sr, options.threshold, options.explain, options.explain_top)
    result = predict(
        classifiers, options.ct, table, points, options.output, options.tta, wanted, _progress(options),
        malignancy=_malignancy_classifier(options, device),
    )  # fmt: skip
    lines = [f"predict: {len(table)} probabilities in {options.output}"]
    if options.dicom_sr:
        lines.append(f"  {result['reported']} candidates from {options.threshold:g} on in {options.dicom_sr}")
    if options.explain:
        lines.append(f"  {result['explained']} explanations in {options.explain}")
    return _print(options, result, "\n".join(lines))


def _review(options: argparse.Namespace) -> int:
    from luna16_monai.decisions import Decisions, login_name
    from luna16_monai.review import Review, ReviewServer

    predictions = _existing(options.predictions)
    path = options.decisions or predictions.with_name(f"{predictions.stem}_decisions.csv")
    decisions = Decisions(path, options.reviewer or login_name())
    server = ReviewServer(Review(predictions, options.ct, decisions, options.least, options.ras), options.port)
    count = len(server.review.candidates)
    result = {"url": server.url, "decisions": str(path), "reviewer": decisions.reviewer, "candidates": count}
    line = f"review: {server.url}\n  {count} candidates; Ctrl-C ends it"
    server.serve_until_stopped(lambda: _print(options, result, line))
    told = f"{server.saved} decisions saved; {path} holds {server.review.decided()['decided']} of {count}"
    print("luna16: review has ended,", told, file=sys.stderr)
    return DONE


def _malignancy_classifier(options: argparse.Namespace, device: str) -> Classifier | None:
    """The second bundle, where it is asked for."""
    from luna16_monai.bundle import bundle_dir
    from luna16_monai.inference import Classifier

    if options.malignancy is None:
        if options.malignancy_weights:
            raise ValueError("--malignancy-weights without --malignancy: add it, or leave the weights out")
        return None
    bundle = _bundle(
        Path(options.malignancy) if options.malignancy else bundle_dir(SECOND_BUNDLE), options.trust_bundle
    )
    weights = [options.malignancy_weights] if options.malignancy_weights else ()
    return Classifier(bundle, device, weights, options.backend)


def _bundle(path: Path | None, trusted: bool) -> Path:
    """A bundle's folder, by default the nodule bundle; one from elsewhere only if it is trusted."""
    from luna16_monai.bundle import bundle_dir

    if path is None:
        return bundle_dir()
    from monai.bundle import ConfigParser

    files = [path / "configs" / name for name in ("inference.yaml", "prepare.yaml")]
    _require_trust(path, [ConfigParser.load_config_file(str(file)) for file in files if file.is_file()], trusted)
    return path


def _export(options: argparse.Namespace) -> int:
    from luna16_monai.export import export
    from luna16_monai.inference import Classifier

    bundle = _bundle(options.bundle, options.trust_bundle)
    classifier = Classifier(bundle, "cpu", [options.weights] if options.weights else (), "torch")
    export(classifier.networks[0], classifier.config, bundle, classifier.weights[0], options.format, options.output)
    result = {"format": options.format, "output": str(options.output), "bytes": options.output.stat().st_size}
    return _print(options, result, f"export: {options.format} in {options.output}")


def _write_bundle(options: argparse.Namespace) -> int:
    from luna16_monai.bundle import bundle_dir, copy_bundle

    copy_bundle(bundle_dir(options.name), options.output)
    return _print(options, {"output": str(options.output)}, f"bundle: {options.name} in {options.output}")


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _report(options: argparse.Namespace) -> int:
    from luna16_monai.report import write_report

    output = options.output or options.run_dir / "report.html"
    result = write_report(options.run_dir, output, _store(options))
    return _print(options, result, f"report: {output} ({result['megabytes']:.1f} MB, {result['pictures']} pictures)")


def _crossval(options: argparse.Namespace) -> int:
    from luna16_monai.crossval import Plan, crossval
    from luna16_monai.cutouts import Store
    from luna16_monai.report import write_report

    bundle = _trained_bundle(options)
    store_dir = _store(options)
    folds = options.folds or sorted({subset for subset in Store(store_dir).subsets.values() if subset is not None})
    plan = Plan(
        bundle,
        _data(options),
        store_dir,
        options.output,
        tuple(folds),
        _settings(options),
        tuple(options.overlay or ()),
        _threads(options),
        options.gpus,
    )
    result = crossval(plan, _execute(options), _progress(options), options.bootstrap, options.seed)
    if find_spec("matplotlib") and find_spec("jinja2"):
        write_report(options.output, options.output / "report.html", store_dir)
    else:
        print("luna16: no report.html: pip install 'luna16_monai[report]', then luna16 report --run", file=sys.stderr)
    _warn(result.get("warnings", ()))
    return _print(options, result, _told_folds(result, options.output))


def _tune(options: argparse.Namespace) -> int:
    from luna16_monai.trials import Search, TunePlan
    from luna16_monai.tune import tune

    bundle = _trained_bundle(options)
    plan = TunePlan(
        bundle,
        _data(options),
        _store(options),
        options.output,
        Search.read(options.search or bundle / "configs" / "tune.yaml"),
        options.trials,
        _settings(options),
        tuple(options.overlay or ()),
        _threads(options),
        options.gpus,
        options.seed,
    )
    result = tune(plan, options.ray, options.workers or 1, options.dashboard, _progress(options))
    best, metric = result["best"], result["metric"]
    line = f"tune: {metric} {best['score']:.4f} after epoch {best['epoch']}, the best of {result['trials']} trials"
    return _print(options, result, f"{line}: {options.output / 'best.yaml'}")


def _trained_bundle(options: argparse.Namespace) -> Path:
    """The folder of the bundle that is trained; one from elsewhere, and an overlay that calls something, if trusted."""
    from luna16_monai.bundle import bundle_dir, called_names

    bundle = options.bundle or bundle_dir()
    files = [bundle / "configs" / name for name in ("train.yaml", "evaluate.yaml")]
    for path in (*files, *(options.overlay or ())):
        if path.is_file():
            import yaml

            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            if path in files or called_names(config):
                _require_trust(path, config, options.trust_bundle)
    return bundle


def _settings(options: argparse.Namespace) -> dict[str, str]:
    """What --set, --seed and --device ask of each training."""
    settings = {"seed": str(options.seed)}
    if options.device != "auto":
        settings["device"] = options.device
    for text in options.set or ():
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ValueError(f"--set {text}: key=value was expected, such as max_epochs=20")
        settings[key] = value
    return settings


def _threads(options: argparse.Namespace) -> int:
    """Of each process; the cores shared by the jobs that run at once, unless it is said."""
    return options.threads or max(1, len(os.sched_getaffinity(0)) // max(1, options.workers or 1))


def _execute(options: argparse.Namespace) -> Any:
    """Where jobs run: in processes of this machine, one at a time unless it is said otherwise; or on a cluster."""
    if options.ray:
        from luna16_monai import cluster

        resources = {"cpus": _threads(options), "gpus": options.gpus}
        return partial(cluster.run_tasks, address=options.ray, dashboard=options.dashboard, **resources)
    from luna16_monai.workers import run_tasks

    return partial(run_tasks, workers=options.workers or 1)


def _told_folds(result: dict[str, Any], output: Path) -> str:
    lines = [f"crossval: {len(result['folds'])} folds in {output}"]
    if "cpm" in result:
        interval = "" if result["cpm_ci95"] is None else " (95 % {:.4f} to {:.4f})".format(*result["cpm_ci95"])
        lines.append(f"  CPM {result['cpm']:.4f}{interval} on all {result['scans']} scans, pooled")
        mean = result["mean_of_folds"]
        interval = "" if mean["cpm_ci95"] is None else " (95 % {:.4f} to {:.4f})".format(*mean["cpm_ci95"])
        lines.append(f"  CPM {mean['cpm']:.4f}{interval} as the mean of the folds, each on its own scans")
        lines += [
            f"    fold {name}: {fold['cpm']:.4f} on {fold['scans']} scans" for name, fold in result["folds"].items()
        ]
    else:
        lines.append(f"  average precision {result['average_precision']:.4f}; no CPM, the log says why")
    return "\n".join(lines)


def _print(options: argparse.Namespace, result: dict[str, Any], line: str) -> int:
    print(json.dumps(result, indent=2) if options.json else line, flush=True)
    return DONE


def _progress(options: argparse.Namespace) -> bool:
    return not options.quiet and sys.stderr.isatty()


def _folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable, default))


def _data(options: argparse.Namespace) -> Path:
    return options.data or _folder("LUNA16_DATA", "data/phantom")


def _store(options: argparse.Namespace) -> Path:
    return options.store or _folder("LUNA16_STORE", "data/store")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="luna16",
        description="Train, evaluate and ship a lung-nodule classifier on LUNA16. For research, not for clinical use.",
        epilog="Folders default to LUNA16_DATA, LUNA16_STORE and LUNA16_RUNS.",
    )
    parser.add_argument("--version", action="version", version=f"luna16_monai {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
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

    phantom = verb("phantom", _phantom, "write a synthetic data set in LUNA16's own layout")
    phantom.add_argument("--output", type=Path, metavar="DIR")
    phantom.add_argument("--scans", type=int, metavar="N", help="default: 60, or 10 with --background")
    phantom.add_argument("--seed", type=int, default=0, metavar="N")
    phantom.add_argument("--workers", type=int, metavar="N")
    phantom.add_argument("--difficulty", type=float, metavar="D", help="0 is easy, 1 the default, 2 hard")
    phantom.add_argument(
        "--negatives-per-positive", type=float, metavar="N", help="500 is LUNA16's; default: 60 a scan"
    )
    phantom.add_argument("--background", type=Path, metavar="PATH", help="put nodules into this real CT")

    download = verb("download", _download, "fetch LUNA16; goes on where it was stopped")
    download.add_argument("--output", type=Path, metavar="DIR")
    download.add_argument("--subset", type=int, nargs="*", metavar="N", help="0 to 9; default: all; none: tables only")
    download.add_argument("--base-url", metavar="URL", help="of a mirror")
    download.add_argument("--keep-archives", action="store_true", help="leave the zip files after they are unpacked")

    doctor = verb("doctor", _doctor, "look the machine, the data and the store over")
    doctor.add_argument("--data", type=Path, metavar="DIR")
    doctor.add_argument("--store", type=Path, metavar="DIR")

    prepare = verb("prepare", _prepare, "send each CT once through the bundle's transforms into the store; resumable")
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

    evaluate = scoring("evaluate", _evaluate, "score a submission as LUNA16 does")
    evaluate.add_argument("--submission", type=Path, required=True, metavar="CSV")
    evaluate.add_argument("--output", type=Path, metavar="DIR", help="for metrics.json, candidates.csv, nodules.csv")

    compare = scoring("compare", _compare, "tell whether the second of two submissions is better than the first")
    compare.add_argument("--submission", type=Path, action="append", required=True, metavar="CSV", help="give it twice")
    compare.add_argument("--output", type=Path, metavar="DIR", help="for comparison.json")

    predict = verb("predict", _predict, "score candidates of any CT with a trained bundle")
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
    predict.add_argument("--ras", action="store_true", help="the candidates are RAS, not LPS as LUNA16's")
    predict.add_argument("--tta", action="store_true", help="average over flips and quarter turns")
    predict.add_argument("--device", default="auto", metavar="auto|cpu|cuda|cuda:N")
    predict.add_argument("--dicom-sr", type=Path, metavar="FILE", help="a structured report about one DICOM series")
    predict.add_argument(
        "--threshold", type=float, default=0.5, metavar="P", help="of the report; calibrated where known; default: 0.5"
    )
    predict.add_argument("--explain", type=Path, metavar="DIR", help="pictures of what the probability hangs on")
    predict.add_argument("--explain-top", type=int, default=10, metavar="N", help="of the most probable; default: 10")

    review = verb("review", _review, "serve a page on this machine to step through a prediction")
    review.add_argument("--predictions", type=Path, required=True, metavar="CSV", help="what predict wrote")
    review.add_argument("--ct", type=Path, action="extend", nargs="+", required=True, metavar="PATH", help="CTs")
    review.add_argument("--port", type=int, default=0, metavar="N", help="default: a free one")
    review.add_argument("--decisions", type=Path, metavar="CSV", help="default: beside the predictions")
    review.add_argument("--reviewer", metavar="NAME", help="default: your login name")
    review.add_argument("--least", type=float, default=0.0, metavar="P", help="leave less probable ones out")
    review.add_argument("--ras", action="store_true", help="the predictions are RAS, not LPS as LUNA16's")

    export = verb("export", _export, "write a trained network in another program's format")
    export.add_argument("--format", required=True, choices=("torchscript", "onnx", "openvino"))
    export.add_argument("--output", type=Path, required=True, metavar="FILE", help="OpenVINO's ends in .xml")
    export.add_argument("--bundle", type=Path, metavar="DIR", help="default: the nodule bundle")
    export.add_argument("--trust-bundle", action="store_true", help="run a --bundle that may hold any code")
    export.add_argument("--weights", type=Path, metavar="FILE", help="a run's model.pt; default: the bundle's own")

    bundle = verb("bundle", _write_bundle, "write a bundle that comes with the package to a folder of your own")
    bundle.add_argument("name", nargs="?", default="nodule_classification")
    bundle.add_argument("--output", type=Path, required=True, metavar="DIR")

    report = verb("report", _report, "write one self-contained HTML file about a run")
    report.add_argument("--run", dest="run_dir", type=Path, required=True, metavar="DIR", help="its output folder")
    report.add_argument("--output", type=Path, metavar="FILE.html", help="default: report.html in that folder")
    report.add_argument("--store", type=Path, metavar="DIR", help="the prepared volumes, for the pictures")

    crossval = verb("crossval", _crossval, "official cross-validation of a bundle; goes on where it was stopped")
    crossval.add_argument("--folds", type=int, nargs="+", metavar="N", help="0 to 9; default: all that are prepared")
    jobs(crossval)
    crossval.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="draws; 0 gives no intervals")

    tune = verb("tune", _tune, "search for better settings of a bundle; goes on where it was stopped")
    tune.add_argument("--trials", type=int, required=True, metavar="N")
    tune.add_argument("--search", type=Path, metavar="FILE", help="what is tried; default: the bundle's tune.yaml")
    jobs(tune)

    check = verb("verify", _verify, "check a store against its checksums")
    check.add_argument("--store", type=Path, metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
