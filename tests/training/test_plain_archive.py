"""Checkpoints of strangers: refused before anything is built from them."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import MachineConfig
from mobilenetv2.errors import ModelFileError
from mobilenetv2.seals import COMMENT_SIZE, seal_zip
from mobilenetv2.training.checkpoints import Checkpoint, to_archive
from mobilenetv2.training.device import strictly
from mobilenetv2.training.plain_archive import NotPlain, require_plain


class Call:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self._reduced


def packed(change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> io.BytesIO:
    """A small archive with changed records, or with one of them twice."""
    archive = to_archive({"a": torch.arange(10.0), "labels": ["0", "cpu"], "n": 3})
    output = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as source,
        zipfile.ZipFile(output, "w", method) as target,
    ):
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return sealed(output)


def sealed(archive: io.BytesIO) -> io.BytesIO:
    data = bytearray(archive.getvalue())
    seal_zip(data)
    return io.BytesIO(data)


def as_it_is(_: str, data: bytes) -> bytes:
    return data


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
     torch.bfloat16, torch.float32, torch.float64],
)  # fmt: skip
def test_tensors_of_all_kinds_are_plain(dtype: torch.dtype) -> None:
    tensor = torch.ones(7, 3, dtype=dtype)
    labels = [str(number) for number in range(12)]  # short texts that the pickle refers back to
    contents = {"labels": labels, "x": tensor, "half": tensor[2:5], "0": tensor, "none": None}
    require_plain(io.BytesIO(to_archive({**contents, "deep": [(1, {"y": tensor.double()})]})))


def test_what_is_more_than_a_checkpoint() -> None:
    with pytest.raises(NotPlain, match="packed"):
        require_plain(packed(as_it_is, zipfile.ZIP_DEFLATED))

    def longer(name: str, data: bytes) -> bytes:
        return data.replace(b"K\x0a", b"K\xff") if name.endswith("data.pkl") else data

    require_plain(packed(as_it_is))
    with pytest.raises(NotPlain, match="storage '0' has another size than it says"):
        require_plain(packed(longer))

    def shorter(name: str, data: bytes) -> bytes:
        return data[:4] if name.endswith("data/0") else data

    with pytest.raises(NotPlain, match="another size"):
        require_plain(packed(shorter))
    with pytest.raises(NotPlain, match=r"no data\.pkl"):
        empty = io.BytesIO()
        zipfile.ZipFile(empty, "w").close()
        require_plain(sealed(empty))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Call(bytearray, 1 << 40), "bytearray"),
        (Call(eval, "1"), "eval"),
        (torch.nn.Parameter(torch.zeros(1)), "_rebuild_parameter"),
        (torch.zeros(3).to_sparse(), "_rebuild_sparse_tensor"),
        (torch.zeros(3, device="meta"), "_rebuild_meta_tensor_no_storage"),
        (torch.Size([1]), "torch Size"),
    ],
)
def test_objects_of_other_kinds_are_refused_by_name(tmp_path: Path, value: Any, words: str) -> None:
    path = tmp_path / "x.pth.tar"
    path.write_bytes(to_archive({"format": value}))
    with pytest.raises(ModelFileError, match=f"refused: .*{words}"):
        Checkpoint.load(path)


def test_a_directory_that_lies(tmp_path: Path) -> None:
    """Two entries for the same bytes: the records add up to more than the file."""
    data = packed(as_it_is).getvalue()[:-COMMENT_SIZE]
    data = data[:-2] + b"\0\0"  # not sealed yet
    start = data.find(b"PK\1\2")
    end = data.rfind(b"PK\5\6")
    many = bytearray(data[:start] + data[start:end] * 2 + data[end:])
    end = many.rfind(b"PK\5\6")
    entries = 2 * int.from_bytes(many[end + 8 : end + 10], "little")
    for place in (8, 10):
        many[end + place : end + place + 2] = entries.to_bytes(2, "little")
    size = 2 * int.from_bytes(many[end + 12 : end + 16], "little")
    many[end + 12 : end + 16] = size.to_bytes(4, "little")
    seal_zip(many)
    path = tmp_path / "x.pth.tar"
    path.write_bytes(many)
    with pytest.raises(ModelFileError, match="packed or doubled"):
        Checkpoint.load(path)


def test_very_many_records_are_refused_unread() -> None:
    """In the directory's size as 32 bits and, which `zipfile` believes first, as 64 bits."""
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as archive:
        for number in range(50_000):
            archive.writestr(f"a/{number}", b"")
    with pytest.raises(NotPlain, match="too many records"):
        require_plain(sealed(output))
    data = bytearray(to_archive({"a": 1}))[:-COMMENT_SIZE]
    data[-2:] = b"\0\0"
    assert data[-42:-38] == b"PK\6\7"
    data[-58:-50] = (1 << 40).to_bytes(8, "little")
    with pytest.raises(NotPlain, match="too many records"):
        require_plain(sealed(io.BytesIO(data)))


@pytest.mark.parametrize("part", [b"N0", b"]q\1h\1", b"K\1", b"("])
def test_very_long_pickles_are_refused(part: bytes) -> None:
    def endless(name: str, data: bytes) -> bytes:
        return b"\x80\2" + part * 400_000 + b"." if name.endswith("data.pkl") else data

    with pytest.raises(NotPlain, match="too long to look through"):
        require_plain(packed(endless))


@pytest.mark.parametrize("place", ["settings", "history", "classifier", "schedule", "surprise"])
def test_few_values_that_become_many_are_refused(
    unfinished: Path, place: str, tmp_path: Path
) -> None:
    many: Any = "x"
    for _ in range(30):
        many = [many] * 10
    contents = torch.load(unfinished / "last.pth.tar", weights_only=True)
    path = tmp_path / "x.pth.tar"
    path.write_bytes(to_archive({**contents, place: {"a": many}}))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(ModelFileError, match="too many values"):
        Checkpoint.load(path)


def test_numbers_that_are_not_there_are_refused_everywhere(unfinished: Path) -> None:
    """A momentum of a thousand times the file would be made real by the first step."""
    last = unfinished / "last.pth.tar"
    contents = torch.load(last, weights_only=True)
    contents["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(1).expand(1 << 30)
    last.write_bytes(to_archive(contents))
    with pytest.raises(ModelFileError, match="fewer numbers are stored"):
        Checkpoint.load(last)


def test_weights_that_are_not_there(small_classifier: Classifier) -> None:
    """A view of one number can claim to be a billion, until something makes them real."""
    weights = small_classifier.network.state_dict()
    about = small_classifier.metadata()
    big = torch.zeros(1, dtype=torch.float16).expand(1 << 40, 1 << 20)
    for name, tensor in (("a", big), ("b", torch.zeros(2).to_sparse())):
        with pytest.raises(ModelFileError, match="the weights do not fit"):
            Classifier.from_parts(about, {**weights, name: tensor}, "x")
    one = torch.zeros(10_000_000)
    shared = {key: one[: value.numel()].view(value.shape) for key, value in weights.items()}
    Classifier.from_parts(about, shared, "x")  # all there, if only once
    with pytest.raises(ModelFileError, match="a label appears twice"):
        Classifier.from_parts({**about, "labels": ["a", "b", "a"]}, weights, "x")


def test_strictness_is_given_back() -> None:
    assert MachineConfig().deterministic is False
    for asked in (False, True):
        with strictly(asked):
            assert torch.are_deterministic_algorithms_enabled() is asked
        assert not torch.are_deterministic_algorithms_enabled()
