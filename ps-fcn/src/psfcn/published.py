"""Figures that others published for DiLiGenT (Shi et al., TPAMI 2018): mean angular errors in degrees, all 96 images.

From the paper's tables; least squares is the benchmark's own figure. They stand below ours in ``psfcn eval``, and no
cell is filled in that nobody published.
"""

from __future__ import annotations

from collections.abc import Sequence

OBJECTS = ("ball", "cat", "pot1", "bear", "pot2", "buddha", "goblet", "reading", "cow", "harvest")
IMAGES = 96
SOURCE = "arXiv:2007.13145"
CALIBRATED = {
    "least squares": (4.10, 8.41, 8.89, 8.39, 14.65, 14.92, 18.50, 19.80, 25.60, 30.62),
    "PS-FCN": (2.82, 6.16, 7.13, 7.55, 7.25, 7.91, 8.60, 13.33, 7.33, 15.85),
    "PS-FCN+N": (2.67, 4.76, 6.17, 7.72, 7.15, 7.53, 7.84, 10.92, 6.72, 12.39),
}
UNCALIBRATED = {"SDPS-Net": (2.77, 8.06, 8.14, 6.89, 7.50, 8.97, 11.91, 14.90, 8.48, 17.43)}
AVERAGES = {"least squares": 15.39, "PS-FCN": 8.39, "PS-FCN+N": 7.39, "SDPS-Net": 9.51}
FEWER = {10: {"least squares": 16.10, "PS-FCN": 10.19}, 4: {"least squares": 18.79, "PS-FCN": 16.50}}  # averages
LCNET = {"direction": 4.92, "intensity": 0.068}  # averages: degrees, and relative (eq. 9)

Row = tuple[str, dict[str, float], float | None]


def rows(names: Sequence[str], lights: int | None = None) -> list[Row]:
    """A label, the cells of those of ``names`` that are DiLiGenT's, and their average for each published method.

    Args:
        names: of objects.
        lights: how many images ours saw; where averages for so few are published, rows with these alone come too.

    Returns:
        The average is the published one of all ten objects, of fewer the mean of their cells.
    """
    there = [name for name in OBJECTS if name in names]
    if not there:
        return []
    whole = len(there) == len(OBJECTS)
    result: list[Row] = []
    for method, figures in (CALIBRATED | UNCALIBRATED).items():
        cells = {name: figures[OBJECTS.index(name)] for name in there}
        average = AVERAGES[method] if whole else sum(cells.values()) / len(cells)
        label = f"{method}, uncalibrated" if method in UNCALIBRATED else method
        result.append((f"{label}, {IMAGES} images", cells, average))
    if whole and lights in FEWER:
        result += [(f"{method}, {lights} images", {}, average) for method, average in FEWER[lights].items()]
    return result
