"""A MONAI reader for CTs, so that ``LoadImaged`` opens every format that this package reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple
from numpy.typing import NDArray

from luna16_monai.ct.opening import CT, ct_suffix, open_ct

# LoadImage makes a text of whatever it is given, so an opened CT reaches its reader beside it
_OPENED: ContextVar[CT | None] = ContextVar("opened", default=None)
_AS_VIEW: ContextVar[bool] = ContextVar("as_view", default=False)


@contextmanager
def already_open(ct: CT, as_view: bool = False) -> Iterator[None]:
    """Let each `CTReader` that is given this CT's path take the CT itself, instead of opening it again.

    Args:
        ct: the opened CT.
        as_view: give the voxels in (x, y, z) without a copy, for who takes little of them.
    """
    tokens = _OPENED.set(ct), _AS_VIEW.set(as_view)
    try:
        yield
    finally:
        _OPENED.reset(tokens[0])
        _AS_VIEW.reset(tokens[1])


class CTReader(ImageReader):
    """MONAI reader of one CT: `LoadImaged(keys="image", reader=CTReader)`.

    As MONAI's ITKReader, it gives the array in (x, y, z) with an affine to RAS; other than ITKReader, it refuses what
    can't be trusted (see `open_ct`), and puts nothing of the file's header into the metadata but its geometry. A CT
    that is `already_open` is not opened again.

    Args:
        data_dir: the folder that symbolic links must not leave; default: the one that holds the files.
        allow_symlinks: whether they may leave it.
    """

    def __init__(self, data_dir: str | Path | None = None, allow_symlinks: bool = False) -> None:
        super().__init__()
        self.data_dir = None if data_dir is None else Path(data_dir)
        self.allow_symlinks = allow_symlinks

    def verify_suffix(self, filename: Any) -> bool:
        """Tell whether every path is a folder or ends as a CT does."""
        return all(Path(name).is_dir() or bool(ct_suffix(Path(name))) for name in ensure_tuple(filename))

    def read(self, data: Any, **kwargs: Any) -> list[Path]:
        """Return the paths; all that can fail happens in `get_data`.

        LoadImage tries its next reader when `read` raises, so MONAI's NibabelReader would load the very NIfTI file
        that was refused here.
        """
        return [Path(name) for name in ensure_tuple(data)]

    def get_data(self, img: Sequence[Path]) -> tuple[NDArray[Any], dict[str, Any]]:
        """Read the one CT: its HU in (x, y, z), and the metadata of MONAI's readers.

        Raises:
            FileNotFoundError, ValueError: as `open_ct` and `CT.read`, or more than one path.
        """
        if len(img) != 1:
            raise ValueError(f"{len(img)} paths for one CT: give one file, or one folder of DICOM files")
        opened = _OPENED.get()
        if opened is not None and opened.path == img[0]:
            ct = opened
        else:
            ct = open_ct(img[0], self.data_dir, self.allow_symlinks)
        # of an array MONAI makes a contiguous copy, of a tensor it does not
        voxels: Any = torch.from_numpy(ct.read()).permute(2, 1, 0) if _AS_VIEW.get() else _transposed(ct.read())
        affine = ct.geometry.ras_affine_xyz()
        return voxels, {
            "spacing": np.array(ct.geometry.spacing_zyx[::-1]),
            MetaKeys.ORIGINAL_AFFINE: affine,
            MetaKeys.AFFINE: affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.array(voxels.shape),
            # MONAI's code for "no_channel".
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
        }


def _transposed(voxels_zyx: NDArray[Any]) -> NDArray[Any]:
    """Return the voxels in (x, y, z), contiguous as MONAI would make them, but plane by plane: three times as fast."""
    voxels = np.empty(voxels_zyx.shape[::-1], voxels_zyx.dtype)
    for y in range(voxels.shape[1]):
        voxels[:, y] = voxels_zyx[:, y].T
    return voxels
