"""How a CT becomes a volume of the store: the bundle's transform list, and the volume it gives."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from monai.bundle import ConfigParser
from monai.data import get_track_meta, set_track_meta

from luna16_monai.bundle.moved import as_before, refuse_moved
from luna16_monai.ct.opening import CT, open_ct
from luna16_monai.geometry.grid import Geometry
from luna16_monai.geometry.volume import Volume
from luna16_monai.machine.errors import one_line, root_cause
from luna16_monai.store.reader import already_open
from luna16_monai.store.resampling import as_int16, holding_back

# each LoadImaged logs that it does without a reader for GPUs, though none asks for it
_GPU_READER = "NvImgCodec"
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Preparation:
    """How CTs become volumes: the transform list of a bundle's ``prepare.yaml``, as read, not yet built.

    Attributes:
        config: the file's content, with ``spacing_zyx`` and ``transforms``.
    """

    config: dict[str, Any]

    @classmethod
    def read(cls, path: Path, spacing_zyx: Sequence[float] | str | None = "file") -> Preparation:
        """Read a recipe; ``spacing_zyx`` replaces the file's unless it is "file".

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no YAML or lacks a key, or the spacing is not three numbers above 0.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no transform list {path}: name a bundle's prepare.yaml")
        example = "see the nodule bundle's configs/prepare.yaml"
        try:
            config = ConfigParser.load_config_file(str(path))
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({one_line(error)}): {example}") from error
        for key in ("spacing_zyx", "transforms"):
            if not isinstance(config, dict) or key not in config:
                raise ValueError(f"{path} has no {key}: {example}")
        refuse_moved(config, str(path))
        spacing = config["spacing_zyx"] if spacing_zyx == "file" else spacing_zyx
        return cls({**config, "spacing_zyx": None if spacing is None else _checked_spacing(spacing)})

    @property
    def spacing_zyx(self) -> list[float] | None:
        """The grid's spacing in mm, None for each CT's own."""
        return self.config["spacing_zyx"]

    @property
    def hash(self) -> str:
        """Changes when anything in the transform list does.

        By the names that the package's transforms had first, so that a store stays good when they move.
        """
        return hashlib.sha256(json.dumps(as_before(self.config), sort_keys=True).encode()).hexdigest()

    def build(
        self, data_dir: Path | None = None, allow_symlinks: bool = False
    ) -> Callable[[dict[str, Any]], Mapping[str, Any]]:
        """Return the transforms, as MONAI's config parser builds them.

        Args:
            data_dir: what the list may refer to as ``@data_dir``, for the reader: links must not leave it.
            allow_symlinks: what it may refer to as ``@allow_symlinks``: unless this is true.

        Raises:
            ValueError: they cannot be built.
        """
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", _GPU_READER)
                # a Path, not a text, in which MONAI would read # as ::
                parser = ConfigParser({**self.config, "data_dir": data_dir, "allow_symlinks": allow_symlinks})
                return parser.get_parsed_content("transforms")
        except Exception as error:  # whatever a transform's constructor raises
            raise ValueError(f"the transform list cannot be built ({one_line(error)}): mend it") from error


def _checked_spacing(spacing_zyx: Any) -> list[float]:
    try:
        z, y, x = map(float, spacing_zyx)
    except (TypeError, ValueError):
        z = y = x = 0.0
    if not all(0 < side < math.inf for side in (z, y, x)):
        raise ValueError(f"spacing_zyx {spacing_zyx}: give three numbers of millimetres above 0, or null for native")
    return [z, y, x]


def prepare_volume(
    ct: CT | Path,
    transform: Callable[[dict[str, Any]], Mapping[str, Any]],
    hold_back: bool = False,
) -> Volume:
    """Read one CT and send it through MONAI transforms.

    Args:
        ct: an opened CT, which `reader.CTReader` then does not open again; or the path of one.
        transform: takes {"image": path}, gives a MetaTensor (1, x, y, z) in HU under "image".
        hold_back: resample no more than the boxes that are taken out of the volume, when they are taken.

    Returns:
        The volume in memory, (z, y, x) int16.

    Raises:
        FileNotFoundError: a file of the CT is gone.
        ValueError: the transforms do not give a single-channel volume with an affine.
    """
    opened = ct if isinstance(ct, CT) else open_ct(ct)
    # the transforms need the affine, which training and scoring do without: they switch its tracking off
    tracked = get_track_meta()
    set_track_meta(True)
    try:
        with already_open(opened, hold_back), holding_back() if hold_back else nullcontext() as held:
            image = transform({"image": str(opened.path)})["image"]
    except RuntimeError as error:
        # MONAI wraps whatever a transform raises; a file that is gone is no fault of the transform
        if isinstance(cause := root_cause(error), FileNotFoundError):
            raise cause from None
        raise
    finally:
        set_track_meta(tracked)
    if image.ndim != 4 or image.shape[0] != 1 or not hasattr(image, "affine"):
        raise ValueError(
            f"the transforms give {type(image).__name__} of shape {tuple(image.shape)} for {opened.name}: "
            "a MetaTensor (1, x, y, z) was expected; keep LoadImaged with ensure_channel_first in the list"
        )
    geometry = Geometry.from_ras_affine(np.asarray(image.affine), image.shape[1:])
    if held is not None and held.stand_in is not None:
        if held.stands_for(image.as_tensor()):
            return Volume(held, geometry, opened.geometry)
        # the list goes on after the resampling: what comes then needs the voxels
        return prepare_volume(opened, transform)
    return Volume(as_int16(image.as_tensor()), geometry, opened.geometry)
