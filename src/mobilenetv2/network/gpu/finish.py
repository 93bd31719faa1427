"""What the programs of a kernel have left, added up."""

import triton
import triton.language as tl

from mobilenetv2.network.gpu.norms import (
    BIAS,
    INVERSE_DEVIATION,
    MEAN,
    OFFSET,
    PIXELS,
    SCALE,
    SHIFT,
    SLOPE,
    WEIGHT,
    per_channel,
)


@triton.jit(do_not_specialize=["programs"])
def finish_statistics(
    moments, programs, norm, weight, bias, running_mean, running_var, tracked, eps, momentum,
    channels, FROZEN: tl.constexpr, PROGRAMS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Moments of all programs to the norm; the running statistics move, unless frozen."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    old_mean = tl.load(running_mean + channel, mask=is_channel).to(tl.float64)
    old_var = tl.load(running_var + channel, mask=is_channel).to(tl.float64)
    if FROZEN:
        pixels = tl.full((CHANNELS,), float("inf"), tl.float64)
        mean = old_mean
        var = old_var
    else:
        # Distances are from the first program's mean, so that squares lose nothing of a far one.
        pivot = tl.load(moments + channels + channel, mask=is_channel, other=0.0).to(tl.float64)
        count = tl.zeros((PROGRAMS, CHANNELS), tl.float64)
        total = tl.zeros((PROGRAMS, CHANNELS), tl.float64)
        square = tl.zeros((PROGRAMS, CHANNELS), tl.float64)
        for first in range(0, programs, PROGRAMS):
            program = first + tl.arange(0, PROGRAMS)
            is_here = (program < programs)[:, None] & is_channel[None, :]
            at = moments + program[:, None] * 3 * channels + channel[None, :]
            here = tl.load(at, mask=is_here, other=0.0).to(tl.float64)
            distance = tl.load(at + channels, mask=is_here, other=0.0) - pivot[None, :]
            count += here
            total += here * distance
            square += tl.load(at + 2 * channels, mask=is_here, other=0.0).to(tl.float64)
            square += here * distance * distance
        pixels = tl.maximum(tl.sum(count, 0), 1.0)
        away = tl.sum(total, 0) / pixels
        mean = pivot + away
        squares = tl.sum(square, 0) - pixels * away * away
        squares = tl.maximum(squares, 0.0, propagate_nan=tl.PropagateNan.ALL)
        var = squares / pixels
        new_mean = old_mean + momentum * (mean - old_mean)
        new_var = old_var + momentum * (squares / tl.maximum(pixels - 1, 1.0) - old_var)
        tl.store(running_mean + channel, new_mean, mask=is_channel)
        tl.store(running_var + channel, new_var, mask=is_channel)
        if tl.program_id(0) == 0:
            tl.store(tracked, tl.load(tracked) + 1)
    inverse_deviation = 1 / tl.sqrt(var + eps)
    scale = tl.load(weight + channel, mask=is_channel).to(tl.float64) * inverse_deviation
    shift = tl.load(bias + channel, mask=is_channel).to(tl.float64) - mean * scale
    to = norm + channel
    tl.store(to + MEAN * channels, mean, mask=is_channel)
    tl.store(to + INVERSE_DEVIATION * channels, inverse_deviation, mask=is_channel)
    tl.store(to + SCALE * channels, scale, mask=is_channel)
    tl.store(to + SHIFT * channels, shift, mask=is_channel)
    tl.store(to + PIXELS * channels, pixels, mask=is_channel)


@triton.jit(do_not_specialize=["sums_apart", "weight_apart", "numbers", "programs"])
def finish_backward(
    sums, sums_apart, norm, gradient, channels, weight_sums, weight_apart, weight_gradient, numbers,
    programs, TAPS: tl.constexpr, PROGRAMS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """What all programs of a backward kernel have left, added up: the last of its work.

    Σg and Σg(y - mean) become the gradient of ``norm``, unless it is None; ``numbers`` partial sums
    of a weight become its gradient, unless that is None. Sums of two programs lie so many numbers
    ``apart``. ``TAPS``: the weight's sums come tap by tap, but lie channel by channel.
    """
    of_norm = 0
    if norm is not None:
        of_norm = tl.cdiv(channels, CHANNELS)
    block = tl.program_id(0)
    if block < of_norm:
        if norm is not None:
            channel = block * CHANNELS + tl.arange(0, CHANNELS)
            is_channel = channel < channels
            total = add_up(sums, sums_apart, programs, channel, is_channel, PROGRAMS, CHANNELS)
            product = add_up(
                sums + channels, sums_apart, programs, channel, is_channel, PROGRAMS, CHANNELS
            )
            mean = per_channel(norm, MEAN, channels, channel, is_channel).to(tl.float64)
            inverse = per_channel(norm, INVERSE_DEVIATION, channels, channel, is_channel)
            scale = per_channel(norm, SCALE, channels, channel, is_channel).to(tl.float64)
            pixels = per_channel(norm, PIXELS, channels, channel, is_channel).to(tl.float64)
            pixels = tl.where(is_channel, pixels, 1.0)
            weight = product * inverse
            slope = -scale * inverse * weight / pixels
            to = gradient + channel
            tl.store(to + SLOPE * channels, slope, mask=is_channel)
            tl.store(
                to + OFFSET * channels, -scale * total / pixels - slope * mean, mask=is_channel
            )
            tl.store(to + WEIGHT * channels, weight, mask=is_channel)
            tl.store(to + BIAS * channels, total, mask=is_channel)
    else:
        if weight_gradient is not None:
            number = (block - of_norm) * CHANNELS + tl.arange(0, CHANNELS)
            is_number = number < numbers
            total = add_up(
                weight_sums, weight_apart, programs, number, is_number, PROGRAMS, CHANNELS
            )
            if TAPS:
                number = number % channels * 9 + number // channels
            tl.store(weight_gradient + number, total, mask=is_number)


@triton.jit
def add_up(
    sums, apart, programs, number, is_number, PROGRAMS: tl.constexpr, NUMBERS: tl.constexpr
):  # fmt: skip
    """Some of the numbers that programs have left, over all programs."""
    total = tl.zeros((PROGRAMS, NUMBERS), tl.float64)
    for first in range(0, programs, PROGRAMS):
        program = first + tl.arange(0, PROGRAMS)
        is_here = (program < programs)[:, None] & is_number[None, :]
        at = sums + program.to(tl.int64)[:, None] * apart + number[None, :]
        total += tl.load(at, mask=is_here, other=0.0).to(tl.float64)
    return tl.sum(total, 0)
