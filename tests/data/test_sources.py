"""Named sets and folders: what comes out of them, and words for what is wrong with them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import DataConfig, NetworkConfig
from mobilenetv2.data.named_sets import NAMES
from mobilenetv2.data.sources import load_data, load_for_measuring
from mobilenetv2.errors import DataError

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
