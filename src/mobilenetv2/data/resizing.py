"""A picture at the size that the network sees."""

from PIL import Image

from mobilenetv2.data.pictures import MAX_PIXELS


def resize_and_crop(
    image: Image.Image, height: int, width: int, resize: int | None = None
) -> Image.Image:
    """The shorter side to ``resize`` pixels, then the centre of ``height`` × ``width``.

    Pixel for pixel what torchvision's ``Resize(resize)`` (bilinear, antialiased) and
    ``CenterCrop((height, width))`` make of a Pillow picture, the same with every Pillow; where the
    picture is smaller than the crop, black surrounds it. Only for extremely long pictures, whose
    resized form would exceed ``MAX_PIXELS``, the crop is computed directly, which may differ by a
    rounding step.

    Args:
        image: Of mode RGB or L.
        height: Of the result, in pixels.
        width: Of the result, in pixels.
        resize: Length of the shorter side before cropping; None leaves the size as it is.

    >>> resize_and_crop(Image.new("L", (640, 480)), 224, 224, resize=256).size
    (224, 224)
    """
    if resize is None:
        return _centre_crop(image, height, width)
    size = _resized_to(image, resize)
    if size[0] * size[1] <= MAX_PIXELS:
        return _centre_crop(resize_shorter_side(image, resize), height, width)
    seen = (min(width, size[0]), min(height, size[1]))
    left, top = round((size[0] - seen[0]) / 2), round((size[1] - seen[1]) / 2)
    across, down = image.width / size[0], image.height / size[1]
    box = (left * across, top * down, (left + seen[0]) * across, (top + seen[1]) * down)
    return _centre_crop(image.resize(seen, Image.Resampling.BILINEAR, box=box), height, width)


def resize_shorter_side(image: Image.Image, resize: int) -> Image.Image:
    """The whole picture with a shorter side of ``resize`` pixels, as ``resize_and_crop`` crops it.

    >>> resize_shorter_side(Image.new("L", (640, 480)), 256).size
    (341, 256)
    """
    size = _resized_to(image, resize)
    # Across, then down. Left to itself, Pillow does so before version 13, and from then on takes
    # the other order for pictures that lose more height than width, which rounds differently.
    for step in ((size[0], image.height), size):
        if step != image.size:
            image = image.resize(step, Image.Resampling.BILINEAR)
    return image


def _resized_to(image: Image.Image, resize: int) -> tuple[int, int]:
    short, long = sorted(image.size)
    new_long = int(resize * long / short)
    return (resize, new_long) if image.width <= image.height else (new_long, resize)


def _centre_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.width < width or image.height < height:
        canvas = Image.new(image.mode, (max(image.width, width), max(image.height, height)))
        left, top = (canvas.width - image.width) // 2, (canvas.height - image.height) // 2
        canvas.paste(image, (left, top))
        image = canvas
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
