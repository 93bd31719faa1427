"""What is remembered of a folder is what looking again would find, or is not used."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Lock
from types import SimpleNamespace

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
from mobilenetv2.locks import one_at_a_time

FILES = 2 * 2 * 4 + 4


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits with a finding of every kind that concerns readable files."""
    root, number = tmp_path_factory.mktemp("master"), 0
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
    (root / "val" / "stray.png").write_bytes(encoded(photo(300), "PNG"))
    return root


@pytest.fixture
def folder(master: Path, tmp_path: Path) -> Path:
    return shutil.copytree(master, tmp_path / "été [1]")


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
    told: list[str] = []
    for _ in range(2):
        examine_once(scan_folder(folder), anew=True, tell=told.append)
    assert len(looks) == 2 * FILES
    assert told == 2 * [f"examining the pictures in {folder}"]
    examine_once(scan_folder(folder), tell=told.append)  # and others may rely on it
    assert len(looks) == 2 * FILES
    assert len(told) == 2


def test_by_whatever_name(folder: Path, looks: list[Path], monkeypatch) -> None:
    examine_once(scan_folder(folder))
    for place, name in ((folder.parent, folder.name), (folder, ".")):
        looks.clear()
        monkeypatch.chdir(place)
        again = examine_once(scan_folder(Path(name)))
        assert looks == []
        assert again == examine(scan_folder(Path(name)))


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


@pytest.mark.parametrize("what", ["st_size", "st_mtime_ns", "st_ctime_ns", "st_ino", "error"])
def test_every_sign_counts(folder: Path, monkeypatch, what: str) -> None:
    """Also where the others stay as they are, which no Linux disk lets us try."""
    before, _ = known_folders._signs(scan_folder(folder))
    real = os.stat

    def changed(path, **more):  # type: ignore[no-untyped-def]
        status = real(path, **more)
        if Path(path).name != "c.png":
            return status
        if what == "error":
            raise PermissionError(13, "Permission denied")
        names = ("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino", "st_mtime", "st_ctime")
        facts = {name: getattr(status, name) for name in names}
        return SimpleNamespace(**{**facts, what: facts[what] + 1})

    found = scan_folder(folder)
    monkeypatch.setattr(os, "stat", changed)
    assert known_folders._signs(found)[0] != before


@pytest.mark.parametrize(
    "change",
    [
        lambda found: replace(found, classes=("cat", "dog")),
        lambda found: replace(found, val=(), test=found.val),
        lambda found: replace(found, train=tuple(replace(f, label=0) for f in found.train)),
    ],
    ids=["classes", "split", "labels"],
)
def test_what_a_file_stands_for_is_a_sign(folder: Path, change) -> None:
    found = scan_folder(folder)
    assert known_folders._signs(change(found))[0] != known_folders._signs(found)[0]


@pytest.mark.parametrize("what", ["PIL.__version__", "mobilenetv2.data.known_folders.heic_version"])
def test_what_decodes_them_may_change_too(
    folder: Path, looks: list[Path], monkeypatch, what: str
) -> None:
    examine_once(scan_folder(folder))
    monkeypatch.setattr(what, "99" if what.startswith("PIL") else lambda: "99")
    examine_once(scan_folder(folder))
    assert len(looks) == 2 * FILES


def test_the_clock_of_a_camera_does_not_matter(
    folder: Path, looks: list[Path], monkeypatch
) -> None:
    late = time.time() + 30_000
    os.utime(folder / "train" / "cat" / "a.png", (late, late))
    examine_once(scan_folder(folder))
    examine_once(scan_folder(folder))
    assert len(looks) == FILES


def test_a_memory_that_may_only_be_read(folder: Path, looks: list[Path], monkeypatch) -> None:
    examine_once(scan_folder(folder))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    examine_once(scan_folder(folder))
    assert len(looks) == FILES


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


def test_what_is_no_picture_stays_none(folder: Path, looks: list[Path]) -> None:
    (folder / "val" / "cat" / "page.jpg").write_bytes(b"<html>")
    for _ in range(2):
        examination = examine_once(scan_folder(folder))
        assert len(examination.of_kind("not_a_picture")) == 1
        assert examination == examine_once(scan_folder(folder))
    assert len(looks) == FILES + 1


def test_what_is_not_true_any_more_is_forgotten(folder: Path, monkeypatch) -> None:
    """`inspect` finds a file that the disk has lost, without any sign."""
    examine_once(scan_folder(folder))
    signs = known_folders._signs(scan_folder(folder))
    monkeypatch.setattr(known_folders, "_signs", lambda _: signs)
    (folder / "val" / "cat" / "a.png").write_bytes(b"\x89PNG")
    assert examine_once(scan_folder(folder), anew=True).of_kind("broken")
    assert examine_once(scan_folder(folder)).of_kind("broken")


@pytest.mark.parametrize(
    "damage",
    [b"", b"{}", b"\xff", b"SIGNS", b"SIGNS\n", b"SIGNS\n[]", b'SIGNS\n{"pictures": [{}]}'],
)
def test_a_damaged_memory_is_no_memory(folder: Path, runtime_notes: Path, damage: bytes) -> None:
    fresh = examine_once(scan_folder(folder))
    (stored,) = (runtime_notes.parent / "examinations").glob("*.json")
    whole = stored.read_bytes()
    signs = whole.split(b"\n")[0]
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

    told: list[str] = []

    def ask(_: int) -> object:
        barrier.wait()
        return examine_once(scan_folder(folder), tell=told.append)

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(ask, range(4))
    assert all(other == first for other in others)
    assert len(looks) == FILES
    waiting = f"waiting for another process, which is examining the pictures in {folder}"
    assert set(told) == {f"examining the pictures in {folder}", waiting}


def test_nobody_waits_twice_for_what_cannot_be_kept(folder: Path, looks, monkeypatch) -> None:
    (folder / "val" / "cat" / "broken.png").write_bytes(b"\x89PNG")
    at_work, most = 0, 0
    counting = Lock()
    original = known_folders.examine

    def slow(found, decoded):  # type: ignore[no-untyped-def]
        nonlocal at_work, most
        with counting:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.5)
        examination = original(found, decoded=decoded)
        with counting:
            at_work -= 1
        return examination

    monkeypatch.setattr(known_folders, "examine", slow)
    barrier = Barrier(4)

    def ask(_: int) -> object:
        barrier.wait()
        return examine_once(scan_folder(folder))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))
    assert most >= 2


def test_other_processes_wait_too(folder: Path, tmp_path: Path) -> None:
    ask = """
import sys, time
from pathlib import Path
from mobilenetv2.data import known_folders
from mobilenetv2.data.folders import scan_folder
known_folders.SETTLED = -60
original = known_folders.examine
def slow(folder, decoded):
    print("looked")
    time.sleep(2)
    return original(folder, decoded=decoded)
known_folders.examine = slow
known_folders.examine_once(scan_folder(Path(sys.argv[1])))
"""
    environment = {**os.environ, "MOBILENETV2_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", ask, str(folder)]
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert sorted(process.communicate()[0] for process in both) == ["", "looked\n"]
    assert [process.returncode for process in both] == [0, 0]


def test_a_change_without_a_sign_costs_one_start(folder: Path, monkeypatch) -> None:
    """As on a drive that keeps no time of changes."""
    config = DataConfig(data=str(folder), image_size=32)
    load_data(config)
    monkeypatch.setattr(known_folders, "_signs", lambda _: ("as before", 0.0))
    load_data(config)
    change_quietly(folder / "train" / "cat" / "d.jpg")
    with pytest.raises(UnreadablePicture, match=r"d\.jpg: the file has changed.*start again"):
        load_data(config)
    load_data(config)


def test_what_is_known_waits_for_nobody(folder: Path, looks: list[Path]) -> None:
    examine_once(scan_folder(folder))
    lock = known_folders._path(scan_folder(folder)).with_suffix(".lock")
    with ThreadPoolExecutor(1) as pool, one_at_a_time(lock):
        asked = pool.submit(examine_once, scan_folder(folder))
        done = wait([asked], timeout=5).done
        anew = pool.submit(examine_once, scan_folder(folder), anew=True)
        done |= wait([anew], timeout=5).done
    assert done == {asked, anew}
    assert len(looks) == 2 * FILES


def test_only_so_many_are_remembered(
    tmp_path: Path, runtime_notes: Path, looks: list[Path], monkeypatch
) -> None:
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
        examine_once(scan_folder(roots[0]))  # is needed all the time
    assert looks.count(roots[0] / "a" / "x.png") == 1
    names = {known_folders._path(scan_folder(roots[number])).name for number in (0, 3, 4)}
    assert {file.name for file in stored.iterdir()} == names  # and no locks
