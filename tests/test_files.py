"""Files are whole or not there, whatever fails on the way."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from mobilenetv2.errors import WorkFailed
from mobilenetv2.files import write_text, written_whole


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    path.chmod(0o640)
    write_text(path, "new ü")
    assert path.read_text(encoding="utf-8") == "new ü"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208


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
