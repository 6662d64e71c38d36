"""Draw a data list of MONAI's over a CT, as MONAI's own transforms place its boxes: for docs/other-programs.md.

    luna16 convert --input data/phantom/annotations.csv --output boxes.json --to monai
    python tools/boxes_picture.py boxes.json data/phantom docs/images/boxes.png

The CT is loaded as the package loads it, the boxes by ``ConvertBoxToStandardModed`` and ``AffineBoxToImageCoordinated``
with ``affine_lps_to_ras=True``. Needs the extra `report`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Rectangle
from monai.apps.detection.transforms.dictionary import AffineBoxToImageCoordinated, ConvertBoxToStandardModed
from monai.transforms import Compose, LoadImaged

from luna16_monai.ct.folders import find_cts
from luna16_monai.geometry.slices import LUNG_WINDOW_HU
from luna16_monai.store.reader import CTReader

SHOWN = 3


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a data list of MONAI's over its CTs.")
    parser.add_argument("data_list", type=Path)
    parser.add_argument("data", type=Path, help="the folder of the CTs")
    parser.add_argument("output", type=Path, help="the .png file to write")
    arguments = parser.parse_args()
    cts = {ct.series_uid: ct.path for ct in find_cts(arguments.data)}
    entries = json.loads(arguments.data_list.read_text("utf-8"))["validation"]
    load = Compose(
        [
            LoadImaged("image", reader=CTReader, ensure_channel_first=True),
            ConvertBoxToStandardModed(box_keys=["box"], mode="cccwhd"),
            AffineBoxToImageCoordinated(box_keys=["box"], box_ref_image_keys="image", affine_lps_to_ras=True),
        ]
    )
    _, axes = plt.subplots(1, SHOWN, figsize=(4 * SHOWN, 4.4))
    largest = sorted(entries, key=lambda entry: -max(box[3] for box in entry["box"]))[:SHOWN]
    for axis, entry in zip(axes, largest, strict=True):
        path = cts[entry["image"].removesuffix(".nii.gz")]
        loaded: Any = load({"image": str(path), "box": torch.tensor(entry["box"], dtype=torch.float64)})
        widest = int((loaded["box"][:, 3] - loaded["box"][:, 0]).argmax())
        x, y, z, x_end, y_end, z_end = loaded["box"][widest].tolist()
        middle = np.clip(round((z + z_end) / 2), 0, loaded["image"].shape[3] - 1)
        axis.imshow(loaded["image"][0, :, :, middle].T, cmap="gray", vmin=LUNG_WINDOW_HU[0], vmax=LUNG_WINDOW_HU[1])
        axis.add_patch(Rectangle((x, y), x_end - x, y_end - y, fill=False, edgecolor="orange", linewidth=1.5))
        axis.set_title(f"{entry['box'][widest][3]:.1f} mm", fontsize=10)
        axis.axis("off")
    plt.tight_layout()
    plt.savefig(arguments.output, dpi=60)


if __name__ == "__main__":
    main()
