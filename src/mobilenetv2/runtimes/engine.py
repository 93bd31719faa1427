"""A classifier's network in another library: the same answers, sooner.

An engine takes the place of PyTorch inside a :class:`Classifier`: prepared pictures in, logits out.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mobilenetv2.classifier import Classifier
from mobilenetv2.errors import ConfigError
from mobilenetv2.runtimes.installed import installed
from mobilenetv2.runtimes.onnx_network import LOGITS, network_model
from mobilenetv2.runtimes.sessions import Session, onnxruntime_session, openvino_session

LIBRARIES: dict[str, tuple[str, ...]] = {
    "torch": (),
    "onnxruntime": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "openvino-bf16": ("onnx", "openvino"),
}
"""What each runtime needs."""

_SESSIONS: dict[str, Callable[[bytes | Path, int], Session]] = {
    "onnxruntime": lambda model, workers: onnxruntime_session(model, (LOGITS,), workers),
    "openvino": lambda model, workers: openvino_session(model, "f32", (LOGITS,), workers),
    "openvino-bf16": lambda model, workers: openvino_session(model, "bf16", (LOGITS,), workers),
}


class Engine:
    """Runs prepared pictures uint8 N×C×H×W through a classifier's network.

    Args:
        classifier: gives network and normalisation; its weights are copied.
        runtime: which library, and in which precision.
        model: an ONNX file with the same input and outputs in place of the network, such as a
            quantised one.
        workers: threads that will call at the same time.

    Raises:
        ConfigError: the classifier does not lie on the CPU.
        UserError: the library is not installed.
    """

    def __init__(
        self,
        classifier: Classifier,
        runtime: str,
        model: bytes | Path | None = None,
        workers: int = 1,
    ) -> None:
        if classifier.device.type != "cpu":
            raise ConfigError(f"--runtime {runtime}: runs on the CPU, not on {classifier.device}")
        if model is None:
            model = network_model(classifier, normalise=True).SerializeToString()
        self.runtime = runtime
        self._logits = _SESSIONS[runtime](model, workers)

    def __call__(self, pictures: Tensor) -> Tensor:
        """Logits N×K, float32."""
        return torch.from_numpy(self._logits(pictures.cpu().contiguous().numpy())[LOGITS])


def available(runtime: str) -> bool:
    """Whether its libraries are installed."""
    return installed(*LIBRARIES[runtime])


def with_runtime(classifier: Classifier, runtime: str, workers: int = 1) -> Classifier:
    """The classifier, run by that library from now on, for so many threads at the same time."""
    if runtime == "torch":
        return classifier
    return classifier.with_engine(Engine(classifier, runtime, workers=workers))
