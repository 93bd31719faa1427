"""What is remembered of a folder is what looking again would find, or is not used."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from hostile_folder import burst_of, encoded, photo, sideways
from PIL import Image

from mobilenetv2.config import DataConfig
from mobilenetv2.data import doctor, known_folders
from mobilenetv2.data.doctor import examine
from mobilenetv2.data.examination import PictureReport
from mobilenetv2.data.folders import scan_folder
from mobilenetv2.data.known_folders import examine_once
from mobilenetv2.data.sources import load_data
from mobilenetv2.data.unreadable import UnreadablePicture

FILES = 2 * 2 * 4 + 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits with a finding of every kind that concerns readable files."""
    root, number = tmp_path / "été [1]", 0
    for split in ("train", "val"):
        for label in ("cat", "狗"):
            where = root / split / label
            where.mkdir(parents=True)
            for name in ("a", "b", "c"):
                number += 1
                (where / f"{name}.png").write_bytes(encoded(photo(number, 90, 70), "PNG"))
            (where / "d.jpg").write_bytes(sideways(photo(number + 100), 6))
    first, second, *_ = burst_of(7)
    (root / "train" / "cat" / "burst 1.png").write_bytes(encoded(first, "PNG"))
    (root / "train" / "cat" / "burst 2.png").write_bytes(encoded(second, "PNG"))
    shutil.copy(root / "train" / "cat" / "a.png", root / "val" / "cat" / "leak.png")
    shutil.copy(root / "train" / "cat" / "b.png", root / "train" / "狗" / "two labels.png")
    (root / "train" / "notes.txt").write_text("passed over")
    return root


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that the doctor has decoded, as a list that grows."""
    done: list[Path] = []
    original = doctor.decode

    def counted(file, path, *more, **options):  # type: ignore[no-untyped-def]
        done.append(path)
        return original(file, path, *more, **options)

    monkeypatch.setattr(doctor, "decode", counted)
    return done


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the files of a test had been written long ago."""
    monkeypatch.setattr(known_folders, "SETTLED", -60.0)


def test_the_same_findings_without_a_look(folder: Path, looks: list[Path]) -> None:
    fresh = examine(scan_folder(folder))
    assert {finding.kind for finding in fresh.findings} >= {"leak", "two_labels", "exif_rotated"}
    looks.clear()
    assert examine_once(scan_folder(folder)) == fresh
    assert len(looks) == FILES
    assert examine_once(scan_folder(folder)) == fresh
    assert len(looks) == FILES


def test_who_wants_a_look_gets_one(folder: Path, looks: list[Path]) -> None:
    for _ in range(2):
        examine_once(scan_folder(folder), anew=True)
    assert len(looks) == 2 * FILES
    examine_once(scan_folder(folder))  # and others may rely on it
    assert len(looks) == 2 * FILES


def test_by_whatever_name(folder: Path, looks: list[Path], monkeypatch) -> None:
    examine_once(scan_folder(folder))
    monkeypatch.chdir(folder.parent)
    again = examine_once(scan_folder(Path(folder.name)))
    assert again == examine(scan_folder(Path(folder.name)))
    assert len(looks) == 2 * FILES  # the second by examine


def change_quietly(path: Path) -> None:
    """Other pixels in a file of the same size, with the times that it had."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda cat: (cat / "new.png").write_bytes(encoded(photo(99, 90, 70), "PNG")),
    "removed": lambda cat: (cat / "c.png").unlink(),
    "renamed": lambda cat: (cat / "c.png").rename(cat / "x.png"),
    "moved": lambda cat: (cat / "c.png").rename(cat.parent / "狗" / "x.png"),
    "replaced": lambda cat: (cat / "b.png").replace(cat / "c.png"),
    "quietly": lambda cat: change_quietly(cat / "d.jpg"),
    "forbidden": lambda cat: (cat / "c.png").chmod(0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_looked_at(folder: Path, looks: list[Path], change: str) -> None:
    examine_once(scan_folder(folder))
    CHANGES[change](folder / "train" / "cat")
    looks.clear()
    again = examine_once(scan_folder(folder))
    assert len(looks) >= FILES - 1
    assert again == examine(scan_folder(folder))


def test_what_decodes_them_may_change_too(folder: Path, looks: list[Path], monkeypatch) -> None:
    examine_once(scan_folder(folder))
    monkeypatch.setattr("PIL.__version__", "99")
    examine_once(scan_folder(folder))
    assert len(looks) == 2 * FILES


def test_fresh_files_are_not_relied_on(folder: Path, looks: list[Path], monkeypatch) -> None:
    monkeypatch.setattr(known_folders, "SETTLED", 2.0)
    os.utime(folder / "train" / "cat" / "a.png", (0, 0))  # which is a change of its own
    examine_once(scan_folder(folder))
    examine_once(scan_folder(folder))
    assert len(looks) == 2 * FILES


def test_what_changes_during_the_look_is_looked_at_again(folder: Path, looks: list[Path]) -> None:
    def decoded(picture: PictureReport, _: Image.Image) -> None:
        if picture.path.name == "leak.png":
            change_quietly(picture.path)

    examine_once(scan_folder(folder), decoded)
    examine_once(scan_folder(folder))
    assert len(looks) == 2 * FILES


def test_what_could_not_be_read_is_tried_again(folder: Path, looks: list[Path]) -> None:
    (folder / "val" / "cat" / "broken.png").write_bytes(b"\x89PNG")
    for _ in range(2):
        examination = examine_once(scan_folder(folder))
        assert len(examination.of_kind("broken")) == 1
    assert len(looks) == 2 * (FILES + 1)


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"[]", b"\xff", b'{"signs": 1}', b'{"signs": SIGNS, "pictures": [{}]}']
)
def test_a_damaged_memory_is_no_memory(folder: Path, runtime_notes: Path, damage: bytes) -> None:
    fresh = examine_once(scan_folder(folder))
    (stored,) = (runtime_notes.parent / "examinations").glob("*.json")
    whole = stored.read_bytes()
    signs = whole[whole.index(b'"signs": ') + 9 :].split(b",")[0]
    stored.write_bytes(damage.replace(b"SIGNS", signs))
    assert examine_once(scan_folder(folder)) == fresh
    assert stored.read_bytes() == whole


def test_no_place_to_remember(folder: Path, looks: list[Path], monkeypatch, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(known_folders, "cache_folder", lambda: tmp_path / "file")
    for _ in range(2):
        assert examine_once(scan_folder(folder)).splits == ("train", "val")
    assert len(looks) == 2 * FILES


def test_of_many_that_ask_at_once_one_looks(folder: Path, looks: list[Path]) -> None:
    barrier = Barrier(4)

    def ask(_: int) -> object:
        barrier.wait()
        return examine_once(scan_folder(folder))

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(ask, range(4))
    assert all(other == first for other in others)
    assert len(looks) == FILES


def test_a_change_without_a_sign_costs_one_start(folder: Path, monkeypatch) -> None:
    """As on a drive that keeps no time of changes."""
    config = DataConfig(data=str(folder), image_size=32)
    load_data(config)
    monkeypatch.setattr(known_folders, "_signs", lambda _: "as before")
    load_data(config)
    change_quietly(folder / "train" / "cat" / "d.jpg")
    with pytest.raises(UnreadablePicture, match=r"d\.jpg: the file has changed.*start again"):
        load_data(config)
    load_data(config)


def test_only_so_many_are_remembered(tmp_path: Path, runtime_notes: Path, monkeypatch) -> None:
    monkeypatch.setattr(known_folders, "MOST", 3)
    stored = runtime_notes.parent / "examinations"
    roots = []
    for number in range(5):
        roots.append(tmp_path / str(number))
        for label in ("a", "b"):
            (roots[-1] / label).mkdir(parents=True)
            Image.new("L", (20, 20), number).save(roots[-1] / label / "x.png")
        examine_once(scan_folder(roots[-1]))
        for age, file in enumerate(sorted(stored.glob("*.json"), key=os.path.getmtime)[::-1]):
            os.utime(file, (1e9 - age, 1e9 - age))
    assert len(list(stored.glob("*.json"))) == 3
    names = {known_folders._path(scan_folder(root)).name for root in roots[2:]}
    assert {file.name for file in stored.glob("*.json")} == names
