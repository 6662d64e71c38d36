"""The paragraph "Methods" of the report: what a run did, in sentences that can be quoted.

Only what the run recorded is said. The optimiser, the schedule and the augmentation stand in the config, not in
``run.json``; the paragraph refers to it, since a run may have changed them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luna16_monai.runs.folder import Metrics, RunRecord

SCORE_NAMES = {"cpm": "CPM", "roc_auc": "ROC AUC", "roc_auc_nodules": "ROC AUC over nodules"}
HELD_OUT = ("validation_subset", "validation_stride", "test_subset")
PACKAGES = {"torch": "PyTorch", "monai": "MONAI", "pytorch-ignite": "Ignite", "python": "Python"}


def methods(record: RunRecord | None, metrics: Metrics) -> dict[str, str]:
    """Return a text for each part of the paragraph, by its heading; parts that nothing is known of are left out.

    Args:
        record: of the run; None for a submission that was scored alone.
        metrics: its scores.
    """
    parts = {"Scoring": _scoring(metrics)}
    if record is not None:
        parts = {
            "Data": _data(record, metrics),
            "Split": _split(record, metrics),
            "Network": _network(record),
            "Training": _training(record, metrics),
            **parts,
            "Versions": _versions(record),
        }
    return {heading: text for heading, text in parts.items() if text}


def _data(record: RunRecord, metrics: Metrics) -> str:
    kind = "synthetic CTs" if record.data.kind == "synthetic" else "CTs"
    positives = "malignant nodules" if "malignancy" in metrics else "nodules"
    counts = [
        f"{sizes['series']:,} for {'training' if part == 'train' else part} ({sizes['candidates']:,} candidates, "
        f"{sizes['positives']:,} of them {positives})"
        for part, sizes in record.data.sizes.items()
    ]
    which = f": {_listed(counts)}" if counts else ""
    return f"The data set {record.data.name} of {kind} was used{which}.{_grid(record.settings)}"


def _grid(settings: Mapping[str, Any]) -> str:
    """Return a sentence about the grid and the cutouts, led by a space; nothing where the run did not record them."""
    if "spacing_zyx" not in settings or not settings.get("shape_zyx"):
        return ""
    spacing = settings["spacing_zyx"]
    grid = f"were resampled to {_by(spacing)} mm (z, y, x)" if spacing else "were kept at their own spacing"
    return f" CTs {grid}; the network was trained on boxes of {_by(settings['shape_zyx'])} voxels (z, y, x)."


def _split(record: RunRecord, metrics: Metrics) -> str:
    settings = record.settings
    if "pooled_folds" in metrics:
        folds = metrics["pooled_folds"]
        return (
            f"Cross-validation over {len(folds)} of LUNA16's ten official subsets: each was scored by a network that "
            "was trained on the others, and all were scored together."
        )
    subset, stride, test = map(settings.get, HELD_OUT)
    if subset is not None:
        text = f"LUNA16's official subset {subset} was held out for validation."
        text += " All scans of its patients were held out with it." if settings.get("join_patients") else ""
    elif stride is not None:
        text = f"Every {_ordinal(stride)} series, in sorted order, and all of its patient were held out for validation."
    else:
        return ""
    if test is not None:
        text += f" LUNA16's official subset {test}, with all scans of its patients, was set aside for a test."
    if (kept := settings.get("validation_negatives")) is not None:
        text += f" Of the candidates without a nodule, validation took a fixed sample of {kept:,}."
    before = len(record.seen_series) - len(record.data.train_series or ())
    if before > 0:
        text += f" The weights that training started from had seen {before:,} series more."
    return text


def _network(record: RunRecord) -> str:
    written = record.settings.get("network_def") or {}
    name = str(written.get("_target_", "")).rpartition(".")[2]
    if not name:
        return ""
    about = record.network_def or written
    channels = about.get("channels")
    text = f"{name} with {record.parameters:,} parameters"
    text += f" and {_listed(list(map(str, channels)))} channels" if isinstance(channels, list | tuple) else ""
    if record.network_def is not None:
        norm, dropout = about.get("norm"), about.get("dropout")
        text += f", {'batch normalisation' if norm == 'BATCH' else 'normalised by ' + str(norm) if norm else 'no norm'}"
        text += f", dropout {dropout:g}" if dropout else ", no dropout"
        text += ", the middle of the box and the whole at half the resolution as two inputs" * bool(
            about.get("two_scales")
        )
    return text + "."


def _training(record: RunRecord, metrics: Metrics) -> str:
    settings = record.settings
    if "max_epochs" not in settings or "samples_per_epoch" not in settings:
        return ""
    text = f"Up to {settings['max_epochs']} epochs of {settings['samples_per_epoch']:,} samples"
    if ratio := settings.get("ratio"):
        text += f", drawn in the ratio {':'.join(map(str, ratio))}"
    given = {"batches of {}": "batch_size", "a learning rate of {:g}": "learning_rate"}
    given |= {"a weight decay of {:g}": "weight_decay", "seed {}": "seed"}
    told = [form.format(settings[key]) for form, key in given.items() if settings.get(key) is not None]
    text += f", with {_listed(told)}" if told else ""
    start = settings.get("init_weights")
    text += f", from the weights {start}" if start else ", from random weights"
    text += ". Optimiser, schedule and augmentation are those of the run's config."
    if "epoch" in metrics and "key_metric" in metrics:
        text += (
            f" The weights of epoch {metrics.epoch} were kept, the best by the {_score(metrics.key_metric)} on the "
            "validation scans"
        )
        text += ", on which the scores are reported too." if "chosen_on" in metrics else "."
    return text


def _scoring(metrics: Metrics) -> str:
    parts: list[str] = []
    if metrics.get("cpm") is not None:
        nodules = f" with {metrics['nodules']:,} nodules" if "nodules" in metrics else ""
        text = (
            f"{metrics['scans']:,} scans{nodules} were scored by LUNA16's rules: a candidate within the radius of a "
            "nodule hits it, further hits count neither way, candidates on excluded findings are left out, and the CPM "
            "is the mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives a scan."
        )
        if "excluded_findings" in metrics and metrics["excluded_findings"] is None:
            text = text.replace(", candidates on excluded findings are left out,", ", no findings were excluded,")
        parts.append(text)
        if metrics.get("cpm_ci95"):
            parts.append("Intervals are 95 % percentile intervals of a bootstrap over scans.")
    elif "malignancy" in metrics:
        rule = metrics["malignancy"].get("rule")
        parts.append(
            f"Nodules were called malignant by their readers' ratings{f' (rule: {rule})' if rule else ''}, and the "
            "network was compared with the diameter alone on the same nodules."
        )
    calibration = metrics.get("calibration") or {}
    if "fitted_on" in calibration:
        parts.append(f"Probabilities were calibrated by Platt scaling, fitted on {calibration['fitted_on']}.")
    elif "cross_fitted_folds" in calibration:
        folds = calibration["cross_fitted_folds"]
        parts.append(f"Probabilities were calibrated by Platt scaling, cross-fitted by scan in {folds} folds.")
    return " ".join(parts)


def _versions(record: RunRecord) -> str:
    own = record.versions.get("luna16_monai")
    others = [f"{name} {record.versions[key]}" for key, name in PACKAGES.items() if key in record.versions]
    names = [*([f"luna16_monai {own}"] if own else []), *others]
    if not names:
        return ""
    many = [_count(record.threads, "thread"), *([_count(record.processes, "process")] if record.processes > 1 else [])]
    device = record.device if record.device != "cpu" else "CPU"
    return f"{_listed(names)}, on {device} with {_listed(many)}."


def _score(name: str) -> str:
    return SCORE_NAMES.get(name, name.replace("_", " "))


def _by(sides: Sequence[float]) -> str:
    return " x ".join(f"{side:g}" for side in sides)


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}{'es' if name.endswith('s') else 's'}"


def _listed(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
