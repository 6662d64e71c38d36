"""MLflow: what ``--tracking mlflow`` writes, and where.

MONAI adds its handlers to a bundle's own. Here they get what they lack for this bundle: the settings as parameters,
training and validation under names of their own, the result files as artifacts, a run's name by which a training that
goes on finds it again. MLflow's reports of its use are switched off.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from monai.bundle.utils import DEFAULT_HANDLERS_ID
from monai.handlers import MLFlowHandler
from monai.utils import path_to_sqlite_uri

from luna16_monai.bundle.config import TRACKING, change_config, root, value_of
from luna16_monai.machine.extras import require
from luna16_monai.runs.folder import RunFolder

TARGET = "MLFlowHandler"
SETTINGS_IMPORT = "$import luna16_monai.bundle.config as bundle"
# a training's engines, and the evaluator of evaluate.yaml
PREFIXES = {"trainer": "train", "validator": "validation", "evaluator": "evaluation"}


class Tracking(MLFlowHandler):
    """MONAI's handler, which logs the scores of each engine under a name of its own.

    Args:
        prefix: of the names of the scores.
        output_dir: of the run; its `RunFolder.artifacts` are sent at the end.
        more: see MONAI's handler.
    """

    def __init__(self, prefix: str, output_dir: str, **more: Any) -> None:
        disable_telemetry()
        self.prefix = prefix
        super().__init__(artifacts=list(RunFolder(output_dir).artifacts), **more)

    def _default_epoch_log(self, engine: Engine) -> None:
        scores = {f"{self.prefix}_{name}": value for name, value in engine.state.metrics.items()}
        known = {name: value for name, value in scores.items() if math.isfinite(value)}
        if known:
            self._log_metrics(known, step=self.global_epoch_transform(engine.state.epoch))

    def _log_params(self, params: dict[str, Any]) -> None:
        # MLflow takes a parameter once; a training that goes on says resume: true, which it did not before
        fresh = dict(params)
        self._delete_exist_param_in_dict(fresh)
        super()._log_params(fresh)


def adapt() -> None:
    """Complete what ``--tracking mlflow`` added to the running config. To be called in ``initialize``.

    Where the run is written to, and under which names, is decided here unless the config says it: `default_store`, an
    experiment that is called as the bundle's folder, `run_name`.

    Raises:
        ModuleNotFoundError: MLflow is not installed.
        RuntimeError: it is called outside a config.
    """

    def change(config: dict[str, Any]) -> bool:
        if not _adapted(config):
            return False
        defaults = {
            "tracking_uri": default_store,
            "experiment_name": lambda: Path(root()).name,
            "run_name": lambda: run_name(value_of("output_dir")),
        }
        for key, default in defaults.items():
            if config.get(key) == TRACKING[key]:
                config[key] = default()
        # the handlers log the settings by this name
        config["imports"] = list(dict.fromkeys([*config.get("imports", []), SETTINGS_IMPORT]))
        return True

    change_config(change)


def _adapted(config: dict[str, Any]) -> bool:
    """Complete the handlers in place; gives whether there are any."""
    found = False
    for engine, prefix in PREFIXES.items():
        handlers: Any = config
        for key in DEFAULT_HANDLERS_ID[engine]["handlers"].split("#"):
            handlers = handlers.get(key, {}) if isinstance(handlers, dict) else {}
        for handler in handlers or ():
            if not isinstance(handler, dict) or handler.get("_target_") != TARGET:
                continue
            require("mlflow", "--tracking mlflow", "mlflow")
            found = True
            handler |= {"_target_": f"{__name__}.Tracking", "prefix": prefix, "output_dir": "@output_dir"}
            handler.pop("artifacts", None)
            if prefix != "validation":
                handler["experiment_param"] = "$bundle.settings()"
            if prefix == "train":
                handler["output_transform"] = "$lambda output: {'train_loss_of_batch': output['loss'].item()}"
    return found


def default_store() -> str:
    """The address of the SQLite file below ``LUNA16_RUNS`` that all runs share; ``MLFLOW_TRACKING_URI`` wins."""
    folder = Path(os.environ.get("LUNA16_RUNS", "runs")).absolute()
    if "MLFLOW_TRACKING_URI" not in os.environ:
        folder.mkdir(parents=True, exist_ok=True)
    return path_to_sqlite_uri(str(folder / "mlruns.db"))


def run_name(output_dir: str) -> str:
    """A run's name: that of its folder, and a few letters that tell it from others without telling where it lies."""
    folder = Path(output_dir).absolute()
    place = hashlib.sha256(f"{platform.node()}:{folder}".encode()).hexdigest()[:8]
    return f"{folder.parent.name}/{folder.name} {place}"


def disable_telemetry() -> None:
    """Let MLflow tell nobody of its use, also where it is imported already, as MONAI does."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow.telemetry import set_telemetry_client

    set_telemetry_client()
