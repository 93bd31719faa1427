"""What an exported file promises, in the words that all formats share.

Pictures go in as they are, uint8 N×H×W×3 in RGB order, upright; out come probabilities and logits.
Batch and size are free. Grey conversion, resizing, cropping and normalisation happen inside, to the
pixel as ``predict`` does them. With ``--raw``, the network stands alone and the metadata says how
its input is made.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import Preprocessing

PICTURES, PROBABILITIES, LOGITS = "pictures", "probabilities", "logits"
"""Names of the input and of the two outputs."""

GREY = (19595, 38470, 7471)
"""Pillow's weights of red, green and blue in a grey value, in 65536ths."""

WEIGHT_STEPS = ((6, 5), (6, 5))
"""How the 22 bits of a weight are found by long division: two halves, each in two steps. Small
steps keep every number below 2³¹, for pictures of up to 11,000 px a side whose longer side is
resized to less than 16 million: at 256 px, all of them."""

INPUT = "uint8 N×H×W×3, RGB, upright; any batch, any size"
OUTPUT = "probabilities float32 N×K, logits float32 N×K"

PLACES = ("data", "weights", "run")
"""What a classifier remembers of its training that may be the path of a file or folder."""


def metadata(
    classifier: Classifier, *, raw: bool = False, size: tuple[int, int] | None = None
) -> dict[str, str]:
    """What the file says about itself: each value is text, labels and the rest as JSON.

    A file may be given away, so it does not tell where things lay on this machine.

    Args:
        classifier: what is exported.
        raw: whether the network stands alone.
        size: height and width of the one picture that a format of fixed size takes.
    """
    description = classifier.metadata()
    description["training"] = _without_folders(description["training"])
    wanted = classifier.preprocessing
    shape = f"N×{wanted.channels}×{wanted.height}×{wanted.width}"
    pictures = f"uint8 1×{size[0]}×{size[1]}×3, RGB, upright" if size else INPUT
    colours = "RGB" if wanted.channels == 3 else "grey"
    raw_input = (
        f"float32 {shape}, {colours}: shorter side resized to {wanted.resize} px (Pillow's "
        f"bilinear), centre cropped, scaled to 0…1, mean {list(wanted.mean)} subtracted, divided "
        f"by {list(wanted.std)}"
    )
    return {
        "labels": _to_json(description["labels"]),
        "version": description["version"],
        "input": raw_input if raw else pictures,
        "output": "logits float32 N×K" if raw else OUTPUT,
        "mobilenetv2": _to_json(description),
    }


def _without_folders(training: Mapping[str, Any]) -> dict[str, Any]:
    """Of paths the last part alone.

    >>> _without_folders({"data": "/home/me/ants_and_bees/", "weights": "none", "epochs": 4})
    {'data': 'ants_and_bees', 'weights': 'none', 'epochs': 4}
    """
    return {
        name: Path(value).resolve().name if name in PLACES and isinstance(value, str) else value
        for name, value in training.items()
    }


class Contract(nn.Module):
    """The promise as a module: pictures uint8 N×H×W×3 to probabilities and logits N×K.

    For formats that are made from PyTorch modules; batch norms are folded.

    Args:
        classifier: what is exported.
        dtype: of the network's weights and arithmetic; preparation is exact in any case.
    """

    def __init__(self, classifier: Classifier, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        wanted = classifier.preprocessing
        self.prepare = Prepare(wanted)
        network = classifier.for_inference().network.cpu().to(dtype)
        self.network = network.to(memory_format=torch.contiguous_format)
        self.dtype = dtype
        mean, scale = classifier.normalisation()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures uint8 N×H×W×3 in, probabilities and logits float32 N×K out."""
        normalised = (self.prepare(pictures) - self.mean) * self.scale
        logits = self.network(normalised.to(self.dtype)).float()
        return logits.softmax(1), logits


class Prepare(nn.Module):
    """Pictures uint8 N×H×W×3 of any size as ``Classifier.prepare`` sees them, to the pixel.

    Pillow resizes in two passes, across and then down, and rounds after each. Both are matrix
    products, so the two matrices are computed from the size of the pictures, and multiplied with.
    A pixel of the result depends on few of the picture, so a matrix is zero but for a band: what
    multiplies is blocks of neighbouring rows, each with the window of the picture that it needs.
    Pillow's weights are multiples of 2⁻²²; each is split into two numbers of 11 bits, whose
    products with pixels a float32 sum holds exactly, of up to 32 pixels. The result is Pillow's,
    bit for bit, wherever products are computed in float32; where a picture becomes more than 16
    times smaller, now and then a pixel may be one level off. (A runtime's own resizing would be
    shorter, but each rounds its own way.) Cropping is a matter of which rows of the matrices are
    made.
    """

    def __init__(self, wanted: Preprocessing) -> None:
        super().__init__()
        self.wanted = wanted
        self.block = block_size(wanted)
        self.grey: Tensor
        self.register_buffer("grey", torch.tensor(GREY) / 65536)

    def forward(self, pictures: Tensor) -> Tensor:
        """Prepared pictures, float32 N×C×height×width of whole numbers 0…255."""
        wanted = self.wanted
        # The side that is resized comes first and the other one last: long rows are copied quickly.
        if wanted.colour == "rgb":  # moved as bytes, but LiteRT looks up no bytes
            pixels = pictures.permute(0, 2, 3, 1).contiguous().float()
        else:
            grey = ((pictures.float() * self.grey).sum(3, keepdim=True) + 0.5).floor()
            pixels = grey.permute(0, 2, 3, 1)
        height, width = pictures.shape[1:3]
        fixed = isinstance(height, int) and isinstance(width, int)  # no symbols
        if fixed and min(height, width) == wanted.resize:
            top, left = height - wanted.height, width - wanted.width
            if top >= 0 and left >= 0:  # nothing to resize and no black around
                top, left = round(top / 2), round(left / 2)
                pixels = pixels[:, left : left + wanted.width, :, top : top + wanted.height]
                return pixels.permute(0, 2, 3, 1)
        short: Any = torch.sym_min(height, width)  # sizes are symbols while a program is exported
        across = resizing_windows(width, wanted.resize * width // short, wanted.width, self.block)
        down = resizing_windows(height, wanted.resize * height // short, wanted.height, self.block)
        pixels = _resized(pixels, *across)[:, : wanted.width]
        pixels = _resized(pixels.permute(0, 3, 2, 1), *down)[:, : wanted.height]
        return pixels.permute(0, 2, 1, 3)


def block_size(wanted: Preprocessing) -> int:
    """Prepared pixels that share a window: as many as divide both sides, where that goes."""
    sides = (wanted.height, wanted.width)
    whole = (size for size in range(16, 7, -1) if not any(side % size for side in sides))
    return next(whole, 16)


def _resized(pixels: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """One pass over pixels N×side×C×M: float32 N×(blocks·block)×C×M."""
    blocks, window = index.shape
    block = weights.shape[1] // 2
    windows = pixels.contiguous().index_select(1, index.flatten())
    windows = windows.flatten(2).unflatten(1, (blocks, window))
    # The two halves of the weights lie below each other, so that a pass is one product.
    upper, lower = (weights @ windows).split(block, 2)
    resized: Tensor = (upper + lower.floor() * 2.0**-11 + 0.5).floor()
    rows, channels = blocks * block, pixels.shape[2]
    return resized.reshape(pixels.shape[0], rows, channels, pixels.shape[3])


def resizing_windows(side: int, resized: int, crop: int, block: int) -> tuple[Tensor, Tensor]:
    """Which pixels of a picture each block of pixels after cropping is made of, and their weights.

    The upper halves of a block's weights, and below them the lower halves times 2¹¹:
    upper + 2⁻¹¹·lower is the weight, and both are multiples of 2⁻¹¹. Positions outside the resized
    picture weigh nothing: black.

    Args:
        side: pixels of the picture along this axis.
        resized: pixels after resizing.
        crop: pixels that are kept, around the middle.
        block: pixels that share a window.

    Returns:
        Positions in the picture int64 blocks×window, and weights float32 blocks×2·block×window.
    """
    extra: Any = torch.sym_max(resized - crop, 0)
    missing: Any = torch.sym_max(crop - resized, 0)
    longer: Any = torch.sym_max(side, resized)
    # Python rounds half pixels to even, as the crop of a picture does.
    first = (extra + extra % 4 // 3) // 2 - missing // 2
    lead = (torch.arange(0, crop, block) + first).view(-1, 1, 1)
    column = lead + torch.arange(block).view(1, -1, 1)
    # Pillow's triangle in whole numbers: all distances times twice the longer of both sides, from
    # the middle of the picture, so that they stay small for long and thin ones. A window begins
    # before the first pixel's triangle does, and reaches over the last pixel's. It has two pixels
    # or more, as an exported program takes a size of 1 for one that never changes.
    start = (
        side // 2 + ((lead * 2 + 1 - resized) * side - longer * 2 - resized) // (resized * 2) - 1
    )
    reach: Any = torch.sym_min((side * (block - 1) + longer * 2) // resized + 4, side)
    window: Any = torch.sym_max(reach, 2)
    if isinstance(window, torch.SymInt):
        # An unbacked symbol, known only when the program runs. As an expression of the sides it
        # would stand in a hundred shapes, and reading those would be most of the time of loading.
        window = torch.full((1,), window).item()
    row = start.clamp(min=0) + torch.arange(window)
    distance = ((row * 2 + 1 - side) * resized - (column * 2 + 1 - resized) * side).abs()
    triangle = (longer * 2 - distance).clamp(min=0)
    remainder = triangle * ((column >= 0) & (column < resized) & (row < side))
    total = remainder.sum(2, keepdim=True).clamp(min=1)
    halves = []
    for steps in WEIGHT_STEPS:
        half = torch.zeros_like(remainder)
        for bits in steps:
            shifted = remainder * 2**bits
            digit = shifted // total
            remainder = shifted - digit * total
            half = half * 2**bits + digit
        halves.append(half)
    halves[1] = halves[1] + (remainder * 2 >= total)
    index = row.clamp(max=side - 1).squeeze(1)
    return index, torch.cat(halves, 1).float() * 2.0**-11


def _to_json(value: Any) -> str:
    return json.dumps(value)  # in ASCII: not every runtime reads more
