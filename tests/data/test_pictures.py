import contextlib
import io
import os
import pickle
import resource
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hostile_folder import encoded, photo, png, png_48_bit, sideways
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, features
from torchvision import transforms

from mobilenetv2.data.pictures import (
    MAX_PIXELS,
    UnreadablePicture,
    read_picture,
    to_array,
)
from mobilenetv2.data.resizing import resize_and_crop
from mobilenetv2.errors import DataError


@pytest.fixture
def write(tmp_path):
    def write(content, name="picture.jpg"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def pixels(image):
    return np.asarray(image).astype(int)


def memory():
    """Largest resident size so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---------------------------------------------------------------- as a viewer shows it


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP", "AVIF"])
@pytest.mark.parametrize("colour", ["RGB", "L"])
def test_plain_pictures_are_what_pillow_makes_of_them(write, kind, colour):
    if kind in ("WEBP", "AVIF") and not features.check(kind.lower()):
        pytest.skip(f"this Pillow has no {kind}")
    path = write(encoded(photo(1), kind))
    picture = read_picture(path, colour)
    with Image.open(path) as reference:
        assert np.array_equal(pixels(picture), pixels(reference.convert(colour)))
    assert picture.mode == colour


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(write, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {274: orientation}} if kind == "TIFF" else {"exif": exif}
    if kind == "WEBP":
        options["lossless"] = True
    path = write(encoded(photo(2), kind, **options))
    original = Image.open(io.BytesIO(encoded(photo(2), kind, **options)))
    expected = ImageOps.exif_transpose(original).convert("RGB")
    assert np.array_equal(pixels(read_picture(path, "RGB")), pixels(expected))
    # And against the definition: row 0 of the stored picture is the top, right, bottom or left.
    stored = pixels(photo(2) if kind != "JPEG" else Image.open(path))
    turned = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).swapaxes(0, 1),
        8: np.rot90(stored),
    }[orientation]
    assert np.array_equal(pixels(read_picture(path, "RGB")), turned)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(write, kind):
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    path = write(encoded(Image.fromarray(deep), kind))
    expected = np.floor(deep / 257 + 0.5)
    assert np.abs(pixels(read_picture(path, "L")) - expected).max() == 0
    assert np.array_equal(pixels(read_picture(path, "RGB"))[..., 2], expected)


def test_sixteen_bit_colours_are_scaled(write):
    path = write(png_48_bit(photo(3)))
    assert np.array_equal(pixels(read_picture(path, "RGB")), pixels(photo(3)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 128.0, 255.0]], np.float32), [0, 128, 255]),
        (np.array([[-1.0, np.nan, 1.0]], np.float32), [0, 0, 255]),
        (np.array([[0, 7, 255]], np.int32), [0, 7, 255]),
        (np.array([[0, 32768, 65535]], np.int32), [0, 128, 255]),
        (np.array([[-5, 502_000, 1_000_000]], np.int32), [0, 128, 255]),
    ],
)
def test_wider_greys_are_scaled_by_their_range(write, values, expected):
    path = write(encoded(Image.fromarray(values), "TIFF"), "x.tif")
    assert pixels(read_picture(path, "L"))[0].tolist() == expected


def test_transparency_is_laid_on_white(write):
    red = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    red.putpixel((1, 0), (255, 0, 0, 0))
    assert pixels(read_picture(write(encoded(red, "PNG")), "RGB"))[0].tolist() == [
        [255, 0, 0],
        [255, 255, 255],
    ]
    half = Image.new("LA", (1, 1), (0, 51))
    assert pixels(read_picture(write(encoded(half, "PNG")), "L")).tolist() == [[204]]


@pytest.mark.parametrize("transparency", [0, bytes([0, 128, 255])])
def test_transparent_palette_colours_are_laid_on_white(write, transparency):
    picture = Image.new("P", (3, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.putdata([0, 1, 2])
    path = write(encoded(picture, "PNG", transparency=transparency))
    middle = [0, 255, 0] if transparency == 0 else [127, 255, 127]
    assert pixels(read_picture(path, "RGB"))[0].tolist() == [[255] * 3, middle, [0, 0, 255]]


def test_a_transparent_colour_of_an_rgb_png_is_laid_on_white(write):
    picture = Image.new("RGB", (2, 1), (1, 2, 3))
    picture.putpixel((1, 0), (4, 5, 6))
    path = write(encoded(picture, "PNG", transparency=(1, 2, 3)))
    assert pixels(read_picture(path, "RGB"))[0].tolist() == [[255, 255, 255], [4, 5, 6]]


def test_cmyk_and_lab_look_like_the_original(write):
    original = photo(4)
    cmyk = read_picture(write(encoded(original.convert("CMYK"), "JPEG", quality=95)), "RGB")
    assert np.abs(pixels(cmyk) - pixels(original)).mean() < 3
    broken_profile = encoded(original.convert("CMYK"), "JPEG", quality=95, icc_profile=b"none")
    assert np.array_equal(pixels(read_picture(write(broken_profile), "RGB")), pixels(cmyk))
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(original, srgb, lab, outputMode="LAB")
    read = read_picture(write(encoded(converted, "TIFF"), "lab.tif"), "RGB")
    assert np.abs(pixels(read) - pixels(original)).mean() < 3


def test_an_animation_gives_its_first_frame(write):
    first, second = photo(5), photo(6)
    path = write(encoded(first, "PNG", save_all=True, append_images=[second]))
    assert np.array_equal(pixels(read_picture(path, "RGB")), pixels(first))


@pytest.mark.parametrize("at_least", [1, 30, 64, 89, 90, 179, 180, 400])
def test_reduced_decoding_stays_large_enough_and_looks_the_same(write, at_least):
    whole = photo(7)
    path = write(sideways(whole, 6))
    reduced = read_picture(path, "RGB", at_least)
    assert min(reduced.size) >= min(at_least, min(whole.size))
    assert (reduced.width < reduced.height) is True
    assert (min(reduced.size) < 180) is (at_least <= 90)
    full = read_picture(path, "RGB").resize(reduced.size, Image.Resampling.BOX)
    assert np.abs(pixels(reduced) - pixels(full)).mean() < 5
    assert read_picture(path, "L", at_least).size == reduced.size


def test_the_picture_outlives_its_file(write):
    for kind in ("GIF", "PNG", "TIFF"):
        path = write(encoded(photo(8).convert("L"), kind))
        picture = read_picture(path, "L")
        path.unlink()
        assert pixels(picture.copy().resize((5, 5))).shape == (5, 5)


# ---------------------------------------------------------------- what cannot be read


def whole(kind="JPEG"):
    return encoded(photo(9), kind)


@pytest.mark.parametrize(
    ("content", "defect", "words"),
    [
        (b"", "not_a_picture", "empty"),
        (bytes(100), "not_a_picture", "only zeros"),
        (b"hello", "not_a_picture", "not a picture"),
        (b"<html></html>", "not_a_picture", "web page"),
        (b"<svg></svg>", "not_a_picture", "SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_a_picture", "not a picture"),
        (whole()[:5000], "truncated", "ends too early"),
        (whole("PNG")[:5000], "truncated", "ends too early"),
        (whole("GIF")[:5000], "truncated", "ends too early"),
        (whole("PNG")[:30], "broken", "begins like PNG"),
        (whole()[:40] + b"\xff" * 400, "broken", "begins like JPEG"),
        (whole("PNG")[:60] + bytes(3000) + whole("PNG")[3060:], "broken", "broken data"),
        (png(25_000, 20_000, 1, 0), "too_large", "500 megapixels"),
        (png(13_000, 10_000, 1, 0), "too_large", "130 megapixels"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value,
)
def test_bad_files_are_refused_with_a_reason(write, content, defect, words):
    path = write(content)
    before = memory()
    with pytest.raises(UnreadablePicture, match=words) as caught:
        read_picture(path, "RGB")
    assert (caught.value.path, caught.value.defect) == (path, defect)
    assert words in caught.value.reason
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, DataError)
    assert memory() - before < 100


def test_no_picture_above_the_limit_is_decoded_at_reduced_scale_either(write):
    with pytest.raises(UnreadablePicture, match="130 megapixels"):
        read_picture(write(png(13_000, 10_000, 1, 0)), "L", at_least=64)
    assert MAX_PIXELS < 130e6


@given(st.integers(0, 3000), st.binary(min_size=1, max_size=60), st.sampled_from(range(6)))
def test_damage_anywhere_gives_a_picture_or_the_one_error(tmp_path_factory, at, junk, kind):
    kinds = ("JPEG", "PNG", "GIF", "TIFF", "BMP", "PPM")
    content = bytearray(encoded(photo(10, 40, 30), kinds[kind]))
    at %= len(content)
    content[at : at + len(junk)] = junk
    path = tmp_path_factory.mktemp("damage") / "x.jpg"
    path.write_bytes(content)
    with contextlib.suppress(UnreadablePicture):
        assert read_picture(path, "RGB").mode == "RGB"


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name, defect in (
        ("pipe.jpg", "not_a_picture"),
        ("folder.jpg", "not_a_picture"),
        ("gone.jpg", "missing"),
    ):
        with pytest.raises(UnreadablePicture) as caught:
            read_picture(tmp_path / name, "RGB")
        assert caught.value.defect == defect


def test_a_forbidden_file_is_refused(write):
    path = write(whole())
    path.chmod(0)
    as_root = os.geteuid() == 0
    if as_root:
        os.seteuid(65534)
    try:
        with pytest.raises(UnreadablePicture, match="no permission") as caught:
            read_picture(path, "RGB")
    finally:
        if as_root:
            os.seteuid(0)
    assert caught.value.defect == "forbidden"


def test_the_error_survives_a_journey_between_processes():
    error = pickle.loads(pickle.dumps(UnreadablePicture(Path("a.jpg"), "broken", "truncated")))
    assert (error.path, error.reason, error.defect) == (Path("a.jpg"), "broken", "truncated")


def test_no_warning_leaks_and_the_filters_stay(write):
    corrupt_exif = (
        b"Exif\0\0II*\0\x08\0\0\0\x02\0\x0f\x01\x02\0\xff\0\0\0\xf0\xff\0\0\x12\x01\x03\0"
    )
    path = write(encoded(photo(11), "JPEG", exif=corrupt_exif))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: read_picture(path, "RGB"), range(200)))
        assert warnings.filters == before
    assert caught == []
    with pytest.warns(UserWarning, match=r"EXIF|Tag data"), Image.open(path) as image:
        image.getexif()  # so there was something to silence


# ---------------------------------------------------------------- to the network's size


@given(*(st.integers(1, 90) for _ in range(4)), st.none() | st.integers(1, 80), st.booleans())
def test_resize_and_crop_is_torchvisions(width, height, crop_height, crop_width, resize, grey):
    picture = photo(12, width, height)
    picture = picture.convert("L") if grey else picture
    steps = [transforms.CenterCrop((crop_height, crop_width))]
    expected = transforms.Compose(steps)(picture)
    if resize is not None:
        at_once = transforms.Resize(resize)(picture)
        # Since Pillow 13, the size decides which direction is first. Here, across always is.
        across = picture.resize((at_once.width, height), Image.Resampling.BILINEAR)
        down = across.resize(at_once.size, Image.Resampling.BILINEAR)
        assert np.abs(pixels(at_once) - pixels(down)).max() <= 1
        expected = steps[0](down)
    result = resize_and_crop(picture, crop_height, crop_width, resize)
    assert result.size == expected.size
    assert np.array_equal(pixels(result), pixels(expected))


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (1, 1), (3, 100_000)])
def test_extreme_shapes_take_little_memory(size):
    picture = photo(13, *size)
    before = memory()
    result = resize_and_crop(picture, 224, 224, 256)
    assert result.size == (224, 224)
    assert memory() - before < 100
    middle = pixels(picture)[size[1] // 2, size[0] // 2]
    assert np.abs(pixels(result)[112, 112] - middle).max() < 40


def test_direct_cropping_agrees_with_the_long_way(monkeypatch):
    picture = photo(14, 30, 900)
    expected = pixels(resize_and_crop(picture, 32, 32, 40))
    monkeypatch.setattr("mobilenetv2.data.resizing.MAX_PIXELS", 100)
    assert np.abs(pixels(resize_and_crop(picture, 32, 32, 40)) - expected).max() <= 1


def test_to_array_puts_channels_first():
    picture = photo(15, 8, 6)
    array = to_array(picture)
    assert (array.shape, array.dtype) == ((3, 6, 8), np.uint8)
    assert array[2, 5, 7] == picture.getpixel((7, 5))[2]
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert to_array(picture.convert("L")).shape == (1, 6, 8)
