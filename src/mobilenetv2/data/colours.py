"""Decoded pictures of any mode, in the colours that a viewer shows."""

from io import BytesIO
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Colour = Literal["RGB", "L"]

GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")
"""Pillow's names of modes without colour."""


def to_colour(image: Image.Image, colour: Colour) -> Image.Image:
    """A decoded picture of any mode as ``"RGB"`` or ``"L"``, the way a viewer shows it."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_eight_bits(np.asarray(image), image))
    elif image.mode in ("CMYK", "LAB"):
        image = _through_profile(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == colour else image.convert(colour)


def _to_eight_bits(pixels: NDArray[np.generic], image: Image.Image) -> NDArray[np.uint8]:
    """Scales 16-bit, 32-bit and floating-point greys to 0…255.

    The scale of a 16-bit picture is fixed. Wider ones don't state theirs, so it is taken from the
    largest value: 1.0, 255 or 65535 where it fits, the value itself beyond.
    """
    if image.mode == "F":
        pixels = np.nan_to_num(pixels, nan=0, posinf=0, neginf=0)
    if image.mode in ("I", "F") and image.format != "PPM":
        largest = float(pixels.max())
        scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((scale for scale in scales if largest <= scale), largest)
    else:
        white = 65535.0
    return (pixels.clip(0, white).astype(np.float32) * (255 / white) + 0.5).astype(np.uint8)


def _through_profile(image: Image.Image) -> Image.Image:
    """CMYK and LAB as sRGB; without a usable profile, CMYK by Pillow's plain formula."""
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    try:
        if image.mode == "LAB":
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        elif profile:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
        else:
            return image.convert("RGB")
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image.convert("RGB")
    assert converted is not None  # only with inPlace=True
    return converted
