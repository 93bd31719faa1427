"""Training kernels of MobileNetV2 for an NVIDIA GPU, in Triton.

They do what `fast_ops.cpp` does, in the same way: feature maps are matrices, pixels × channels; a
norm is numbers per channel, and whoever reads a convolution's output normalises it on the fly.

* Values are stored as they come (bfloat16, in tests float32 or float64) and computed as ``REAL``.
* Programs go over a map in strides and gather sums in registers; each leaves one row of partial
  sums, which a small kernel adds up in float64. The same GPU gives the same bits.
* Each number costs few instructions, or the processors would be slower than memory: a depthwise
  kernel goes down strips of two columns, so that what it has normalised serves several outputs, and
  sums stay with the threads until the end. ``EVEN``: blocks fit, and rows need no masks.

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
"""Rows of a norm's gradient, 4 × channels: gy = scale · g + slope · y + offset; then the gradients
of the norm's own parameters."""


@triton.jit
def relu6(value, limit):
    """Between zero and ``limit``, which is 6, or 0 where there is nothing. A NaN comes through."""
    value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(value, limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def where_relu6_passes(before, gradient):
    """The gradient where ReLU6 lets it through; ``before`` or after it is the same."""
    return tl.where((before > 0) & (before < 6), gradient, 0.0)


@triton.jit
def per_channel(array, row: tl.constexpr, channels, channel, is_channel):
    """A row of a norm or of its gradient, at some channels."""
    return tl.load(array + row * channels + channel, mask=is_channel, other=0.0)


@triton.jit
def rows_and_channels(is_row, is_channel, EVEN: tl.constexpr):
    """The mask of a block of rows × channels."""
    if EVEN:
        return tl.broadcast_to(is_channel[None, :], is_row.shape[0], is_channel.shape[0])
    else:
        return is_row[:, None] & is_channel[None, :]


@triton.jit
def through_norm(g, y, scale, shift, slope, offset, ACTIVATED: tl.constexpr):
    """The gradient of ``y`` from that of the normalised ``y``; the rest are 1 × channels."""
    if ACTIVATED:
        g = where_relu6_passes(y * scale + shift, g)
    return scale * g + (slope * y + offset)


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
        count = tl.zeros((PROGRAMS, CHANNELS), tl.float64)
        total = tl.zeros((PROGRAMS, CHANNELS), tl.float64)
        for first in range(0, programs, PROGRAMS):
            program = first + tl.arange(0, PROGRAMS)
            is_here = (program < programs)[:, None] & is_channel[None, :]
            at = moments + program[:, None] * 3 * channels + channel[None, :]
            here = tl.load(at, mask=is_here, other=0.0).to(tl.float64)
            count += here
            total += here * tl.load(at + channels, mask=is_here, other=0.0).to(tl.float64)
        pixels = tl.maximum(tl.sum(count, 0), 1.0)
        mean = tl.sum(total, 0) / pixels
        square = tl.zeros((PROGRAMS, CHANNELS), tl.float64)
        for first in range(0, programs, PROGRAMS):
            program = first + tl.arange(0, PROGRAMS)
            is_here = (program < programs)[:, None] & is_channel[None, :]
            at = moments + program[:, None] * 3 * channels + channel[None, :]
            here = tl.load(at, mask=is_here, other=0.0).to(tl.float64)
            distance = tl.load(at + channels, mask=is_here, other=0.0) - mean[None, :]
            square += tl.load(at + 2 * channels, mask=is_here, other=0.0).to(tl.float64)
            square += here * distance * distance
        squares = tl.sum(square, 0)
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
        value = relu6(value, 6.0)
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
            tl.store(to + OFFSET * channels, -scale * total / pixels - slope * mean, mask=is_channel)
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


@triton.jit
def norm_backward_apply(
    g, share, y, norm, gradient, gy, rows, channels, REAL: tl.constexpr, ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradient of a map from that of the map after norm and ReLU6."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_row = row < rows
    outgoing = gradient_of_output(
        g, share, y, norm, gradient, row, is_row, channels, channel, True, REAL, False, True
    )
    is_here = is_row[:, None] & (channel < channels)[None, :]
    tl.store(gy + row.to(tl.int64)[:, None] * channels + channel[None, :], outgoing, mask=is_here)


# -------------------------------------------------------------------------- 1×1 convolutions


@triton.jit
def matrix(weight, of_rows, of_columns, row, column, rows, columns, dtype: tl.constexpr):
    """A block of a matrix that lies in memory with these strides."""
    is_here = (row < rows)[:, None] & (column < columns)[None, :]
    at = row[:, None] * of_rows + column[None, :] * of_columns
    return tl.load(weight + at, mask=is_here, other=0.0).to(dtype)


@triton.jit
def activations(
    x, x_norm, row, is_row, channels, channel, is_channel, REAL: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """What a convolution sees of ``x``, rows × channels, stored as x is."""
    is_here = rows_and_channels(is_row, is_channel, EVEN)
    at = row.to(tl.int64)[:, None] * channels + channel[None, :]
    value = tl.load(x + at, mask=is_here, other=0.0)
    if x_norm is not None:
        scale = per_channel(x_norm, SCALE, channels, channel, is_channel)
        shift = per_channel(x_norm, SHIFT, channels, channel, is_channel)
        value = relu6(value.to(REAL) * scale[None, :] + shift[None, :], 6.0).to(x.dtype.element_ty)
    return value


@triton.jit
def folded(value, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WARPS: tl.constexpr):
    """Sums over those rows of a product that lie in the same thread.

    A group of four warps holds 64 rows: 16 each, of which a thread has one and the eighth after it.
    """
    if WARPS == 4 and ROWS > 64:
        value = tl.sum(tl.reshape(value, (ROWS // 64, 64, COLUMNS)), 0)
    if ROWS >= 64:
        LEFT: tl.constexpr = rows_left(ROWS, WARPS)
        value = tl.sum(tl.reshape(value, (LEFT // 8, 2, 8, COLUMNS)), 1)
        value = tl.reshape(value, (LEFT, COLUMNS))
    return value


@triton.constexpr_function
def rows_left(rows, warps):
    """Rows that :func:`folded` leaves."""
    if rows < 64:
        return rows
    return 32 if warps == 4 else rows // 2


@triton.jit
def store_output_of_product(
    total, y, moments, tile, rows, row, is_row, channels, channel, is_channel, n, pivot, sums,
    squares, EVEN: tl.constexpr, ROWS: tl.constexpr, OUT: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """Write rows × channels, and take them into sums about a pivot, the mean of the first rows."""
    is_here = rows_and_channels(is_row, is_channel, EVEN)
    at = row.to(tl.int64)[:, None] * channels + channel[None, :]
    tl.store(y + at, total.to(y.dtype.element_ty), mask=is_here)
    if moments is not None:
        here = tl.minimum(rows - tile * ROWS, ROWS).to(total.dtype)
        if n == 0:
            first = total
            if not EVEN:
                first = tl.where(is_row[:, None], total, 0.0)
            pivot = tl.sum(first, 0) / here
        distance = total - pivot[None, :]
        if not EVEN:
            distance = tl.where(is_row[:, None], distance, 0.0)
        sums += folded(distance, ROWS, OUT, WARPS)
        squares += folded(distance * distance, ROWS, OUT, WARPS)
        n += here
    return n, pivot, sums, squares


@triton.jit
def store_moments_of_product(
    moments, program, channels, channel, is_channel, n, pivot, sums, squares
):  # fmt: skip
    """Sums about the pivot to moments."""
    if moments is not None:
        total = tl.sum(sums, 0)
        square = tl.sum(squares, 0) - total * total / n
        mean = pivot + total / n
        store_moments(moments, program, channels, channel, is_channel, n, mean, square)


@triton.jit
def pointwise_forward(
    x, x_norm, weight, y, moments, rows, in_channels, out_channels, PRECISION: tl.constexpr,
    REAL: tl.constexpr, ROWS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
    AT_ONCE: tl.constexpr, EVEN: tl.constexpr, WARPS: tl.constexpr,
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
    LEFT: tl.constexpr = rows_left(ROWS, WARPS)
    n = tl.zeros((), REAL)
    pivot = tl.zeros((OUT,), REAL)
    sums = tl.zeros((LEFT, OUT), REAL)
    squares = tl.zeros((LEFT, OUT), REAL)
    for tile in range(program, tl.cdiv(rows, ROWS), programs):
        row = tile * ROWS + tl.arange(0, ROWS)
        is_row = row < rows
        total = tl.zeros((ROWS, OUT), REAL)
        if AT_ONCE:
            a = activations(
                x, x_norm, row, is_row, in_channels, channel, channel < in_channels, REAL, EVEN
            )
            total = tl.dot(a, whole, total, input_precision=PRECISION, out_dtype=REAL)
        else:
            for first in range(0, in_channels, IN):
                c = first + channel
                a = activations(
                    x, x_norm, row, is_row, in_channels, c, c < in_channels, REAL, EVEN
                )
                w = matrix(weight, 1, in_channels, c, out, in_channels, out_channels, stored)
                total = tl.dot(a, w, total, input_precision=PRECISION, out_dtype=REAL)
        n, pivot, sums, squares = store_output_of_product(
            total, y, moments, tile, rows, row, is_row, out_channels, out, is_out, n, pivot, sums,
            squares, EVEN, ROWS, OUT, WARPS,
        )  # fmt: skip
    store_moments_of_product(
        moments, program, out_channels, out, is_out, n, pivot, sums, squares
    )


@triton.jit
def gradient_of_output(
    g, share, y, y_norm, y_gradient, row, is_row, channels, channel, ACTIVATED: tl.constexpr,
    REAL: tl.constexpr, EVEN: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """The gradient of a convolution's output y, rows × channels, stored as y is; else zeros."""
    is_channel = channel < channels
    is_here = rows_and_channels(is_row, is_channel, EVEN)
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
    if not EVEN:  # channels that are not there have a scale of zero
        gradient = tl.where(is_here, gradient, 0.0)
    return gradient.to(y.dtype.element_ty)


@triton.jit
def pointwise_backward(
    g, share, y, y_norm, y_gradient, x, x_norm, weight, residual, gx, sums, weight_sums, rows,
    in_channels, out_channels, ACTIVATED: tl.constexpr, PRECISION: tl.constexpr,
    REAL: tl.constexpr, ROWS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
    EVEN: tl.constexpr, SHARED: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """Both gradients of a 1×1 convolution in one sweep; a block holds all output channels.

    Each program leaves 2 × in_channels ``sums`` for the norm of x, where x has one, and
    out_channels × in_channels ``weight_sums``, where the weight's gradient is wanted. Grid:
    programs × blocks of input channels, as in :func:`pointwise_forward`.
    """
    blocks = tl.cdiv(in_channels, IN)
    program = tl.program_id(0) // blocks
    programs = tl.num_programs(0) // blocks
    out = tl.arange(0, OUT)
    channel = (tl.program_id(0) % blocks) * IN + tl.arange(0, IN)
    is_in = channel < in_channels
    stored = x.dtype.element_ty
    w = matrix(weight, in_channels, 1, out, channel, out_channels, in_channels, stored)
    LEFT: tl.constexpr = rows_left(ROWS, WARPS)
    total = tl.zeros((LEFT, IN), REAL)
    product = tl.zeros((LEFT, IN), REAL)
    of_weight = tl.zeros((OUT, IN), REAL)
    for tile in range(program, tl.cdiv(rows, ROWS), programs):
        row = tile * ROWS + tl.arange(0, ROWS)
        is_row = row < rows
        is_here = rows_and_channels(is_row, is_in, EVEN)
        at = row.to(tl.int64)[:, None] * in_channels + channel[None, :]
        gy = gradient_of_output(
            g, share, y, y_norm, y_gradient, row, is_row, out_channels, out, ACTIVATED, REAL, EVEN,
            SHARED,
        )  # fmt: skip
        value = tl.load(x + at, mask=is_here, other=0.0)
        seen = value
        if x_norm is not None:
            scale = per_channel(x_norm, SCALE, in_channels, channel, is_in)
            shift = per_channel(x_norm, SHIFT, in_channels, channel, is_in)
            seen = relu6(value.to(REAL) * scale[None, :] + shift[None, :], 6.0).to(stored)
        if weight_sums is not None:
            of_weight = tl.dot(
                tl.trans(gy), seen, of_weight, input_precision=PRECISION, out_dtype=REAL
            )
        if gx is not None:
            gradient = tl.dot(gy, w, input_precision=PRECISION, out_dtype=REAL)
            if x_norm is not None:
                mean = per_channel(x_norm, MEAN, in_channels, channel, is_in)
                gradient = where_relu6_passes(seen.to(REAL), gradient)
                distance = value.to(REAL) - mean[None, :]
                total += folded(gradient, ROWS, IN, WARPS)
                product += folded(gradient * distance, ROWS, IN, WARPS)
            if residual is not None:
                gradient += tl.load(residual + at, mask=is_here, other=0.0).to(REAL)
            tl.store(gx + at, gradient.to(gx.dtype.element_ty), mask=is_here)
    if sums is not None:
        to = sums + program * 2 * in_channels + channel
        tl.store(to, tl.sum(total, 0), mask=is_in)
        tl.store(to + in_channels, tl.sum(product, 0), mask=is_in)
    if weight_sums is not None:
        to = weight_sums + program * out_channels * in_channels
        to += out[:, None] * in_channels + channel[None, :]
        tl.store(to, of_weight, mask=(out < out_channels)[:, None] & is_in[None, :])


@triton.jit
def pointwise_backward_input(
    g, share, y, y_norm, y_gradient, x, x_norm, weight, residual, gx, sums, rows, in_channels,
    out_channels, ACTIVATED: tl.constexpr, PRECISION: tl.constexpr, REAL: tl.constexpr,
    ROWS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, EVEN: tl.constexpr,
    SHARED: tl.constexpr,
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
        is_here = rows_and_channels(is_row, is_in, EVEN)
        at = row.to(tl.int64)[:, None] * in_channels + channel[None, :]
        gradient = tl.zeros((ROWS, IN), REAL)
        for first in range(0, out_channels, OUT):
            out = first + tl.arange(0, OUT)
            gy = gradient_of_output(
                g, share, y, y_norm, y_gradient, row, is_row, out_channels, out, ACTIVATED, REAL,
                EVEN, SHARED,
            )  # fmt: skip
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
    IN: tl.constexpr, OUT: tl.constexpr, EVEN: tl.constexpr, SHARED: tl.constexpr,
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
            g, share, y, y_norm, y_gradient, row, is_row, out_channels, out, ACTIVATED, REAL, EVEN,
            SHARED,
        )  # fmt: skip
        seen = activations(
            x, x_norm, row, is_row, in_channels, channel, channel < in_channels, REAL, EVEN
        )
        total = tl.dot(tl.trans(gy), seen, total, input_precision=PRECISION, out_dtype=REAL)
    to = weight_sums + program * out_channels * in_channels
    to += out[:, None] * in_channels + channel[None, :]
    tl.store(to, total, mask=(out < out_channels)[:, None] & (channel < in_channels)[None, :])


# ---------------------------------------------------------------------------------- the stem


@triton.jit
def windows(
    x, row, is_row, height, width, out_height, out_width, channels: tl.constexpr,
    TAPS: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """What a 3×3 kernel sees around some outputs: rows × (taps × channels, and zeros)."""
    image = (row // out_width // out_height).to(tl.int64)
    down = row // out_width % out_height * STRIDE - PADDING
    right = row % out_width * STRIDE - PADDING
    place = tl.arange(0, TAPS)
    tap = place // channels
    y = down[:, None] + (tap // 3)[None, :]
    x_ = right[:, None] + (tap % 3)[None, :]
    is_inside = is_row[:, None] & (tap < 9)[None, :]
    is_inside = is_inside & (y >= 0) & (y < height) & (x_ >= 0) & (x_ < width)
    at = ((image * height)[:, None] + y) * width + x_
    at = at * channels + (place % channels)[None, :]
    return tl.load(x + at, mask=is_inside, other=0.0).to(dtype)


@triton.jit
def stem_forward(
    x, weight, y, moments, rows, height, width, out_height, out_width, out_channels,
    channels: tl.constexpr, of_out, of_in, of_down, of_right, PRECISION: tl.constexpr,
    REAL: tl.constexpr, TAPS: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    ROWS: tl.constexpr, OUT: tl.constexpr, EVEN: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """The first 3×3 convolution, of pictures of few channels, and its moments; one axis of programs.

    The weight lies in memory with the strides ``of_out`` and so on.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    out = tl.arange(0, OUT)
    is_out = out < out_channels
    stored = y.dtype.element_ty
    place = tl.arange(0, TAPS)
    tap = place // channels
    at = (tap // 3 * of_down + tap % 3 * of_right + place % channels * of_in)[:, None]
    is_here = (tap < 9)[:, None] & is_out[None, :]
    w = tl.load(weight + at + out[None, :] * of_out, mask=is_here, other=0.0).to(stored)
    LEFT: tl.constexpr = rows_left(ROWS, WARPS)
    n = tl.zeros((), REAL)
    pivot = tl.zeros((OUT,), REAL)
    sums = tl.zeros((LEFT, OUT), REAL)
    squares = tl.zeros((LEFT, OUT), REAL)
    for tile in range(program, tl.cdiv(rows, ROWS), programs):
        row = tile * ROWS + tl.arange(0, ROWS)
        is_row = row < rows
        seen = windows(
            x, row, is_row, height, width, out_height, out_width, channels, TAPS, STRIDE, PADDING,
            stored,
        )  # fmt: skip
        total = tl.dot(seen, w, input_precision=PRECISION, out_dtype=REAL)
        n, pivot, sums, squares = store_output_of_product(
            total, y, moments, tile, rows, row, is_row, out_channels, out, is_out, n, pivot, sums,
            squares, EVEN, ROWS, OUT, WARPS,
        )  # fmt: skip
    store_moments_of_product(
        moments, program, out_channels, out, is_out, n, pivot, sums, squares
    )


@triton.jit
def stem_backward_weight(
    g, y, y_norm, y_gradient, x, weight_sums, rows, height, width, out_height, out_width,
    out_channels, channels: tl.constexpr, of_out, of_in, of_down, of_right,
    PRECISION: tl.constexpr, REAL: tl.constexpr, TAPS: tl.constexpr, STRIDE: tl.constexpr,
    PADDING: tl.constexpr, ROWS: tl.constexpr, OUT: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The gradient of the stem's weight, laid out as the weight is; its pictures need none."""
    program = tl.program_id(0)
    out = tl.arange(0, OUT)
    total = tl.zeros((OUT, TAPS), REAL)
    for tile in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        is_row = row < rows
        gy = gradient_of_output(
            g, 1, y, y_norm, y_gradient, row, is_row, out_channels, out, True, REAL, EVEN, False
        )
        seen = windows(
            x, row, is_row, height, width, out_height, out_width, channels, TAPS, STRIDE, PADDING,
            y.dtype.element_ty,
        )  # fmt: skip
        total = tl.dot(tl.trans(gy), seen, total, input_precision=PRECISION, out_dtype=REAL)
    place = tl.arange(0, TAPS)
    tap = place // channels
    at = (tap // 3 * of_down + tap % 3 * of_right + place % channels * of_in)[None, :]
    to = weight_sums + program * out_channels * channels * 9 + at + out[:, None] * of_out
    tl.store(to, total, mask=(out < out_channels)[:, None] & (tap < 9)[None, :])


# -------------------------------------------------------------------- depthwise convolutions


@triton.jit
def strips(which, count, height, width, SEGMENT: tl.constexpr):
    """Strips of two columns and so many rows: image, first row, first column, whether it is one."""
    across = tl.cdiv(width, 2)
    down = tl.cdiv(height, SEGMENT)
    column = which % across * 2
    row = which // across % down * SEGMENT
    return (which // across // down).to(tl.int64), row, column, which < count


@triton.jit
def neighbour(
    x, scale, shift, pixel, is_inside, channels, channel, is_channel, REAL: tl.constexpr,
    NORMALISE: tl.constexpr,
):  # fmt: skip
    """What the convolution sees at a pixel of each strip: zero outside of the picture."""
    is_here = is_inside[:, None] & is_channel[None, :]
    value = tl.load(x + pixel[:, None] * channels + channel[None, :], mask=is_here, other=0.0)
    if NORMALISE:
        limit = tl.where(is_inside, 6.0, 0.0).to(REAL)
        return relu6(value.to(REAL) * scale + shift, limit[:, None])
    else:
        return value.to(REAL)


@triton.jit
def tap(weight, place: tl.constexpr, channel, is_channel, REAL: tl.constexpr):
    """A tap of the 3×3 kernels, channels × 9, as 1 × channels."""
    return tl.load(weight + channel * 9 + place, mask=is_channel, other=0.0).to(REAL)[None, :]


@triton.jit
def store_pixel(
    y, value, pixel, is_inside, channels, channel, is_channel, pivot, total, square
):  # fmt: skip
    """Write a pixel of each strip, and take it into sums about the pivot."""
    is_here = is_inside[:, None] & is_channel[None, :]
    at = y + pixel[:, None] * channels + channel[None, :]
    tl.store(at, value.to(y.dtype.element_ty), mask=is_here)
    distance = tl.where(is_inside[:, None], value - pivot, 0.0)
    return total + distance, square + distance * distance


@triton.jit
def depthwise_forward(
    x, norm, weight, y, moments, images, height, width, out_height, out_width, channels,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, REAL: tl.constexpr, STRIPS: tl.constexpr,
    SEGMENT: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The 3×3 convolution and the moments of what comes out; grid as :func:`norm_statistics`'s.

    A strip is two columns of outputs. Going down, each row of inputs adds to the outputs that see
    it: it is read once for all of them. ``PADDING`` zeros lie above and left of the picture.
    """
    NORMALISE: tl.constexpr = norm is not None
    program = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    scale = 1.0
    shift = 0.0
    if NORMALISE:
        scale = per_channel(norm, SCALE, channels, channel, is_channel)[None, :]
        shift = per_channel(norm, SHIFT, channels, channel, is_channel)[None, :]
    w0 = tap(weight, 0, channel, is_channel, REAL)
    w1 = tap(weight, 1, channel, is_channel, REAL)
    w2 = tap(weight, 2, channel, is_channel, REAL)
    w3 = tap(weight, 3, channel, is_channel, REAL)
    w4 = tap(weight, 4, channel, is_channel, REAL)
    w5 = tap(weight, 5, channel, is_channel, REAL)
    w6 = tap(weight, 6, channel, is_channel, REAL)
    w7 = tap(weight, 7, channel, is_channel, REAL)
    w8 = tap(weight, 8, channel, is_channel, REAL)
    count = tl.zeros((STRIPS,), REAL)
    pivot = tl.zeros((STRIPS, CHANNELS), REAL)
    total = tl.zeros((STRIPS, CHANNELS), REAL)
    square = tl.zeros((STRIPS, CHANNELS), REAL)
    of_all = images * tl.cdiv(out_height, SEGMENT) * tl.cdiv(out_width, 2)
    for tile in range(program, tl.cdiv(of_all, STRIPS), tl.num_programs(0)):
        which = tile * STRIPS + tl.arange(0, STRIPS)
        image, first, column, is_strip = strips(which, of_all, out_height, out_width, SEGMENT)
        left = column * STRIDE - PADDING
        has0 = is_strip & (left >= 0)
        has1 = is_strip & (left + 1 < width)
        has2 = is_strip & (left + 2 < width)
        has3 = is_strip & (left + 3 < width)
        has4 = is_strip & (left + 4 < width)
        has_second = is_strip & (column + 1 < out_width)
        p0 = tl.zeros((STRIPS, CHANNELS), REAL)
        p1 = tl.zeros((STRIPS, CHANNELS), REAL)
        q0 = tl.zeros((STRIPS, CHANNELS), REAL)
        q1 = tl.zeros((STRIPS, CHANNELS), REAL)
        if STRIDE == 1:
            # Before input row i comes, p has the rows above for output row i - 1, q for row i.
            for step in tl.range(0, SEGMENT + 2, num_stages=DEPTH):
                i = first - 1 + step
                is_row = (i >= 0) & (i < height)
                pixel = (image * height + i) * width + left
                v0 = neighbour(
                    x, scale, shift, pixel, has0 & is_row, channels, channel, is_channel, REAL,
                    NORMALISE,
                )  # fmt: skip
                v1 = neighbour(
                    x, scale, shift, pixel + 1, has1 & is_row, channels, channel, is_channel,
                    REAL, NORMALISE,
                )  # fmt: skip
                v2 = neighbour(
                    x, scale, shift, pixel + 2, has2 & is_row, channels, channel, is_channel,
                    REAL, NORMALISE,
                )  # fmt: skip
                v3 = neighbour(
                    x, scale, shift, pixel + 3, has3 & is_row, channels, channel, is_channel,
                    REAL, NORMALISE,
                )  # fmt: skip
                p0 = p0 + v0 * w6 + v1 * w7 + v2 * w8
                p1 = p1 + v1 * w6 + v2 * w7 + v3 * w8
                is_out = (step >= 2) & (i - 1 < out_height)
                to = (image * out_height + i - 1) * out_width + column
                is_first = (count == 0) & is_strip & is_out
                pivot = tl.where(is_first[:, None], p0, pivot)
                count += (is_strip & is_out).to(REAL) + (has_second & is_out).to(REAL)
                total, square = store_pixel(
                    y, p0, to, is_strip & is_out, channels, channel, is_channel, pivot, total,
                    square,
                )  # fmt: skip
                total, square = store_pixel(
                    y, p1, to + 1, has_second & is_out, channels, channel, is_channel, pivot,
                    total, square,
                )  # fmt: skip
                p0 = q0 + v0 * w3 + v1 * w4 + v2 * w5
                p1 = q1 + v1 * w3 + v2 * w4 + v3 * w5
                q0 = v0 * w0 + v1 * w1 + v2 * w2
                q1 = v1 * w0 + v2 * w1 + v3 * w2
        else:
            # Of the three input rows of an output the last is the first of the next output.
            for step in tl.range(0, 2 * SEGMENT + 1, num_stages=DEPTH):
                i = first * 2 - PADDING + step
                is_row = (i >= 0) & (i < height)
                pixel = (image * height + i) * width + left
                v0 = neighbour(
                    x, scale, shift, pixel, has0 & is_row, channels, channel, is_channel, REAL,
                    NORMALISE,
                )  # fmt: skip
                v1 = neighbour(
                    x, scale, shift, pixel + 1, has1 & is_row, channels, channel, is_channel,
                    REAL, NORMALISE,
                )  # fmt: skip
                v2 = neighbour(
                    x, scale, shift, pixel + 2, has2 & is_row, channels, channel, is_channel,
                    REAL, NORMALISE,
                )  # fmt: skip
                v3 = neighbour(
                    x, scale, shift, pixel + 3, has3 & is_row, channels, channel, is_channel,
                    REAL, NORMALISE,
                )  # fmt: skip
                v4 = neighbour(
                    x, scale, shift, pixel + 4, has4 & is_row, channels, channel, is_channel,
                    REAL, NORMALISE,
                )  # fmt: skip
                if step % 2 == 1:
                    p0 = p0 + v0 * w3 + v1 * w4 + v2 * w5
                    p1 = p1 + v2 * w3 + v3 * w4 + v4 * w5
                else:
                    p0 = p0 + v0 * w6 + v1 * w7 + v2 * w8
                    p1 = p1 + v2 * w6 + v3 * w7 + v4 * w8
                    out_row = first + step // 2 - 1
                    is_out = (step >= 2) & (out_row < out_height)
                    to = (image * out_height + out_row) * out_width + column
                    is_first = (count == 0) & is_strip & is_out
                    pivot = tl.where(is_first[:, None], p0, pivot)
                    count += (is_strip & is_out).to(REAL) + (has_second & is_out).to(REAL)
                    total, square = store_pixel(
                        y, p0, to, is_strip & is_out, channels, channel, is_channel, pivot, total,
                        square,
                    )  # fmt: skip
                    total, square = store_pixel(
                        y, p1, to + 1, has_second & is_out, channels, channel, is_channel, pivot,
                        total, square,
                    )  # fmt: skip
                    p0 = v0 * w0 + v1 * w1 + v2 * w2
                    p1 = v2 * w0 + v3 * w1 + v4 * w2
    if moments is not None:
        gather_moments(
            moments, program, channels, channel, is_channel, count, pivot, total, square
        )


@triton.jit
def output_gradient(
    g, y, scale, shift, slope, offset, pixel, is_inside, channels, channel, is_channel,
    REAL: tl.constexpr,
):  # fmt: skip
    """The gradient of the convolution's output at a pixel of each strip: zero outside."""
    is_here = is_inside[:, None] & is_channel[None, :]
    at = pixel[:, None] * channels + channel[None, :]
    incoming = tl.load(g + at, mask=is_here, other=0.0).to(REAL)
    value = tl.load(y + at, mask=is_here, other=0.0).to(REAL)
    gradient = through_norm(incoming, value, scale, shift, slope, offset, True)
    return tl.where(is_inside[:, None], gradient, 0.0)


@triton.jit
def store_input_gradient(
    gx, gradient, x, seen, mean, pixel, is_inside, channels, channel, is_channel, total,
    product, NORMALISE: tl.constexpr,
):  # fmt: skip
    """Write a pixel of each strip, and take it into the sums for the norm of x.

    x is read again: it still lies in the cache, and registers are scarcer.
    """
    at = pixel[:, None] * channels + channel[None, :]
    is_here = is_inside[:, None] & is_channel[None, :]
    if NORMALISE:
        value = tl.load(x + at, mask=is_here, other=0.0).to(total.dtype)
        gradient = where_relu6_passes(seen, gradient)
        total += gradient
        product += gradient * (value - mean)
    tl.store(gx + at, gradient.to(gx.dtype.element_ty), mask=is_here)
    return total, product


@triton.jit
def depthwise_backward(
    g, y, y_norm, y_gradient, x, x_norm, weight, gx, sums, images, height, width, out_height,
    out_width, channels, STRIDE: tl.constexpr, PADDING: tl.constexpr, REAL: tl.constexpr,
    STRIPS: tl.constexpr, SEGMENT: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Both gradients of the 3×3 convolution in one sweep down strips of two columns of inputs.

    Each program leaves 11 × channels sums: Σg and Σg(x - mean) for the norm of x, and those of the
    nine taps. What lies outside of a strip's rows is seen as zero, so that no product counts twice.
    """
    NORMALISE: tl.constexpr = x_norm is not None
    program = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    y_scale = per_channel(y_norm, SCALE, channels, channel, is_channel)[None, :]
    y_shift = per_channel(y_norm, SHIFT, channels, channel, is_channel)[None, :]
    slope = per_channel(y_gradient, SLOPE, channels, channel, is_channel)[None, :]
    offset = per_channel(y_gradient, OFFSET, channels, channel, is_channel)[None, :]
    scale = 1.0
    shift = 0.0
    mean = 0.0
    if NORMALISE:
        scale = per_channel(x_norm, SCALE, channels, channel, is_channel)[None, :]
        shift = per_channel(x_norm, SHIFT, channels, channel, is_channel)[None, :]
        mean = per_channel(x_norm, MEAN, channels, channel, is_channel)[None, :]
    w0 = tap(weight, 0, channel, is_channel, REAL)
    w1 = tap(weight, 1, channel, is_channel, REAL)
    w2 = tap(weight, 2, channel, is_channel, REAL)
    w3 = tap(weight, 3, channel, is_channel, REAL)
    w4 = tap(weight, 4, channel, is_channel, REAL)
    w5 = tap(weight, 5, channel, is_channel, REAL)
    w6 = tap(weight, 6, channel, is_channel, REAL)
    w7 = tap(weight, 7, channel, is_channel, REAL)
    w8 = tap(weight, 8, channel, is_channel, REAL)
    total = tl.zeros((STRIPS, CHANNELS), REAL)
    product = tl.zeros((STRIPS, CHANNELS), REAL)
    t0 = tl.zeros((STRIPS, CHANNELS), REAL)
    t1 = tl.zeros((STRIPS, CHANNELS), REAL)
    t2 = tl.zeros((STRIPS, CHANNELS), REAL)
    t3 = tl.zeros((STRIPS, CHANNELS), REAL)
    t4 = tl.zeros((STRIPS, CHANNELS), REAL)
    t5 = tl.zeros((STRIPS, CHANNELS), REAL)
    t6 = tl.zeros((STRIPS, CHANNELS), REAL)
    t7 = tl.zeros((STRIPS, CHANNELS), REAL)
    t8 = tl.zeros((STRIPS, CHANNELS), REAL)
    of_all = images * tl.cdiv(height, SEGMENT) * tl.cdiv(width, 2)
    for tile in range(program, tl.cdiv(of_all, STRIPS), tl.num_programs(0)):
        which = tile * STRIPS + tl.arange(0, STRIPS)
        image, first, column, is_strip = strips(which, of_all, height, width, SEGMENT)
        has_second = is_strip & (column + 1 < width)
        if STRIDE == 1:
            # Output row o was seen through row o - 1 of inputs, a, and row o, c; h is output row
            # o - 1. The gradient of input row o - 1 is complete then; p is its sum so far, q that
            # of row o. Each its own zero: of two names for one value, Triton takes a loop to change
            # neither; and what is handed on over two rounds would keep loads from going ahead.
            has0 = is_strip & (column > 0)
            has3 = is_strip & (column + 2 < width)
            p0 = tl.zeros((STRIPS, CHANNELS), REAL)
            p1 = tl.zeros((STRIPS, CHANNELS), REAL)
            q0 = tl.zeros((STRIPS, CHANNELS), REAL)
            q1 = tl.zeros((STRIPS, CHANNELS), REAL)
            a0 = tl.zeros((STRIPS, CHANNELS), REAL)
            a1 = tl.zeros((STRIPS, CHANNELS), REAL)
            h0 = tl.zeros((STRIPS, CHANNELS), REAL)
            h1 = tl.zeros((STRIPS, CHANNELS), REAL)
            h2 = tl.zeros((STRIPS, CHANNELS), REAL)
            h3 = tl.zeros((STRIPS, CHANNELS), REAL)
            for step in tl.range(0, SEGMENT + 2, num_stages=DEPTH):
                o = first - 1 + step
                is_row = (o >= 0) & (o < height)
                pixel = (image * height + o) * width + column
                g0 = output_gradient(
                    g, y, y_scale, y_shift, slope, offset, pixel - 1, has0 & is_row, channels,
                    channel, is_channel, REAL,
                )  # fmt: skip
                g1 = output_gradient(
                    g, y, y_scale, y_shift, slope, offset, pixel, is_strip & is_row, channels,
                    channel, is_channel, REAL,
                )  # fmt: skip
                g2 = output_gradient(
                    g, y, y_scale, y_shift, slope, offset, pixel + 1, has_second & is_row,
                    channels, channel, is_channel, REAL,
                )  # fmt: skip
                g3 = output_gradient(
                    g, y, y_scale, y_shift, slope, offset, pixel + 2, has3 & is_row, channels,
                    channel, is_channel, REAL,
                )  # fmt: skip
                is_own = (step >= 1) & (step <= SEGMENT) & (o < height)
                c0 = neighbour(
                    x, scale, shift, pixel, is_strip & is_own, channels, channel, is_channel, REAL,
                    NORMALISE,
                )  # fmt: skip
                c1 = neighbour(
                    x, scale, shift, pixel + 1, has_second & is_own, channels, channel,
                    is_channel, REAL, NORMALISE,
                )  # fmt: skip
                t0 = t0 + a0 * g2 + a1 * g3
                t1 = t1 + a0 * g1 + a1 * g2
                t2 = t2 + a0 * g0 + a1 * g1
                t3 = t3 + c0 * g2 + c1 * g3
                t4 = t4 + c0 * g1 + c1 * g2
                t5 = t5 + c0 * g0 + c1 * g1
                t6 = t6 + c0 * h2 + c1 * h3
                t7 = t7 + c0 * h1 + c1 * h2
                t8 = t8 + c0 * h0 + c1 * h1
                p0 = p0 + g2 * w0 + g1 * w1 + g0 * w2
                p1 = p1 + g3 * w0 + g2 * w1 + g1 * w2
                is_done = (step >= 2) & (o <= height)
                total, product = store_input_gradient(
                    gx, p0, x, a0, mean, pixel - width, is_strip & is_done, channels, channel,
                    is_channel, total, product, NORMALISE,
                )  # fmt: skip
                total, product = store_input_gradient(
                    gx, p1, x, a1, mean, pixel - width + 1, has_second & is_done, channels,
                    channel, is_channel, total, product, NORMALISE,
                )  # fmt: skip
                p0 = q0 + g2 * w3 + g1 * w4 + g0 * w5
                p1 = q1 + g3 * w3 + g2 * w4 + g1 * w5
                q0 = g2 * w6 + g1 * w7 + g0 * w8
                q1 = g3 * w6 + g2 * w7 + g1 * w8
                a0 = c0
                a1 = c1
                h0 = g0
                h1 = g1
                h2 = g2
                h3 = g3
        else:
            # Two rows of inputs, e and f, lie between two of outputs: o above, n below.
            out_column = column // 2 + PADDING - 1
            has_left = is_strip & (out_column >= 0)
            has_right = is_strip & (out_column + 1 < out_width)
            o0 = tl.zeros((STRIPS, CHANNELS), REAL)
            o1 = tl.zeros((STRIPS, CHANNELS), REAL)
            for step in tl.range(0, SEGMENT // 2 + 1, num_stages=DEPTH):
                out_row = first // 2 + PADDING - 1 + step
                is_row = (out_row >= 0) & (out_row < out_height)
                pixel = (image * out_height + out_row) * out_width + out_column
                n0 = output_gradient(
                    g, y, y_scale, y_shift, slope, offset, pixel, has_left & is_row, channels,
                    channel, is_channel, REAL,
                )  # fmt: skip
                n1 = output_gradient(
                    g, y, y_scale, y_shift, slope, offset, pixel + 1, has_right & is_row,
                    channels, channel, is_channel, REAL,
                )  # fmt: skip
                row = first + 2 * step - 2
                at = (image * height + row) * width + column
                is_e = (step > 0) & (row < height)
                is_f = (step > 0) & (row + 1 < height)
                e0 = neighbour(
                    x, scale, shift, at, is_strip & is_e, channels, channel, is_channel,
                    REAL, NORMALISE,
                )  # fmt: skip
                e1 = neighbour(
                    x, scale, shift, at + 1, has_second & is_e, channels, channel,
                    is_channel, REAL, NORMALISE,
                )  # fmt: skip
                f0 = neighbour(
                    x, scale, shift, at + width, is_strip & is_f, channels, channel,
                    is_channel, REAL, NORMALISE,
                )  # fmt: skip
                f1 = neighbour(
                    x, scale, shift, at + width + 1, has_second & is_f, channels, channel,
                    is_channel, REAL, NORMALISE,
                )  # fmt: skip
                if PADDING == 1:
                    t4 += e0 * o0
                    t3 += e1 * o1
                    t5 += e1 * o0
                    t1 += f0 * n0
                    t7 += f0 * o0
                    t0 += f1 * n1
                    t2 += f1 * n0
                    t6 += f1 * o1
                    t8 += f1 * o0
                    ge0 = o0 * w4
                    ge1 = o1 * w3 + o0 * w5
                    gf0 = n0 * w1 + o0 * w7
                    gf1 = n1 * w0 + n0 * w2 + o1 * w6 + o0 * w8
                else:
                    t0 += e0 * n1
                    t2 += e0 * n0
                    t6 += e0 * o1
                    t8 += e0 * o0
                    t1 += e1 * n1
                    t7 += e1 * o1
                    t3 += f0 * n1
                    t5 += f0 * n0
                    t4 += f1 * n1
                    ge0 = n1 * w0 + n0 * w2 + o1 * w6 + o0 * w8
                    ge1 = n1 * w1 + o1 * w7
                    gf0 = n1 * w3 + n0 * w5
                    gf1 = n1 * w4
                total, product = store_input_gradient(
                    gx, ge0, x, e0, mean, at, is_strip & is_e, channels, channel,
                    is_channel, total, product, NORMALISE,
                )  # fmt: skip
                total, product = store_input_gradient(
                    gx, ge1, x, e1, mean, at + 1, has_second & is_e, channels, channel,
                    is_channel, total, product, NORMALISE,
                )  # fmt: skip
                total, product = store_input_gradient(
                    gx, gf0, x, f0, mean, at + width, is_strip & is_f, channels, channel,
                    is_channel, total, product, NORMALISE,
                )  # fmt: skip
                total, product = store_input_gradient(
                    gx, gf1, x, f1, mean, at + width + 1, has_second & is_f, channels,
                    channel, is_channel, total, product, NORMALISE,
                )  # fmt: skip
                o0 = n0
                o1 = n1
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
