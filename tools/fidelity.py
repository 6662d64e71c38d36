"""Measure how far the phantom is from a real CT and from LUNA16's tables: a table, and a figure.

    python tools/fidelity.py --phantom data/phantom --ct CT --tables LUNA16 --output fidelity.png

CT is a CT file or a folder of DICOM files; LUNA16 a folder with annotations.csv. Measured are the HU in the lung, the
spectrum of the noise in soft tissue, the radii of what is bright in the lung, and the nodules' diameters. One CT is
one scanner, one kernel and one patient: the distances say where the phantom is off, not by how much in general.
Needs the extra `report`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from luna16_monai.ct.folders import find_cts
from luna16_monai.ct.lungs import find_lungs
from luna16_monai.ct.opening import open_ct
from luna16_monai.tables.luna16 import read_annotations

Floats = NDArray[np.floating]

HU_EDGES = np.arange(-1100, 405, 5)
BANDS_HU = (-1100, -950, -900, -850, -700, -400, 0, 400)
DEPTH_MM = 3.0
"""Nearer to the lung's outline, the wall's blur counts more than the lung."""
VESSEL_HU = -500
RADIUS_STEP_MM = 0.35
PATCH_MM = 16.0
FREQUENCY_EDGES = np.arange(0.025, 0.9, 0.05)
FREQUENCIES = (FREQUENCY_EDGES[1:] + FREQUENCY_EDGES[:-1]) / 2
QUANTILES = (0.25, 0.5, 0.75, 0.9, 0.99)


@dataclass(frozen=True)
class Look:
    """What is measured in one scan.

    Attributes:
        histogram: voxels of the lung between `HU_EDGES`.
        bright: share of them above `VESSEL_HU`.
        radii_mm: of bright sections in the lung, (n,).
        noise_hu: standard deviation in soft tissue; NaN where there is no homogeneous patch.
        spectrum: noise power at `FREQUENCIES`, HU² mm²; NaN beyond the voxels' limit.
    """

    histogram: NDArray[np.integer]
    bright: float
    radii_mm: Floats
    noise_hu: float
    spectrum: Floats


def measure(path: Path, half_chest: bool = False) -> Look:
    """Measure one CT, a file or a folder of DICOM files; half a chest, as the phantom's, ends at the volume's faces."""
    ct = open_ct(path)
    hu, spacing = ct.read(), np.array(ct.geometry.spacing_zyx)
    inside = deep_lung(hu, spacing, half_chest)
    if not inside.any():
        raise ValueError(f"no lung is found in {ct.name}: give a chest CT in HU")
    spectrum, noise = noise_spectrum(hu, spacing)
    return Look(
        np.histogram(np.clip(hu[inside], -1100, 399), HU_EDGES)[0],
        float((hu[inside] > VESSEL_HU).mean()),
        bright_radii(hu, inside, spacing),
        noise,
        spectrum,
    )


def deep_lung(hu: NDArray[np.integer], spacing_zyx: Floats, half_chest: bool) -> NDArray[np.bool_]:
    """Where the lung lies deeper than `DEPTH_MM`, (z, y, x); found on pairs of rows and columns."""
    rows, columns = (n // 2 * 2 for n in hu.shape[1:])
    pairs = hu[:, :rows, :columns].reshape(-1, rows // 2, 2, columns // 2, 2).mean((2, 4), dtype=np.float32)
    if half_chest:  # else a lung that reaches the face, or the padding there, would count as air outside
        pairs = np.pad(np.where(pairs < -1500, 0, pairs), ((0, 0), (1, 1), (1, 1)))
    step = spacing_zyx * [1, 2, 2]
    depth = ndimage.distance_transform_edt(np.pad(find_lungs(pairs, step), ((0, 0), (1, 1), (1, 1))), sampling=step)
    trim = 2 if half_chest else 1
    deep = depth[:, trim:-trim, trim:-trim] > DEPTH_MM
    inside = np.zeros(hu.shape, bool)
    inside[:, :rows, :columns] = deep.repeat(2, 1).repeat(2, 2)
    return inside


def bright_radii(hu: NDArray[np.integer], inside: NDArray[np.bool_], spacing_zyx: Floats) -> Floats:
    """Radii (mm) of the largest discs in what is brighter than `VESSEL_HU`, slice by slice, on a fine grid."""
    radii = [np.empty(0)]
    zoom = spacing_zyx[1:] / RADIUS_STEP_MM
    for section, mask in zip(hu, inside, strict=True):
        if not mask.any():
            continue
        smooth = ndimage.gaussian_filter(section.astype(np.float32), 0.5 / spacing_zyx[1:])
        fine = ndimage.zoom(smooth, zoom, order=1, grid_mode=True, mode="nearest")
        within = ndimage.zoom(mask.astype(np.uint8), zoom, order=0, grid_mode=True, mode="nearest") > 0
        bright = (fine > VESSEL_HU) & within
        depth = ndimage.distance_transform_edt(bright)
        peaks = (depth > 0) & (depth == ndimage.maximum_filter(depth, 5))
        parts, count = ndimage.label(peaks, np.ones((3, 3)))  # a plateau is one disc
        radii.append((ndimage.maximum(depth, parts, range(1, count + 1)) - 0.5) * RADIUS_STEP_MM)
    return np.concatenate(radii)


def noise_spectrum(hu: NDArray[np.integer], spacing_zyx: Floats) -> tuple[Floats, float]:
    """The noise power spectrum (HU² mm²) at `FREQUENCIES` in the slices' plane, and the noise's deviation (HU).

    From patches of soft tissue that are even but for noise in two neighbouring slices: their difference over the root
    of 2, in which what is drawn there or lies there mostly vanishes.
    """
    step = float(spacing_zyx[2])
    side = round(PATCH_MM / step)
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), (0, 1.5 / step, 1.5 / step))
    patches = []
    for lower in range(len(hu) - 1):
        difference = (hu[lower + 1].astype(np.float32) - hu[lower]) / np.sqrt(2)
        for y in range(0, hu.shape[1] - side + 1, side):
            for x in range(0, hu.shape[2] - side + 1, side):
                around = smooth[lower : lower + 2, y : y + side, x : x + side]
                if around.min() > -20 and around.max() < 250 and np.ptp(around) < 80:
                    patches.append(difference[y : y + side, x : x + side])
    if not patches:
        return np.full(len(FREQUENCIES), np.nan), float("nan")
    noise = np.array(patches) - np.mean(patches, (1, 2), keepdims=True)
    power = np.abs(np.fft.fft2(noise)) ** 2
    plane = power.mean(0).ravel() * step**2 / side**2
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(side, step)] * 2)).ravel()
    ring = np.digitize(frequency, FREQUENCY_EDGES) - 1
    counted = (ring >= 0) & (ring < len(FREQUENCIES)) & (frequency <= 0.5 / step)
    total = np.bincount(ring[counted], plane[counted], len(FREQUENCIES))
    count = np.bincount(ring[counted], minlength=len(FREQUENCIES))
    return np.where(count, total / np.maximum(count, 1), np.nan), float(noise.std())


def peak_and_half(spectrum: Floats) -> tuple[float, float]:
    """Where a spectrum is highest, and where above that it falls to half, 1/mm; NaN where it does not."""
    peak = int(np.nanargmax(spectrum))
    below = np.flatnonzero(spectrum[peak:] < spectrum[peak] / 2)
    if not below.size:
        return float(FREQUENCIES[peak]), float("nan")
    after = peak + int(below[0])
    high, low = spectrum[after - 1], spectrum[after]
    share = (high - spectrum[peak] / 2) / (high - low)
    return float(FREQUENCIES[peak]), float(
        FREQUENCIES[after - 1] + share * (FREQUENCIES[after] - FREQUENCIES[after - 1])
    )


def wasserstein(first: NDArray[np.integer], second: NDArray[np.integer], step: float) -> float:
    """The mean distance by which one histogram has to be moved to become the other, in units of ``step``."""
    return float(np.abs(np.cumsum(first / first.sum() - second / second.sum())).sum() * step)


def ks_distance(first: Floats, second: Floats) -> float:
    """The largest difference of two samples' cumulative distributions."""
    at = np.concatenate([first, second])
    cumulative = [np.searchsorted(np.sort(s), at, side="right") / len(s) for s in (first, second)]
    return float(np.abs(cumulative[0] - cumulative[1]).max())


def band_shares(histogram: NDArray[np.integer]) -> Floats:
    """Shares of a histogram in `BANDS_HU`."""
    return np.add.reduceat(histogram, np.searchsorted(HU_EDGES, BANDS_HU[:-1])) / histogram.sum()


def table(real: Look, phantom: Sequence[Look], nodules: tuple[Floats, Floats]) -> str:
    """The comparison as a Markdown table; for the phantom the median of its scans, and the middle 80 % of them."""

    def spread(values: Sequence[float], digits: int) -> str:
        low, middle, high = np.nanquantile(values, (0.1, 0.5, 0.9))
        return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    rows = [("", "real CT", f"phantom, {len(phantom)} scans")]
    shares = np.array([100 * band_shares(look.histogram) for look in phantom])
    for i, share in enumerate(100 * band_shares(real.histogram)):
        band = f"below {BANDS_HU[1]}" if i == 0 else f"{BANDS_HU[i]} to {BANDS_HU[i + 1]}"
        band = f"above {BANDS_HU[i]}" if i == len(BANDS_HU) - 2 else band
        rows.append((f"lung voxels {band} HU, %", f"{share:.1f}", spread(shares[:, i], 1)))
    distances = [wasserstein(look.histogram, real.histogram, 5) for look in phantom]
    rows.append(("Wasserstein distance of the lung's HU to the real CT's, HU", "0", spread(distances, 0)))
    rows.append(("noise in soft tissue, HU", f"{real.noise_hu:.0f}", spread([look.noise_hu for look in phantom], 0)))
    marks = [peak_and_half(look.spectrum) for look in phantom if np.isfinite(look.noise_hu)]
    for i, name in enumerate(("peak", "fall to half")):
        value = peak_and_half(real.spectrum)[i]
        rows.append((f"noise power: {name}, 1/mm", f"{value:.2f}", spread([mark[i] for mark in marks], 2)))
    own = [100 * look.bright for look in phantom]
    rows.append((f"lung voxels above {VESSEL_HU} HU, %", f"{100 * real.bright:.1f}", spread(own, 1)))
    for q in QUANTILES:
        name = f"radius of bright sections, {100 * q:.0f} %, mm"
        own = [float(np.quantile(look.radii_mm, q)) for look in phantom]
        rows.append((name, f"{np.quantile(real.radii_mm, q):.2f}", spread(own, 2)))
    rows.append(("", "LUNA16", "phantom"))
    rows.append(("nodules", f"{len(nodules[0]):,}", f"{len(nodules[1]):,}"))
    for q in QUANTILES:
        rows.append((f"diameter, {100 * q:.0f} %, mm", *(f"{np.quantile(d, q):.1f}" for d in nodules)))
    rows.append(("Kolmogorov-Smirnov distance of the diameters", "0", f"{ks_distance(*nodules):.3f}"))
    rows.insert(1, ("---", "---", "---"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(real: Look, phantom: Sequence[Look], nodules: tuple[Floats, Floats], output: Path) -> None:
    """Four charts: HU in the lung, noise spectrum, radii, diameters."""
    figure, axes = plt.subplots(2, 2, figsize=(7.2, 5), layout="constrained")
    hu, noise, radius, diameter = axes.ravel()
    radii = np.sort(np.concatenate([look.radii_mm for look in phantom]))
    for i, look in enumerate([*phantom, real]):
        style = {"color": "C1", "lw": 1.8} if look is real else {"color": "C0", "lw": 0.6, "alpha": 0.5}
        label = "real CT" if look is real else "phantom" if i == 0 else None
        hu.plot(HU_EDGES[:-1], 20 * look.histogram / look.histogram.sum(), label=label, **style)
        noise.plot(FREQUENCIES, look.spectrum / np.nansum(look.spectrum * FREQUENCIES), **style)
    radius.plot(np.sort(real.radii_mm), np.linspace(0, 1, len(real.radii_mm)), "C1")
    radius.plot(radii, np.linspace(0, 1, len(radii)), "C0")
    for values, colour, label in zip(nodules, ("C1", "C0"), ("LUNA16", "phantom"), strict=True):
        diameter.plot(np.sort(values), np.linspace(0, 1, len(values)), colour, label=label)
    hu.set(xlim=(-1100, 0), xlabel="HU in the lung", ylabel="voxels, % per HU")
    noise.set(xlim=(0, 0.9), xlabel="frequency, 1/mm", ylabel="noise power, equal in sum")
    radius.set(xlim=(0, 5), xlabel="radius of bright sections, mm", ylabel="cumulative share")
    diameter.set(xlim=(3, 30), xlabel="nodule diameter, mm", ylabel="cumulative share")
    hu.legend(frameon=False, fontsize=8)
    diameter.legend(frameon=False, fontsize=8)
    figure.savefig(output, dpi=100, pil_kwargs={"optimize": True})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--phantom", type=Path, required=True, metavar="DIR")
    parser.add_argument("--ct", type=Path, required=True, metavar="PATH", help="a real chest CT")
    parser.add_argument("--tables", type=Path, required=True, metavar="DIR", help="holds LUNA16's annotations.csv")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png")
    parser.add_argument("--scans", type=int, default=20, metavar="N", help="of the phantom to measure")
    options = parser.parse_args()
    real = measure(options.ct)
    phantom = [measure(ct.path, half_chest=True) for ct in find_cts(options.phantom)[: options.scans]]
    nodules = tuple(read_annotations(folder).values for folder in (options.tables, options.phantom))
    print(table(real, phantom, nodules))
    draw(real, phantom, nodules, options.output)


if __name__ == "__main__":
    main()
