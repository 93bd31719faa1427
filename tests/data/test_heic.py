"""HEIC, as iPhones save photos, against pillow-heif's own encoder."""

import io
import sys

import numpy as np
import pytest
from hostile_folder import photo
from PIL import Image

from mobilenetv2.data.doctor import examine
from mobilenetv2.data.folders import scan_folder
from mobilenetv2.data.pictures import UnreadablePicture, decode, read_picture
from mobilenetv2.training.recipes import recipe_settings

pillow_heif = pytest.importorskip("pillow_heif", reason='pip install "mobilenetv2[heic]"')


def heic(image, quality=95, **more):
    """A file of a picture, as a phone would write it."""
    written = io.BytesIO()
    pillow_heif.from_pillow(image).save(written, quality=quality, **more)
    return written.getvalue()


def written(tmp_path, content, name="x.heic"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def difference(a, b):
    return np.abs(np.asarray(a).astype(int) - np.asarray(b)).mean()


@pytest.mark.parametrize("name", ["x.heic", "named.jpg"])
def test_a_photo_comes_out_as_it_went_in(tmp_path, name):
    original = photo(1)
    read = read_picture(written(tmp_path, heic(original), name), "RGB")
    assert read.size == original.size
    assert difference(read, original) < 3
    assert "HEIF" not in Image.OPEN  # another program's Pillow is left as it was


def test_a_folder_of_heic_is_trained_as_photos(tmp_path):
    """Pillow alone cannot open them, and would say nothing of their size and colours."""
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        written(tmp_path / label, heic(photo(1)))
    settings = recipe_settings(str(tmp_path))
    assert settings["transfer"]["weights"] == "auto"


def test_a_sideways_photo_is_turned_upright_once(tmp_path):
    original = photo(2)
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was turned: the stored picture must turn clockwise
    path = written(tmp_path, heic(original, exif=exif.tobytes()))
    expected = original.transpose(Image.Transpose.ROTATE_270)
    read = read_picture(path, "RGB")
    assert read.size == expected.size
    assert difference(read, expected) < 3


def test_the_picture_is_decoded_and_not_its_preview(tmp_path):
    with_preview = heic(photo(3), thumbnails=[120])
    path = written(tmp_path, with_preview)
    assert read_picture(path, "RGB", at_least=48).size == photo(3).size


def test_ten_bits_are_noted(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (64, 64, 3), dtype=np.uint16)
    file = io.BytesIO()
    pillow_heif.from_bytes(mode="RGB;16", size=(64, 64), data=deep.tobytes()).save(file)
    header, picture = decode(io.BytesIO(file.getvalue()), tmp_path, "RGB")
    assert (header.format, header.sixteen_bit, picture.mode) == ("HEIF", True, "RGB")
    assert not decode(io.BytesIO(heic(photo(4))), tmp_path, "RGB")[0].sixteen_bit


@pytest.mark.parametrize(
    ("content", "defect"),
    [
        (heic(photo(5))[:3000], "truncated"),
        (heic(photo(5))[:-10], "truncated"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "broken"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0" * 20, "broken"),
    ],
    ids=["half", "nearly whole", "head alone", "heads"],
)
def test_damaged_files_are_refused_with_a_reason(tmp_path, content, defect):
    path = written(tmp_path, content)
    with pytest.raises(UnreadablePicture) as caught:
        read_picture(path, "RGB")
    assert (caught.value.path, caught.value.defect) == (path, defect)


def test_without_the_decoder_the_way_out_is_named(tmp_path, monkeypatch):
    path = written(tmp_path, heic(photo(6)))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr("mobilenetv2.data.heic.heic_version", lambda: "")
    with pytest.raises(UnreadablePicture, match=r"HEIC.*pip install .*\[heic\]") as caught:
        read_picture(path, "RGB")
    assert caught.value.defect == "not_a_picture"
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UnreadablePicture, match=r"HEIC.*repair pillow-heif"):
        read_picture(path, "RGB")


def test_the_doctor_knows_the_copy_that_was_sent_as_jpeg(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(5):
            photo(10 * (label == "cat") + number).save(tmp_path / label / f"{number}.png")
    (tmp_path / "cat" / "2.png").unlink()
    written(tmp_path / "cat", heic(photo(12)), "2.heic")
    photo(12).resize((160, 120)).save(tmp_path / "cat" / "sent.jpg")
    examination = examine(scan_folder(tmp_path))
    assert all(picture.usable for picture in examination.pictures)
    assert {finding.kind for finding in examination.findings} == {"near_duplicates"}
    paths = {path.name for path in examination.of_kind("near_duplicates")[0].paths}
    assert paths == {"2.heic", "sent.jpg"}
