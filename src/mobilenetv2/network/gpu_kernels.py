"""Training kernels of MobileNetV2 for an NVIDIA GPU, in Triton.

They do what `fast_ops.cpp` does, in the same way: feature maps are matrices, pixels × channels; a
norm is numbers per channel, and whoever reads a convolution's output normalises it on the fly. The
GPU waits for memory and not for its arithmetic, so what counts is how often a map is read.

* Values are stored as they come (bfloat16, in tests float32 or float64) and computed as ``REAL``.
* Programs go over a map in strides and gather sums in registers; each leaves one row of partial
  sums, which a last small kernel adds up in float64. The same GPU gives the same bits.
* A depthwise kernel works on squares of 2 × 2 pixels: a neighbour is read and normalised once for
  the four of them.

The calls lie in :mod:`.gpu_launches`.
"""

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
"""Rows of a norm's gradient, 4 × channels: gy = scale · g + slope · (y - mean) + offset; then the
gradients of the norm's own parameters."""


@triton.jit
def relu6(value):
    """A NaN comes through."""
    value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(value, 6.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def where_relu6_passes(before, gradient):
    """The gradient where ReLU6 lets it through."""
    return tl.where((before > 0) & (before < 6), gradient, 0.0)


@triton.jit
def per_channel(array, row: tl.constexpr, channels, channel, is_channel):
    """A row of a norm or of its gradient, at some channels."""
    return tl.load(array + row * channels + channel, mask=is_channel, other=0.0)


@triton.jit
def normalised(value, norm, channels, channel, is_channel):
    """Values pixels × channels through the norm and ReLU6."""
    scale = per_channel(norm, SCALE, channels, channel, is_channel)
    shift = per_channel(norm, SHIFT, channels, channel, is_channel)
    return relu6(value * scale[None, :] + shift[None, :])


@triton.jit
def through_norm(g, y, norm, gradient, channels, channel, is_channel, ACTIVATED: tl.constexpr):
    """The gradient of ``y`` from that of the normalised ``y``."""
    mean = per_channel(norm, MEAN, channels, channel, is_channel)
    scale = per_channel(norm, SCALE, channels, channel, is_channel)
    slope = per_channel(gradient, SLOPE, channels, channel, is_channel)
    offset = per_channel(gradient, OFFSET, channels, channel, is_channel)
    if ACTIVATED:
        shift = per_channel(norm, SHIFT, channels, channel, is_channel)
        g = where_relu6_passes(y * scale[None, :] + shift[None, :], g)
    return scale[None, :] * g + slope[None, :] * (y - mean[None, :]) + offset[None, :]


@triton.jit
def store_moments(moments, program, channels, channel, is_channel, count, mean, square):
    """A program's row of 3 × channels: how many values, their mean, squared distances from it."""
    to = moments + program * 3 * channels + channel
    tl.store(to, tl.zeros_like(mean) + count, mask=is_channel)
    tl.store(to + channels, mean, mask=is_channel)
    tl.store(to + 2 * channels, square, mask=is_channel)


# -------------------------------------------------------------------------------- batch norm


@triton.jit
def norm_statistics(
    y, moments, rows, channels, REAL: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Moments of a map, one row for each program; grid: programs × blocks of channels."""
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


@triton.jit
def gather_moments(
    moments, program, channels, channel, is_channel, count, pivot, total, square
):  # fmt: skip
    """The moments of all rows of registers as one: each row has its own pivot, and its count.

    Sums about one of the values cost no digits where the mean is far from zero.
    """
    n = tl.maximum(count, 1.0)[:, None]
    is_used = (count > 0)[:, None]
    mean = tl.where(is_used, pivot + total / n, 0.0)
    square = tl.where(is_used, square - total * total / n, 0.0)
    all_of_them = tl.sum(count, 0)
    whole = tl.sum(mean * count[:, None], 0) / tl.maximum(all_of_them, 1.0)
    distance = mean - whole[None, :]
    square = tl.sum(square + count[:, None] * distance * distance, 0)
    store_moments(moments, program, channels, channel, is_channel, all_of_them, whole, square)


@triton.jit
def finish_statistics(
    moments, programs, norm, weight, bias, running_mean, running_var, tracked, eps, momentum,
    channels, FROZEN: tl.constexpr, PROGRAMS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Moments of all programs to the norm; the running statistics move, unless frozen."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    if FROZEN:
        pixels = tl.full((CHANNELS,), float("inf"), tl.float64)
        mean = tl.load(running_mean + channel, mask=is_channel).to(tl.float64)
        var = tl.load(running_var + channel, mask=is_channel).to(tl.float64)
    else:
        pixels = tl.zeros((CHANNELS,), tl.float64)
        mean = tl.zeros((CHANNELS,), tl.float64)
        square = tl.zeros((CHANNELS,), tl.float64)
        for first in range(0, programs, PROGRAMS):
            program = first + tl.arange(0, PROGRAMS)
            is_here = (program < programs)[:, None] & is_channel[None, :]
            at = moments + program[:, None] * 3 * channels + channel[None, :]
            n = tl.load(at, mask=is_here, other=0.0).to(tl.float64)
            m = tl.load(at + channels, mask=is_here, other=0.0).to(tl.float64)
            s = tl.load(at + 2 * channels, mask=is_here, other=0.0).to(tl.float64)
            here = tl.sum(n, 0)
            mean_here = tl.sum(n * m, 0) / tl.maximum(here, 1.0)
            distance = m - mean_here[None, :]
            square_here = tl.sum(s + n * distance * distance, 0)
            # Two groups become one (Chan, Golub, LeVeque 1979).
            both = tl.maximum(pixels + here, 1.0)
            delta = mean_here - mean
            square += square_here + delta * delta * pixels * here / both
            mean += delta * here / both
            pixels += here
        var = square / tl.maximum(pixels, 1.0)
        unbiased = square / tl.maximum(pixels - 1, 1.0)
        old_mean = tl.load(running_mean + channel, mask=is_channel).to(tl.float64)
        old_var = tl.load(running_var + channel, mask=is_channel).to(tl.float64)
        new_mean = old_mean + momentum * (mean - old_mean)
        new_var = old_var + momentum * (unbiased - old_var)
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


@triton.jit
def norm_apply(
    y, norm, residual, z, rows, channels, ACTIVATE: tl.constexpr, REAL: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The normalised map: through ReLU6, or plus ``residual`` where there is one."""
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
        value = relu6(value)
    if residual is not None:
        value += tl.load(residual + at, mask=is_here).to(REAL)
    tl.store(z + at, value.to(z.dtype.element_ty), mask=is_here)


@triton.jit
def norm_pool(
    y, norm, pooled, pixels, channels, REAL: tl.constexpr, ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """Normalised, through ReLU6, averaged; grid: images × blocks of channels."""
    image = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    total = tl.zeros((CHANNELS,), REAL)
    for first in range(0, pixels, ROWS):
        pixel = first + tl.arange(0, ROWS)
        is_here = (pixel < pixels)[:, None] & is_channel[None, :]
        at = (image * pixels + pixel)[:, None] * channels + channel[None, :]
        value = tl.load(y + at, mask=is_here).to(REAL)
        value = normalised(value, norm, channels, channel, is_channel)
        total += tl.sum(tl.where(is_here, value, 0.0), 0)
    tl.store(
        pooled + image * channels + channel, (total / pixels).to(pooled.dtype.element_ty),
        mask=is_channel,
    )  # fmt: skip


@triton.jit
def norm_backward(
    g, share, y, norm, sums, rows, channels, ACTIVATED: tl.constexpr, REAL: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Σg and Σg(y - mean), 2 × channels for each program; ``share`` rows of y have one of g."""
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


@triton.jit
def finish_gradient(
    sums, programs, stride, norm, gradient, channels, PROGRAMS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """Σg and Σg(y - mean) of all programs, ``stride`` numbers apart, to the norm's gradient."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    total = tl.zeros((CHANNELS,), tl.float64)
    product = tl.zeros((CHANNELS,), tl.float64)
    for first in range(0, programs, PROGRAMS):
        program = first + tl.arange(0, PROGRAMS)
        is_here = (program < programs)[:, None] & is_channel[None, :]
        at = sums + program[:, None] * stride + channel[None, :]
        total += tl.sum(tl.load(at, mask=is_here, other=0.0).to(tl.float64), 0)
        product += tl.sum(tl.load(at + channels, mask=is_here, other=0.0).to(tl.float64), 0)
    inverse = per_channel(norm, INVERSE_DEVIATION, channels, channel, is_channel).to(tl.float64)
    scale = per_channel(norm, SCALE, channels, channel, is_channel).to(tl.float64)
    pixels = per_channel(norm, PIXELS, channels, channel, is_channel).to(tl.float64)
    weight = product * inverse
    to = gradient + channel
    tl.store(to + SLOPE * channels, -scale * inverse * weight / pixels, mask=is_channel)
    tl.store(to + OFFSET * channels, -scale * total / pixels, mask=is_channel)
    tl.store(to + WEIGHT * channels, weight, mask=is_channel)
    tl.store(to + BIAS * channels, total, mask=is_channel)


@triton.jit
def norm_backward_apply(
    g, share, y, norm, gradient, gy, rows, channels, REAL: tl.constexpr, ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradient of a map from that of the map after norm and ReLU6."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    is_here = (row < rows)[:, None] & is_channel[None, :]
    of_y = row.to(tl.int64)[:, None] * channels + channel[None, :]
    of_g = (row // share).to(tl.int64)[:, None] * channels + channel[None, :]
    value = tl.load(y + of_y, mask=is_here).to(REAL)
    incoming = tl.load(g + of_g, mask=is_here).to(REAL)
    outgoing = through_norm(incoming, value, norm, gradient, channels, channel, is_channel, True)
    tl.store(gy + of_y, outgoing.to(gy.dtype.element_ty), mask=is_here)


# -------------------------------------------------------------------------- 1×1 convolutions


@triton.jit
def activations(
    x, x_norm, row, is_row, channels, channel, is_channel, REAL: tl.constexpr
):  # fmt: skip
    """What a convolution sees of ``x``, rows × channels, stored as x is."""
    is_here = is_row[:, None] & is_channel[None, :]
    at = row.to(tl.int64)[:, None] * channels + channel[None, :]
    value = tl.load(x + at, mask=is_here, other=0.0)
    if x_norm is not None:
        value = normalised(value.to(REAL), x_norm, channels, channel, is_channel)
        value = value.to(x.dtype.element_ty)
    return value


@triton.jit
def matrix(weight, of_rows, of_columns, row, column, rows, columns, dtype: tl.constexpr):
    """A block of a matrix that lies in memory with these strides."""
    is_here = (row < rows)[:, None] & (column < columns)[None, :]
    at = row[:, None] * of_rows + column[None, :] * of_columns
    return tl.load(weight + at, mask=is_here, other=0.0).to(dtype)


@triton.jit
def pointwise_forward(
    x, x_norm, weight, y, moments, rows, in_channels, out_channels, PRECISION: tl.constexpr,
    REAL: tl.constexpr, ROWS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The 1×1 convolution and, unless ``moments`` is None, the moments of what comes out.

    Grid: programs × blocks of output channels, as one axis, on which those that read the same rows
    are neighbours. ``AT_ONCE``: a block of ``IN`` holds all input channels.
    """
    blocks = tl.cdiv(out_channels, OUT)
    program = tl.program_id(0) // blocks
    programs = tl.num_programs(0) // blocks
    out = (tl.program_id(0) % blocks) * OUT + tl.arange(0, OUT)
    is_out = out < out_channels
    channel = tl.arange(0, IN)
    stored = x.dtype.element_ty
    if AT_ONCE:
        whole = matrix(weight, 1, in_channels, channel, out, in_channels, out_channels, stored)
    count = 0.0
    mean = tl.zeros((OUT,), REAL)
    square = tl.zeros((OUT,), REAL)
    for tile in range(program, tl.cdiv(rows, ROWS), programs):
        row = tile * ROWS + tl.arange(0, ROWS)
        is_row = row < rows
        total = tl.zeros((ROWS, OUT), REAL)
        if AT_ONCE:
            a = activations(
                x, x_norm, row, is_row, in_channels, channel, channel < in_channels, REAL
            )
            total = tl.dot(a, whole, total, input_precision=PRECISION, out_dtype=REAL)
        else:
            for first in range(0, in_channels, IN):
                c = first + channel
                a = activations(x, x_norm, row, is_row, in_channels, c, c < in_channels, REAL)
                w = matrix(weight, 1, in_channels, c, out, in_channels, out_channels, stored)
                total = tl.dot(a, w, total, input_precision=PRECISION, out_dtype=REAL)
        value = total.to(y.dtype.element_ty)
        is_here = is_row[:, None] & is_out[None, :]
        tl.store(y + row.to(tl.int64)[:, None] * out_channels + out[None, :], value, mask=is_here)
        if moments is not None:
            value = value.to(REAL)
            here = tl.minimum(rows - tile * ROWS, ROWS).to(REAL)
            mean_here = tl.sum(tl.where(is_row[:, None], value, 0.0), 0) / here
            distance = tl.where(is_row[:, None], value - mean_here[None, :], 0.0)
            both = count + here
            delta = mean_here - mean
            square += tl.sum(distance * distance, 0) + delta * delta * (count * here / both)
            mean += delta * (here / both)
            count = both
    if moments is not None:
        store_moments(moments, program, out_channels, out, is_out, count, mean, square)


@triton.jit
def gradient_of_output(
    g, share, y, y_norm, y_gradient, row, is_row, channels, channel, ACTIVATED: tl.constexpr,
    REAL: tl.constexpr,
):  # fmt: skip
    """The gradient of a convolution's output y, rows × channels, stored as y is; else zeros."""
    is_channel = channel < channels
    is_here = is_row[:, None] & is_channel[None, :]
    of_y = row.to(tl.int64)[:, None] * channels + channel[None, :]
    of_g = (row // share).to(tl.int64)[:, None] * channels + channel[None, :]
    value = tl.load(y + of_y, mask=is_here, other=0.0).to(REAL)
    incoming = tl.load(g + of_g, mask=is_here, other=0.0).to(REAL)
    gradient = through_norm(
        incoming, value, y_norm, y_gradient, channels, channel, is_channel, ACTIVATED
    )
    return tl.where(is_here, gradient, 0.0).to(y.dtype.element_ty)


@triton.jit
def pointwise_backward(
    g, share, y, y_norm, y_gradient, x, x_norm, weight, residual, gx, sums, weight_sums, rows,
    in_channels, out_channels, ACTIVATED: tl.constexpr, PRECISION: tl.constexpr,
    REAL: tl.constexpr, ROWS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """Both gradients of a 1×1 convolution in one sweep; blocks hold all channels.

    Each program leaves 2 × in_channels ``sums`` for the norm of x, where x has one, and
    out_channels × in_channels ``weight_sums``, where the weight's gradient is wanted.
    """
    program = tl.program_id(0)
    out, channel = tl.arange(0, OUT), tl.arange(0, IN)
    is_in = channel < in_channels
    stored = x.dtype.element_ty
    w = matrix(weight, in_channels, 1, out, channel, out_channels, in_channels, stored)
    total = tl.zeros((IN,), REAL)
    product = tl.zeros((IN,), REAL)
    of_weight = tl.zeros((OUT, IN), REAL)
    for tile in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        is_row = row < rows
        is_here = is_row[:, None] & is_in[None, :]
        at = row.to(tl.int64)[:, None] * in_channels + channel[None, :]
        gy = gradient_of_output(
            g, share, y, y_norm, y_gradient, row, is_row, out_channels, out, ACTIVATED, REAL
        )
        value = tl.load(x + at, mask=is_here, other=0.0)
        seen = value
        if x_norm is not None:
            scale = per_channel(x_norm, SCALE, in_channels, channel, is_in)
            shift = per_channel(x_norm, SHIFT, in_channels, channel, is_in)
            before = value.to(REAL) * scale[None, :] + shift[None, :]
            seen = relu6(before).to(stored)
        if weight_sums is not None:
            of_weight = tl.dot(
                tl.trans(gy), seen, of_weight, input_precision=PRECISION, out_dtype=REAL
            )
        if gx is not None:
            gradient = tl.dot(gy, w, input_precision=PRECISION, out_dtype=REAL)
            if x_norm is not None:
                mean = per_channel(x_norm, MEAN, in_channels, channel, is_in)
                gradient = where_relu6_passes(before, gradient)
                total += tl.sum(gradient, 0)
                product += tl.sum(gradient * (value.to(REAL) - mean[None, :]), 0)
            if residual is not None:
                gradient += tl.load(residual + at, mask=is_here, other=0.0).to(REAL)
            tl.store(gx + at, gradient.to(gx.dtype.element_ty), mask=is_here)
    if sums is not None:
        to = sums + program * 2 * in_channels + channel
        tl.store(to, total, mask=is_in)
        tl.store(to + in_channels, product, mask=is_in)
    if weight_sums is not None:
        to = weight_sums + program * out_channels * in_channels
        to += out[:, None] * in_channels + channel[None, :]
        tl.store(to, of_weight, mask=(out < out_channels)[:, None] & is_in[None, :])


@triton.jit
def pointwise_backward_input(
    g, share, y, y_norm, y_gradient, x, x_norm, weight, residual, gx, sums, rows, in_channels,
    out_channels, ACTIVATED: tl.constexpr, PRECISION: tl.constexpr, REAL: tl.constexpr,
    ROWS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """The gradient of the input alone, for many channels; grid as :func:`pointwise_forward`'s."""
    blocks = tl.cdiv(in_channels, IN)
    program = tl.program_id(0) // blocks
    programs = tl.num_programs(0) // blocks
    channel = (tl.program_id(0) % blocks) * IN + tl.arange(0, IN)
    is_in = channel < in_channels
    stored = x.dtype.element_ty
    total = tl.zeros((IN,), REAL)
    product = tl.zeros((IN,), REAL)
    for tile in range(program, tl.cdiv(rows, ROWS), programs):
        row = tile * ROWS + tl.arange(0, ROWS)
        is_row = row < rows
        is_here = is_row[:, None] & is_in[None, :]
        at = row.to(tl.int64)[:, None] * in_channels + channel[None, :]
        gradient = tl.zeros((ROWS, IN), REAL)
        for first in range(0, out_channels, OUT):
            out = first + tl.arange(0, OUT)
            gy = gradient_of_output(
                g, share, y, y_norm, y_gradient, row, is_row, out_channels, out, ACTIVATED, REAL
            )
            w = matrix(weight, in_channels, 1, out, channel, out_channels, in_channels, stored)
            gradient = tl.dot(gy, w, gradient, input_precision=PRECISION, out_dtype=REAL)
        if x_norm is not None:
            value = tl.load(x + at, mask=is_here, other=0.0).to(REAL)
            mean = per_channel(x_norm, MEAN, in_channels, channel, is_in)
            scale = per_channel(x_norm, SCALE, in_channels, channel, is_in)
            shift = per_channel(x_norm, SHIFT, in_channels, channel, is_in)
            before = value * scale[None, :] + shift[None, :]
            gradient = where_relu6_passes(before, gradient)
            total += tl.sum(gradient, 0)
            product += tl.sum(gradient * (value - mean[None, :]), 0)
        if residual is not None:
            gradient += tl.load(residual + at, mask=is_here, other=0.0).to(REAL)
        tl.store(gx + at, gradient.to(gx.dtype.element_ty), mask=is_here)
    if sums is not None:
        to = sums + program * 2 * in_channels + channel
        tl.store(to, total, mask=is_in)
        tl.store(to + in_channels, product, mask=is_in)


@triton.jit
def pointwise_backward_weight(
    g, share, y, y_norm, y_gradient, x, x_norm, weight_sums, rows, in_channels, out_channels,
    ACTIVATED: tl.constexpr, PRECISION: tl.constexpr, REAL: tl.constexpr, ROWS: tl.constexpr,
    IN: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """The gradient of the weight alone; grid: programs × blocks of in × blocks of out channels."""
    program = tl.program_id(0)
    channel = tl.program_id(1) * IN + tl.arange(0, IN)
    out = tl.program_id(2) * OUT + tl.arange(0, OUT)
    total = tl.zeros((OUT, IN), REAL)
    for tile in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        is_row = row < rows
        gy = gradient_of_output(
            g, share, y, y_norm, y_gradient, row, is_row, out_channels, out, ACTIVATED, REAL
        )
        seen = activations(
            x, x_norm, row, is_row, in_channels, channel, channel < in_channels, REAL
        )
        total = tl.dot(tl.trans(gy), seen, total, input_precision=PRECISION, out_dtype=REAL)
    to = weight_sums + program * out_channels * in_channels
    to += out[:, None] * in_channels + channel[None, :]
    tl.store(to, total, mask=(out < out_channels)[:, None] & (channel < in_channels)[None, :])


# -------------------------------------------------------------------- depthwise convolutions


@triton.jit
def places(square, squares, height, width, SIDE: tl.constexpr):
    """Image, and row and column of the first pixel, of squares of so many pixels a side."""
    across = tl.cdiv(width, SIDE)
    down = tl.cdiv(height, SIDE)
    column = square % across * SIDE
    row = square // across % down * SIDE
    return (square // across // down).to(tl.int64), row, column, square < squares


@triton.jit
def neighbour(
    x, norm, image, row, column, is_square, height, width, channels, channel, is_channel,
    REAL: tl.constexpr,
):  # fmt: skip
    """What the convolution sees at a pixel of each square: zero outside of the picture."""
    is_inside = is_square & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    pixel = (image * height + row) * width + column
    is_here = is_inside[:, None] & is_channel[None, :]
    value = tl.load(x + pixel[:, None] * channels + channel[None, :], mask=is_here, other=0.0)
    value = value.to(REAL)
    if norm is not None:
        value = normalised(value, norm, channels, channel, is_channel)
        value = tl.where(is_inside[:, None], value, 0.0)
    return value


@triton.jit
def tap(weight, row: tl.constexpr, column: tl.constexpr, channels, channel, is_channel):
    """A tap of the 3×3 kernels, which lie tap by tap: 9 × channels."""
    return per_channel(weight, 3 * row + column, channels, channel, is_channel)[None, :]


@triton.jit
def store_output(
    y, value, image, row, column, is_square, height, width, channels, channel, is_channel,
    count, pivot, total, square,
):  # fmt: skip
    """Write a pixel of each square, and take it into the moments."""
    is_inside = is_square & (row < height) & (column < width)
    is_here = is_inside[:, None] & is_channel[None, :]
    pixel = (image * height + row) * width + column
    stored = value.to(y.dtype.element_ty)
    tl.store(y + pixel[:, None] * channels + channel[None, :], stored, mask=is_here)
    value = stored.to(total.dtype)
    pivot = tl.where((count == 0)[:, None], value, pivot)
    distance = tl.where(is_here, value - pivot, 0.0)
    count += is_inside.to(count.dtype)
    return count, pivot, total + distance, square + distance * distance


@triton.jit
def depthwise_forward(
    x, norm, weight, y, moments, images, height, width, out_height, out_width, channels,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, REAL: tl.constexpr, SQUARES: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """The 3×3 convolution and the moments of what comes out; grid as :func:`norm_statistics`'s.

    Of stride 1 each square is 2×2 outputs, of stride 2 a single one. ``PADDING`` zeros lie above
    and left of the picture.
    """
    SIDE: tl.constexpr = 2 if STRIDE == 1 else 1
    WINDOW: tl.constexpr = 4 if STRIDE == 1 else 3
    program = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    count = tl.zeros((SQUARES,), REAL)
    pivot = tl.zeros((SQUARES, CHANNELS), REAL)
    total = tl.zeros((SQUARES, CHANNELS), REAL)
    square = tl.zeros((SQUARES, CHANNELS), REAL)
    squares = images * tl.cdiv(out_height, SIDE) * tl.cdiv(out_width, SIDE)
    for tile in range(program, tl.cdiv(squares, SQUARES), tl.num_programs(0)):
        which = tile * SQUARES + tl.arange(0, SQUARES)
        image, row, column, is_square = places(which, squares, out_height, out_width, SIDE)
        y00 = tl.zeros((SQUARES, CHANNELS), REAL)
        y01 = tl.zeros((SQUARES, CHANNELS), REAL)
        y10 = tl.zeros((SQUARES, CHANNELS), REAL)
        y11 = tl.zeros((SQUARES, CHANNELS), REAL)
        for down in tl.static_range(WINDOW):
            for right in tl.static_range(WINDOW):
                value = neighbour(
                    x, norm, image, row * STRIDE + down - PADDING,
                    column * STRIDE + right - PADDING, is_square, height, width, channels,
                    channel, is_channel, REAL,
                )  # fmt: skip
                if down < 3 and right < 3:
                    y00 += value * tap(weight, down, right, channels, channel, is_channel)
                if down < 3 and right > 0 and SIDE == 2:
                    y01 += value * tap(weight, down, right - 1, channels, channel, is_channel)
                if down > 0 and right < 3 and SIDE == 2:
                    y10 += value * tap(weight, down - 1, right, channels, channel, is_channel)
                if down > 0 and right > 0 and SIDE == 2:
                    y11 += value * tap(weight, down - 1, right - 1, channels, channel, is_channel)
        count, pivot, total, square = store_output(
            y, y00, image, row, column, is_square, out_height, out_width, channels, channel,
            is_channel, count, pivot, total, square,
        )  # fmt: skip
        if SIDE == 2:
            count, pivot, total, square = store_output(
                y, y01, image, row, column + 1, is_square, out_height, out_width, channels,
                channel, is_channel, count, pivot, total, square,
            )  # fmt: skip
            count, pivot, total, square = store_output(
                y, y10, image, row + 1, column, is_square, out_height, out_width, channels,
                channel, is_channel, count, pivot, total, square,
            )  # fmt: skip
            count, pivot, total, square = store_output(
                y, y11, image, row + 1, column + 1, is_square, out_height, out_width, channels,
                channel, is_channel, count, pivot, total, square,
            )  # fmt: skip
    if moments is not None:
        gather_moments(moments, program, channels, channel, is_channel, count, pivot, total, square)


@triton.jit
def through_tap(
    gy, seen, gx, row: tl.constexpr, column: tl.constexpr, weight, channels, channel, is_channel,
    t0, t1, t2, t3, t4, t5, t6, t7, t8,
):  # fmt: skip
    """The gradient of an output to the input that it saw through a tap, and to that tap.

    Changes nothing where the kernel has no such tap.
    """
    if row >= 0 and row <= 2 and column >= 0 and column <= 2:
        gx += gy * tap(weight, row, column, channels, channel, is_channel)
        product = gy * seen
        if 3 * row + column == 0:
            t0 += product
        if 3 * row + column == 1:
            t1 += product
        if 3 * row + column == 2:
            t2 += product
        if 3 * row + column == 3:
            t3 += product
        if 3 * row + column == 4:
            t4 += product
        if 3 * row + column == 5:
            t5 += product
        if 3 * row + column == 6:
            t6 += product
        if 3 * row + column == 7:
            t7 += product
        if 3 * row + column == 8:
            t8 += product
    return gx, t0, t1, t2, t3, t4, t5, t6, t7, t8


@triton.jit
def store_input_gradient(
    gx, gradient, x, x_norm, image, row, column, is_square, height, width, channels, channel,
    is_channel, total, product,
):  # fmt: skip
    """Write a pixel of each square, and take it into the sums for the norm of x."""
    is_inside = is_square & (row < height) & (column < width)
    is_here = is_inside[:, None] & is_channel[None, :]
    at = ((image * height + row) * width + column)[:, None] * channels + channel[None, :]
    if x_norm is not None:
        mean = per_channel(x_norm, MEAN, channels, channel, is_channel)
        scale = per_channel(x_norm, SCALE, channels, channel, is_channel)
        shift = per_channel(x_norm, SHIFT, channels, channel, is_channel)
        value = tl.load(x + at, mask=is_here, other=0.0).to(total.dtype)
        before = value * scale[None, :] + shift[None, :]
        gradient = tl.where(is_here, where_relu6_passes(before, gradient), 0.0)
        total += gradient
        product += gradient * (value - mean[None, :])
    tl.store(gx + at, gradient.to(gx.dtype.element_ty), mask=is_here)
    return total, product


@triton.jit
def depthwise_backward(
    g, y, y_norm, y_gradient, x, x_norm, weight, gx, sums, images, height, width, out_height,
    out_width, channels, STRIDE: tl.constexpr, PADDING: tl.constexpr, REAL: tl.constexpr,
    SQUARES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Both gradients of the 3×3 convolution in one sweep over squares of 2×2 inputs.

    Each program leaves 11 × channels sums: Σg and Σg(x - mean) for the norm of x, and those of the
    nine taps.
    """
    WINDOW: tl.constexpr = 4 if STRIDE == 1 else 2
    # Of the outputs that see a square: the first one's distance, and its tap on the first pixel.
    AWAY: tl.constexpr = -1 if STRIDE == 1 else PADDING - 1
    FIRST: tl.constexpr = 2 if STRIDE == 1 else 2 - PADDING
    program = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    total = tl.zeros((SQUARES, CHANNELS), REAL)
    product = tl.zeros((SQUARES, CHANNELS), REAL)
    t0 = tl.zeros((SQUARES, CHANNELS), REAL)
    t1 = tl.zeros((SQUARES, CHANNELS), REAL)
    t2 = tl.zeros((SQUARES, CHANNELS), REAL)
    t3 = tl.zeros((SQUARES, CHANNELS), REAL)
    t4 = tl.zeros((SQUARES, CHANNELS), REAL)
    t5 = tl.zeros((SQUARES, CHANNELS), REAL)
    t6 = tl.zeros((SQUARES, CHANNELS), REAL)
    t7 = tl.zeros((SQUARES, CHANNELS), REAL)
    t8 = tl.zeros((SQUARES, CHANNELS), REAL)
    squares = images * tl.cdiv(height, 2) * tl.cdiv(width, 2)
    for tile in range(program, tl.cdiv(squares, SQUARES), tl.num_programs(0)):
        which = tile * SQUARES + tl.arange(0, SQUARES)
        image, row, column, is_square = places(which, squares, height, width, 2)
        x00 = neighbour(
            x, x_norm, image, row, column, is_square, height, width, channels, channel,
            is_channel, REAL,
        )  # fmt: skip
        x01 = neighbour(
            x, x_norm, image, row, column + 1, is_square, height, width, channels, channel,
            is_channel, REAL,
        )  # fmt: skip
        x10 = neighbour(
            x, x_norm, image, row + 1, column, is_square, height, width, channels, channel,
            is_channel, REAL,
        )  # fmt: skip
        x11 = neighbour(
            x, x_norm, image, row + 1, column + 1, is_square, height, width, channels, channel,
            is_channel, REAL,
        )  # fmt: skip
        g00 = tl.zeros((SQUARES, CHANNELS), REAL)
        g01 = tl.zeros((SQUARES, CHANNELS), REAL)
        g10 = tl.zeros((SQUARES, CHANNELS), REAL)
        g11 = tl.zeros((SQUARES, CHANNELS), REAL)
        for down in tl.static_range(WINDOW):
            for right in tl.static_range(WINDOW):
                out_row = row // STRIDE + AWAY + down
                out_column = column // STRIDE + AWAY + right
                is_inside = is_square & (out_row >= 0) & (out_row < out_height)
                is_inside = is_inside & (out_column >= 0) & (out_column < out_width)
                is_here = is_inside[:, None] & is_channel[None, :]
                pixel = (image * out_height + out_row) * out_width + out_column
                at = pixel[:, None] * channels + channel[None, :]
                gy = through_norm(
                    tl.load(g + at, mask=is_here, other=0.0).to(REAL),
                    tl.load(y + at, mask=is_here, other=0.0).to(REAL),
                    y_norm, y_gradient, channels, channel, is_channel, True,
                )  # fmt: skip
                gy = tl.where(is_inside[:, None], gy, 0.0)
                g00, t0, t1, t2, t3, t4, t5, t6, t7, t8 = through_tap(
                    gy, x00, g00, FIRST - STRIDE * down, FIRST - STRIDE * right, weight, channels,
                    channel, is_channel, t0, t1, t2, t3, t4, t5, t6, t7, t8,
                )  # fmt: skip
                g01, t0, t1, t2, t3, t4, t5, t6, t7, t8 = through_tap(
                    gy, x01, g01, FIRST - STRIDE * down, FIRST + 1 - STRIDE * right, weight,
                    channels, channel, is_channel, t0, t1, t2, t3, t4, t5, t6, t7, t8,
                )  # fmt: skip
                g10, t0, t1, t2, t3, t4, t5, t6, t7, t8 = through_tap(
                    gy, x10, g10, FIRST + 1 - STRIDE * down, FIRST - STRIDE * right, weight,
                    channels, channel, is_channel, t0, t1, t2, t3, t4, t5, t6, t7, t8,
                )  # fmt: skip
                g11, t0, t1, t2, t3, t4, t5, t6, t7, t8 = through_tap(
                    gy, x11, g11, FIRST + 1 - STRIDE * down, FIRST + 1 - STRIDE * right, weight,
                    channels, channel, is_channel, t0, t1, t2, t3, t4, t5, t6, t7, t8,
                )  # fmt: skip
        total, product = store_input_gradient(
            gx, g00, x, x_norm, image, row, column, is_square, height, width, channels, channel,
            is_channel, total, product,
        )  # fmt: skip
        total, product = store_input_gradient(
            gx, g01, x, x_norm, image, row, column + 1, is_square, height, width, channels,
            channel, is_channel, total, product,
        )  # fmt: skip
        total, product = store_input_gradient(
            gx, g10, x, x_norm, image, row + 1, column, is_square, height, width, channels,
            channel, is_channel, total, product,
        )  # fmt: skip
        total, product = store_input_gradient(
            gx, g11, x, x_norm, image, row + 1, column + 1, is_square, height, width, channels,
            channel, is_channel, total, product,
        )  # fmt: skip
    to = sums + program * 11 * channels + channel
    tl.store(to, tl.sum(total, 0), mask=is_channel)
    tl.store(to + channels, tl.sum(product, 0), mask=is_channel)
    tl.store(to + 2 * channels, tl.sum(t0, 0), mask=is_channel)
    tl.store(to + 3 * channels, tl.sum(t1, 0), mask=is_channel)
    tl.store(to + 4 * channels, tl.sum(t2, 0), mask=is_channel)
    tl.store(to + 5 * channels, tl.sum(t3, 0), mask=is_channel)
    tl.store(to + 6 * channels, tl.sum(t4, 0), mask=is_channel)
    tl.store(to + 7 * channels, tl.sum(t5, 0), mask=is_channel)
    tl.store(to + 8 * channels, tl.sum(t6, 0), mask=is_channel)
    tl.store(to + 9 * channels, tl.sum(t7, 0), mask=is_channel)
    tl.store(to + 10 * channels, tl.sum(t8, 0), mask=is_channel)
