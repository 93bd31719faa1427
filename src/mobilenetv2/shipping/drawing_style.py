"""How training pictures are drawn, so that a drawing on a page can be made to look like them.

MNIST's digits were scaled into a box of 20 of 28 pixels and centred by mass; others fill the whole
picture. Rather than a table of data sets, a few numbers are measured on held-out pictures.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mobilenetv2.evaluation.metrics import Array

SMALL = 64
"""Pixels up to which a grey picture is taken for a drawing before anything else."""
FAINT = 0.15
"""Share of full ink from which on a pixel counts as drawn."""


@dataclass(frozen=True)
class DrawingStyle:
    """What a drawing looks like; lengths are shares of the picture's shorter side.

    Attributes:
        ink: light on dark, or dark on light.
        box: longer side of the box around the ink.
        stroke: thickness of a line.
        centre: which point lies in the middle: the ink's centre of mass or that of its box.
    """

    ink: Literal["light", "dark"] = "light"
    box: float = 20 / 28
    stroke: float = 0.1
    centre: Literal["mass", "box"] = "mass"


def measure(pictures: Array) -> DrawingStyle:
    """The style of grey pictures uint8 N×H×W; MNIST's where there is nothing to see.

    >>> square = np.zeros((1, 10, 10), np.uint8)
    >>> square[0, 1:9, 4:6] = 255
    >>> measure(square).ink, measure(square).box
    ('light', 0.8)
    """
    border = np.concatenate([pictures[:, [0, -1]].ravel(), pictures[:, :, [0, -1]].ravel()])
    light = bool(np.median(border) < 128)
    ink = (pictures if light else 255 - pictures).astype(np.float64) / 255
    ink = ink[(ink > FAINT).any(axis=(1, 2))]
    if not len(ink):
        return DrawingStyle()
    side = min(ink.shape[1:])
    boxes = np.array([_box(one) for one in ink > FAINT])  # N × (axis) × (first, end)
    extents = (boxes[:, :, 1] - boxes[:, :, 0]).max(axis=1)
    masses = np.array([_centre_of_mass(one) for one in ink])
    spread_of_boxes, spread_of_masses = boxes.mean(axis=2).std(0).sum(), masses.std(0).sum()
    return DrawingStyle(
        ink="light" if light else "dark",
        box=round(float(np.median(extents)) / side, 4),
        stroke=round(float(np.median([_thickness(one) for one in ink])) / side, 4),
        centre="mass" if spread_of_masses < spread_of_boxes else "box",
    )


def _box(drawn: Array) -> list[tuple[int, int]]:
    """First and past-the-last drawn pixel along each axis."""
    found = []
    for axis in (1, 0):
        places = np.flatnonzero(drawn.any(axis=axis))
        found.append((int(places[0]), int(places[-1]) + 1))
    return found


def _centre_of_mass(ink: Array) -> list[float]:
    """In pixels, the middle of the first one being 0.5."""
    total = ink.sum()
    return [
        float((ink.sum(axis=1 - axis) * (np.arange(ink.shape[axis]) + 0.5)).sum() / total)
        for axis in (0, 1)
    ]


def _thickness(ink: Array) -> float:
    """Of the lines, in pixels: area over half the outline, which is the sum of all steps in ink."""
    padded = np.pad(ink, 1)
    across, down = np.diff(padded, axis=1)[:-1], np.diff(padded, axis=0)[:, :-1]
    outline = np.hypot(across, down).sum()
    return float(2 * ink.sum() / outline)
