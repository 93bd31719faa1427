"""A classifier's network outside of PyTorch: the same answers, sooner.

An engine takes the place of PyTorch inside a :class:`Classifier`: prepared pictures in, logits out.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mobilenetv2.classifier import Classifier
from mobilenetv2.errors import ConfigError, UserError, WorkFailed
from mobilenetv2.network.cpp_inference import CppInference, why_not
from mobilenetv2.network.mobilenetv2 import MobileNetV2
from mobilenetv2.runtimes import copies, processor
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
    "cpp": (),
    "cpp-bf16": (),
    "onnxruntime": ("onnx", "onnxruntime"),
    "onnxruntime-int8": ("onnxruntime",),
    "openvino": ("onnx", "openvino"),
    "openvino-bf16": ("onnx", "openvino"),
    "openvino-int8": ("openvino",),
    "litert": ("ai_edge_litert",),
}
"""The runtimes, and the packages that each needs; GCC makes this package's own, cpp, on first
use."""
PRECISIONS = {
    "cpp-bf16": "bfloat16", "openvino-bf16": "bfloat16", "onnxruntime-int8": "8 bits",
    "openvino-int8": "8 bits",
}  # fmt: skip
"""Of the arithmetic; float32 elsewhere."""
OWN = {"cpp": torch.float32, "cpp-bf16": torch.bfloat16}
"""This package's own runtimes, and what they keep maps as."""
DIFFERENCE = 1e-3
"""Largest |Δlogit| of a runtime in float32 that may stand for PyTorch; in :func:`agrees`, where
logits may have any size, relative for those above 1."""
AGREEING = 4
"""Pictures that an unmeasured runtime is tried on."""
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

    Attributes:
        runtime: which one runs.
    """

    def __init__(
        self,
        classifier: Classifier,
        runtime: str,
        workers: int = 1,
    ) -> None:
        if classifier.device.type != "cpu":
            raise ConfigError(f"--runtime {runtime}: runs on the CPU, not on {classifier.device}")
        if reason := obstacle(runtime, classifier):
            other = runtime.removesuffix("-bf16") if reason == NO_BF16 else "torch"
            raise UserError(f"--runtime {runtime}: {reason}; use {other}")
        self.runtime = runtime
        self._compiled = _compiled(classifier, runtime) if runtime in OWN else None
        self._logits: Callable[[Tensor], Tensor]
        if self._compiled is not None:
            self._logits = partial(self._compiled.logits, threads=None if workers == 1 else 1)
        else:
            self._logits = _session(classifier, runtime, workers)

    @property
    def gives_features(self) -> bool:
        """Whether it is one of this package's own runtimes."""
        return self._compiled is not None

    def __call__(self, pictures: Tensor) -> Tensor:
        """Logits N×K, float32.

        Raises:
            WorkFailed: the memory is too little.
        """
        try:
            return self._logits(pictures.cpu())
        except MemoryError as error:
            raise WorkFailed(f"--runtime {self.runtime}: {error}; use torch") from error

    def features(self, pictures: Tensor) -> Tensor:
        """Features N×F, float32, of this package's own runtimes.

        Raises:
            WorkFailed: the memory is too little.
        """
        return self._own(CppInference.features, pictures)

    def classify(self, features: Tensor) -> Tensor:
        """Logits N×K of such features, float32: those that a call would give.

        Raises:
            WorkFailed: the memory is too little.
        """
        return self._own(CppInference.classify, features)

    def _own(self, work: Callable[[CppInference, Tensor], Tensor], given: Tensor) -> Tensor:
        assert self._compiled is not None
        try:
            return work(self._compiled, given.cpu())
        except MemoryError as error:
            raise WorkFailed(f"{error}; --fast-ops torch does without them") from error


def _compiled(classifier: Classifier, runtime: str) -> CppInference:
    assert isinstance(classifier.network, MobileNetV2)
    mean, scale = (part.flatten() for part in classifier.normalisation())
    return CppInference(classifier.network, mean, scale, OWN[runtime])


def _session(classifier: Classifier, runtime: str, workers: int) -> Callable[[Tensor], Tensor]:
    model: bytes | Path
    if runtime in copies.SUFFIXES:
        model = copies.require_copy(classifier, runtime)
    else:
        model = network_model(classifier, normalise=True).SerializeToString()
    session = _SESSIONS[runtime](model, workers)
    return lambda pictures: torch.from_numpy(session(pictures.contiguous().numpy())[LOGITS])


def available(runtime: str, classifier: Classifier) -> bool:
    """Whether all is here that it needs: libraries, a copy of the network, a processor."""
    return (
        installed(*LIBRARIES[runtime])
        and copies.has_copy(classifier, runtime)
        and not obstacle(runtime, classifier)
    )


def obstacle(runtime: str, classifier: Classifier) -> str:
    """Why an installed runtime cannot run this classifier here; nothing if it can.

    To know, it compiles this package's own, once.
    """
    if runtime in OWN:
        if runtime == "cpp-bf16" and not processor.multiplies_bf16():
            return NO_BF16
        return why_not(classifier.network, OWN[runtime])
    return NO_BF16 if runtime == "openvino-bf16" and not openvino_computes_in_bf16() else ""


def precision(runtime: str) -> str:
    """The arithmetic of a runtime, in words."""
    return PRECISIONS.get(runtime, "float32")


def with_runtime(classifier: Classifier, runtime: str, workers: int = 1) -> Classifier:
    """A classifier that answers the same, run by that runtime; the weights are copied.

    Args:
        classifier: on the CPU.
        runtime: cpp or cpp-bf16 (GCC under Linux), onnxruntime, openvino or
            openvino-bf16 (`pip install "mobilenetv2[export]"`); onnxruntime-int8, openvino-int8 or
            litert, whose copies of the network `mobilenetv2 benchmark` makes; torch for PyTorch.
        workers: threads that will ask at the same time, each of which then computes alone; with
            one, PyTorch's number of threads works on what it asks.

    Raises:
        ConfigError: there is no such runtime, or the classifier does not lie on the CPU.
        UserError: it cannot run here; says why.
    """
    if runtime not in LIBRARIES:
        raise ConfigError(f"runtime {runtime}: there is {', '.join(LIBRARIES)}")
    if runtime == "torch":
        return classifier.with_engine(None)
    return classifier.with_engine(Engine(classifier, runtime, workers))


def agrees(classifier: Classifier, runtime: str) -> bool:
    """Whether a float32 runtime that nobody measured gives PyTorch's logits, on a little noise."""
    pictures = noise(classifier)
    expected = classifier.for_inference().logits(pictures)
    found = with_runtime(classifier, runtime).logits(pictures)
    return bool(((found - expected).abs() <= DIFFERENCE * expected.abs().clamp(min=1)).all())


def noise(classifier: Classifier) -> Tensor:
    """A few prepared pictures of nothing, always the same: uint8 N×C×H×W."""
    wanted = classifier.preprocessing
    size = (AGREEING, wanted.channels, wanted.height, wanted.width)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
