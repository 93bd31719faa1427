"""Where the work runs, in which precision, and with which operations."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import MachineConfig
from mobilenetv2.errors import ConfigError, first_line
from mobilenetv2.network import cpp_inference, fast_ops
from mobilenetv2.network.cpp_sgd import CppSgd
from mobilenetv2.network.fast_blocks import FastMobileNetV2, rehearse
from mobilenetv2.network.fast_ops import FastOps
from mobilenetv2.network.mobilenetv2 import MobileNetV2
from mobilenetv2.runtimes import processor
from mobilenetv2.runtimes.engine import agrees, obstacle


@dataclass(frozen=True)
class Device:
    """A device and the precision of its forward pass.

    Attributes:
        device: where weights and pictures lie.
        precision: "fp32" or "bf16"; weights and their updates are fp32 in both.
        fast_ops: the operations that train the network, and why these.
        compiled: whether `torch.compile` makes the training steps.
        recorded: whether they are recorded as CUDA graphs, and replayed.
    """

    device: torch.device
    precision: str
    fast_ops: FastOps
    compiled: bool
    recorded: bool = False

    def autocast(self) -> AbstractContextManager[object]:
        """The context for a forward pass in this precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def why_pytorch_measures(self, classifier: Classifier) -> str | None:
        """Why compiled kernels do not measure it in training; None where they do.

        They do where they train it, can be had, and agree with PyTorch. An empty reason is one that
        nobody has to be told.
        """
        if self.fast_ops.kind != "cpp" or not isinstance(classifier.network, MobileNetV2):
            return ""
        if reason := obstacle("cpp", classifier):
            return reason
        return None if agrees(classifier, "cpp") else "the compiled kernels gave other logits"

    def compile_ahead(self, network: nn.Module, pictures: Tensor) -> None:
        """Compile at once what a training step on such pictures will need, N×C×H×W on the device.

        Else kernels are compiled one by one, as the first step comes to them.
        """
        if self.fast_ops.kind == "triton" and isinstance(network, FastMobileNetV2):
            inputs = torch.empty(
                pictures.shape, device=pictures.device, memory_format=torch.channels_last
            )
            with self.autocast():
                rehearse(network, inputs)

    @property
    def sgd(self) -> CppSgd | None:
        """The step over all weights, where it is not PyTorch's."""
        return fast_ops.sgd_of(self.fast_ops, _stored(self.precision))


def choose_device(config: MachineConfig, tell: Callable[[str], None] = lambda _: None) -> Device:
    """The device and precision that were asked for, or the best of this machine.

    Args:
        config: what was asked for.
        tell: is called with a line for the user where there is something to wait for.

    Raises:
        ConfigError: the device is unknown or not there, or cannot do the precision.
    """
    fast_ops.prepare_allocator()
    device = find_device(config.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # Triton and CUDA graphs work on the current one
    native = has_native_bf16(device)
    if config.precision == "bf16" and not native:
        raise ConfigError(f"--precision bf16: {device} does not have it natively; use fp32 or auto")
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if native else "fp32"
    # Several processes exchange statistics in every norm, where a compiled step would fall apart.
    compiled = config.compile == "on" and not dist.is_initialized()
    # What torch.compile takes apart and fuses must be PyTorch's.
    requested = "torch" if compiled and config.fast_ops != "off" else config.fast_ops
    with ThreadPoolExecutor(1) as beside:  # a compiler takes one core
        if device.type == "cpu" and requested in ("auto", "cpp"):
            beside.submit(cpp_inference.prepare)
        operations = fast_ops.choose(device, requested, _stored(precision), tell)
    # PyTorch's own bf16 operations on a CPU gain from AMX only; the compiled ones always do.
    gains = device.type != "cpu" or operations.kind == "cpp" or processor.has_amx()
    if config.precision == "auto" and not gains:
        precision = "fp32"
    recorded = (
        device.type == "cuda" and config.cuda_graphs and not compiled and not dist.is_initialized()
    )
    return Device(device, precision, operations, compiled, recorded)


def compile_network(network: nn.Module) -> None:
    """Let `torch.compile` make the calls of ``network`` from now on (in place).

    Copies of the network, which evaluation makes, run as they are. What cannot be compiled (no
    compiler, an unknown operation) runs as it is too, and PyTorch warns.
    """
    torch._dynamo.config.suppress_errors = True
    network.compile(dynamic=False)


@contextmanager
def strictly(deterministic: bool) -> Iterator[None]:
    """A block in which PyTorch refuses whatever is not deterministic, if asked."""
    if not deterministic:
        yield
        return
    # cuBLAS reads it when it starts; with other values it may add up in another order.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def has_room(device: torch.device, size: int) -> bool:
    """Whether so many bytes of pictures may live on the device, beside the network at its work.

    On a GPU half of the memory that is free is left for activations; elsewhere they lie in the
    machine's own memory already.
    """
    return device.type != "cuda" or size <= torch.cuda.mem_get_info(device)[0] // 2


def has_native_bf16(device: torch.device) -> bool:
    """Whether bfloat16 multiplies in hardware there (CPU: AMX or AVX512-BF16)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return processor.multiplies_bf16()
    return False


def _stored(precision: str) -> torch.dtype:
    """What the forward pass keeps activations as."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def find_device(name: str) -> torch.device:
    """The device of that name, or the fastest there is for "auto".

    Raises:
        ConfigError: it is unknown or not there.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).tolist()  # which a device without memory cannot
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error)
        if "Expected one of" in reason:  # some thirty that PyTorch has heard of
            reason = "devices are cpu, cuda, mps and a few more that PyTorch knows"
        raise ConfigError(f"--device {name}: not available here ({reason}); try cpu") from error
    return device
