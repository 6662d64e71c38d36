"""Lay the bundles out as they must lie in a repository on Hugging Face, from which MONAI downloads them.

    python tools/publish.py --output dist/hub

writes one folder for each bundle: the bundle as it is, a ``README.md`` with the front matter that the hub reads, and
the weights as safetensors beside ``model.pt``. Nothing is uploaded; docs/publish.md has the commands that do.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from safetensors.torch import save_file

from luna16_monai.bundle.folders import BUNDLES, bundle_dir, copy_bundle, is_packaged
from luna16_monai.machine.files import atomic_write
from luna16_monai.networks.weights import read_state

TAGS = ["monai", "medical", "ct", "lung-nodule", "luna16"]
DATA = "synthetic CTs, held out"
"""No score of a shipped network was measured on LUNA16: the front matter must not look as if."""


@dataclass(frozen=True)
class Score:
    """A score of ``models/metrics.json`` that the front matter names: its id on the hub, its name, and its keys."""

    id: str
    name: str
    keys: tuple[str, ...]


SCORES = {
    "nodule_classification": (
        Score("roc_auc", "ROC AUC, nodule against other candidates", ("roc_auc",)),
        Score("cpm", "CPM by LUNA16's rules", ("cpm",)),
    ),
    "malignancy_classification": (
        Score(
            "roc_auc",
            "ROC AUC, malignant against benign nodules",
            ("malignancy", "compared", "network", "roc_auc"),
        ),
    ),
    "nodule_detection": (Score("cpm", "CPM by LUNA16's rules", ("cpm",)),),
}
TASKS = {
    "nodule_classification": "image-classification",
    "malignancy_classification": "image-classification",
    "nodule_detection": "object-detection",
}


def results(bundle: Path) -> list[EvalResult]:
    """Return the scores that the front matter names; none of a bundle from elsewhere, whose data nobody knows here."""
    if not is_packaged(bundle):
        return []
    metrics = json.loads((bundle / "models" / "metrics.json").read_text(encoding="utf-8"))
    found = []
    for score in SCORES[bundle.name]:
        value: Any = metrics
        for key in score.keys:
            value = value[key]
        found.append(
            EvalResult(
                task_type=TASKS[bundle.name],
                dataset_type="synthetic",
                dataset_name=DATA,
                metric_type=score.id,
                metric_name=score.name,
                metric_value=round(value, 3),
            )
        )
    return found


def front_matter(bundle: Path) -> str:
    """Return the block between the two lines ``---`` at the top of the hub's README."""
    scores = results(bundle)
    card = ModelCardData(
        library_name="monai",
        license="apache-2.0",
        tags=TAGS,
        metrics=[score.metric_type for score in scores] or None,
        pipeline_tag=TASKS.get(bundle.name),
        model_name=bundle.name if scores else None,
        eval_results=scores or None,
    )
    return f"---\n{card.to_yaml()}\n---\n"


def readme(bundle: Path, owner: str) -> str:
    """Return the text of the hub's README: front matter, how it is fetched and run, the bundle's own README."""
    name, metadata = bundle.name, json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    versions = {"luna16_monai": metadata["required_packages_version"]["luna16_monai"]}
    versions |= {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"]}
    needed = ", ".join(f"{package} {version}" for package, version in versions.items())
    own = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    own = own.replace("`data_license.txt`", "`docs/data_license.txt`")
    return f"""{front_matter(bundle)}
**For research, not for clinical use.** What the weights were trained on, and what they are worth: `models/README.md`.

Tested with {needed}; the rest stands in `configs/metadata.json`. The configs call the package `luna16_monai`,
which has to be installed.

    python -m monai.bundle download --name {name} --source huggingface_hub --repo {owner}/{name} --bundle_dir .
    cd {name}
    python -m monai.bundle run --config_file configs/inference.yaml --dataset_dir DATA --output_file found.csv

`DATA` has LUNA16's layout. `models/model.safetensors` has the tensors of `models/model.pt`.

{own}"""


def lay_out(bundle: Path, output: Path, owner: str) -> Path:
    """Write a bundle's repository to a new folder; return that folder.

    Raises:
        FileExistsError: the folder is there and not empty.
    """
    copy_bundle(bundle, output)
    # the convolutions' may lie channels last in memory, which safetensors does not keep
    weights = {key: tensor.contiguous() for key, tensor in read_state(output / "models" / "model.pt").items()}
    save_file(weights, output / "models" / "model.safetensors", {"format": "pt"})
    with atomic_write(output / "README.md") as stream:
        stream.write(readme(bundle, owner).encode())
    return output


def main() -> None:
    """Lay out one bundle, or all that come with the package."""
    parser = argparse.ArgumentParser(description="lay bundles out as repositories of Hugging Face")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="one of your own; default: all of the package")
    parser.add_argument("--owner", default="OWNER", help="the name on the hub, for the README")
    options = parser.parse_args()
    for bundle in [options.bundle.resolve()] if options.bundle else map(bundle_dir, BUNDLES):
        folder = lay_out(bundle, options.output / bundle.name, options.owner)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"publish: {folder}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
