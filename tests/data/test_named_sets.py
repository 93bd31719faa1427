"""Published sets: the files that were published, and words for every damage."""

import gzip
import hashlib
import http.client
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from torchvision.datasets.mnist import read_image_file, read_label_file

from mobilenetv2.config import DataConfig
from mobilenetv2.data import named_sets, set_downloads
from mobilenetv2.data.named_sets import read_idx, read_named_set
from mobilenetv2.data.sources import load_data
from mobilenetv2.errors import DataError


def idx(array: np.ndarray[Any, Any]) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, count: int = 60, *, zipped: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for part in ("train", "t10k"):
        pictures = random.integers(0, 256, (count, 28, 28))
        for name, array in (
            (f"{part}-images-idx3-ubyte", pictures),
            (f"{part}-labels-idx1-ubyte", np.arange(count) % 10),
        ):
            contents = idx(array)
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(contents))
            else:
                (folder / name).write_bytes(contents)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("inside", ["", "MNIST/raw", "mnist"])
def test_idx_files_are_found(tmp_path: Path, inside: str, zipped: bool) -> None:
    write_mnist(tmp_path / inside, zipped=zipped)
    data = load_data(DataConfig(data="mnist", data_dir=tmp_path))
    assert len(data.train) + len(data.val) == 60


@pytest.mark.parametrize(("name", "folder"), [("kmnist", "KMNIST/raw"), ("kmnist", "kmnist"),
                                               ("fashion-mnist", "FashionMNIST/raw")])  # fmt: skip
def test_the_sets_own_folder_comes_before_bare_files(
    tmp_path: Path, name: str, folder: str
) -> None:
    write_mnist(tmp_path)
    write_mnist(tmp_path / folder, count=70)
    assert len(read_named_set(DataConfig(data=name, data_dir=tmp_path)).train[1]) == 70


@pytest.mark.parametrize("name", ["fashion-mnist", "kmnist"])
def test_mnist_is_not_taken_for_its_likes(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(data=name, data_dir=write_mnist(tmp_path))
    assert len(read_named_set(config).train[1]) == 60
    labels = (np.arange(60) % 10).astype(np.uint8).tobytes()
    monkeypatch.setattr(named_sets, "MNIST_LABELS", hashlib.sha256(labels).hexdigest())
    with pytest.raises(DataError, match=f"MNIST's, not those of {name}"):
        read_named_set(config)
    assert read_named_set(config.model_copy(update={"data": "mnist"})).classes[0] == "0"


def test_mnists_own_labels_are_known(test_data: Path) -> None:
    labels = read_idx(test_data / "data" / "mnist" / "train-labels-idx1-ubyte.gz", axes=1)
    assert hashlib.sha256(labels.tobytes()).hexdigest() == named_sets.MNIST_LABELS


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (b"", "not an idx file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not an idx file"),
        (idx(np.zeros(5)), "not an idx file"),
        (idx(np.zeros((3, 28, 28)))[:-1], "truncated or damaged"),
        (idx(np.zeros((3, 28, 28))) + b"x", "truncated or damaged"),
        (gzip.compress(idx(np.zeros((3, 28, 28))), mtime=0)[:-20], "cannot be read"),
        (b"\x1f\x8b" + bytes(50), "cannot be read"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12, "truncated or damaged"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path: Path, contents: bytes, words: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(contents)
    with pytest.raises(DataError, match=words) as error:
        read_idx(path, axes=3)
    assert str(path) in str(error.value)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(59)))
    with pytest.raises(DataError, match="do not belong together"):
        load_data(DataConfig(data="mnist", data_dir=tmp_path))
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    write_labels = idx(np.arange(60) % 10)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(write_labels)
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte"):
        load_data(DataConfig(data="mnist", data_dir=tmp_path))


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.MNIST.download", offline)
    with pytest.raises(DataError, match=r"no network.*--data-dir"):
        load_data(DataConfig(data="mnist", data_dir=tmp_path / "empty"))


@contextmanager
def published_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """MNIST's files come from this folder, by way of a server; yields what was asked for.

    torchvision asks for each file twice, to see first whether it has moved.
    """
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path.strip("/"))
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    files = sorted(folder.iterdir())
    digests = [(file.name, hashlib.md5(file.read_bytes()).hexdigest()) for file in files]
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        mirror = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", [mirror])
        monkeypatch.setattr("torchvision.datasets.MNIST.resources", digests)
        yield asked
        server.shutdown()


def test_a_download_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off between two files; the next call begins anew, and a third asks for nothing."""
    source = write_mnist(tmp_path / "source", zipped=True)
    here = tmp_path / "here"
    config = DataConfig(data="mnist", data_dir=here)
    with published_here(source, monkeypatch) as asked:
        with monkeypatch.context() as cut:
            extract = "torchvision.datasets.utils.extract_archive"
            cut.setattr(extract, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                read_named_set(config)
        assert list(here.iterdir()) == []
        assert len(read_named_set(config).train[1]) == 60
        assert len(asked) == 10
        assert [path.name for path in here.iterdir()] == ["MNIST"]
        read_named_set(config)
        assert len(asked) == 10


@pytest.mark.parametrize("harm", ["missing", "half", "half zipped"])
def test_half_a_download_of_torchvisions_own_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    source = write_mnist(tmp_path / "source", zipped=True)
    raw = write_mnist(tmp_path / "here" / "MNIST" / "raw", zipped=harm == "half zipped")
    name = "t10k-images-idx3-ubyte" + (".gz" if harm == "half zipped" else "")
    contents = (raw / name).read_bytes()
    (raw / name).unlink()
    if harm != "missing":
        (raw / name).write_bytes(contents[: len(contents) // 2])
    config = DataConfig(data="mnist", data_dir=tmp_path / "here")
    with published_here(source, monkeypatch) as asked:
        assert len(read_named_set(config).test[1]) == 60
    assert len(asked) == 8


def test_half_a_set_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_mnist(tmp_path / "MNIST" / "raw")
    (raw / "t10k-labels-idx1-ubyte").unlink()
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:1/"])
    with pytest.raises(DataError, match=r"t10k-labels.* is missing.*download failed.*--data-dir"):
        read_named_set(DataConfig(data="mnist", data_dir=tmp_path))
    # Elsewhere the files are somebody's own, and are not replaced.
    raw.rename(tmp_path / "mnist")
    with pytest.raises(DataError, match=r"t10k-labels.* is missing; the set is incomplete$"):
        read_named_set(DataConfig(data="mnist", data_dir=tmp_path))


def test_one_fetches_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_mnist(tmp_path / "source", zipped=True)
    config = DataConfig(data="mnist", data_dir=tmp_path / "here")
    with published_here(source, monkeypatch) as asked, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read_named_set, [config] * 4))
    assert [len(one.train[1]) for one in found] == [60] * 4
    assert len(asked) == 8


def test_who_comes_when_another_has_just_finished_fetches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It found half a set, and then did not have to wait for the lock."""

    @contextmanager
    def late(_: Path) -> Iterator[bool]:
        write_mnist(tmp_path / "MNIST" / "raw")
        yield False

    monkeypatch.setattr(set_downloads, "one_at_a_time", late)
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:1/"])
    assert len(read_named_set(DataConfig(data="mnist", data_dir=tmp_path)).train[1]) == 60


def test_what_a_killed_download_left_is_removed_a_day_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "here" / ".download-old", tmp_path / "here" / ".download-new"
    for folder in (old, new):
        write_mnist(folder)
    os.utime(old, (0, 0))
    with published_here(write_mnist(tmp_path / "source", zipped=True), monkeypatch):
        read_named_set(DataConfig(data="mnist", data_dir=tmp_path / "here"))
    assert not old.exists()
    assert new.exists()


def test_an_archive_that_lies_there_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision checks and unpacks it where it finds it."""

    class FakeCifar:
        classes = ("plane", "car")
        filename = "cifar.tar.gz"

        def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
            if download:
                assert (Path(root) / self.filename).read_text() == "whole", "it would be fetched"
                (Path(root) / "batches").write_text("unpacked")
            if not (Path(root) / "batches").exists():
                raise RuntimeError("not found")
            self.data, self.targets = np.zeros((4, 32, 32, 3), np.uint8), [0, 1, 0, 1]

    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeCifar)
    (tmp_path / "cifar.tar.gz").write_text("whole")
    assert len(read_named_set(DataConfig(data="cifar10", data_dir=tmp_path)).train[1]) == 4


PUBLISHED = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_bytes_of_mnist(test_data: Path, tmp_path: Path, name: str) -> None:
    """What is read is what was published, and what torchvision's own reader makes of it."""
    path = test_data / "data" / "mnist" / f"{name}.gz"
    contents = gzip.decompress(path.read_bytes())
    assert hashlib.md5(contents).hexdigest() == PUBLISHED[name]
    ours = read_idx(path, axes=3 if "images" in name else 1)
    bare = tmp_path / name
    bare.write_bytes(contents)
    theirs = (read_image_file if "images" in name else read_label_file)(str(bare))
    assert np.array_equal(ours, theirs.numpy())
    assert np.array_equal(ours, read_idx(bare, axes=ours.ndim))


@pytest.mark.parametrize("axes", [1, 3])
def test_every_byte_of_the_header_counts(tmp_path: Path, axes: int) -> None:
    contents = bytearray(idx(np.zeros((2,) * axes)))
    path = tmp_path / "file"
    for place in range(4 + 4 * axes):
        damaged = contents.copy()
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(DataError):
            read_idx(path, axes)
    path.write_bytes(contents)
    assert read_idx(path, axes).shape == (2,) * axes


def test_damage_inside_a_gzip_file_is_found(tmp_path: Path) -> None:
    whole = gzip.compress(idx(np.random.default_rng(0).integers(0, 256, (20, 28, 28))))
    path = tmp_path / "images.gz"
    for place in range(len(whole) // 2, len(whole), 1009):
        damaged = bytearray(whole)
        damaged[place] ^= 255
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="fetch the file again"):
            read_idx(path, axes=3)


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(60, 10)))
    with pytest.raises(DataError, match="labels up to 10"):
        read_named_set(DataConfig(data="kmnist", data_dir=tmp_path))


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    digits = read_named_set(DataConfig())
    assert (len(digits.train[1]), len(digits.test[1])) == (1438, 359)
    ours = np.concatenate([digits.train[0], digits.test[0]])
    original = load_digits().images
    assert np.array_equal(
        np.sort(ours.reshape(1797, -1), axis=0),
        np.sort(np.round(original * 255 / 16).reshape(1797, -1), axis=0),
    )
    shares = np.bincount(digits.test[1]) / np.bincount(load_digits().target)
    assert abs(shares - 0.2).max() < 0.01


@pytest.mark.parametrize(
    "error", [OSError("disk"), RuntimeError("sum"), http.client.IncompleteRead(b"half")]
)
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_that_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(DataError, match=rf"{name}.*--data-dir"):
        read_named_set(DataConfig(data=name, data_dir=tmp_path))


def test_a_damaged_cifar_archive_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of CIFAR are pickles: torchvision compares their MD5 before it loads one."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number in range(1, 6):
        (folder / f"data_batch_{number}").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    (folder / "test_batch").write_bytes(b"")

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no network"):
        read_named_set(DataConfig(data="cifar10", data_dir=tmp_path))
    assert not (tmp_path / "owned").exists()
