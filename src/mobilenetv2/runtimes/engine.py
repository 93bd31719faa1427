"""A classifier's network in another library: the same answers, sooner.

An engine takes the place of PyTorch inside a :class:`Classifier`: prepared pictures in, logits out.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mobilenetv2.classifier import Classifier
from mobilenetv2.errors import ConfigError, UserError
from mobilenetv2.runtimes import copies
from mobilenetv2.runtimes.installed import installed
from mobilenetv2.runtimes.onnx_network import LOGITS, network_model
from mobilenetv2.runtimes.sessions import (
    Session,
    litert_session,
    onnxruntime_session,
    openvino_computes_in_bf16,
    openvino_session,
)

LIBRARIES: dict[str, tuple[str, ...]] = {
    "torch": (),
    "onnxruntime": ("onnx", "onnxruntime"),
    "onnxruntime-int8": ("onnxruntime",),
    "openvino": ("onnx", "openvino"),
    "openvino-bf16": ("onnx", "openvino"),
    "openvino-int8": ("openvino",),
    "litert": ("ai_edge_litert",),
}
"""What each runtime needs."""
PRECISIONS = {"openvino-bf16": "bfloat16", "onnxruntime-int8": "8 bits", "openvino-int8": "8 bits"}
"""Of the arithmetic; float32 elsewhere."""
NO_BF16 = "this processor does not compute in bfloat16"


def _onnxruntime(model: bytes | Path, workers: int) -> Session:
    return onnxruntime_session(model, (LOGITS,), workers)


def _openvino(model: bytes | Path, workers: int) -> Session:
    return openvino_session(model, "f32", (LOGITS,), workers)


_SESSIONS: dict[str, Callable[[bytes | Path, int], Session]] = {
    "onnxruntime": _onnxruntime,
    "onnxruntime-int8": _onnxruntime,
    "openvino": _openvino,
    "openvino-bf16": lambda model, workers: openvino_session(model, "bf16", (LOGITS,), workers),
    "openvino-int8": _openvino,
    "litert": lambda model, workers: litert_session(model, LOGITS, workers),
}


class Engine:
    """Runs prepared pictures uint8 N×C×H×W through a classifier's network.

    Args:
        classifier: gives network and normalisation; its weights are copied.
        runtime: which library, and in which precision.
        workers: threads that will call at the same time.

    Raises:
        ConfigError: the classifier does not lie on the CPU.
        UserError: the library is not installed, the copy that it needs is not there, or the
            processor does not compute so.
    """

    def __init__(
        self,
        classifier: Classifier,
        runtime: str,
        workers: int = 1,
    ) -> None:
        if classifier.device.type != "cpu":
            raise ConfigError(f"--runtime {runtime}: runs on the CPU, not on {classifier.device}")
        if not in_hardware(runtime):
            raise UserError(f"--runtime {runtime}: {NO_BF16}; use openvino")
        model: bytes | Path
        if runtime in copies.SUFFIXES:
            model = copies.require_copy(classifier, runtime)
        else:
            model = network_model(classifier, normalise=True).SerializeToString()
        self.runtime = runtime
        self._logits = _SESSIONS[runtime](model, workers)

    def __call__(self, pictures: Tensor) -> Tensor:
        """Logits N×K, float32."""
        return torch.from_numpy(self._logits(pictures.cpu().contiguous().numpy())[LOGITS])


def available(runtime: str, classifier: Classifier) -> bool:
    """Whether all is here that it needs: libraries, a copy of the network, a processor."""
    return (
        installed(*LIBRARIES[runtime])
        and copies.has_copy(classifier, runtime)
        and in_hardware(runtime)
    )


def in_hardware(runtime: str) -> bool:
    """Whether this processor computes in the precision of that (installed) runtime."""
    return runtime != "openvino-bf16" or openvino_computes_in_bf16()


def precision(runtime: str) -> str:
    """The arithmetic of a runtime, in words."""
    return PRECISIONS.get(runtime, "float32")


def with_runtime(classifier: Classifier, runtime: str, workers: int = 1) -> Classifier:
    """The classifier, run by that library from now on, for so many threads at the same time."""
    if runtime == "torch":
        return classifier
    return classifier.with_engine(Engine(classifier, runtime, workers))
