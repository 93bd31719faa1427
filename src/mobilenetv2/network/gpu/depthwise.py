"""Depthwise 3×3 convolutions."""

import triton
import triton.language as tl

from mobilenetv2.network.gpu.norms import (
    SCALE,
    SHIFT,
    gather_moments,
    in_eights,
    per_channel,
    relu6,
)


@triton.jit
def strips(which, count, height, width, segment):
    """Strips of two columns and so many rows: image, first row, first column, whether it is one."""
    across = tl.cdiv(width, 2)
    down = tl.cdiv(height, segment)
    column = which % across * 2
    row = which // across % down * segment
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
def store_row(
    y, value, second, pixel, is_inside, has_second, channels, channel, is_channel, count, pivot,
    total, square,
):  # fmt: skip
    """Write a row of each strip, and count it; the first value of each is its pivot."""
    pivot = tl.where(((count == 0) & is_inside)[:, None], value, pivot)
    count += is_inside.to(count.dtype) + has_second.to(count.dtype)
    total, square = store_pixel(
        y, value, pixel, is_inside, channels, channel, is_channel, pivot, total, square
    )
    total, square = store_pixel(
        y, second, pixel + 1, has_second, channels, channel, is_channel, pivot, total, square
    )
    return count, pivot, total, square


@triton.jit(
    do_not_specialize=[
        "images", "height", "width", "out_height", "out_width", "channels", "segment"
    ]
)  # fmt: skip
def depthwise_forward(
    x, norm, weight, y, moments, images, height, width, out_height, out_width, channels, segment,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, EIGHTS: tl.constexpr, REAL: tl.constexpr,
    STRIPS: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The 3×3 convolution and the moments of what comes out; grid as :func:`norm_statistics`'s.

    A strip is two columns of outputs, and ``segment`` rows. Going down, each row of inputs adds to
    the outputs that see it: it is read once for all of them. ``PADDING`` zeros lie above and left
    of the picture.
    """
    channels = in_eights(channels, EIGHTS)
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
    of_all = images * tl.cdiv(out_height, segment) * tl.cdiv(out_width, 2)
    for tile in range(program, tl.cdiv(of_all, STRIPS), tl.num_programs(0)):
        which = tile * STRIPS + tl.arange(0, STRIPS)
        image, first, column, is_strip = strips(which, of_all, out_height, out_width, segment)
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
        for step in tl.range(0, STRIDE * (segment - 1) + 3, num_stages=DEPTH):
            i = first * STRIDE - PADDING + step
            is_row = (i >= 0) & (i < height)
            pixel = (image * height + i) * width + left
            v0 = neighbour(
                x, scale, shift, pixel, has0 & is_row, channels, channel, is_channel, REAL,
                NORMALISE,
            )  # fmt: skip
            v1 = neighbour(
                x, scale, shift, pixel + 1, has1 & is_row, channels, channel, is_channel, REAL,
                NORMALISE,
            )  # fmt: skip
            v2 = neighbour(
                x, scale, shift, pixel + 2, has2 & is_row, channels, channel, is_channel, REAL,
                NORMALISE,
            )  # fmt: skip
            v3 = neighbour(
                x, scale, shift, pixel + 3, has3 & is_row, channels, channel, is_channel, REAL,
                NORMALISE,
            )  # fmt: skip
            if STRIDE == 1:
                # Before input row i comes, p has the rows above for output row i - 1, q for row i.
                p0 = p0 + v0 * w6 + v1 * w7 + v2 * w8
                p1 = p1 + v1 * w6 + v2 * w7 + v3 * w8
                row = first + step - 2
                is_out = (step >= 2) & (row < out_height)
                count, pivot, total, square = store_row(
                    y, p0, p1, (image * out_height + row) * out_width + column, is_strip & is_out,
                    has_second & is_out, channels, channel, is_channel, count, pivot, total,
                    square,
                )  # fmt: skip
                p0 = q0 + v0 * w3 + v1 * w4 + v2 * w5
                p1 = q1 + v1 * w3 + v2 * w4 + v3 * w5
                q0 = v0 * w0 + v1 * w1 + v2 * w2
                q1 = v1 * w0 + v2 * w1 + v3 * w2
            else:
                v4 = neighbour(
                    x, scale, shift, pixel + 4, has4 & is_row, channels, channel, is_channel,
                    REAL, NORMALISE,
                )  # fmt: skip
                if step % 2 == 1:
                    p0 = p0 + v0 * w3 + v1 * w4 + v2 * w5
                    p1 = p1 + v2 * w3 + v3 * w4 + v4 * w5
                else:  # an output's last row of inputs is the next one's first
                    p0 = p0 + v0 * w6 + v1 * w7 + v2 * w8
                    p1 = p1 + v2 * w6 + v3 * w7 + v4 * w8
                    row = first + step // 2 - 1
                    is_out = (step >= 2) & (row < out_height)
                    count, pivot, total, square = store_row(
                        y, p0, p1, (image * out_height + row) * out_width + column,
                        is_strip & is_out, has_second & is_out, channels, channel, is_channel,
                        count, pivot, total, square,
                    )  # fmt: skip
                    p0 = v0 * w0 + v1 * w1 + v2 * w2
                    p1 = v2 * w0 + v3 * w1 + v4 * w2
    if moments is not None:
        gather_moments(moments, program, channels, channel, is_channel, count, pivot, total, square)
