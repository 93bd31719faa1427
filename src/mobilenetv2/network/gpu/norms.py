"""Batch norm with ReLU6, forward and backward, and what other kernels need of it."""

import triton
import triton.language as tl

MEAN = tl.constexpr(0)
INVERSE_DEVIATION = tl.constexpr(1)
SCALE = tl.constexpr(2)
SHIFT = tl.constexpr(3)
PIXELS = tl.constexpr(4)
"""Rows of a norm, 5 × channels; ``PIXELS`` is infinite where the statistics are frozen."""

SLOPE = tl.constexpr(0)
OFFSET = tl.constexpr(1)
WEIGHT = tl.constexpr(2)
BIAS = tl.constexpr(3)
"""Rows of a norm's gradient, 4 × channels: gy = scale · g + slope · y + offset; then the gradients
of the norm's own parameters."""


@triton.jit
def in_eights(channels, EIGHTS: tl.constexpr):
    """The same number of channels, seen to be a multiple of eight where it is one.

    Then rows begin where 16 bytes do, and are read by as many at once. Triton itself would only
    see multiples of sixteen.
    """
    if EIGHTS:
        return channels // 8 * 8
    else:
        return channels


@triton.jit
def relu6(value, limit):
    """Between zero and ``limit``, which is 6, or 0 where there is nothing. A NaN comes through."""
    value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(value, limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def where_relu6_passes(before, gradient):
    """The gradient where ReLU6 lets it through; ``before`` may be after it too, if not rounded."""
    return tl.where((before > 0) & (before < 6), gradient, 0.0)


@triton.jit
def per_channel(array, row: tl.constexpr, channels, channel, is_channel):
    """A row of a norm or of its gradient, at some channels."""
    return tl.load(array + row * channels + channel, mask=is_channel, other=0.0)


@triton.jit
def through_norm(g, y, scale, shift, slope, offset, ACTIVATED: tl.constexpr):
    """The gradient of ``y`` from that of the normalised ``y``; the rest are 1 × channels."""
    if ACTIVATED:
        g = where_relu6_passes(y * scale + shift, g)
    return scale * g + (slope * y + offset)


@triton.jit
def gradient_of_output(
    g, share, y, y_norm, y_gradient, row, is_row, channels, channel, ACTIVATED: tl.constexpr,
    REAL: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """The gradient of a convolution's output y, rows × channels, stored as y is; else zeros."""
    is_channel = channel < channels
    is_here = is_row[:, None] & is_channel[None, :]
    of_y = row.to(tl.int64)[:, None] * channels + channel[None, :]
    of_g = of_y
    if SHARED:
        of_g = (row // share).to(tl.int64)[:, None] * channels + channel[None, :]
    value = tl.load(y + of_y, mask=is_here, other=0.0).to(REAL)
    incoming = tl.load(g + of_g, mask=is_here, other=0.0).to(REAL)
    gradient = through_norm(
        incoming,
        value,
        per_channel(y_norm, SCALE, channels, channel, is_channel)[None, :],
        per_channel(y_norm, SHIFT, channels, channel, is_channel)[None, :],
        per_channel(y_gradient, SLOPE, channels, channel, is_channel)[None, :],
        per_channel(y_gradient, OFFSET, channels, channel, is_channel)[None, :],
        ACTIVATED,
    )
    return tl.where(is_here, gradient, 0.0).to(y.dtype.element_ty)


@triton.jit
def store_moments(moments, program, channels, channel, is_channel, count, mean, square):
    """A program's row of 3 × channels: how many values, their mean, squared distances from it."""
    to = moments + program * 3 * channels + channel
    tl.store(to, tl.zeros_like(mean) + count, mask=is_channel)
    tl.store(to + channels, mean, mask=is_channel)
    tl.store(to + 2 * channels, square, mask=is_channel)


@triton.jit
def gather_moments(
    moments, program, channels, channel, is_channel, count, pivot, total, square
):  # fmt: skip
    """The moments of all rows of registers as one: each row has its own pivots, and its count.

    Sums about one of the values, and means about the first one's, cost no digits where the mean is
    far from zero.
    """
    n = tl.maximum(count, 1.0)[:, None]
    is_used = (count > 0)[:, None]
    is_first = (tl.arange(0, pivot.shape[0]) == 0)[:, None]
    origin = tl.sum(tl.where(is_first, pivot, 0.0), 0)
    mean = tl.where(is_used, pivot - origin[None, :] + total / n, 0.0)
    square = tl.where(is_used, square - total * total / n, 0.0)
    all_of_them = tl.sum(count, 0)
    whole = tl.sum(mean * count[:, None], 0) / tl.maximum(all_of_them, 1.0)
    distance = mean - whole[None, :]
    square = tl.sum(square + count[:, None] * distance * distance, 0)
    whole += origin
    store_moments(moments, program, channels, channel, is_channel, all_of_them, whole, square)


@triton.jit(do_not_specialize=["rows", "channels"])
def norm_statistics(
    y, moments, rows, channels, EIGHTS: tl.constexpr, REAL: tl.constexpr, ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """Moments of a map, one row for each program; grid: programs × blocks of channels."""
    channels = in_eights(channels, EIGHTS)
    program = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    count = tl.zeros((ROWS,), REAL)
    pivot = tl.zeros((ROWS, CHANNELS), REAL)
    total = tl.zeros((ROWS, CHANNELS), REAL)
    square = tl.zeros((ROWS, CHANNELS), REAL)
    for tile in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        is_row = row < rows
        is_here = is_row[:, None] & is_channel[None, :]
        value = tl.load(y + row.to(tl.int64)[:, None] * channels + channel[None, :], mask=is_here)
        value = value.to(REAL)
        pivot = tl.where((count == 0)[:, None], value, pivot)
        distance = tl.where(is_here, value - pivot, 0.0)
        total += distance
        square += distance * distance
        count += is_row.to(REAL)
    gather_moments(moments, program, channels, channel, is_channel, count, pivot, total, square)


@triton.jit(do_not_specialize=["rows", "channels"])
def norm_apply(
    y, norm, residual, z, rows, channels, ACTIVATE: tl.constexpr, EIGHTS: tl.constexpr,
    REAL: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The normalised map: through ReLU6, or plus ``residual`` where there is one."""
    channels = in_eights(channels, EIGHTS)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    is_here = (row < rows)[:, None] & is_channel[None, :]
    at = row.to(tl.int64)[:, None] * channels + channel[None, :]
    value = tl.load(y + at, mask=is_here).to(REAL)
    scale = per_channel(norm, SCALE, channels, channel, is_channel)
    shift = per_channel(norm, SHIFT, channels, channel, is_channel)
    value = value * scale[None, :] + shift[None, :]
    if ACTIVATE:
        value = relu6(value, 6.0)
    if residual is not None:
        value += tl.load(residual + at, mask=is_here).to(REAL)
    tl.store(z + at, value.to(z.dtype.element_ty), mask=is_here)


@triton.jit(do_not_specialize=["pixels", "channels"])
def norm_pool(
    y, norm, pooled, pixels, channels, EIGHTS: tl.constexpr, REAL: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Normalised, through ReLU6, averaged; grid: images × blocks of channels."""
    channels = in_eights(channels, EIGHTS)
    image = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    scale = per_channel(norm, SCALE, channels, channel, is_channel)
    shift = per_channel(norm, SHIFT, channels, channel, is_channel)
    total = tl.zeros((ROWS, CHANNELS), REAL)
    for first in range(0, pixels, ROWS):
        pixel = first + tl.arange(0, ROWS)
        is_here = (pixel < pixels)[:, None] & is_channel[None, :]
        at = (image * pixels + pixel)[:, None] * channels + channel[None, :]
        value = tl.load(y + at, mask=is_here).to(REAL) * scale[None, :] + shift[None, :]
        total += tl.where(is_here, relu6(value, 6.0), 0.0)
    mean = tl.sum(total, 0) / pixels
    tl.store(pooled + image * channels + channel, mean.to(pooled.dtype.element_ty), mask=is_channel)


@triton.jit(do_not_specialize=["rows", "channels"], do_not_specialize_on_alignment=["share"])
def norm_backward(
    g, share, y, norm, sums, rows, channels, ACTIVATED: tl.constexpr, EIGHTS: tl.constexpr,
    REAL: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Σg and Σg(y - mean), 2 × channels for each program; ``share`` rows of y have one of g."""
    channels = in_eights(channels, EIGHTS)
    program = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    mean = per_channel(norm, MEAN, channels, channel, is_channel)
    scale = per_channel(norm, SCALE, channels, channel, is_channel)
    shift = per_channel(norm, SHIFT, channels, channel, is_channel)
    total = tl.zeros((ROWS, CHANNELS), REAL)
    product = tl.zeros((ROWS, CHANNELS), REAL)
    for tile in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        is_here = (row < rows)[:, None] & is_channel[None, :]
        of_y = row.to(tl.int64)[:, None] * channels + channel[None, :]
        of_g = (row // share).to(tl.int64)[:, None] * channels + channel[None, :]
        value = tl.load(y + of_y, mask=is_here, other=0.0).to(REAL)
        gradient = tl.load(g + of_g, mask=is_here, other=0.0).to(REAL)
        if ACTIVATED:
            before = value * scale[None, :] + shift[None, :]
            gradient = where_relu6_passes(before, gradient)
        total += gradient
        product += gradient * (value - mean[None, :])
    to = sums + program * 2 * channels + channel
    tl.store(to, tl.sum(total, 0), mask=is_channel)
    tl.store(to + channels, tl.sum(product, 0), mask=is_channel)


@triton.jit(do_not_specialize=["rows", "channels"], do_not_specialize_on_alignment=["share"])
def norm_backward_apply(
    g, share, y, norm, gradient, gy, rows, channels, EIGHTS: tl.constexpr, REAL: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradient of a map from that of the map after norm and ReLU6."""
    channels = in_eights(channels, EIGHTS)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_row = row < rows
    outgoing = gradient_of_output(
        g, share, y, norm, gradient, row, is_row, channels, channel, True, REAL, True
    )
    is_here = is_row[:, None] & (channel < channels)[None, :]
    tl.store(gy + row.to(tl.int64)[:, None] * channels + channel[None, :], outgoing, mask=is_here)
