"""Makes the copies of a network that some runtimes need: in 8 bits, and in LiteRT's format."""

import contextlib
import io
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from mobilenetv2.classifier import Classifier
from mobilenetv2.errors import WorkFailed
from mobilenetv2.files import written_whole
from mobilenetv2.runtimes.copies import copy_of
from mobilenetv2.runtimes.onnx_network import network_model
from mobilenetv2.runtimes.processor import weight_bits
from mobilenetv2.shipping.compensate import compensated
from mobilenetv2.shipping.equalise import equalised
from mobilenetv2.shipping.quantize import calibration, float_core, with_onnxruntime

MAKERS = {"onnxruntime-int8": ("onnx", "onnxruntime"), "openvino-int8": ("onnx", "onnxruntime"),
          "litert": ("litert_torch",)}  # fmt: skip
"""What must be installed to make the copy for each runtime."""
CALIBRATED = ("onnxruntime-int8", "openvino-int8")
"""Those whose copy depends on the pictures that it is made with."""


def make_copy(classifier: Classifier, runtime: str, pictures: Tensor | None = None) -> Path:
    """Make the copy for this runtime, and put it where the runtime looks for it.

    Args:
        classifier: what is copied.
        runtime: one of ``MAKERS``.
        pictures: prepared, uint8 N×C×H×W; those in ``CALIBRATED`` need them.

    Raises:
        WorkFailed: the copy cannot be written.
    """
    path = copy_of(classifier, runtime)
    if runtime in CALIBRATED:
        assert pictures is not None
        contents = _int8(classifier, pictures)
    else:
        contents = _litert(classifier)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkFailed(f"{path.parent}: cannot be made ({error.strerror or error})") from error
    with written_whole(path) as file:
        file.write(contents)
    return path


def _int8(classifier: Classifier, pictures: Tensor) -> bytes:
    """Equalised and compensated, by ONNX Runtime's tool.

    NNCF's networks run at half the speed or less; speed is what a copy is for, and whether its
    labels agree is measured.
    """
    batches = calibration(classifier, pictures)
    bits = weight_bits()
    all_rounded = compensated(equalised(classifier, batches), batches, bits)
    core = with_onnxruntime(float_core(all_rounded), batches, bits=bits)
    contents: bytes = network_model(classifier, normalise=True, core=core).SerializeToString()
    return contents


class _PreparedToLogits(nn.Module):
    """The network with normalisation before it, as every runtime here runs it."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.network = classifier.for_inference().network.to(memory_format=torch.contiguous_format)
        self.mean: Tensor
        self.scale: Tensor
        mean, scale = classifier.normalisation()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, pictures: Tensor) -> Tensor:
        """Prepared pictures uint8 N×C×H×W to logits N×K."""
        logits: Tensor = self.network((pictures.float() - self.mean) * self.scale)
        return logits


def _litert(classifier: Classifier) -> bytes:
    import litert_torch

    wanted = classifier.preprocessing
    example = torch.zeros(1, wanted.channels, wanted.height, wanted.width, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "network.tflite"
        litert_torch.convert(_PreparedToLogits(classifier).eval(), (example,)).export(str(path))
        return path.read_bytes()
