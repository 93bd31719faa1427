"""1×1 convolutions, forward and backward: products of matrices."""

import triton
import triton.language as tl

from mobilenetv2.network.gpu.norms import (
    MEAN,
    SCALE,
    SHIFT,
    gradient_of_output,
    in_eights,
    per_channel,
    relu6,
    store_moments,
    where_relu6_passes,
)


@triton.jit
def matrix(weight, of_rows, of_columns, row, column, rows, columns, dtype: tl.constexpr):
    """A block of a matrix that lies in memory with these strides."""
    is_here = (row < rows)[:, None] & (column < columns)[None, :]
    at = row[:, None] * of_rows + column[None, :] * of_columns
    return tl.load(weight + at, mask=is_here, other=0.0).to(dtype)


@triton.jit
def activations(x, x_norm, row, is_row, channels, channel, is_channel, REAL: tl.constexpr):
    """What a convolution sees of ``x``, rows × channels, stored as x is."""
    is_here = is_row[:, None] & is_channel[None, :]
    at = row.to(tl.int64)[:, None] * channels + channel[None, :]
    value = tl.load(x + at, mask=is_here, other=0.0)
    if x_norm is not None:
        scale = per_channel(x_norm, SCALE, channels, channel, is_channel)
        shift = per_channel(x_norm, SHIFT, channels, channel, is_channel)
        value = relu6(value.to(REAL) * scale[None, :] + shift[None, :], 6.0).to(x.dtype.element_ty)
    return value


@triton.constexpr_function
def rows_left(rows, warps):
    """Rows that :func:`folded` leaves."""
    if rows < 64:
        return rows
    return 32 if warps == 4 else rows // 2


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


@triton.jit
def store_output_of_product(
    total, y, moments, tile, rows, row, is_row, channels, channel, is_channel, n, pivot, sums,
    squares, ROWS: tl.constexpr, OUT: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """Write rows × channels, and take them into sums about a pivot, the mean of the first rows."""
    is_here = is_row[:, None] & is_channel[None, :]
    at = row.to(tl.int64)[:, None] * channels + channel[None, :]
    tl.store(y + at, total.to(y.dtype.element_ty), mask=is_here)
    if moments is not None:
        here = tl.minimum(rows - tile * ROWS, ROWS).to(total.dtype)
        if n == 0:
            pivot = tl.sum(tl.where(is_row[:, None], total, 0.0), 0) / here
        distance = tl.where(is_row[:, None], total - pivot[None, :], 0.0)
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


@triton.jit(do_not_specialize=["rows", "in_channels", "out_channels"])
def pointwise_forward(
    x, x_norm, weight, y, moments, rows, in_channels, out_channels, PRECISION: tl.constexpr,
    REAL: tl.constexpr, ROWS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
    AT_ONCE: tl.constexpr, EIGHTS: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """The 1×1 convolution and, unless ``moments`` is None, the moments of what comes out.

    Grid: programs × blocks of output channels, as one axis, on which those that read the same rows
    are neighbours. ``AT_ONCE``: a block of ``IN`` holds all input channels.
    """
    in_channels = in_eights(in_channels, EIGHTS)
    out_channels = in_eights(out_channels, EIGHTS)
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
                x, x_norm, row, is_row, in_channels, channel, channel < in_channels, REAL
            )
            total = tl.dot(a, whole, total, input_precision=PRECISION, out_dtype=REAL)
        else:
            for first in range(0, in_channels, IN):
                c = first + channel
                a = activations(x, x_norm, row, is_row, in_channels, c, c < in_channels, REAL)
                w = matrix(weight, 1, in_channels, c, out, in_channels, out_channels, stored)
                total = tl.dot(a, w, total, input_precision=PRECISION, out_dtype=REAL)
        n, pivot, sums, squares = store_output_of_product(
            total, y, moments, tile, rows, row, is_row, out_channels, out, is_out, n, pivot, sums,
            squares, ROWS, OUT, WARPS,
        )  # fmt: skip
    store_moments_of_product(moments, program, out_channels, out, is_out, n, pivot, sums, squares)


@triton.jit(
    do_not_specialize=["rows", "in_channels", "out_channels"],
    do_not_specialize_on_alignment=["share"],
)
def pointwise_backward(
    g, share, y, y_norm, y_gradient, x, x_norm, weight, residual, gx, sums, weight_sums, rows,
    in_channels, out_channels, ACTIVATED: tl.constexpr, PRECISION: tl.constexpr,
    REAL: tl.constexpr, ROWS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
    EIGHTS: tl.constexpr, SHARED: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """Both gradients of a 1×1 convolution in one sweep; a block holds all output channels.

    Each program leaves 2 × in_channels ``sums`` for the norm of x, where x has one, and
    out_channels × in_channels ``weight_sums``, where the weight's gradient is wanted. Grid:
    programs × blocks of input channels, as in :func:`pointwise_forward`.
    """
    in_channels = in_eights(in_channels, EIGHTS)
    out_channels = in_eights(out_channels, EIGHTS)
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
        is_here = is_row[:, None] & is_in[None, :]
        at = row.to(tl.int64)[:, None] * in_channels + channel[None, :]
        gy = gradient_of_output(
            g, share, y, y_norm, y_gradient, row, is_row, out_channels, out, ACTIVATED, REAL, SHARED
        )
        value = tl.load(x + at, mask=is_here, other=0.0)
        seen = value
        if x_norm is not None:
            scale = per_channel(x_norm, SCALE, in_channels, channel, is_in)
            shift = per_channel(x_norm, SHIFT, in_channels, channel, is_in)
            before = value.to(REAL) * scale[None, :] + shift[None, :]
            seen = relu6(before, 6.0).to(stored)
        if weight_sums is not None:
            of_weight = tl.dot(
                tl.trans(gy), seen, of_weight, input_precision=PRECISION, out_dtype=REAL
            )
        if gx is not None:
            gradient = tl.dot(gy, w, input_precision=PRECISION, out_dtype=REAL)
            if x_norm is not None:
                mean = per_channel(x_norm, MEAN, in_channels, channel, is_in)
                gradient = where_relu6_passes(before, gradient)
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


@triton.jit(
    do_not_specialize=["rows", "in_channels", "out_channels"],
    do_not_specialize_on_alignment=["share"],
)
def pointwise_backward_input(
    g, share, y, y_norm, y_gradient, x, x_norm, weight, residual, gx, sums, rows, in_channels,
    out_channels, ACTIVATED: tl.constexpr, PRECISION: tl.constexpr, REAL: tl.constexpr,
    ROWS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, EIGHTS: tl.constexpr,
    SHARED: tl.constexpr,
):  # fmt: skip
    """The gradient of the input alone, for many channels; grid as :func:`pointwise_forward`'s."""
    in_channels = in_eights(in_channels, EIGHTS)
    out_channels = in_eights(out_channels, EIGHTS)
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
                g, share, y, y_norm, y_gradient, row, is_row, out_channels, out, ACTIVATED, REAL,
                SHARED,
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


@triton.jit(
    do_not_specialize=["rows", "in_channels", "out_channels"],
    do_not_specialize_on_alignment=["share"],
)
def pointwise_backward_weight(
    g, share, y, y_norm, y_gradient, x, x_norm, weight_sums, rows, in_channels, out_channels,
    ACTIVATED: tl.constexpr, PRECISION: tl.constexpr, REAL: tl.constexpr, ROWS: tl.constexpr,
    IN: tl.constexpr, OUT: tl.constexpr, EIGHTS: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """The gradient of the weight alone; grid: programs × blocks of in × blocks of out channels."""
    in_channels = in_eights(in_channels, EIGHTS)
    out_channels = in_eights(out_channels, EIGHTS)
    program = tl.program_id(0)
    channel = tl.program_id(1) * IN + tl.arange(0, IN)
    out = tl.program_id(2) * OUT + tl.arange(0, OUT)
    total = tl.zeros((OUT, IN), REAL)
    for tile in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        is_row = row < rows
        gy = gradient_of_output(
            g, share, y, y_norm, y_gradient, row, is_row, out_channels, out, ACTIVATED, REAL, SHARED
        )
        seen = activations(
            x, x_norm, row, is_row, in_channels, channel, channel < in_channels, REAL
        )
        total = tl.dot(tl.trans(gy), seen, total, input_precision=PRECISION, out_dtype=REAL)
    to = weight_sums + program * out_channels * in_channels
    to += out[:, None] * in_channels + channel[None, :]
    tl.store(to, total, mask=(out < out_channels)[:, None] & (channel < in_channels)[None, :])
