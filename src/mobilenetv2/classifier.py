"""A classifier is pictures in, labels out: preprocessing, network and label names in one object.

Training makes one, evaluation measures one, and one file holds it: ``model.safetensors``, with
readable JSON metadata inside. Nothing can therefore prepare pictures differently afterwards.
"""

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from PIL import Image
from pydantic import FailFast, Field, TypeAdapter
from torch import Tensor, nn

from mobilenetv2.config import NetworkConfig, Preprocessing
from mobilenetv2.data.picture_files import fit, read_file
from mobilenetv2.data.pictures import upright
from mobilenetv2.errors import ConfigError, ModelFileError, UserError
from mobilenetv2.model_file import (
    as_float32,
    read_model_file,
    require_stored,
    write_model_file,
)
from mobilenetv2.network.build import build_network
from mobilenetv2.network.folding import fold_norms

LONGEST_SECTION = 10_000  # characters of one part of the description that is no list of labels
PREDICT_BATCH = 32

Item = TypeVar("Item")
Labels = Annotated[tuple[str, ...], Field(min_length=1), FailFast()]
PictureLike = str | Path | Image.Image | np.ndarray[Any, Any]


@dataclass(frozen=True)
class Prediction:
    """One label and how likely the classifier holds it."""

    label: str
    probability: float


@dataclass(frozen=True)
class Classifier:
    """Preprocessing, network and labels.

    Attributes:
        network: normalised pictures in, logits N×K out.
        config: what the network was built from.
        preprocessing: how a picture becomes the network's input.
        labels: K class names, in the order of the logits.
        training: a summary of how it was made; free of meaning for prediction.
        engine: runs prepared pictures uint8 N×C×H×W to logits N×K in place of the network, where
            another runtime does it faster; None for PyTorch.
    """

    network: nn.Module
    config: NetworkConfig
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    training: Mapping[str, Any] = field(default_factory=dict)
    engine: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def create(
        cls, config: NetworkConfig, preprocessing: Preprocessing, labels: Sequence[str]
    ) -> "Classifier":
        """A classifier with a fresh network, initialised from PyTorch's random state."""
        network = build_network(config, len(labels), preprocessing.channels)
        return cls(network, config, preprocessing, tuple(labels))

    @property
    def device(self) -> torch.device:
        """Where the network's weights lie."""
        return next(self.network.parameters()).device

    def prepare(self, picture: PictureLike) -> Tensor:
        """One picture as the network sees it before normalisation: uint8 C×H×W.

        Args:
            picture: a file, a PIL image, or a uint8 array H×W or H×W×3 (RGB). A large JPEG comes
                slightly different from a PIL image than from its file: files are decoded at a
                fraction of their size, in training as here.

        Raises:
            UnreadablePicture: the file is not a picture or is broken.
        """
        if isinstance(picture, str | Path):
            return torch.from_numpy(read_file(Path(picture), self.preprocessing))
        if isinstance(picture, np.ndarray):
            picture = _to_image(picture)
        return torch.from_numpy(fit(upright(picture), self.preprocessing))

    def normalize(self, pictures: Tensor) -> Tensor:
        """Pictures N×C×H×W in 0…255 to the network's float32 input."""
        size = self.preprocessing
        mean, scale = _constants(tuple(size.mean), tuple(size.std), pictures.device)
        return (pictures.float() - mean) * scale

    def normalisation(self) -> tuple[Tensor, Tensor]:
        """What :meth:`normalize` takes off 0…255, and what it multiplies by then: 1×C×1×1 each."""
        size = self.preprocessing
        mean, scale = _constants(tuple(size.mean), tuple(size.std), torch.device("cpu"))
        return mean[None].clone(), scale[None].clone()

    def logits(self, pictures: Tensor) -> Tensor:
        """Prepared pictures uint8 N×C×H×W to logits N×K, float32; no gradients, eval mode.

        The network's training mode is given back afterwards, module by module.
        """
        if self.engine is not None:
            return self.engine(pictures)
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()
        try:
            with torch.inference_mode():
                inputs = self.normalize(pictures.to(self.device))
                logits: Tensor = self.network(inputs.contiguous(memory_format=torch.channels_last))
                return logits.float()
        finally:
            for module, training in modes:
                module.training = training

    def predict(
        self, pictures: PictureLike | Iterable[PictureLike], top: int = 5
    ) -> list[list[Prediction]]:
        """The ``top`` most likely labels of each picture, the likeliest first.

        Args:
            pictures: one or many, each as in :meth:`prepare`.
            top: how many; above the number of classes it means all of them.

        Returns:
            One list for each picture, also where there is only one.

        Raises:
            UserError: ``top`` is below 1.
        """
        check_top(top)
        classifier = self
        predictions: list[list[Prediction]] = []
        for few in _batched(_several(pictures), PREDICT_BATCH):
            if classifier is self and len(few) == PREDICT_BATCH:
                classifier = self.for_inference()  # costs more than it saves on a few pictures
            prepared = torch.stack([self.prepare(one) for one in few])
            predictions += classifier.most_likely(prepared, top)
        return predictions

    def most_likely(self, pictures: Tensor, top: int) -> list[list[Prediction]]:
        """The ``top`` most likely labels of prepared pictures uint8 N×C×H×W."""
        probabilities = self.logits(pictures).softmax(1)
        best = probabilities.topk(min(top, len(self.labels)))
        return [
            [
                Prediction(self.labels[index], value)
                for value, index in zip(values, places, strict=True)
            ]
            for values, places in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def for_inference(self) -> "Classifier":
        """A faster copy for prediction alone: batch norms folded into the convolutions."""
        if self.engine is not None:
            return self
        return self.with_network(fold_norms(self.network))

    def with_network(self, network: nn.Module) -> "Classifier":
        """The same classifier around other weights."""
        return replace(self, network=network, engine=None)

    def with_engine(self, engine: Callable[[Tensor], Tensor] | None) -> "Classifier":
        """The same classifier, run by another runtime."""
        return replace(self, engine=engine)

    def metadata(self) -> dict[str, Any]:
        """Everything but the weights, as JSON-ready values; enough to build the network again."""
        from mobilenetv2 import __version__

        return {
            "version": __version__,
            "network": self.config.model_dump(mode="json"),
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "labels": list(self.labels),
            "training": dict(self.training),
        }

    def save(self, path: str | Path) -> None:
        """Write ``model.safetensors`` with the metadata inside; the file is whole or not there.

        Raises:
            ModelFileError: labels and settings are too long for :meth:`load`.
        """
        write_model_file(Path(path), self.metadata(), self.network.state_dict())

    @classmethod
    def load(cls, path: str | Path) -> "Classifier":
        """Read a file that :meth:`save` wrote. No code in it can run.

        Raises:
            ModelFileError: the file is missing, damaged, or holds something else.
        """
        description, weights = read_model_file(Path(path))
        return cls.from_parts(description, weights, str(path))

    @classmethod
    def from_parts(
        cls, metadata: Mapping[str, Any], weights: Mapping[str, Tensor], origin: str
    ) -> "Classifier":
        """A classifier from :meth:`metadata` and a state dict, both perhaps from a stranger.

        Raises:
            ModelFileError: they are incomplete, out of range, or do not fit each other.
        """
        try:
            config = NetworkConfig(**_section(metadata, "network"))
            preprocessing = Preprocessing(**_section(metadata, "preprocessing"))
            labels = TypeAdapter(Labels).validate_python(metadata["labels"])
            if len(set(labels)) < len(labels):
                raise ValueError("a label appears twice")
            if not all(map(_can_be_written, labels)):
                raise ValueError("a label is not text that can be written (a lone surrogate)")
            training = metadata.get("training", {})
            if not isinstance(training, dict):
                raise ValueError("training: not a mapping")
        except (
            KeyError, TypeError, AttributeError, ValueError, RecursionError, ConfigError,
        ) as error:  # fmt: skip
            reason = "; ".join(str(error).splitlines()[:3])  # of as many as it has labels
            raise ModelFileError(f"{origin}: its description is damaged: {reason}") from error
        try:
            # No memory is taken for weights that the file does not hold.
            with torch.device("meta"):
                network = build_network(config, len(labels), preprocessing.channels)
            require_stored(weights)
            floats = {name: as_float32(tensor, origin) for name, tensor in weights.items()}
            network.load_state_dict(floats, assign=True)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ModelFileError(
                f"{origin}: the weights do not fit the network that the file describes: {reason}"
            ) from error
        network.requires_grad_().to(memory_format=torch.channels_last)
        return cls(network, config, preprocessing, labels, training)


def check_top(top: int) -> None:
    """Some labels must be asked for.

    Raises:
        UserError: none are.
    """
    if top < 1:
        raise UserError(f"top: at least 1 label must be asked for, not {top}")


def _several(pictures: PictureLike | Iterable[PictureLike]) -> Iterable[PictureLike]:
    """One picture as a list; of arrays, N×H×W are several grey ones."""
    if isinstance(pictures, np.ndarray):
        is_one = pictures.ndim == 2 or (pictures.ndim == 3 and pictures.shape[2] == 3)
        return [pictures] if is_one else list(pictures)
    return [pictures] if isinstance(pictures, str | Path | Image.Image) else pictures


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """``itertools.batched`` of Python 3.12."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _section(metadata: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part of the description; each of a million odd values would be complained of."""
    section: dict[str, Any] = metadata[name]
    if len(json.dumps(section)) > LONGEST_SECTION:
        raise ValueError(f"{name}: too long")
    return section


def _can_be_written(label: str) -> bool:
    """Whether a label is text, or a folder's name in a broken encoding."""
    try:
        label.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _to_image(array: np.ndarray[Any, Any]) -> Image.Image:
    shapes = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not shapes or not array.size:
        raise UserError(
            "a picture given as an array must be uint8 of shape H×W (grey) or H×W×3 (RGB); got "
            f"{array.dtype} of shape {array.shape}"
        )
    return Image.fromarray(array)


@functools.lru_cache(maxsize=64)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """What is taken off 0…255, and what it is multiplied by: C×1×1 on the device.

    Kept there: a GPU would have to wait for them in every step.
    """
    with torch.inference_mode(False):
        middle, width = (torch.tensor(part, device=device).view(-1, 1, 1) for part in (mean, std))
        return middle * 255, 1 / (width * 255)
