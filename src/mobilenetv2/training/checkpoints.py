"""Checkpoints: all that a run needs to go on, in one ``.pth.tar`` file."""

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
from mobilenetv2.errors import ConfigError, ModelFileError
from mobilenetv2.files import written_whole

FORMAT = "mobilenetv2 checkpoint 1"

FREE_SETTINGS = frozenset(
    ["data", "data_dir", "machine", "out", "overwrite", "resume", "quiet", "tensorboard"]
)
"""Settings that may change before a run goes on: where it happens and what it shows."""


@dataclass
class Checkpoint:
    """A moment of a run.

    Attributes:
        settings: of the run, as JSON-ready values.
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

    def save(self, path: Path) -> None:
        """Write with :func:`torch.save`; the old checkpoint stays until the new one is whole."""
        with written_whole(path) as file:
            torch.save({"format": FORMAT, **vars(self)}, file)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read with ``weights_only=True``: no code in the file can run.

        Raises:
            ModelFileError: missing, damaged, not a checkpoint, or one with code in it.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickles that are refused right after
                contents = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise ModelFileError(f"{path}: there is no such file") from error
        except pickle.UnpicklingError as error:
            raise ModelFileError(
                f"{path}: refused: not a checkpoint, or one with something in it besides tensors "
                "and plain values. Nothing in it was run."
            ) from error
        except Exception as error:  # torch.load has no error class of its own for bad files
            raise ModelFileError(
                f"{path}: not a readable checkpoint ({_first_line(error)})"
            ) from error
        if not isinstance(contents, dict) or contents.pop("format", None) != FORMAT:
            raise ModelFileError(f"{path}: not a checkpoint of this program ({FORMAT!r} expected)")
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

    def build_classifier(self, origin: str) -> Classifier:
        """The classifier at this moment, averaged where the run keeps an average."""
        weights = self.weights if self.averaged is None else self.averaged
        return Classifier.from_parts(self.classifier, weights, origin)

    def require_settings(self, config: TrainConfig, origin: str) -> None:
        """Make sure that a run would go on as it was begun.

        Raises:
            ConfigError: names the settings that differ.
        """
        now = _flat(config.model_dump(mode="json"))
        then = _flat(self.settings)
        changed = [
            f"{name} was {then.get(name)} and is {now.get(name)}"
            for name in sorted(now.keys() | then.keys())
            if now.get(name) != then.get(name)
        ]
        if changed:
            raise ConfigError(
                f"{origin}: config.yaml is not what the checkpoint was made with: "
                f"{'; '.join(changed)}. Change it back, or start a new run"
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


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
