"""Block sizes of the Triton kernels, by the number of channels.

They were found by measuring on an H200 (``benchmarks/gpu_plans.py``). Any others give the same
numbers, but for rounding.
"""

from typing import Any, NamedTuple


class Plan(NamedTuple):
    """How a kernel is launched.

    Attributes:
        block: sizes of the blocks that a program works on, by the names that the kernel gives them.
        programs: on each processor of the GPU.
        warps: of 32 threads, that make a program.
        stages: rounds of a loop whose loads are on their way at once.
        registers: that a thread gets at most; None for as many as the compiler likes.
    """

    block: dict[str, int]
    programs: int
    warps: int = 4
    stages: int = 3
    registers: int | None = None

    def options(self, stages: int) -> dict[str, Any]:
        """What Triton takes beside a kernel's own arguments."""
        options: dict[str, Any] = {"num_warps": self.warps, "num_stages": stages}
        if self.registers:
            options["maxnreg"] = self.registers
        return {**self.block, **options}


def elementwise(channels: int) -> Plan:
    """For batch norm by itself."""
    block = block_of(channels, 64)
    return Plan({"ROWS": 2048 // block, "CHANNELS": block}, programs=4)


def forward(in_channels: int, out_channels: int) -> Plan:
    """For a 1×1 convolution: all input channels at once, where they are not too many."""
    channels = power(in_channels)
    if channels <= 32:
        return Plan({"ROWS": 128, "OUT": min(32, power(out_channels)), "IN": channels}, 3)
    if channels <= 256 and out_channels <= 32:
        return Plan({"ROWS": 64, "OUT": power(out_channels), "IN": channels}, 3)
    out = block_of(out_channels, 128)
    return Plan({"ROWS": 128, "OUT": out, "IN": 64}, 4, warps=8 if out == 128 else 4)


def backward(in_channels: int, out_channels: int) -> Plan | None:
    """For both gradients of a 1×1 convolution; None where they are too large for one program."""
    channels, out = power(in_channels), power(out_channels)
    if channels * out > 8192:
        return None
    if out > 128:
        return Plan({"ROWS": 32, "OUT": out, "IN": channels}, 2, warps=8)
    if channels > 128:
        return Plan({"ROWS": 64, "OUT": out, "IN": 32}, 4)
    return Plan({"ROWS": 32 if channels > 32 else 64, "OUT": out, "IN": channels}, 2)


def backward_input(in_channels: int, out_channels: int) -> Plan:
    """For the gradient of a 1×1 convolution's input."""
    return Plan({"ROWS": 64, "IN": block_of(in_channels, 64), "OUT": 64}, 4)


def backward_weight(in_channels: int, out_channels: int) -> Plan:
    """For the gradient of a 1×1 convolution's weight."""
    return Plan(
        {"ROWS": 64, "IN": block_of(in_channels, 128), "OUT": block_of(out_channels, 64)}, 2
    )


def depthwise(channels: int, stride: int, out_height: int) -> Plan:
    """For a depthwise convolution that puts out maps of this height."""
    block = block_of(channels, 64)
    segment = segment_of(out_height, 28)
    return Plan({"STRIPS": 512 // block, "segment": segment, "CHANNELS": block}, 8)


def depthwise_backward(channels: int, stride: int, height: int) -> Plan:
    """For both gradients of a depthwise convolution of maps of this height."""
    block = block_of(channels, 64)
    segment = segment_of(height, 28)
    return Plan({"STRIPS": 512 // block, "segment": segment, "CHANNELS": block}, 4)


def stem(in_channels: int, out_channels: int) -> Plan:
    """For the first convolution."""
    return Plan({"ROWS": 128, "OUT": power(out_channels)}, 8)


def stem_backward(in_channels: int, out_channels: int) -> Plan:
    """For the gradient of its weight."""
    return Plan({"ROWS": 128, "OUT": power(out_channels)}, 4)


def finish() -> Plan:
    """For adding up what programs have left: of so many of them, and so many channels, at once."""
    return Plan({"PROGRAMS": 64, "CHANNELS": 8}, programs=1, warps=8)


def segment_of(height: int, most: int) -> int:
    """Rows, an even number, into which a map of this height is best divided.

    >>> [segment_of(height, 28) for height in (112, 56, 33, 14, 7)]
    [28, 28, 18, 14, 8]
    """
    parts = -(-height // most)
    rows = -(-height // parts)
    return rows + rows % 2


def power(channels: int) -> int:
    """The block that holds so many channels, and is not too small for a matrix product.

    >>> [power(channels) for channels in (8, 24, 960)]
    [16, 32, 1024]
    """
    return int(max(16, 1 << (channels - 1).bit_length()))


def block_of(channels: int, most: int) -> int:
    """A block of channels that leaves little of itself empty, and does not read rows too often.

    >>> [block_of(channels, 128) for channels in (16, 24, 96, 144, 192, 384, 1280)]
    [16, 32, 128, 64, 64, 128, 128]
    """
    sizes = [size for size in (128, 64, 32, 16) if size <= most]
    return min(sizes, key=lambda size: -(-channels // size) * (size + 32))


def in_eights(*channels: int) -> bool:
    """Whether all of them are multiples of eight, as a network's are.

    >>> in_eights(24, 144), in_eights(16, 3)
    (True, False)
    """
    return all(count % 8 == 0 for count in channels)
