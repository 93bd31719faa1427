"""Depthwise 3×3 convolutions, forward and backward."""

import triton
import triton.language as tl

from mobilenetv2.network.gpu.norms import (
    MEAN,
    OFFSET,
    SCALE,
    SHIFT,
    SLOPE,
    gather_moments,
    per_channel,
    relu6,
    through_norm,
    where_relu6_passes,
)


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
        gather_moments(moments, program, channels, channel, is_channel, count, pivot, total, square)


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
