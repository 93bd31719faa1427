"""A finished MobileNetV2 as one call of `fast_inference.cpp`: pictures in, logits or features out.

On a CPU this takes a fraction of the time of PyTorch's operations, and needs no other library, only
GCC, once. In float32 the answers are PyTorch's but for rounding; in bfloat16, where maps
and weights have eight significant bits, labels are the same for nearly all pictures. A picture's
answer is the same to the last bit in any batch and for any number of threads.
"""

import ctypes
import functools
import threading
import weakref
from pathlib import Path

import torch
from torch import Tensor, nn

from mobilenetv2.network import native
from mobilenetv2.network.cpp_description import Description, convolutions, described
from mobilenetv2.network.folding import fold_norms
from mobilenetv2.network.kernels import stored_as
from mobilenetv2.network.mobilenetv2 import MobileNetV2

SOURCE = Path(__file__).with_name("fast_inference.cpp")
MOST_CHANNELS = 5
"""Of pictures: three pixels beside one another fit into what is copied at once."""
PIXELS_AT_ONCE = 2**21
"""Of pictures: more would take memory without being sooner."""
MOST_THREADS = 1024
TOO_MANY_CHANNELS = f"the compiled kernels are for pictures of up to {MOST_CHANNELS} channels"
NO_MEMORY = "there is too little memory for the compiled kernels"


class _Pictures(ctypes.Structure):
    _fields_ = (
        ("bytes", ctypes.c_void_p),
        ("images", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
    )


class CppInference:
    """A network's weights, prepared for the compiled kernels; training it on changes nothing here.

    Args:
        network: on the CPU; it is copied.
        mean: float32, one for each channel of the pictures, of values 0…255.
        scale: likewise; the network sees ``(value - mean) * scale``.
        dtype: of the maps between the layers and of the products' factors: float32 or bfloat16.
            Sums are float32.

    Raises:
        ValueError: mean and scale do not fit the network, or its pictures have too many channels.
        BuildError: the kernels cannot be compiled here.
        OSError: the library cannot be loaded.
        AttributeError: the library lacks a function.
    """

    def __init__(
        self, network: MobileNetV2, mean: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32
    ) -> None:
        folded = fold_norms(network)
        assert isinstance(folded, MobileNetV2)
        description, kept = described(folded, mean, scale)
        self._channels = int(description.picture_channels)
        self._features = int(description.features)
        self._classes = int(description.classes)
        if not mean.shape == scale.shape == (self._channels,):
            raise ValueError(
                f"mean and scale must have a number for each of {self._channels} channels; got "
                f"{tuple(mean.shape)} and {tuple(scale.shape)}"
            )
        if self._channels > MOST_CHANNELS:
            raise ValueError(TOO_MANY_CHANNELS)
        self._library = _load(dtype)
        self._network = _Prepared(self._library, description)
        del kept  # the weights that were described are copied now
        self._own = threading.local()

    def logits(self, pictures: Tensor, threads: int | None = None) -> Tensor:
        """Pictures uint8 N×C×H×W of any size to logits N×K, float32.

        Args:
            pictures: on the CPU.
            threads: to work with; PyTorch's number unless given. Several threads may call at the
                same time.

        Raises:
            ValueError: they are no such pictures.
            MemoryError: there is too little.
        """
        return self._answers(pictures, threads, self._classes, are_features=False)

    def features(self, pictures: Tensor, threads: int | None = None) -> Tensor:
        """The same to features N×F, averaged over the last map."""
        return self._answers(pictures, threads, self._features, are_features=True)

    def classify(self, features: Tensor) -> Tensor:
        """Features float32 N×F to logits N×K: of :meth:`features`, the bits of :meth:`logits`.

        Raises:
            ValueError: they are no such features.
            MemoryError: there is too little.
        """
        if features.ndim != 2 or features.shape[1] != self._features:
            raise ValueError(f"features must be N×{self._features}; got {tuple(features.shape)}")
        features = features.to("cpu", torch.float32).contiguous()
        logits = torch.empty(len(features), self._classes, dtype=torch.float32, device="cpu")
        if not self._library.network_classify(
            self._network.handle, features.data_ptr(), len(features), logits.data_ptr()
        ):
            raise MemoryError(NO_MEMORY)
        return logits

    def _answers(
        self, pictures: Tensor, threads: int | None, width: int, are_features: bool
    ) -> Tensor:
        if (
            pictures.ndim != 4
            or pictures.dtype is not torch.uint8
            or pictures.device.type != "cpu"
            or pictures.shape[1] != self._channels
            or 0 in pictures.shape[2:]
        ):
            raise ValueError(
                f"pictures must be uint8 N×{self._channels}×H×W on the CPU; got "
                f"{pictures.dtype} of shape {tuple(pictures.shape)} on {pictures.device}"
            )
        threads = min(torch.get_num_threads(), MOST_THREADS) if threads is None else threads
        if not 1 <= threads <= MOST_THREADS:
            raise ValueError(f"threads: from 1 to {MOST_THREADS}, not {threads}")
        answers = torch.empty(len(pictures), width, dtype=torch.float32, device="cpu")
        height, breadth = pictures.shape[2:]
        together = max(threads, PIXELS_AT_ONCE // (height * breadth))
        for few, out in zip(pictures.split(together), answers.split(together), strict=True):
            if len(few):
                to = (out.data_ptr(), None) if are_features else (None, out.data_ptr())
                self._run(few.contiguous(), threads, *to)
        return answers

    def _run(
        self, pictures: Tensor, threads: int, features: int | None, logits: int | None
    ) -> None:
        images, _, height, width = pictures.shape
        what = ctypes.byref(_Pictures(pictures.data_ptr(), images, height, width))
        needed = self._library.network_memory(self._network.handle, what, threads)
        memory = self._memory(needed) if needed >= 0 else None
        if memory is None or not self._library.network_run(
            self._network.handle, what, threads, memory.data_ptr(), features, logits
        ):
            raise MemoryError(NO_MEMORY)

    def _memory(self, needed: int) -> Tensor:
        """To work in, kept for the next call of this thread."""
        memory: Tensor | None = getattr(self._own, "memory", None)
        if memory is None or len(memory) < needed:
            self._own.memory = None  # given back before more is taken
            try:
                memory = torch.empty(needed, dtype=torch.uint8, device="cpu")
            except RuntimeError as error:  # PyTorch's word for it
                raise MemoryError(NO_MEMORY) from error
            self._own.memory = memory
        return memory


class _Prepared:
    """A network that the library holds, for as long as this object lives."""

    def __init__(self, library: ctypes.CDLL, description: Description) -> None:
        self.handle = library.network_new(ctypes.byref(description))
        if not self.handle:
            raise MemoryError(NO_MEMORY)
        # Not where Python ends: another thread may be at work in it.
        weakref.finalize(self, library.network_free, self.handle).atexit = False


def is_built(dtype: torch.dtype = torch.float32) -> bool:
    """Whether the kernels are there already, so that nobody waits for a compiler."""
    try:
        return native.is_built(SOURCE, stored_as(dtype))
    except (native.BuildError, OSError):
        return False


def prepare(dtype: torch.dtype = torch.float32) -> None:
    """Compile the kernels, unless that was done.

    Raises:
        BuildError: they cannot be compiled here.
        OSError: the library cannot be loaded.
        AttributeError: the library lacks a function.
    """
    _load(dtype)


def why_not(network: nn.Module, dtype: torch.dtype = torch.float32) -> str:
    """Why the kernels cannot run this network here; nothing if they can.

    Compiles them where that was not done yet, which takes some seconds.
    """
    if not isinstance(network, MobileNetV2):
        return "the compiled kernels are for MobileNetV2 alone"
    stem = convolutions(network)[0]
    if stem.in_channels > MOST_CHANNELS:
        return TOO_MANY_CHANNELS
    if stem.weight.device.type != "cpu":
        return "the compiled kernels run on the CPU alone"
    try:
        prepare(dtype)
    except (native.BuildError, OSError, AttributeError) as error:
        return str(error)
    return ""


@functools.cache
def _load(dtype: torch.dtype) -> ctypes.CDLL:
    library = ctypes.CDLL(str(native.build(SOURCE, stored_as(dtype))))
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.network_new.argtypes, library.network_new.restype = (pointer,), pointer
    library.network_free.argtypes, library.network_free.restype = (pointer,), None
    library.network_memory.argtypes = (pointer, pointer, count)
    library.network_memory.restype = count
    library.network_run.argtypes = (pointer, pointer, count, pointer, pointer, pointer)
    library.network_run.restype = ctypes.c_int
    library.network_classify.argtypes = (pointer, pointer, count, pointer)
    library.network_classify.restype = ctypes.c_int
    return library
