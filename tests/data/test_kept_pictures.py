"""Pictures kept from the examination are bit for bit what reading their files again gives."""

import math
from pathlib import Path

import pytest
import torch
from hostile_folder import encoded, photo, sideways
from PIL import features

from mobilenetv2.config import DataConfig, Preprocessing
from mobilenetv2.data import kept_pictures, known_folders, picture_files, sources
from mobilenetv2.data.doctor import examine
from mobilenetv2.data.fingerprints import ENOUGH_PIXELS
from mobilenetv2.data.folders import scan_folder
from mobilenetv2.data.kept_pictures import KeptPictures
from mobilenetv2.data.pictures import read_picture
from mobilenetv2.data.sources import DataSet, load_data, load_for_measuring

SIDE = 48  # the shorter side that a fingerprint needs; with its margin 56


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of every kind, and one that is too long to be kept."""
    root, number = tmp_path_factory.mktemp("every kind"), 0
    for split in ("train", "val", "test"):
        for label in ("cat", "dog"):
            where = root / split / label
            where.mkdir(parents=True)
            number += 10
            (where / "a.jpg").write_bytes(encoded(photo(number), "JPEG"))
            (where / "b.jpg").write_bytes(sideways(photo(number + 1, 333, 251), 6))
            (where / "c.png").write_bytes(encoded(photo(number + 2, 201, 77), "PNG"))
            (where / "d.jpg").write_bytes(encoded(photo(number + 3).convert("L"), "JPEG"))
            (where / "e.jpg").write_bytes(encoded(photo(number + 4, 400, 60), "JPEG"))
            kind = "WEBP" if features.check("webp") else "TIFF"
            (where / f"f.{kind.lower()}").write_bytes(encoded(photo(number + 5), kind))
    return root


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that has lain still for a while would not be examined again."""
    monkeypatch.setattr(known_folders, "SETTLED", math.inf)


@pytest.fixture
def read_again(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read after the examination, as a list that grows."""
    done: list[Path] = []
    original = picture_files._prepared

    def counted(file, path, wanted):  # type: ignore[no-untyped-def]
        done.append(path)
        return original(file, path, wanted)

    monkeypatch.setattr(picture_files, "_prepared", counted)
    return done


def keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeptPictures, "keep", lambda *_: None)


def same(left: DataSet, right: DataSet) -> bool:
    pairs = ((left.train, right.train), (left.val, right.val), (left.test, right.test))
    return all(
        a is not None
        and b is not None
        and torch.equal(a.pictures, b.pictures)
        and torch.equal(a.labels, b.labels)
        and a.names == b.names
        for a, b in pairs
    )


@pytest.mark.parametrize("more", [{}, {"resize": 49}, {"image_size": (40, 60), "resize": 60}])
def test_the_same_bits_read_once(folder, read_again, monkeypatch, more) -> None:
    config = DataConfig(**{"data": str(folder), "image_size": SIDE, **more})
    once = load_data(config)
    assert {path.name for path in read_again} == {"d.jpg", "e.jpg"}  # grey; too long
    read_again.clear()
    keep_nothing(monkeypatch)
    twice = load_data(config)
    assert len(read_again) == 36
    assert same(once, twice)
    assert once.preprocessing == twice.preprocessing


@pytest.mark.parametrize("more", [{"colour": "grey"}, {"image_size": 32}, {"image_size": 80}])
def test_what_the_doctor_decoded_otherwise_is_read_again(folder, read_again, more) -> None:
    load_data(DataConfig(**{"data": str(folder), "image_size": SIDE, **more}))
    jpegs = {path.name for path in read_again if path.suffix == ".jpg"}
    assert jpegs == {"a.jpg", "b.jpg", "d.jpg", "e.jpg"}


@pytest.mark.parametrize("resize", [49, 56, 64])
def test_where_rounding_decides_at_which_scale_pillow_decodes(
    tmp_path, read_again, monkeypatch, resize
) -> None:
    """Of 4 × 56 pixels less one, a quarter has 56; but asked for 56, Pillow decodes the half."""
    sides = [times * resize + more for times in (1, 2, 4) for more in (-1, 0, 1)]
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for side in sides:
            picture = photo(side + len(label), side + 40, side)
            (tmp_path / label / f"{side}.jpg").write_bytes(encoded(picture, "JPEG"))
    config = DataConfig(data=str(tmp_path), image_size=48, resize=resize, val_fraction=0.5)
    once = load_data(config)
    paths = [tmp_path / label / f"{side}.jpg" for label in ("cat", "dog") for side in sides]
    otherwise = {
        path
        for path in paths
        if read_picture(path, "RGB", ENOUGH_PIXELS).size != read_picture(path, "RGB", resize).size
    }
    too_small = {path for path in paths if int(path.stem) < resize}
    assert otherwise | too_small == set(read_again)
    assert {path.stem for path in otherwise} & {str(4 * resize - 1), str(2 * resize - 1)}
    keep_nothing(monkeypatch)
    twice = load_data(config)
    assert torch.equal(once.train.pictures, twice.train.pictures)
    assert torch.equal(once.val.pictures, twice.val.pictures)


def test_a_kept_picture_is_taken_once(folder: Path) -> None:
    examination = examine(scan_folder(folder))
    picture = next(p for p in examination.usable("train") if p.path.name == "a.jpg")
    kept = KeptPictures("train", 56, 1e9)
    kept.keep(picture, photo(1, 120, 90))
    wanted = Preprocessing(
        colour="rgb", height=48, width=48, resize=56, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    assert kept.take(picture, wanted) is not None
    assert kept.take(picture, wanted) is None


def test_small_pictures_turn_out_to_have_no_margin(tmp_path, read_again, monkeypatch) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(4):
            picture = photo(number + len(label), 90, 80)
            (tmp_path / label / f"{number}.png").write_bytes(encoded(picture, "PNG"))
    config = DataConfig(data=str(tmp_path), image_size=SIDE, val_fraction=0.5)
    once = load_data(config)
    keep_nothing(monkeypatch)
    assert torch.equal(load_data(config).train.pictures, once.train.pictures)
    assert once.preprocessing.resize == SIDE


def test_nothing_is_kept_for_a_set_that_will_be_grey(folder, monkeypatch) -> None:
    def resized(*_: object) -> None:
        raise AssertionError("kept for nobody")

    monkeypatch.setattr(kept_pictures, "resize_shorter_side", resized)
    load_data(DataConfig(data=str(folder), image_size=SIDE, colour="grey"))


def test_where_the_room_ends_files_are_read_again(folder, read_again, monkeypatch) -> None:
    config = DataConfig(data=str(folder), image_size=SIDE)
    plenty = load_data(config)
    picture = 3 * 56 * 74
    monkeypatch.setattr(sources, "memory_limit", lambda _: 2 * 5.5 * picture)
    read_again.clear()
    assert same(load_data(config), plenty)
    assert 36 - 7 <= len(read_again) <= 36 - 4  # those that are kept differ in length


def test_measuring_keeps_what_it_measures(folder, read_again, monkeypatch) -> None:
    config = DataConfig(data=str(folder), image_size=SIDE)
    data = load_data(config)
    read_again.clear()
    kept: list[Path] = []
    original = kept_pictures.resize_shorter_side
    monkeypatch.setattr(
        kept_pictures,
        "resize_shorter_side",
        lambda image, resize: kept.append(image) or original(image, resize),
    )
    name, pictures = load_for_measuring(config, data.preprocessing, data.classes)
    assert name == "test"
    assert data.test is not None
    assert torch.equal(pictures.pictures, data.test.pictures)
    assert (len(kept), len(read_again)) == (8, 4)
