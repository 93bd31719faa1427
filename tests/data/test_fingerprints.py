import io
import os
from pathlib import Path

import numpy as np
import pytest
from hostile_folder import burst_of, encoded, photo
from PIL import Image, ImageEnhance

from mobilenetv2.data.fingerprints import (
    FINGERPRINT_BYTES,
    file_digest,
    fingerprint,
    group_names,
    near_duplicate_groups,
)
from mobilenetv2.data.folders import scan_folder
from mobilenetv2.data.pictures import read_picture


@pytest.fixture(scope="module")
def photos():
    """Real photos, two classes."""
    if "MOBILENETV2_TEST_DATA" not in os.environ:
        pytest.skip("MOBILENETV2_TEST_DATA names no folder with test data")
    folder = scan_folder(Path(os.environ["MOBILENETV2_TEST_DATA"], "data", "ants_and_bees"))
    return [read_picture(file.path, "RGB") for file in (*folder.train, *folder.val)]


def groups_of(images):
    return near_duplicate_groups(
        [str(index) for index in range(len(images))],
        np.stack([fingerprint(image) for image in images]),
        [min(image.size) for image in images],
    ).tolist()


def share_found(originals, copies):
    """The share of copies that were put with their original; none may be put elsewhere."""
    groups = groups_of([*originals, *copies])
    count = len(originals)
    assert groups[:count] == list(range(count))
    assert all(group in (index, count + index) for index, group in enumerate(groups[count:]))
    return np.mean([group == index for index, group in enumerate(groups[count:])])


COPIES = {
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "square": lambda image: image.resize((224, 224)),
    "pressed": lambda image: Image.open(io.BytesIO(encoded(image, "JPEG", quality=15))),
    "lighter": lambda image: ImageEnhance.Brightness(image).enhance(1.12),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.85),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.15),
    "grey": lambda image: image.convert("L"),
}


@pytest.mark.parametrize(
    "copy",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in ("half", "darker")))
        for name in COPIES
    ],
)
def test_copies_of_real_photos_are_found_and_nothing_else(photos, copy):
    assert share_found(photos, [COPIES[copy](image) for image in photos]) >= 0.98


@pytest.mark.slow
def test_bursts_of_real_photos_are_found_and_nothing_else(photos):
    draw = np.random.default_rng(0)

    def shot(image):
        # The hand moves by up to 1 % of the picture, and turns by up to half a degree.
        width, height = image.size
        x, y = width * draw.uniform(0.03, 0.05), height * draw.uniform(0.03, 0.05)
        turned = image.rotate(draw.uniform(-0.5, 0.5), Image.Resampling.BICUBIC)
        return turned.crop((x, y, x + 0.92 * width, y + 0.92 * height))

    first, second = ([shot(image) for image in photos[::3]] for _ in range(2))
    assert share_found(first, second) >= 0.94


def test_a_thousand_distinct_pictures_are_a_thousand_groups():
    images = [photo(seed, 96, 72) for seed in range(1000)]
    assert groups_of(images) == list(range(1000))


def test_handwritten_digits_are_not_taken_for_copies():
    from sklearn.datasets import load_digits

    digits = [
        Image.fromarray((pixels * 15.9).astype(np.uint8)).resize((28, 28), Image.Resampling.BICUBIC)
        for pixels in load_digits().images[:1000]
    ]
    groups = np.bincount(groups_of(digits), minlength=1000)
    assert groups.max() <= 3
    assert (groups > 1).sum() <= 10


def test_a_burst_is_one_group_and_copies_of_the_first_in_line_lead():
    images = [photo(1), *burst_of(2, 6), photo(3), photo(1).resize((120, 90))]
    assert groups_of(images) == [0, 1, 1, 1, 1, 1, 1, 7, 0]


def test_shapes_alike_in_another_colour_are_distinct():
    def light(colour):
        picture = Image.new("RGB", (100, 200), "black")
        picture.paste(colour, (30, 40, 70, 80))
        return picture

    red, green = light((200, 0, 0)), light((0, 102, 0))  # of one lightness
    assert groups_of([red, green, red.resize((50, 100))]) == [0, 1, 0]


def test_flat_pictures_are_told_apart_by_their_bytes_alone():
    white, grey = Image.new("RGB", (99, 99), "white"), Image.new("RGB", (99, 99), "grey")
    assert groups_of([white, grey, white, grey]) == [0, 1, 2, 3]
    traces = np.stack([fingerprint(white)] * 3)
    assert near_duplicate_groups(["a", "b", "a"], traces, [99] * 3).tolist() == [0, 1, 0]


def test_no_picture_and_one_picture():
    assert near_duplicate_groups([], np.zeros((0, FINGERPRINT_BYTES), np.uint8), []).tolist() == []
    assert groups_of([photo(1)]) == [0]


def test_many_copies_take_no_square_of_time():
    trace = np.stack([fingerprint(photo(1))] * 20_000)
    groups = near_duplicate_groups([str(i) for i in range(20_000)], trace, [180] * 20_000)
    assert not groups.any()


def test_more_pictures_than_one_tile_holds():
    rare = [fingerprint(photo(seed, 96, 72)) for seed in range(60)]
    noise = np.random.default_rng(0).integers(0, 256, (5000, FINGERPRINT_BYTES), dtype=np.uint8)
    traces = np.concatenate([rare, noise, np.stack(rare) ^ 1])  # the last bit differs
    groups = near_duplicate_groups([str(i) for i in range(5120)], traces, [72] * 5120)
    assert groups.tolist() == [*range(5060), *range(60)]


def test_the_name_of_a_group_is_its_best_picture():
    groups = np.array([0, 0, 2, 0])
    sizes = [(100, 9), (400, 5), (50, 1), (400, 7)]
    assert group_names(groups, ["a", "b", "c", "d"], sizes) == ["d", "d", "c", "d"]
    # Of equals, the smallest digest; so the order of files doesn't matter.
    assert group_names(np.array([0, 0]), ["y", "x"], [(1, 1)] * 2) == ["x", "x"]


def test_file_digest_is_sha256_and_rewinds(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    with (tmp_path / "abc").open("rb") as file:
        assert file_digest(file).startswith("ba7816bf8f01cfea414140de5dae2223")  # FIPS 180-2
        assert file.tell() == 0
