"""Checkpoints: all that a run needs to go on, in one ``.pth.tar`` file."""

import hashlib
import io
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import TrainConfig
from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.errors import ConfigError, ModelFileError, first_line
from mobilenetv2.files import read_back, written_whole
from mobilenetv2.seals import seal_zip, zip_is_whole
from mobilenetv2.training.plain_archive import NotPlain, require_modest, require_plain

FORMAT, VERSION = "mobilenetv2 checkpoint", 2

FREE_SETTINGS = {
    "data", "data_dir", "machine", "out", "overwrite", "resume", "quiet", "tensorboard",
    "checkpoint_every", "memory_limit", "cache_dir", "cache_limit",
}  # fmt: skip
"""Settings that may change before a run goes on: where it happens and what it shows."""


@dataclass
class Checkpoint:
    """A moment of a run.

    Attributes:
        settings: of the run, as JSON-ready values.
        labels_digest: of the pictures, see :func:`labels_digest`.
        classifier: metadata of the classifier (JSON-ready), enough to build its network.
        weights: state dict of the network that is trained.
        averaged: state dict of the moving average, where there is one.
        optimizer: state dict of the optimizer.
        schedule: state dict of the schedule.
        epoch: epochs that are complete.
        step: steps done in the epoch after those.
        random_state: PyTorch's CPU generator, uint8 (dropout draws from it).
        cuda_random_state: a GPU's generator, or None.
        lr: peak learning rate (``--lr auto`` has found it by now).
        history: what the loop keeps between epochs: totals, best so far.
    """

    __pydantic_config__: ClassVar = ConfigDict(arbitrary_types_allowed=True)

    settings: dict[str, Any]
    labels_digest: str
    classifier: dict[str, Any]
    weights: dict[str, Tensor]
    averaged: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    epoch: int
    step: int
    random_state: Tensor
    cuda_random_state: Tensor | None
    lr: float
    history: dict[str, Any]

    def to_archive(self) -> bytearray:
        """A file that :func:`torch.load` can read, with its SHA-256 at the end."""
        return to_archive({"format": f"{FORMAT} {VERSION}", **vars(self)})

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read with ``weights_only=True``: no code in the file can run.

        Raises:
            ModelFileError: missing, damaged, not a checkpoint, or one with code in it.
        """
        try:
            with path.open("rb") as file, warnings.catch_warnings():
                if not zip_is_whole(file):
                    raise ModelFileError(
                        f"{path}: not a whole checkpoint of this program: its SHA-256 is missing "
                        "or does not match, so it was cut off, damaged or written by another"
                    )
                require_plain(file)
                file.seek(0)
                warnings.simplefilter("ignore")  # about pickles that are refused right after
                contents = torch.load(file, map_location="cpu", weights_only=True)
                require_modest(contents)
        except ModelFileError:
            raise
        except FileNotFoundError as error:
            raise ModelFileError(f"{path}: there is no such file") from error
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be read ({error.strerror or error})") from error
        except (pickle.UnpicklingError, NotPlain) as error:
            raise ModelFileError(
                f"{path}: refused: not a checkpoint, or one with something in it besides tensors "
                f"and plain values ({first_line(error)}). Nothing in it was run."
            ) from error
        except Exception as error:  # torch.load has no error class of its own for bad files
            raise ModelFileError(
                f"{path}: not a readable checkpoint ({first_line(error)})"
            ) from error
        _require_format(contents, path)
        try:
            checkpoint = cls(**contents)
        except TypeError as error:
            raise ModelFileError(f"{path}: the checkpoint is incomplete ({error})") from error
        try:
            TypeAdapter(cls).validate_python(contents)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise ModelFileError(f"{path}: the checkpoint is damaged ({where})") from error
        return checkpoint

    @classmethod
    def load_first_good(cls, *paths: Path) -> tuple["Checkpoint", Path, tuple[str, ...]]:
        """The first of several checkpoints that can be used, and what is wrong with those before.

        Returns:
            The checkpoint, its file, and lines for the user, if there is anything to say.

        Raises:
            ModelFileError: none can be used; the first one's reason.
        """
        reasons: list[ModelFileError] = []
        for path in paths:
            try:
                checkpoint = cls.load(path)
            except ModelFileError as error:
                reasons.append(error)
            else:
                notes = tuple(map(str, reasons))
                return checkpoint, path, (*notes, f"going on from {path} instead") if notes else ()
        raise reasons[0]

    def build_classifier(self, origin: str) -> Classifier:
        """The classifier at this moment, averaged where the run keeps an average."""
        weights = self.weights if self.averaged is None else self.averaged
        return Classifier.from_parts(self.classifier, weights, origin)


def require_same_settings(config: TrainConfig, begun_with: dict[str, Any], origin: str) -> None:
    """Make sure that a run would go on as it was begun.

    Args:
        config: with what it would go on.
        begun_with: the settings of the run, as JSON-ready values.
        origin: what the user asked for, for the message.

    Raises:
        ConfigError: names the settings that differ.
    """
    now = _flat(config.model_dump(mode="json"))
    # What did not exist yet when the run was begun was as it is by default.
    then = _flat(TrainConfig().model_dump(mode="json")) | _flat(begun_with)
    changed = [
        f"{name} was {then[name]} and is {now.get(name, 'no setting of this version')}"
        for name in sorted(then.keys())
        if name not in now or now[name] != then[name]
    ]
    if changed:
        raise ConfigError(
            f"{origin}: a run goes on as it was begun, but {'; '.join(changed)}. Leave that out "
            "(or change config.yaml back), or start a new run"
        )


def labels_digest(*sets: LabelledPictures) -> str:
    """SHA-256 over the labels of sets, which changes with their number, order and meaning."""
    digest = hashlib.sha256()
    for pictures in sets:
        digest.update(f"{len(pictures)};".encode() + pictures.labels.cpu().numpy().tobytes())
    return digest.hexdigest()


def save_archive(archive: bytearray, path: Path, previous: Path | None = None) -> None:
    """Write a checkpoint; the old one stays until the new one was read back from the disk.

    Args:
        archive: of :meth:`Checkpoint.to_archive`.
        path: the file.
        previous: where to keep the old one even then.

    Raises:
        WorkFailed: it cannot be written; the old one is untouched.
    """
    with written_whole(path, previous) as file:
        file.write(archive)
        read_back(file, archive)


def to_archive(contents: dict[str, Any]) -> bytearray:
    """What :func:`torch.save` makes of ``contents``, sealed with its SHA-256."""
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    archive = bytearray(buffer.getbuffer())
    seal_zip(archive)
    return archive


def _require_format(contents: Any, path: Path) -> None:
    """Take the mark of this program's checkpoints out of ``contents``."""
    words = str(contents.pop("format", "")) if isinstance(contents, dict) else ""
    name, _, version = words.rpartition(" ")
    if name != FORMAT:
        raise ModelFileError(f"{path}: not a checkpoint of this program ({FORMAT!r} expected)")
    if version != str(VERSION):
        newer = version.isdecimal() and (len(version), version) > (len(str(VERSION)), str(VERSION))
        raise ModelFileError(
            f"{path}: a checkpoint of {'a newer' if newer else 'an older'} version of this program "
            f"(format {version}, this one reads {VERSION}); use that version"
        )


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without their sections, and without those that may change."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and name != "machine":
            flat |= _flat(value)
        elif name not in FREE_SETTINGS:
            flat[name] = value
    return flat
