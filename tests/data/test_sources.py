"""Named sets and folders: what comes out of them, and words for what is wrong with them."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import DataConfig, NetworkConfig, Preprocessing
from mobilenetv2.data.named_sets import NAMES, read_named_set
from mobilenetv2.data.sources import load_data, load_for_measuring
from mobilenetv2.errors import ConfigError, DataError

Write = Callable[..., Path]


def test_digits_need_no_file_and_share_nothing() -> None:
    data = load_data(DataConfig())
    assert data.test is not None
    sizes = [len(part) for part in (data.train, data.val, data.test)]
    assert sum(sizes) == 1797
    assert data.classes == tuple("0123456789")
    keys = [
        {picture.numpy().tobytes() for picture in part.pictures}
        for part in (data.train, data.val, data.test)
    ]
    # Eight-by-eight digits are so coarse that a handful of different people's are equal.
    assert len(keys[0] & keys[2]) + len(keys[0] & keys[1]) + len(keys[1] & keys[2]) < 3
    again = load_data(DataConfig(split_seed=0))
    other = load_data(DataConfig(split_seed=1))
    assert torch.equal(again.val.pictures, data.val.pictures)
    assert not torch.equal(other.val.pictures, data.val.pictures)
    assert other.test is not None
    assert torch.equal(other.test.pictures, data.test.pictures)


def test_the_split_is_stratified() -> None:
    data = load_data(DataConfig(val_fraction=0.2))
    shares = torch.bincount(data.val.labels) / (
        torch.bincount(data.val.labels) + torch.bincount(data.train.labels)
    )
    assert float((shares - 0.2).abs().max()) < 0.01


def test_real_mnist(test_data: Path) -> None:
    data = load_data(DataConfig(data="mnist", data_dir=test_data / "data" / "mnist"))
    assert (len(data.train), len(data.val)) == (54_000, 6_000)
    assert data.test is not None
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.preprocessing.mean == pytest.approx((0.1307,), abs=2e-4)
    assert data.preprocessing.std == pytest.approx((0.3081,), abs=2e-4)


def test_cifar_comes_through_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class FakeCifar:
        classes = ("plane", "car")

        def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
            count = 40 if train else 10
            random = np.random.default_rng(count)
            self.data = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            self.targets = [number % 2 for number in range(count)]

    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeCifar)
    data = load_data(DataConfig(data="cifar10", data_dir=tmp_path))
    assert data.train.pictures.shape == (36, 3, 32, 32)
    assert data.test is not None
    original = FakeCifar("", train=False).data
    assert torch.equal(data.test.pictures, torch.from_numpy(original).permute(0, 3, 1, 2))
    grey = load_data(DataConfig(data="cifar10", data_dir=tmp_path, colour="grey", image_size=40))
    assert grey.train.pictures.shape == (36, 1, 40, 40)
    expected = Image.fromarray(original[0]).convert("L").resize((40, 40), 2)
    assert grey.test is not None
    assert np.array_equal(grey.test.pictures[0, 0], np.asarray(expected))


@pytest.mark.parametrize(
    ("size", "mode", "shape"),
    [
        ((20, 20), "RGB", (3, 20, 20)),
        ((20, 20), "L", (1, 20, 20)),
        ((48, 32), "RGB", (3, 48, 32)),
        ((130, 150), "RGB", (3, 224, 224)),
    ],
)
def test_folders_decide_size_and_colour(
    picture_folder: Write, size: tuple[int, int], mode: str, shape: tuple[int, ...]
) -> None:
    folder = picture_folder(size=size, mode=mode)
    data = load_data(DataConfig(data=str(folder), val_fraction=0.25))
    assert tuple(data.val.pictures.shape[1:]) == shape
    assert len(data.train) + len(data.val) == 24
    assert data.classes == ("dark", "light")
    assert not set(data.train.names) & set(data.val.names)


@pytest.mark.parametrize("size", [(20, 20), (130, 150), (40, 28)])
def test_one_road_for_every_picture(picture_folder: Write, size: tuple[int, int]) -> None:
    """What training and measuring see of a file is what prediction sees of it, bit for bit."""
    folder = picture_folder(size=size, count=4)
    data = load_data(DataConfig(data=str(folder), val_fraction=0.5))
    classifier = Classifier.create(NetworkConfig(width=0.1), data.preprocessing, data.classes)
    wanted = (data.preprocessing.height, data.preprocessing.width)
    _, measured = load_for_measuring(DataConfig(data=str(folder)), data.preprocessing, data.classes)
    assert len(measured) == 8
    for part in (data.train.centre(wanted), data.val, measured):
        for name, picture in zip(part.names, part.pictures, strict=True):
            assert torch.equal(classifier.prepare(name), picture)
            if size[0] < 96:
                assert torch.equal(classifier.prepare(Image.open(name)), picture)


def test_broken_pictures_are_left_out_and_listed(picture_folder: Write) -> None:
    folder = picture_folder()
    (folder / "dark" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n garbage")
    data = load_data(DataConfig(data=str(folder)))
    assert data.examination is not None
    left_out = [p.path.name for p in data.examination.pictures if not p.usable]
    assert left_out == ["broken.png"]
    assert len(data.train) + len(data.val) == 24
    with pytest.raises(DataError, match=r"broken\.png"):  # a figure must count every picture
        load_for_measuring(DataConfig(data=str(folder)), data.preprocessing, data.classes)


def test_pictures_in_no_class_are_listed_and_told_of(picture_folder: Write) -> None:
    folder = picture_folder()
    shutil.copy(folder / "dark" / "0.png", folder / "stray.png")
    data = load_data(DataConfig(data=str(folder)))
    assert data.examination is not None
    found = data.examination.of_kind("in_no_class")
    assert [finding.paths for finding in found] == [(folder / "stray.png",)]
    assert len(data.train) + len(data.val) == 24
    told: list[str] = []
    config = DataConfig(data=str(folder))
    _, measured = load_for_measuring(config, data.preprocessing, data.classes, remark=told.append)
    assert len(measured) == 24
    assert told == [f"1 picture in no class, and not used: {folder / 'stray.png'}"]


def test_labels_find_their_place(picture_folder: Write) -> None:
    folder = picture_folder()
    data = load_data(DataConfig(data=str(folder)))
    _, measured = load_for_measuring(
        DataConfig(data=str(folder)), data.preprocessing, ("light", "other", "dark")
    )
    for name, label in zip(measured.names, measured.labels.tolist(), strict=True):
        assert label == (2 if "/dark/" in name else 0)
    with pytest.raises(DataError, match="does not know the class 'light'; did you mean 'lights'"):
        load_for_measuring(DataConfig(data=str(folder)), data.preprocessing, ("lights", "dark"))


@pytest.mark.parametrize("name", NAMES)
def test_typos_get_a_suggestion(name: str) -> None:
    with pytest.raises(DataError, match=f"did you mean '{name}'"):
        load_data(DataConfig(data=name + "x"))


def write_every_kind(folder: Path) -> int:
    """A folder with what real folders hold; returns how many pictures."""
    random = np.random.default_rng(0)

    def photo(width: int, height: int) -> Image.Image:
        coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    def turned(orientation: int) -> Image.Exif:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return exif

    def transparent(mode: str) -> Image.Image:
        image = photo(160, 120).convert(mode)
        image.putalpha(photo(160, 120).convert("L"))
        return image

    for label in ("a", "b"):
        place = folder / label
        place.mkdir(parents=True)
        photo(300, 200).save(place / "plain.jpg")
        photo(1200, 900).save(place / "large.jpg")  # decoded at a fraction of its size
        photo(160, 120).save(place / "sideways.jpg", exif=turned(6))
        photo(160, 120).save(place / "sideways.tif", exif=turned(8))
        photo(160, 120).convert("CMYK").save(place / "print.jpg")
        photo(160, 120).convert("L").save(place / "grey.png")
        photo(161, 123).convert("P").save(place / "palette.png", transparency=3)
        photo(160, 120).convert("1").save(place / "bilevel.png")
        photo(160, 120).save(place / "colour-key.png", transparency=(3, 4, 5))
        transparent("RGBA").save(place / "transparent.png")
        transparent("LA").save(place / "transparent-grey.png")
        photo(160, 120).save(place / "web.webp")
        photo(64, 48).save(place / "small.gif")
        photo(700, 90).save(place / "long.png")
        photo(90, 701).save(place / "tall.bmp")
        deep = random.integers(0, 65536, (120, 160)).astype(np.uint16)
        Image.fromarray(deep).save(place / "deep.png")
        Image.fromarray((deep // 300).astype(np.int32)).save(place / "wide.tif")
        Image.fromarray(random.random((120, 160), np.float32)).save(place / "float.tif")
        (place / "dark.pgm").write_bytes(
            b"P5\n160 120\n65535\n" + (deep // 300).astype(">u2").tobytes()
        )
    return 2 * 19


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"colour": "grey"},
        {"image_size": (48, 64)},
        {"image_size": 33, "resize": 39},
        pytest.param({"image_size": 100}, marks=pytest.mark.slow),
        pytest.param({"image_size": 33}, marks=pytest.mark.slow),
        pytest.param({"resize": 224}, marks=pytest.mark.slow),
        pytest.param({"resize": 243}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_one_road_for_every_kind_of_picture(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Bit for bit: what was trained and measured on is what prediction makes of the same file."""
    folder = tmp_path / "pictures"
    count = write_every_kind(folder)
    data = load_data(DataConfig(data=str(folder), val_fraction=0.4, **settings))
    assert len(data.train) + len(data.val) == count
    classifier = Classifier.create(NetworkConfig(width=0.1), data.preprocessing, data.classes)
    saved = tmp_path / "model.safetensors"
    classifier.save(saved)
    classifier = Classifier.load(saved)  # mean and deviation travelled through JSON
    wanted = (data.preprocessing.height, data.preprocessing.width)
    _, measured = load_for_measuring(DataConfig(data=str(folder)), data.preprocessing, data.classes)
    assert len(measured) == count
    for part in (data.train.centre(wanted), data.val, measured):
        for name, picture in zip(part.names, part.pictures, strict=True):
            assert torch.equal(classifier.prepare(name), picture), name
            if not name.endswith(".jpg"):
                with Image.open(name) as image:
                    assert torch.equal(classifier.prepare(image), picture), name


def test_the_shorter_side_is_brought_to_what_was_asked(tmp_path: Path) -> None:
    write_every_kind(tmp_path)
    data = load_data(DataConfig(data=str(tmp_path), image_size=64, resize=72, val_fraction=0.4))
    assert data.train.pictures.shape[2:] == (72, 72)  # random crops have the border too
    for name, picture in zip(data.val.names, data.val.pictures, strict=True):
        if Path(name).name == "web.webp":
            with Image.open(name) as image:
                theirs = tv.center_crop(tv.resize(image, [72]), [64, 64])
            assert np.array_equal(picture.permute(1, 2, 0), np.asarray(theirs))
            break
    else:
        pytest.fail("the picture is not among those held out; another seed")
    digits = load_data(DataConfig(image_size=8, resize=12))
    original = Image.fromarray(read_named_set(DataConfig()).test[0][0])
    assert digits.test is not None
    theirs = tv.center_crop(tv.resize(original, [12]), [8, 8])
    assert np.array_equal(digits.test.pictures[0, 0], np.asarray(theirs))


def test_black_beside_a_published_picture_is_refused() -> None:
    """8×8 digits cover 16×24 pixels from 24×24 on."""
    assert load_data(DataConfig(image_size=(16, 24), resize=24)).preprocessing.resize == 24
    with pytest.raises(ConfigError, match="name at least 24"):
        load_data(DataConfig(image_size=(16, 24), resize=23))


@pytest.mark.parametrize("data", ["digits", "folder"])
def test_a_frame_of_black_is_refused(picture_folder: Write, data: str) -> None:
    name = str(picture_folder(size=(120, 130))) if data == "folder" else data
    with pytest.raises(ConfigError, match="--resize 30: the network sees 64×64 pixels"):
        load_data(DataConfig(data=name, image_size=64, resize=30))


def test_named_sets_take_the_same_road(small_classifier: Classifier) -> None:
    """A digit as an array, as an image and in the set: the same bits, at any size."""
    for settings in ({}, {"image_size": 20}, {"colour": "rgb", "image_size": (16, 24)}):
        data = load_data(DataConfig(**settings))
        classifier = dataclasses.replace(small_classifier, preprocessing=data.preprocessing)
        originals = read_named_set(DataConfig()).test[0]
        assert data.test is not None
        for original, picture in zip(originals[:30], data.test.pictures[:30], strict=True):
            assert torch.equal(classifier.prepare(original), picture)
            assert torch.equal(classifier.prepare(Image.fromarray(original)), picture)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_mean_and_deviation_are_those_of_numpy(picture_folder: Write, mode: str) -> None:
    data = load_data(DataConfig(data=str(picture_folder(mode=mode, count=30))))
    values = data.train.pictures.numpy().astype(np.float64) / 255
    assert data.preprocessing.mean == pytest.approx(values.mean((0, 2, 3)), abs=5e-5)
    assert data.preprocessing.std == pytest.approx(values.std((0, 2, 3)), abs=5e-5)
    classifier = Classifier.create(NetworkConfig(width=0.1), data.preprocessing, data.classes)
    normalised = classifier.normalize(data.train.pictures)
    assert float(normalised.mean()) == pytest.approx(0, abs=1e-3)
    assert float(normalised.std()) == pytest.approx(1, abs=1e-3)


def test_a_constant_channel_does_not_explode(tmp_path: Path) -> None:
    for label, value in (("a", 10), ("b", 200)):
        (tmp_path / label).mkdir()
        for number in range(6):
            pixels = np.full((16, 16, 3), 7, np.uint8)
            pixels[..., 0] = np.random.default_rng(number + value).integers(0, 256, (16, 16))
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.png")
    data = load_data(DataConfig(data=str(tmp_path), val_fraction=0.3))
    assert data.preprocessing.std[1] == data.preprocessing.std[2] == 1e-3
    classifier = Classifier.create(NetworkConfig(width=0.1), data.preprocessing, data.classes)
    assert classifier.normalize(data.train.pictures).abs().max() < 10


def test_the_held_out_pictures_depend_on_the_split_seed_alone(picture_folder: Write) -> None:
    folder = picture_folder(count=40)
    first, again, other = (
        set(load_data(DataConfig(data=str(folder), split_seed=seed, val_fraction=0.3)).val.names)
        for seed in (0, 0, 1)
    )
    assert first == again != other
    moved = folder.rename(folder.with_name("elsewhere"))
    there = load_data(DataConfig(data=str(moved), val_fraction=0.3)).val.names
    assert {Path(name).relative_to(moved) for name in there} == {
        Path(name).relative_to(folder) for name in first
    }


def test_copies_of_a_picture_stay_on_one_side(picture_folder: Write) -> None:
    folder = picture_folder(count=20)
    for path in sorted(folder.glob("*/*.png")):
        (path.parent / f"copy of {path.name}").write_bytes(path.read_bytes())
    data = load_data(DataConfig(data=str(folder), val_fraction=0.3))
    seen = [
        {picture.numpy().tobytes() for picture in part.pictures} for part in (data.train, data.val)
    ]
    assert not seen[0] & seen[1]


def test_a_folder_with_its_own_sets(picture_folder: Write) -> None:
    root = picture_folder(name="set/train").parent
    picture_folder(name="set/val", count=5)
    picture_folder(name="set/test", count=7)
    data = load_data(DataConfig(data=str(root)))
    assert data.test is not None
    assert [len(part) for part in (data.train, data.val, data.test)] == [24, 10, 14]
    for part, name in ((data.train, "train"), (data.val, "val"), (data.test, "test")):
        assert all(f"/{name}/" in file for file in part.names)
        assert part.labels.dtype == torch.int64
    name, measured = load_for_measuring(
        DataConfig(data=str(root)), data.preprocessing, data.classes
    )
    assert (name, len(measured)) == ("test", 14)
    assert torch.equal(measured.pictures, data.test.pictures)
    shutil.rmtree(root / "test")
    name, measured = load_for_measuring(
        DataConfig(data=str(root)), data.preprocessing, data.classes
    )
    assert (name, len(measured)) == ("validation", 10)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_set_without_a_readable_picture_is_refused(picture_folder: Write, split: str) -> None:
    root = picture_folder(name="set/train").parent
    for path in picture_folder(name=f"set/{split}", count=2).glob("*/*.png"):
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=f"no picture of {split}/ can be decoded"):
        load_data(DataConfig(data=str(root)))


@pytest.mark.parametrize("count", [1, 5])
def test_nothing_left_to_validate_on_is_said(tmp_path: Path, count: int) -> None:
    for label, value in (("a", 10), ("b", 200)):
        (tmp_path / label).mkdir()
        for number in range(count):
            Image.new("RGB", (20, 20), (value,) * 3).save(tmp_path / label / f"{number}.png")
    with pytest.raises(DataError, match="no picture is left for validation"):
        load_data(DataConfig(data=str(tmp_path)))


def test_tiny_pictures_are_enlarged(picture_folder: Write) -> None:
    data = load_data(DataConfig(data=str(picture_folder(size=(5, 11)))))
    assert data.train.pictures.shape[2:] == (8, 11)


def test_the_usual_size_wins_and_upright_counts(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(6):
            pixels = random.integers(0, 256, (32, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.jpg", exif=exif)
        Image.fromarray(pixels).resize((90, 90)).save(tmp_path / label / "odd.png")
    data = load_data(DataConfig(data=str(tmp_path)))
    assert (data.preprocessing.height, data.preprocessing.width) == (48, 32)


def test_a_published_set_meets_another_classifier() -> None:
    """Its preprocessing and the order of its labels decide, also where only the crop differs."""
    digits = read_named_set(DataConfig())
    wanted = Preprocessing(colour="grey", height=8, width=8, resize=12, mean=(0.5,), std=(0.5,))
    labels = tuple("9876543210")
    name, measured = load_for_measuring(DataConfig(), wanted, labels)
    assert name == "test"
    assert measured.labels.tolist() == [9 - label for label in digits.test[1]]
    classifier = Classifier.create(NetworkConfig(width=0.1), wanted, labels)
    trained = load_data(DataConfig(), wanted)
    assert trained.preprocessing == wanted
    assert trained.test is not None
    for place in range(20):
        expected = classifier.prepare(digits.test[0][place])
        assert torch.equal(measured.pictures[place], expected)
        assert torch.equal(trained.test.pictures[place], expected)
