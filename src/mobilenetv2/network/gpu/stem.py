"""The first convolution, 3×3 of pictures: a 1×1 convolution of what each output sees."""

import triton
import triton.language as tl

from mobilenetv2.network.gpu.norms import gradient_of_output, in_eights
from mobilenetv2.network.gpu.pointwise import (
    rows_left,
    store_moments_of_product,
    store_output_of_product,
)


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


@triton.jit(
    do_not_specialize=["rows", "height", "width", "out_height", "out_width", "out_channels"]
)
def stem_forward(
    x, weight, y, moments, rows, height, width, out_height, out_width, out_channels,
    channels: tl.constexpr, of_out, of_in, of_down, of_right, PRECISION: tl.constexpr,
    REAL: tl.constexpr, TAPS: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    ROWS: tl.constexpr, OUT: tl.constexpr, EIGHTS: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """The first 3×3 convolution, of pictures of few channels, and the moments of what comes out.

    The weight lies in memory with the strides ``of_out`` and so on.
    """
    out_channels = in_eights(out_channels, EIGHTS)
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
            squares, ROWS, OUT, WARPS,
        )  # fmt: skip
    store_moments_of_product(moments, program, out_channels, out, is_out, n, pivot, sums, squares)


@triton.jit(
    do_not_specialize=["rows", "height", "width", "out_height", "out_width", "out_channels"]
)
def stem_backward_weight(
    g, y, y_norm, y_gradient, x, weight_sums, rows, height, width, out_height, out_width,
    out_channels, channels: tl.constexpr, of_out, of_in, of_down, of_right,
    PRECISION: tl.constexpr, REAL: tl.constexpr, TAPS: tl.constexpr, STRIDE: tl.constexpr,
    PADDING: tl.constexpr, ROWS: tl.constexpr, OUT: tl.constexpr, EIGHTS: tl.constexpr,
):  # fmt: skip
    """The gradient of the stem's weight, laid out as the weight is; its pictures need none."""
    out_channels = in_eights(out_channels, EIGHTS)
    program = tl.program_id(0)
    out = tl.arange(0, OUT)
    total = tl.zeros((OUT, TAPS), REAL)
    for tile in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        is_row = row < rows
        gy = gradient_of_output(
            g, 1, y, y_norm, y_gradient, row, is_row, out_channels, out, True, REAL, False
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
