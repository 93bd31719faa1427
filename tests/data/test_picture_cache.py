"""The cache gives what decoding gives, is never stale, never half written, and stays small."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image

from mobilenetv2.config import CacheConfig, DataConfig, Preprocessing
from mobilenetv2.data import picture_cache, picture_files
from mobilenetv2.data.doctor import examine
from mobilenetv2.data.examination import PictureReport
from mobilenetv2.data.folders import scan_folder
from mobilenetv2.data.picture_files import load_files
from mobilenetv2.data.sources import load_data
from mobilenetv2.data.unreadable import UnreadablePicture
from mobilenetv2.errors import DataError, WorkFailed

WANTED = Preprocessing(
    colour="rgb", height=16, width=16, resize=16, mean=(0.5,) * 3, std=(0.5,) * 3
)
SIZE = 24 * 3 * 16 * 16  # bytes of the pictures of the folder below


@pytest.fixture
def folder(picture_folder: Callable[..., Path]) -> Path:
    return picture_folder(count=12)


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    return CacheConfig(memory_limit=0, cache_dir=tmp_path / "cache")


def look(folder: Path) -> tuple[PictureReport, ...]:
    return examine(scan_folder(folder)).usable("train")


def files(cache: CacheConfig) -> list[Path]:
    assert cache.cache_dir is not None
    return sorted(cache.cache_dir.iterdir())


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were decoded, as a list that grows."""
    done: list[Path] = []
    original = picture_files._prepared

    def counted(file: BinaryIO, path: Path, wanted: Preprocessing) -> picture_files.Array:
        done.append(path)
        return original(file, path, wanted)

    monkeypatch.setattr(picture_files, "_prepared", counted)
    return done


def test_the_same_pictures_and_decoded_once(
    folder: Path, cache: CacheConfig, decodings: list[Path]
) -> None:
    pictures = look(folder)
    in_memory = load_files(pictures, WANTED, CacheConfig())
    decodings.clear()
    first, second = load_files(pictures, WANTED, cache), load_files(pictures, WANTED, cache)
    assert len(decodings) == len(pictures) == 24
    for mapped in (first, second):
        assert torch.equal(mapped.pictures, in_memory.pictures)
        assert torch.equal(mapped.labels, in_memory.labels)
        assert mapped.names == in_memory.names
    assert [path.stat().st_size for path in files(cache)] == [SIZE]
    second.pictures.zero_()  # a tensor may be written to, the file must not be
    assert torch.equal(load_files(pictures, WANTED, cache).pictures, in_memory.pictures)


def test_of_many_that_ask_at_once_one_decodes(
    folder: Path, cache: CacheConfig, decodings: list[Path]
) -> None:
    pictures = look(folder)
    barrier = Barrier(4)

    def ask(_: int) -> torch.Tensor:
        barrier.wait()
        return load_files(pictures, WANTED, cache).pictures

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(ask, range(4))
    assert all(torch.equal(other, first) for other in others)
    assert len(decodings) == 24
    assert [path.suffix for path in files(cache)] == [".u8"]


def test_a_folder_without_locks_is_used_all_the_same(
    folder: Path, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of several users, or on a drive that has none."""
    pictures = look(folder)
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.suffix == ".lock":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert len(load_files(pictures, WANTED, cache)) == 24


def test_a_file_that_may_not_be_read_is_told(
    folder: Path, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("unable to open file: Permission denied (13)")

    monkeypatch.setattr("torch.from_file", refuse)
    with pytest.raises(DataError, match=r"\.u8: cannot be read .*Permission denied.*--cache-dir"):
        load_files(look(folder), WANTED, cache)


def test_heic_of_another_decoder_is_another_file(folder: Path, cache: CacheConfig) -> None:
    pictures = [replace(picture, format="HEIF") for picture in look(folder)]
    keys = {picture_cache._key(pictures, WANTED)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture_cache, "heic_version", lambda: "99")
        keys.add(picture_cache._key(pictures, WANTED))
        assert picture_cache._key(look(folder), WANTED) not in keys
    assert len(keys) == 2


def test_other_contents_and_other_settings_are_other_files(
    folder: Path, cache: CacheConfig
) -> None:
    load_files(look(folder), WANTED, cache)
    changed = folder / "dark" / "3.png"
    before = changed.stat()
    Image.new("RGB", (20, 20), "red").save(changed)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = load_files(look(folder), WANTED, cache)
    place = [Path(name).name for name in again.names].index("3.png")
    assert again.pictures[place].float().mean((1, 2)).tolist() == [255, 0, 0]
    grey = WANTED.model_copy(update={"colour": "grey"})
    assert load_files(look(folder), grey, cache).pictures.shape == (24, 1, 16, 16)
    normalised = WANTED.model_copy(update={"mean": (0.1,) * 3})
    load_files(look(folder), normalised, cache)  # happens later, on the device
    assert len(files(cache)) == 3


def test_the_longest_unused_gives_way(folder: Path, tmp_path: Path) -> None:
    limit = 2.5 * SIZE / picture_cache.GIB
    cache = CacheConfig(memory_limit=0, cache_dir=tmp_path / "cache", cache_limit=limit)
    pictures = look(folder)
    sides = [WANTED.model_copy(update={"resize": side}) for side in (16, 18, 20)]
    load_files(pictures, sides[0], cache)
    (first,) = files(cache)
    load_files(pictures, sides[1], cache)
    (second,) = set(files(cache)) - {first}
    for path, age in ((first, 100), (second, 50)):
        os.utime(path, (time.time() - age,) * 2)
    load_files(pictures, sides[0], cache)  # now the second is unused for longer
    load_files(pictures, sides[2], cache)
    assert first.exists()
    assert not second.exists()
    assert len(files(cache)) == 2


def test_no_room_is_said_with_ways_out(
    folder: Path, cache: CacheConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = look(folder)
    small = cache.model_copy(update={"cache_limit": 1e-6})
    with pytest.raises(DataError, match=r"take 1\.7e-05 GiB, and --cache-limit allows 1e-06"):
        load_files(pictures, WANTED, small)
    (tmp_path / "file").write_text("")
    nowhere = cache.model_copy(update={"cache_dir": tmp_path / "file" / "cache"})
    with pytest.raises(DataError, match=r"--cache-dir .*cannot be used"):
        load_files(pictures, WANTED, nowhere)
    usage = type("usage", (), {"free": SIZE - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(DataError, match=r"has only .* free\. .*--memory-limit"):
        load_files(pictures, WANTED, cache)
    assert files(cache) == []


def test_a_full_disk_leaves_nothing(
    folder: Path, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WorkFailed, match="No space left"):
        load_files(look(folder), WANTED, cache)
    assert files(cache) == []


def test_what_a_killed_writer_left_is_swept_up(folder: Path, cache: CacheConfig) -> None:
    assert cache.cache_dir is not None
    cache.cache_dir.mkdir()
    digest = 64 * "0"
    old, new = (cache.cache_dir / f".{digest}.u8.x{number}.part" for number in (1, 2))
    mine = [cache.cache_dir / name for name in ("mine.txt", "mine.u8.bak", "mine.u8")]
    for path in (old, new, *mine):
        path.write_text("")
        os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
    os.utime(new)
    load_files(look(folder), WANTED, cache)
    assert not old.exists()
    assert new.exists()
    assert all(path.exists() for path in mine)


@pytest.mark.parametrize("limit", [None, 0])
def test_a_file_that_changes_meanwhile_is_named(
    folder: Path, cache: CacheConfig, limit: float | None
) -> None:
    cache = cache.model_copy(update={"memory_limit": limit})
    pictures = look(folder)
    Image.new("RGB", (20, 20), "red").save(folder / "dark" / "3.png")
    with pytest.raises(UnreadablePicture, match=r"3\.png: the file has changed"):
        load_files(pictures, WANTED, cache)
    (folder / "dark" / "3.png").unlink()
    with pytest.raises(UnreadablePicture, match=r"3\.png: the file is gone"):
        load_files(pictures, WANTED, cache)
    assert not list((cache.cache_dir or folder).glob("**/*.u8*"))


def test_a_whole_data_set_waits_in_files(folder: Path, tmp_path: Path) -> None:
    in_memory = load_data(DataConfig(data=str(folder)))
    mapped = load_data(DataConfig(data=str(folder), memory_limit=0, cache_dir=tmp_path / "cache"))
    assert len(list((tmp_path / "cache").glob("*.u8"))) == 2
    for name in ("train", "val"):
        one, other = getattr(in_memory, name), getattr(mapped, name)
        assert torch.equal(one.pictures, other.pictures)
        assert torch.equal(one.labels, other.labels)
    assert mapped.preprocessing == in_memory.preprocessing
    assert np.all(np.array(mapped.preprocessing.std) > 0)
