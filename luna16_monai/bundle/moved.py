"""Names of before the package had packages, and what they are called now; without MONAI.

Before that, its modules lay side by side: ``networks.NoduleNet`` of the package. Such names are in what older versions
have written: a store's preparation, the config in a checkpoint, a run's record, a bundle of one's own. By this table
a store of before is used and a run of before goes on, and an error about a name that is gone says the new one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

PACKAGE = "luna16_monai"

# where a module went as a whole
MODULES = {
    "anatomy": "phantom.anatomy",
    "archives": "setup.archives",
    "augmentation": "dataset.augmentation",
    "background": "phantom.background",
    "baselines": "evaluation.baselines",
    "calibration": "evaluation.calibration",
    "candidates": "tables.points",
    "charts": "report.charts",
    "checkpoint": "training.checkpoints",
    "cluster": "machine.cluster",
    "console": "cli.console",
    "crossval": "experiments.crossval",
    "cutouts": "store.reading",
    "datalist": "dataset.candidates",
    "decisions": "review.decisions",
    "demo": "cli.demo",
    "detector": "phantom.candidates",
    "dicom": "ct.dicom",
    "doctor": "setup.doctor",
    "download": "setup.download",
    "errors": "machine.errors",
    "explanation": "inference.occlusion",
    "export": "networks.export",
    "files": "machine.files",
    "froc": "evaluation.froc",
    "handlers": "training.handlers",
    "hits": "evaluation.match",
    "job_verbs": "cli.experiments",
    "jobs": "machine.jobs",
    "lesions": "phantom.lesions",
    "metaimage": "ct.metaimage",
    "placement": "phantom.nodules",
    "prediction": "inference.predict",
    "prepare": "store.prepare",
    "ranks": "training.distributed",
    "resampling": "evaluation.bootstrap",
    "results": "runs.results",
    "roc": "evaluation.roc",
    "ruler": "malignancy.scores",
    "scanner": "phantom.scanner",
    "scores": "training.metrics",
    "seeds": "training.seeds",
    "slices": "geometry.slices",
    "spacing": "store.resampling",
    "structured_report": "inference.structured_report",
    "synthesis": "phantom.scan",
    "tracking": "training.tracking",
    "transforms": "dataset.cutouts",
    "trees": "phantom.trees",
    "trials": "experiments.tune",
    "tune": "experiments.tune",
    "verbs": "cli.prediction",
    "workers": "machine.processes",
}
# and which of its names went elsewhere: all names, where a package is called now as the module was
NAMES = {
    "background": {
        "ct.lungs": "find_lungs",
        "phantom.estimates": "estimate_blur estimate_noise_growth split_noise",
    },
    "bundle": {
        "bundle.config": "running_config build_on change_config root settings check_settings explain_errors",
        "bundle.folders": "called_names is_packaged bundle_dir copy_bundle",
    },
    "candidates": {
        "tables.luna16": "find_table read_candidates read_annotations read_excluded read_series_uids read_series_list",
        "tables.text": "open_table",
        "tables.hits": "lies_on",
    },
    "checkpoint": {
        "training.start": "claim",
        "networks.weights": "read_weights load_initial_weights",
    },
    "console": {
        "bundle.folders": "require_trust",
    },
    "crossval": {
        "experiments.folds": "Plan audit_leakage",
        "bundle.command": "command",
    },
    "ct": {
        "ct.folders": "CTFile find_cts",
        "ct.opening": "CT open_ct read_geometry series_uid",
        "store.reader": "CTReader",
    },
    "cutouts": {
        "geometry.volume": "Volume",
        "store.preparation": "prepare_volume",
        "store.index": "read_index read_entry",
    },
    "datalist": {
        "tables.lidc": "read_patients",
        "dataset.splits": "split_by_stride split_by_subset set_aside refuse_leakage Kinds Split",
        "dataset.sampler": "RatioSampler",
        "dataset.cache": "SeededCacheDataset",
    },
    "download": {
        "setup.fetching": "Archive",
    },
    "evaluation": {
        "evaluation.submission": "Evaluation read_subsets evaluate compare",
        "evaluation.calibration": "calibrate",
    },
    "export": {
        "networks.backends": "WithProbabilities OpenVinoNetwork import_openvino",
    },
    "geometry": {
        "geometry.grid": "is_orthonormal Geometry",
    },
    "handlers": {
        "training.seeds": "EpochSeeds",
        "training.distributed": "SharedBuffers",
        "training.results": "ResultFiles BestEpoch History RunRecord",
    },
    "hits": {
        "tables.hits": "Marks Findings pairs_inside",
    },
    "inference": {
        "inference.writer": "PredictionWriter candidates_of",
        "networks.backends": "load_weights",
        "inference.classifier": "Classifier score_in_turn",
        "tables.points": "from_ras",
    },
    "jobs": {
        "machine.claims": "claim digests",
    },
    "malignancy": {
        "tables.lidc": "Readings read_readings write_readings lidc_readings readings_for shape_ratings",
        "malignancy.labels": "match_readings MalignancyKinds",
        "tables.hits": "nearest_nodule",
    },
    "metaimage": {
        "ct.checks": "check_file check_voxels inflate",
    },
    "networks": {
        "networks.nodule_net": "NoduleNet freeze",
        "networks.backends": "on_device share_batch_norm",
    },
    "phantom": {
        "phantom.data_set": "write_phantom plan_scans write_data_set",
        "ct.metaimage": "write_mhd",
    },
    "placement": {
        "phantom.mimics": "place_mimics",
    },
    "report": {
        "report.gallery": "Example choose_examples",
        "report.page": "write_report",
    },
    "review": {
        "review.session": "Review",
        "review.server": "ReviewServer",
    },
    "ruler": {
        "malignancy.size_baseline": "measure_nodules score_ruler require_scikit_learn",
    },
    "seeds": {
        "dataset.seeds": "derive",
    },
    "trials": {
        "experiments.search": "Search TunePlan",
    },
    "verbs": {
        "cli.data": "run_phantom run_download run_doctor run_prepare run_verify",
        "cli.scoring": "run_evaluate run_compare run_report",
        "cli.bundles": "run_export run_bundle",
        "cli.reviewing": "run_review",
    },
}

# what has another name too
RENAMED = {
    "console.data_folder": "cli.console.data_folders",
    "console.store_folder": "cli.console.store_folders",
    "decisions.candidate_key": "tables.points.point_key",
    "evaluation.Truth": "evaluation.submission.ReferenceStandard",
    "evaluation.read_truth": "evaluation.submission.read_reference",
    "evaluation.thresholds": "evaluation.calibration.operating_points",
    # renamed once more when there were packages; the oldest name comes last, which is that of before
    "evaluation.submission.validation_truth": "evaluation.submission.validation_reference",
    "evaluation.validation_truth": "evaluation.submission.validation_reference",
    "explanation.require_empty": "machine.claims.require_empty",
    "handlers.read_history": "runs.folder.RunFolder.read_history",
    "handlers.trained_series": "runs.folder.RunFolder.seen_series",
    "handlers.trained_beside": "runs.seen.read_seen",
    "inference.PreparedInMemory": "store.in_memory.InMemoryStore",
    "inference.read_calibration": "runs.folder.RunFolder.calibration",
    "malignancy.judge": "malignancy.labels.label_from_ratings",
    "prepare.Recipe": "store.preparation.Preparation",
    "ruler.MalignancyResults": "malignancy.scores.MalignancyScores",
    "ruler.read_rated_nodules": "runs.folder.RunFolder.read_rated_nodules",
    "synthesis.Findings": "phantom.scan.ScanFindings",
}

NEW = RENAMED | {
    f"{old}.{name}": f"{new}.{name}"
    for old, places in NAMES.items()
    for new, names in places.items()
    for name in names.split()
}
OLD = {new: old for old, new in NEW.items()}
OLD_MODULES = {new: old for old, new in reversed(MODULES.items())}
DOTTED = re.compile(rf"(?<![\w.]){PACKAGE}((?:\.[A-Za-z_]\w*)+)")


def new_name(name: str) -> str:
    """Return what a dotted name is called now; a name that has not moved as it is."""
    return _moved(name, NEW, MODULES, 1)


def old_name(name: str) -> str:
    """Return what a dotted name was called before; a name that there was none of as it is."""
    return _moved(name, OLD, OLD_MODULES, 2)


def renamed(value: Any) -> Any:
    """Return a config with the names of today in all of its texts."""
    return _each_name(value, new_name)


def as_before(value: Any) -> Any:
    """Return a config with the names of before in all of its texts."""
    return _each_name(value, old_name)


def refuse_moved(config: Any, place: str) -> None:
    """Check that a config names nothing as it was called before.

    Args:
        config: as written.
        place: where it stands.

    Raises:
        ValueError: names the first such name, and what it is called now.
    """
    found: list[str] = []

    def note(name: str) -> str:
        found.append(name)
        return name

    _each_name(config, note)
    for name in found:
        if (now := new_name(name)) != name:
            raise ValueError(f"{place}: {name} has moved: write {now}")


def recorded_network(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the settings in an older ``run.json`` say of the network, which had no entry of its own there.

    Returns:
        ``network_def``, the arguments of ``NoduleNet`` with the norms as they were trained, which ``model.pt`` of then
        still holds; ``shape_zyx`` and ``spacing_zyx``. Empty for another network.
    """
    written, shape_zyx = dict(settings.get("network_def") or {}), settings.get("shape_zyx")
    if new_name(str(written.pop("_target_", ""))) != f"{PACKAGE}.networks.nodule_net.NoduleNet":
        return {}
    if written.get("spatial_shape_zyx") != "@shape_zyx" or not isinstance(shape_zyx, list):
        return {}
    arguments = {key: value for key, value in written.items() if key != "return_probabilities"}
    arguments["spatial_shape_zyx"] = shape_zyx
    return {"network_def": arguments, "shape_zyx": shape_zyx, "spacing_zyx": settings.get("spacing_zyx")}


def spelled_out(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config whose expressions name in full what they know by a short name of its ``imports``.

    Two configs can then be compared that have the same thing under different short names.
    """
    short = {name: full for line in config.get("imports", []) for name, full in _imported(line).items()}
    # a name of an expression, not a part of another one, nor a reference, nor in quotes
    pattern = re.compile(rf"(?<![\w.@:#'\"])({'|'.join(map(re.escape, short)) or '(?!)'})(?=[.(])")

    def spelled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spelled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [spelled(inner) for inner in value]
        if isinstance(value, str) and value.startswith("$"):
            return pattern.sub(lambda found: short[found[1]], value)
        return value

    return {key: value if key == "imports" else spelled(value) for key, value in config.items()}


def _imported(line: str) -> dict[str, str]:
    """Return the short names that an entry of ``imports`` gives, and what they stand for."""
    try:
        (statement,) = ast.parse(line.removeprefix("$")).body
    except (SyntaxError, ValueError):
        return {}  # MONAI says what is wrong with it
    if isinstance(statement, ast.ImportFrom):
        return {one.asname or one.name: f"{statement.module}.{one.name}" for one in statement.names}
    if isinstance(statement, ast.Import):
        return {one.asname: one.name for one in statement.names if one.asname is not None}
    return {}


def _moved(name: str, names: Mapping[str, str], modules: Mapping[str, str], depth: int) -> str:
    """Return a dotted name by a table of names and one of modules, whose names have so many parts."""
    package, _, inner = name.partition(".")
    parts = inner.split(".")
    if package != PACKAGE:
        return name
    for length in range(len(parts), depth, -1):
        if (found := names.get(".".join(parts[:length]))) is not None:
            return ".".join([PACKAGE, found, *parts[length:]])
    found = modules.get(".".join(parts[:depth]))
    return name if found is None else ".".join([PACKAGE, found, *parts[depth:]])


def _each_name(value: Any, change: Callable[[str], str]) -> Any:
    """Return a config in whose texts each dotted name of the package is changed."""
    if isinstance(value, dict):
        return {key: _each_name(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_each_name(inner, change) for inner in value]
    return DOTTED.sub(lambda found: change(found[0]), value) if isinstance(value, str) else value
