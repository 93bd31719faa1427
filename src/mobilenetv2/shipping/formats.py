"""What a file format has to offer, and what is written into it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from mobilenetv2.classifier import Classifier
from mobilenetv2.runtimes.sessions import Session

if TYPE_CHECKING:
    import onnx

Precision = Literal["fp32", "fp16", "bf16", "int8"]


@dataclass(frozen=True)
class Content:
    """What is to be exported.

    Attributes:
        classifier: preparation, network and labels.
        raw: the network alone, without preparation and probabilities.
        precision: of the weights.
        picture_size: height and width of the pictures, for formats that fix it.
        core: a quantised network, from ``normalised`` to ``logits``, in place of the classifier's.
    """

    classifier: Classifier
    raw: bool = False
    precision: Precision = "fp32"
    picture_size: tuple[int, int] | None = None
    core: "onnx.ModelProto | None" = None


def picture_size(content: Content) -> tuple[int, int]:
    """Height and width of the pictures that the file takes."""
    wanted = content.classifier.preprocessing
    if content.picture_size is not None:
        return content.picture_size
    margin = max(0, wanted.resize - min(wanted.height, wanted.width))
    return wanted.height + margin, wanted.width + margin


class Format(Protocol):
    """A way to write a file and to run it."""

    @property
    def name(self) -> str:
        """What `--format` calls it."""

    @property
    def suffix(self) -> str:
        """Of its main file."""

    @property
    def beside(self) -> tuple[str, ...]:
        """Suffixes of the files that belong to it."""

    @property
    def libraries(self) -> tuple[str, ...]:
        """That must be installed to write and to prove it."""

    @property
    def fixed_size(self) -> bool:
        """Whether it takes single pictures of one size."""

    def runtime(self) -> str:
        """Library and version that runs the file."""

    def write(self, content: Content, folder: Path, stem: str) -> Path:
        """Write the file, and any that belongs to it, into ``folder``."""

    def open(self, path: Path) -> Session:
        """The file in its own runtime: its input to its outputs by name."""

    def open_layers(self, path: Path, names: Iterable[str]) -> Session | None:
        """The same with the outputs of these layers besides, where that can be had."""
