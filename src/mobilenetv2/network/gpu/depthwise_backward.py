"""The gradients of depthwise 3×3 convolutions."""

import triton
import triton.language as tl

from mobilenetv2.network.gpu.depthwise import neighbour, strips, tap
from mobilenetv2.network.gpu.norms import (
    MEAN,
    OFFSET,
    SCALE,
    SHIFT,
    SLOPE,
    in_eights,
    per_channel,
    through_norm,
    where_relu6_passes,
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


@triton.jit(
    do_not_specialize=[
        "images", "height", "width", "out_height", "out_width", "channels", "segment"
    ]
)  # fmt: skip
def depthwise_backward(
    g, y, y_norm, y_gradient, x, x_norm, weight, gx, sums, images, height, width, out_height,
    out_width, channels, segment, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    EIGHTS: tl.constexpr, REAL: tl.constexpr, STRIPS: tl.constexpr, CHANNELS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """Both gradients of the 3×3 convolution in one sweep down strips of two columns of inputs.

    Each program leaves 11 × channels sums: Σg and Σg(x - mean) for the norm of x, and those of the
    nine taps. What lies outside of a strip's rows is seen as zero, so that no product counts twice.
    """
    channels = in_eights(channels, EIGHTS)
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
    of_all = images * tl.cdiv(height, segment) * tl.cdiv(width, 2)
    for tile in range(program, tl.cdiv(of_all, STRIPS), tl.num_programs(0)):
        which = tile * STRIPS + tl.arange(0, STRIPS)
        image, first, column, is_strip = strips(which, of_all, height, width, segment)
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
            for step in tl.range(0, segment + 2, num_stages=DEPTH):
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
                is_own = (step >= 1) & (step <= segment) & (o < height)
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
            for step in tl.range(0, segment // 2 + 1, num_stages=DEPTH):
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
