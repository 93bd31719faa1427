"""No bit of a sealed file can flip, and no part of it be missing, unnoticed."""

import io
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from mobilenetv2.classifier import Classifier
from mobilenetv2.errors import ModelFileError
from mobilenetv2.seals import (
    DIGEST_KEY,
    safetensors_is_whole,
    seal_safetensors,
    seal_zip,
    zip_is_whole,
)
from mobilenetv2.training.checkpoints import Checkpoint, to_archive

DAMAGES = 1000

CONTENTS = {"weights": {"a": torch.arange(500.0), "ü": torch.zeros(2, 3)}, "epoch": 3}


def sealed_safetensors() -> bytearray:
    metadata = {"about": '"sha256":"x"', "more": "…"}
    data = bytearray(save({"a": torch.arange(500.0)}, metadata))
    seal_safetensors(data)
    return data


def damages(whole: bytearray) -> Iterator[bytearray]:
    """Every flip at the ends, where the formats keep their books; 1,000 more, and 1,000 cuts."""
    draw = random.Random(0)
    bits = {*range(8 * 600), *range(8 * (len(whole) - 600), 8 * len(whole))}
    for bit in bits | {draw.randrange(8 * len(whole)) for _ in range(DAMAGES)}:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        yield damaged
    for length in {0, 1, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(DAMAGES))}:
        yield whole[:length]
    yield whole + b"\0"


def test_every_flip_and_every_cut_of_a_checkpoint_is_seen() -> None:
    archive = to_archive(CONTENTS)
    assert zip_is_whole(io.BytesIO(archive))
    assert not any(zip_is_whole(io.BytesIO(damaged)) for damaged in damages(archive))


def test_every_flip_and_every_cut_of_a_model_is_seen() -> None:
    data = sealed_safetensors()
    assert safetensors_is_whole(io.BytesIO(data))
    assert not any(safetensors_is_whole(io.BytesIO(damaged)) for damaged in damages(data))


def test_damaged_checkpoints_and_models_are_refused(
    unfinished_bytes: tuple[bytes, bytes], tmp_path: Path
) -> None:
    """The same through the doors that people use."""
    draw = random.Random(1)
    for contents, name, load in zip(
        unfinished_bytes, ("x.pth.tar", "x.safetensors"), (Checkpoint.load, Classifier.load),
        strict=True,
    ):  # fmt: skip
        path = tmp_path / name
        for number in range(DAMAGES):
            damaged = bytearray(contents)
            if number % 2:
                damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
            else:
                del damaged[draw.randrange(len(damaged)) :]
            path.write_bytes(damaged)
            with pytest.raises(ModelFileError, match=name):
                load(path)


@pytest.fixture
def unfinished_bytes(small_classifier: Classifier, tmp_path: Path) -> tuple[bytes, bytes]:
    small_classifier.save(tmp_path / "model")
    checkpoint = bytes(to_archive(CONTENTS))
    return checkpoint, (tmp_path / "model").read_bytes()


def test_sealed_files_are_what_they_were_for_others(tmp_path: Path) -> None:
    archive = to_archive(CONTENTS)
    loaded = torch.load(io.BytesIO(archive), weights_only=True)
    assert torch.equal(loaded["weights"]["a"], CONTENTS["weights"]["a"])  # type: ignore[index]
    with zipfile.ZipFile(io.BytesIO(archive)) as read:
        assert read.testzip() is None
    (tmp_path / "x").write_bytes(sealed_safetensors())
    with safe_open(tmp_path / "x", "pt") as file:
        assert torch.equal(file.get_tensor("a"), torch.arange(500.0))
        assert set(file.metadata()) == {"about", DIGEST_KEY, "more"}


def test_files_without_a_digest_are_refused(tmp_path: Path, small_classifier: Classifier) -> None:
    """Or a flip in its name would go unnoticed."""
    path = tmp_path / "x.safetensors"
    small_classifier.save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del metadata[DIGEST_KEY]
    save_file(weights, path, metadata)
    with pytest.raises(ModelFileError, match="SHA-256 is missing"):
        Classifier.load(path)
    torch.save(CONTENTS, path)
    with path.open("rb") as file_:
        assert not zip_is_whole(file_)


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_any_bytes_get_an_answer(data: bytes) -> None:
    zip_is_whole(io.BytesIO(data))
    header = data[8:]
    for text in (data, len(header).to_bytes(8, "little") + header):
        safetensors_is_whole(io.BytesIO(text))


def test_what_cannot_be_sealed() -> None:
    with pytest.raises(ValueError, match="zip"):
        seal_zip(bytearray(100))
    archive = to_archive(CONTENTS)
    with pytest.raises(ValueError, match="zip"):
        seal_zip(archive)
    for unfit in (save({"a": torch.zeros(1)}), save({"a": torch.zeros(1)}, {}), b"", b"x" * 99):
        with pytest.raises(ValueError, match="not a safetensors file with metadata"):
            seal_safetensors(bytearray(unfit))
    with pytest.raises(ValueError, match="without a digest"):
        seal_safetensors(sealed_safetensors())
