"""Files are whole or not there, whatever fails on the way."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from mobilenetv2.errors import WorkFailed
from mobilenetv2.files import read_back, remove_leftovers, write_text, written_whole


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    path.chmod(0o640)
    write_text(path, "new ü")
    assert path.read_text(encoding="utf-8") == "new ü"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208


def test_somebody_elses_file_stays_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the root user goes on with a user's run."""
    path = tmp_path / "file"
    write_text(path, "old")
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("files can be given away by the root user alone")
    os.chown(path, 12345, 54321)
    path.chmod(0o640)
    write_text(path, "new")
    status = path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (12345, 54321, 0o640)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)  # anybody else gets a file of their own
    write_text(path, "newer")
    assert (path.read_text(), path.stat().st_uid) == ("newer", os.geteuid())


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "x")
    finally:
        os.umask(previous)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("call", ["write", "fsync", "mkstemp", "replace"])
def test_every_failure_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch, pytest.raises(WorkFailed) as error:
        if call == "fsync":
            patch.setattr(os, "fsync", fail)
        elif call == "mkstemp":
            patch.setattr("tempfile.mkstemp", fail)
        elif call == "replace":
            patch.setattr(Path, "replace", fail)
        with written_whole(path) as file:
            if call == "write":
                fail()
            file.write(b"new")
    assert os.strerror(number) in str(error.value)
    assert str(path) in str(error.value)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_error_of_the_writer_passes_through(tmp_path: Path) -> None:
    def write() -> None:
        with written_whole(tmp_path / "file") as file:
            file.write(b"half")
            raise KeyError("mine")

    with pytest.raises(KeyError):
        write()
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkFailed, match="No such file"):
        write_text(tmp_path / "nowhere" / "file", "x")


def test_a_folder_that_cannot_be_flushed_undoes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network drives refuse it, when the new file has long taken its place."""
    path = tmp_path / "file"
    write_text(path, "old")

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_bytes_reach_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after a rename must not leave an empty file behind it."""
    steps: list[str] = []
    flush, rename = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        steps.append("folder" if stat.S_ISDIR(status.st_mode) else f"{status.st_size} bytes")
        flush(descriptor)

    def replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_text(tmp_path / "file", "x" * 100_000)
    assert steps == ["100000 bytes", "rename", "folder"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interruption_leaves_nothing_behind(
    tmp_path: Path, interruption: type[BaseException]
) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def write() -> None:
        with written_whole(path) as file:
            file.write(b"half")
            raise interruption

    with pytest.raises(interruption):
        write()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_old_contents_are_kept_where_asked(tmp_path: Path) -> None:
    path, previous = tmp_path / "file", tmp_path / "previous"
    for number in range(3):
        with written_whole(path, previous) as file:
            file.write(str(number).encode())
            read_back(file, str(number).encode())
    assert (path.read_text(), previous.read_text()) == ("2", "1")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_disk_that_forgets_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(WorkFailed, match="does not give back"), written_whole(path) as file:
        file.write(b"new")
        read_back(file, b"now")
    assert path.read_text() == "old"


def test_leftovers_of_this_file_alone_are_removed(tmp_path: Path) -> None:
    names = [".a[1].x8_1.part", ".a[1].part", ".a[1].x8_1", ".a1.x8_1.part", "a[1]"]
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "a[1]")
    assert {path.name for path in tmp_path.iterdir()} == set(names[1:])


def test_a_reader_keeps_the_file_it_opened(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_names_in_a_broken_encoding_survive_as_json(tmp_path: Path) -> None:
    name = os.fsdecode(b"K\xe4fer \xe7\x8c\xab")
    write_text(tmp_path / "file", json.dumps([name, "猫"], ensure_ascii=False))
    assert json.loads((tmp_path / "file").read_text(encoding="utf-8")) == [name, "猫"]
