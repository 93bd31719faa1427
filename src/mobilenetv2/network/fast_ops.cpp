// Training kernels of MobileNetV2 for the CPU: batch norm with ReLU6, 1×1, depthwise 3×3 and the
// first 3×3 convolution, each forward and backward; the whole network made of them; and the step of
// gradient descent over all weights.
//
// What a reader needs to know:
//
// * Every tensor is NHWC and is seen as a matrix: `rows` pixels (N·H·W) of `channels` neighbours.
//   A 1×1 convolution is a matrix product on that view.
// * Values are stored as T (double, float or bfloat16) and computed as Real<T> (double or float).
//   Sums that run over a whole batch are gathered tile by tile in Real<T> and added up in double.
// * Batch norm is kept as numbers per channel, never as a normalised tensor. Whoever reads a
//   convolution's output y normalises it on the fly:   z = relu6(y * scale + shift),
//   and a gradient goes back through the norm likewise: gy = scale * mask(g) + b * (y - mean) + c.
//   Masks are recomputed from y. So only the convolutions' raw outputs live until backward.
// * Waiting for memory costs more than computing. Loops go over a tile that is in the cache, block
//   of channels by block of channels, with a block's numbers in registers; and they ask for what is
//   needed next (prefetch) in the order in which it lies.
// * The work is split over threads in contiguous pieces and partial sums are added in the order of
//   the threads: the same number of threads gives the same bits.

#include <omp.h>

#include <cmath>

#include "products.h"

// ---------------------------------------------------------------------------- batch norm

// A batch norm's parameters and buffers; one Real<T> per channel, and how many batches it has seen.
// A frozen one normalises by its running statistics, and leaves all of them as they are.
extern "C" struct NormModule {
  const void *weight, *bias;
  void *running_mean, *running_var;
  std::int64_t* batches;
  double eps, momentum;
  std::int64_t frozen;
};

namespace {

// What forward leaves for whoever reads y: rows of a 5 × channels array. `pixels` is how many the
// statistics were taken of; infinite for a frozen norm, whose statistics pass on no gradient.
template <class R>
struct Norm {
  R *mean, *inverse_deviation, *scale, *shift, *pixels;
  Norm(void* array, Index channels)
      : mean((R*)array),
        inverse_deviation(mean + channels),
        scale(mean + 2 * channels),
        shift(mean + 3 * channels),
        pixels(mean + 4 * channels) {}
};

// What the backward pass needs to put a gradient through a norm, and the gradients of the norm's
// own parameters: rows of a 4 × channels array.
template <class R>
struct NormGradient {
  R *b, *c, *weight, *bias;
  NormGradient(void* array, Index channels)
      : b((R*)array), c(b + channels), weight(b + 2 * channels), bias(b + 3 * channels) {}
};

// A norm's gradient at one block of channels, held in registers.
template <class R, int lanes>
struct NormGradientAt {
  using V = Vector<R, lanes>;
  V mean, scale, shift, b, c;

  NormGradientAt(Norm<R> norm, NormGradient<R> gradient, Index channel)
      : mean(load<lanes>(norm.mean + channel)),
        scale(load<lanes>(norm.scale + channel)),
        shift(load<lanes>(norm.shift + channel)),
        b(load<lanes>(gradient.b + channel)),
        c(load<lanes>(gradient.c + channel)) {}
  V operator()(V g, V y) const { return scale * g + b * (y - mean) + c; }
  V masked(V g, V y) const { return (*this)(where_relu6_passes(y * scale + shift, g), y); }
};

// Σy and Σy² of one tile. They are gathered about a pivot, one of the tile's own values, so that a
// mean far from zero costs no digits, and are moved to zero in double.
template <class R, int lanes>
struct Moments {
  using V = Vector<R, lanes>;
  V pivot, sum = {}, square = {};

  explicit Moments(V first) : pivot(first) {}
  void add(V value) {
    const V distance = value - pivot;
    sum += distance;
    square += distance * distance;
  }
  void add_to(double* total_sum, double* total_square, Index count) const {
    using D = Vector<double, lanes>;
    const D p = __builtin_convertvector(pivot, D), s = __builtin_convertvector(sum, D),
            q = __builtin_convertvector(square, D);
    const double n = count;
    store<lanes>(total_sum, load<lanes>(total_sum) + s + p * n);
    store<lanes>(total_square, load<lanes>(total_square) + q + p * (s + s + p * n));
  }
};

// The moments of a tile that is made block by block: three numbers for each channel.
template <class R>
class TileMoments {
 public:
  TileMoments(R* memory, Index channels) : memory_(memory), channels_(channels) {}

  template <int lanes>
  Moments<R, lanes> load(Index channel) const {
    const R* const from = memory_ + channel;
    Moments<R, lanes> moments(::load<lanes>(from));
    moments.sum = ::load<lanes>(from + channels_);
    moments.square = ::load<lanes>(from + 2 * channels_);
    return moments;
  }
  template <int lanes>
  void store(Index channel, const Moments<R, lanes>& moments) {
    R* const to = memory_ + channel;
    ::store<lanes>(to, moments.pivot);
    ::store<lanes>(to + channels_, moments.sum);
    ::store<lanes>(to + 2 * channels_, moments.square);
  }
  void add_to(double* sums, Index rows) const {
    for_channels<R>(channels_, [&](auto lanes, Index c) {
      this->template load<lanes>(c).add_to(sums + c, sums + channels_ + c, rows);
    });
  }

 private:
  R* memory_;
  Index channels_;
};

// Adds a tile's sums to those of the batch.
template <class R>
void add_rows(const R* from, Index count, double* sums) {
  for_channels<R>(count, [&](auto lanes, Index i) {
    add_to<R, lanes>(sums + i, load<lanes>(from + i));
  });
}

// Turns Σy and Σy² (2 × channels) into the norm, and updates the module's running statistics. For
// a frozen module the sums are not looked at.
template <class R>
void finish_statistics(const double* sums, Index rows, Index channels, const NormModule& module,
                       Norm<R> norm) {
  R* const running_mean = (R*)module.running_mean;
  R* const running_var = (R*)module.running_var;
  if (!module.frozen && module.batches) ++*module.batches;
  for (Index c = 0; c < channels; ++c) {
    const double mean = module.frozen ? running_mean[c] : sums[c] / rows;
    const double var = module.frozen ? running_var[c]
                                     : std::max(sums[channels + c] / rows - mean * mean, 0.0);
    const double inverse_deviation = 1 / std::sqrt(var + module.eps);
    const double scale = ((const R*)module.weight)[c] * inverse_deviation;
    norm.mean[c] = mean;
    norm.inverse_deviation[c] = inverse_deviation;
    norm.scale[c] = scale;
    norm.shift[c] = ((const R*)module.bias)[c] - mean * scale;
    norm.pixels[c] = module.frozen ? std::numeric_limits<R>::infinity() : rows;
    if (module.frozen) continue;
    const double unbiased = var * rows / (rows - 1);
    running_mean[c] += module.momentum * (mean - running_mean[c]);
    running_var[c] += module.momentum * (unbiased - running_var[c]);
  }
}

// Turns Σg and Σg(y - mean) (2 × channels, g masked) into the norm's gradient.
template <class R>
void finish_gradient(const double* sums, Index channels, Norm<R> norm, NormGradient<R> gradient) {
  for (Index c = 0; c < channels; ++c) {
    const double inverse_deviation = norm.inverse_deviation[c], scale = norm.scale[c];
    const double bias = sums[c], weight = sums[channels + c] * inverse_deviation;
    gradient.bias[c] = bias;
    gradient.weight[c] = weight;
    gradient.b[c] = -scale * inverse_deviation * weight / norm.pixels[c];
    gradient.c[c] = -scale * bias / norm.pixels[c];
  }
}

// Adds the moments of a tile, rows × channels at y, to sums (2 × channels).
template <class T>
void add_moments(const T* y, Index rows, Index channels, double* sums) {
  for_channels<T>(channels, [&](auto lanes, Index c) {
    const T* from = y + c;
    Moments<Real<T>, lanes> even(load<lanes>(from)), odd(even.pivot);
    Index row = 0;  // two chains of additions hide half of their latency
    for (; row + 1 < rows; row += 2, from += 2 * channels) {
      even.add(load<lanes>(from));
      odd.add(load<lanes>(from + channels));
    }
    if (row < rows) even.add(load<lanes>(from));
    even.sum += odd.sum;
    even.square += odd.square;
    even.add_to(sums + c, sums + channels + c, rows);
  });
}

template <class T>
void norm_statistics(const T* y, Index rows, Index channels, const NormModule& module,
                     Norm<Real<T>> norm) {
  Sums sums(2 * channels);
  if (!module.frozen) for_tiles(rows, kTileRows, [&](Index thread, Index row, Index row_end) {
    add_moments(y + row * channels, row_end - row, channels, sums.of(thread));
  });
  finish_statistics(sums.total(), rows, channels, module, norm);
}

// z = relu6(y * scale + shift) of one tile; rows of z lie `stride` apart.
template <class T>
void activate(const T* y, Index rows, Index channels, Norm<Real<T>> norm, T* z, Index stride) {
  fill_tile<T>(rows, channels, z, stride, [&](auto lanes, Index c) {
    const auto scale = load<lanes>(norm.scale + c), shift = load<lanes>(norm.shift + c);
    return [=](Index, Index i, Index next) {
      __builtin_prefetch(y + next);
      return relu6(load<lanes>(y + i) * scale + shift);
    };
  });
}

// z = y * scale + shift + residual (may be null) of one tile.
template <class T>
void add_residual(const T* y, Index rows, Index channels, Norm<Real<T>> norm, const T* residual,
                  T* z) {
  fill_tile<T>(rows, channels, z, channels, [&](auto lanes, Index c) {
    const auto scale = load<lanes>(norm.scale + c), shift = load<lanes>(norm.shift + c);
    return [=](Index, Index i, Index next) {
      __builtin_prefetch(y + next);
      const auto value = load<lanes>(y + i) * scale + shift;
      if (!residual) return value;
      __builtin_prefetch(residual + next);
      return value + load<lanes>(residual + i);
    };
  });
}

template <class T>
void norm_apply(const T* y, Index rows, Index channels, Norm<Real<T>> norm, bool activated,
                const T* residual, T* z) {
  for_tiles(rows, kTileRows, [&](Index, Index row, Index row_end) {
    const Index i = row * channels, count = row_end - row;
    if (activated)
      activate(y + i, count, channels, norm, z + i, channels);
    else
      add_residual(y + i, count, channels, norm, residual ? residual + i : nullptr, z + i);
  });
}

// to += from, both rows × channels.
template <class T>
void add(const T* from, Index rows, Index channels, T* to) {
  for_tiles(rows, kTileRows, [&](Index, Index row, Index row_end) {
    const Index first = row * channels;
    for_channels<T>((row_end - row) * channels, [&](auto lanes, Index i) {
      const auto sum = load<lanes>(to + first + i) + load<lanes>(from + first + i);
      store<lanes>(to + first + i, sum);
    });
  });
}

// pooled = the mean of relu6(y * scale + shift) over the pixels of each image; z is never stored.
template <class T>
void norm_pool(const T* y, Index images, Index pixels, Index channels, Norm<Real<T>> norm,
               T* pooled) {
  for_tiles(images, 1, [&](Index, Index image, Index) {
    for_channels<T>(channels, [&](auto lanes, Index c) {
      const auto scale = load<lanes>(norm.scale + c), shift = load<lanes>(norm.shift + c);
      const T* from = y + image * pixels * channels + c;
      Vector<Real<T>, lanes> sum = {};
      for (Index pixel = 0; pixel < pixels; ++pixel, from += channels)
        sum += relu6(load<lanes>(from) * scale + shift);
      store<lanes>(pooled + image * channels + c, sum / (Real<T>)pixels);
    });
  });
}

// A gradient of pixels × channels, or one that all `pixels` of an image share, as behind pooling.
template <class T>
struct Gradient {
  const T* values;
  Index pixels;  // that share a row; 1 elsewhere

  const T* row(Index row, Index channels) const {
    return values + (pixels == 1 ? row : row / pixels) * channels;
  }

  // Calls body(i, g) for the rows of a tile: i is the pixel's place in an unshared matrix.
  template <int lanes, class Body>
  void for_rows(Index row, Index row_end, Index channels, Index c, const Body& body) const {
    const T* from = values + row / pixels * channels + c;
    Index pixel = row % pixels;
    for (Index i = row * channels + c; i < row_end * channels; i += channels) {
      body(i, load<lanes>(from));
      if (++pixel == pixels) pixel = 0, from += channels;
    }
  }
};

// The sums over the batch that a norm's gradient needs, from the gradient g of its output. If
// `activated`, the norm was followed by ReLU6, and g is the gradient of that.
template <class T>
void norm_backward(Gradient<T> g, const T* y, Index rows, Index channels, Norm<Real<T>> norm,
                   bool activated, NormGradient<Real<T>> gradient) {
  Sums sums(2 * channels);
  for_tiles(rows, kTileRows, [&](Index thread, Index row, Index row_end) {
    for_channels<T>(channels, [&](auto lanes, Index c) {
      using V = Vector<Real<T>, lanes>;
      const V mean = load<lanes>(norm.mean + c), scale = load<lanes>(norm.scale + c),
              shift = load<lanes>(norm.shift + c);
      V sum = {}, product = {};
      auto gather = [&](V value, V passed) {
        sum += passed;
        product += passed * (value - mean);
      };
      if (activated)
        g.template for_rows<lanes>(row, row_end, channels, c, [&](Index i, V passed) {
          const V value = load<lanes>(y + i);
          gather(value, where_relu6_passes(value * scale + shift, passed));
        });
      else
        g.template for_rows<lanes>(row, row_end, channels, c, [&](Index i, V passed) {
          gather(load<lanes>(y + i), passed);
        });
      double* total = sums.of(thread) + c;
      add_to<Real<T>, lanes>(total, sum);
      add_to<Real<T>, lanes>(total + channels, product);
    });
  });
  finish_gradient(sums.total(), channels, norm, gradient);
}

// ------------------------------------------------------------ gradients through a norm

// gy = scale * mask(g) + b * (y - mean) + c, the gradient of a convolution's output, for one tile
// of at most kRowStep rows. The mask is left out where no ReLU6 follows or g has gone through it
// already. Rows of gy lie `stride` apart. The tile goes into the panels (may be null) too, from row
// k on.
template <bool mask, class T>
void tile_through_norm(Gradient<T> g, const T* y, Index row, Index row_end, Index channels,
                       Norm<Real<T>> norm, NormGradient<Real<T>> gradient, T* gy, Index stride,
                       const Panels<T>* panels, Index k) {
  const Index rows = row_end - row;
  const T* from[kRowStep];
  for (Index r = 0; r < rows; ++r) from[r] = g.row(row + r, channels);
  y += row * channels;
  const T* const beside = g.pixels == 1 ? from[0] : y;
  auto make = [&](auto lanes, Index c) {
    const NormGradientAt<Real<T>, lanes> at(norm, gradient, c);
    return [=, &from](Index r, Index i, Index next) {
      __builtin_prefetch(y + next), __builtin_prefetch(beside + next);
      const auto passed = load<lanes>(from[r] + c), value = load<lanes>(y + i);
      return mask ? at.masked(passed, value) : at(passed, value);
    };
  };
  if (!panels) return fill_tile<T>(rows, channels, gy, stride, make);
  for_row_pairs<T>(
      rows, channels, make,
      [=](auto lanes, Index r, Index c, auto first, auto second) {
        T* const place = gy + r * stride + c;
        store_both<lanes>(place, first, place + stride, second);
        Panels<T>::template put<lanes>(panels->at(k + r, c), first, second);
      },
      [=](auto lanes, Index r, Index c, auto value) {
        store<lanes>(gy + r * stride + c, value);
        Panels<T>::template put<lanes>(panels->at(k + r, c), value, decltype(value){});
      });
}

template <class T>
void through_norm(Gradient<T> g, const T* y, Index row, Index row_end, Index channels,
                  Norm<Real<T>> norm, NormGradient<Real<T>> gradient, bool mask, T* gy,
                  Index stride, const Panels<T>* panels = nullptr, Index k = 0) {
  if (mask)
    tile_through_norm<true>(g, y, row, row_end, channels, norm, gradient, gy, stride, panels, k);
  else
    tile_through_norm<false>(g, y, row, row_end, channels, norm, gradient, gy, stride, panels, k);
}

template <class T>
void norm_backward_apply(Gradient<T> g, const T* y, Index rows, Index channels,
                         Norm<Real<T>> norm, NormGradient<Real<T>> gradient, bool mask, T* gy) {
  for_tiles(rows, kTileRows, [&](Index, Index row, Index row_end) {
    through_norm(g, y, row, row_end, channels, norm, gradient, mask, gy + row * channels,
                 channels);
  });
}

// ------------------------------------------------------------------------ pointwise 1×1

// Rows of a tile that takes up `bytes` of a cache.
template <class T>
Index tile_rows(Index rows, Index channels, Index bytes) {
  const Index threads = omp_get_max_threads();
  const Index fitting = bytes / (channels * (Index)sizeof(T)) / kRowStep * kRowStep;
  const Index shared = round_up((rows + threads - 1) / threads, kRowStep);
  return std::clamp<Index>(fitting, kRowStep, std::max(kRowStep, shared));
}

struct Pointwise {
  Index rows, in_channels, out_channels;
};

// y = x · weightᵀ and the statistics of y. If `normalise`, x is the raw output of the convolution
// before, and relu6(x * scale + shift) is what is multiplied.
template <class T>
void pointwise_forward(const T* x, bool normalise, Norm<Real<T>> x_norm, const Real<T>* weight,
                       Pointwise shape, T* y, const NormModule& module, Norm<Real<T>> y_norm) {
  using R = Real<T>;
  const Index in = shape.in_channels, out = shape.out_channels;
  const Index depth = normalise ? padded<T>(in) : in;
  const Buffer<T> memory(Panels<T>::memory(depth, out));
  Panels<T> panels(memory.get(), depth, out);
  panels.fill_transposed(weight, in);
  const Index tile = tile_rows<T>(shape.rows, depth, kFirstLevelBytes);
  const Scratch<T> scratch(normalise ? tile * depth : 0);
  if (depth > in) scratch.clear(tile * depth);
  const Scratch<R> moments(3 * out);
  Sums sums(2 * out);
  for_tiles_with<Tiles>(shape.rows, tile, [&](Tiles& tiles, Index thread, Index row,
                                              Index row_end) {
    const Index rows = row_end - row;
    const T* a = x + row * in;
    if (normalise) {
      activate(a, rows, in, x_norm, scratch.of(thread), depth);
      a = scratch.of(thread);
    }
    TileMoments<R> of_tile(moments.of(thread), out);
    multiply(tiles, Left<T>{a, depth}, rows, depth, panels, [&](const Block<R>& block) {
      for_channels<T>(block.columns, [&](auto lanes, Index c) {
        const Index channel = block.column + c;
        T* to = y + (row + block.row) * out + channel;
        auto gathered = block.row == 0 ? Moments<R, lanes>(block.template at<lanes>(0, c))
                                       : of_tile.template load<lanes>(channel);
        T* const next = y + (row + block.row + kRowStep) * out + channel * kRowStep;
        for (Index r = 0; r < block.rows; ++r, to += out) {
          __builtin_prefetch(next + r * lanes, 1);
          const auto value = block.template at<lanes>(r, c);
          store<lanes>(to, value);
          gathered.add(value);
        }
        of_tile.template store<lanes>(channel, gathered);
      });
    });
    if (!module.frozen) of_tile.add_to(sums.of(thread), rows);
  });
  finish_statistics(sums.total(), shape.rows, out, module, y_norm);
}

// Puts a block of the gradient of relu6(norm(x)) through the ReLU6 into gx, and adds the sums for
// the norm's gradient to `sums` (2 × channels). x and gx begin at the block's tile. What is made again
// on the way, relu6(norm(x)), goes into the panels `activated` (may be null) from `panel_row` on.
template <class T>
void mask_block(const Block<Real<T>>& block, const T* x, Index channels, Norm<Real<T>> norm, T* gx,
                Real<T>* sums, const Panels<T>* activated, Index panel_row) {
  using R = Real<T>;
  for_channels<T>(block.columns, [&](auto lanes, Index c) {
    using V = Vector<R, lanes>;
    const Index channel = block.column + c;
    const V mean = load<lanes>(norm.mean + channel), scale = load<lanes>(norm.scale + channel),
            shift = load<lanes>(norm.shift + channel);
    V sum = load<lanes>(sums + channel), product = load<lanes>(sums + channels + channel);
    const Index first_place = block.row * channels + channel;
    const R* from_block = block.results + c;
    const T* from = x + first_place;
    T* to = gx + first_place;
    T* pairs = activated ? activated->at(panel_row + block.row, channel) : nullptr;
    const Index ahead = kRowStep * channels + channel * (kRowStep - 1);
    const T *next_x = from + ahead, *next_gx = to + ahead;
    auto pixel = [&] {
      __builtin_prefetch(next_x), __builtin_prefetch(next_gx, 1);
      const V value = load<lanes>(from), before = value * scale + shift;
      const V passed = where_relu6_passes(before, load<lanes>(from_block));
      sum += passed;
      product += passed * (value - mean);
      from += channels, from_block += block.stride;
      next_x += lanes, next_gx += lanes;
      return std::pair(passed, relu6(before));
    };
    Index r = 0;
    for (; r + 1 < block.rows; r += 2, to += 2 * channels) {
      const auto [first, first_after] = pixel();
      const auto [second, second_after] = pixel();
      store_both<lanes>(to, first, to + channels, second);
      if (!pairs) continue;
      Panels<T>::template put<lanes>(pairs, first_after, second_after);
      pairs += Panels<T>::kRowsApart;
    }
    if (r < block.rows) {
      const auto [last, last_after] = pixel();
      store<lanes>(to, last);
      if (pairs) Panels<T>::template put<lanes>(pairs, last_after, V{});
    }
    store<lanes>(sums + channel, sum);
    store<lanes>(sums + channels + channel, product);
  });
}

// Writes a block, plus `residual` (may be null), to its place behind `to`.
template <class T>
void write_block(const Block<Real<T>>& block, Index channels, T* to, const T* residual) {
  for_channels<T>(block.columns, [&](auto lanes, Index c) {
    Index place = block.row * channels + block.column + c;
    for (Index r = 0; r < block.rows; ++r, place += channels) {
      const auto value = block.template at<lanes>(r, c);
      store<lanes>(to + place, residual ? value + load<lanes>(residual + place) : value);
    }
  });
}

// Adds a block to its place behind `sums`.
template <class T>
void add_block(const Block<Real<T>>& block, Index stride, Real<T>* sums) {
  for_channels<T>(block.columns, [&](auto lanes, Index c) {
    Real<T>* to = sums + block.row * stride + block.column + c;
    for (Index r = 0; r < block.rows; ++r, to += stride)
      store<lanes>(to, load<lanes>(to) + block.template at<lanes>(r, c));
  });
}

// The sum of the threads' matrices, rows × columns, whose rows are whole vectors; transposed unless
// `upright`.
template <class R>
void add_up(const Scratch<R>& matrices, Index rows, Index columns, bool upright, R* sum) {
  constexpr int lanes = kLanes<R>;
  using V = Vector<R, lanes>;
  const Index stride = round_up(columns, lanes), threads = omp_get_max_threads();
  for_tiles(rows, lanes, [&](Index, Index row, Index row_end) {
    for (Index column = 0; column < columns; column += lanes) {
      const Index count = std::min<Index>(lanes, columns - column);
      R block[lanes][lanes];
      for (Index r = row; r < row_end; ++r) {
        V total = {};
        for (Index thread = 0; thread < threads; ++thread)
          total += load<lanes>(matrices.of(thread) + r * stride + column);
        store<lanes>(block[r - row], total);
        if (upright) std::copy_n(block[r - row], count, sum + r * columns + column);
      }
      if (upright) continue;
      for (Index c = 0; c < count; ++c)
        for (Index r = row; r < row_end; ++r) sum[(column + c) * rows + r] = block[r - row][c];
    }
  });
}

// Both gradients of y = x · weightᵀ in one sweep. What comes in is the gradient g of norm(y), or of
// relu6(norm(y)) if `mask`; it goes through the norm while its tile is in the cache.
//
// If `normalise`, x is the raw output of the convolution before: gx is then the gradient of
// relu6(norm(x)) after the mask, and x_gradient receives the sums over it. Else gx is the gradient
// of x, plus `residual` (may be null), and left out if it is null; so is the weight's.
template <class T>
void pointwise_backward(Gradient<T> g, const T* y, Norm<Real<T>> y_norm,
                        NormGradient<Real<T>> y_gradient, bool mask, const T* x, bool normalise,
                        Norm<Real<T>> x_norm, NormGradient<Real<T>> x_gradient,
                        const Real<T>* weight, Pointwise shape, const T* residual, T* gx,
                        Real<T>* weight_gradient) {
  using R = Real<T>;
  const Index in = shape.in_channels, out = shape.out_channels;
  const Index padded_out = padded<T>(out);
  const Buffer<T> memory(Panels<T>::memory(padded_out, in));
  Panels<T> weights(memory.get(), padded_out, in);
  if (gx) weights.fill(weight, out);

  // The weights' gradient is the product, over the rows, of one matrix (transposed) with the other
  // (in panels): with what the ReLU6 gave, where that is made on the way, else with gy. Each tile's
  // product is added to those before it, so tiles should not be flat.
  constexpr Index kLeastDepth = k16Registers ? 3 * kRowStep : 0;
  const Index left_channels = normalise ? out : in, right_channels = normalise ? in : out;
  const Index product_stride = round_up(right_channels, kLanes<T>);
  const Index least_bytes = kLeastDepth * right_channels * sizeof(T);
  const Index tile =
      tile_rows<T>(shape.rows, right_channels, std::max(kSecondLevelBytes, least_bytes));
  const Scratch<T> panels(weight_gradient ? Panels<T>::memory(tile, right_channels) : 0);
  const Scratch<T> transposed(weight_gradient && kTransposes<T> ? left_channels * tile : 0);
  const Scratch<R> products(weight_gradient ? left_channels * product_stride : 0);
  if (weight_gradient) products.clear(left_channels * product_stride);
  const bool keeps_gradients = weight_gradient && !kTransposes<T> && normalise;
  const Index kept_rows = keeps_gradients ? tile : 2 * kRowStep;
  const Scratch<T> gradients(kept_rows * padded_out);
  if (padded_out > out) gradients.clear(kept_rows * padded_out);
  const Scratch<R> tile_sums(2 * in);
  Sums sums(2 * in);

  for_tiles_with<Tiles>(shape.rows, tile, [&](Tiles& tiles, Index thread, Index tile_row,
                                              Index tile_end) {
    const Index depth = round_up(tile_end - tile_row, kRowStep);
    Panels<T> right(panels.of(thread), weight_gradient ? depth : 0, right_channels);
    T* const left = transposed.of(thread);
    R* const of_tile = tile_sums.of(thread);
    std::fill_n(of_tile, 2 * in, R{});

    auto gradient_at = [&](Index k) {
      return gradients.of(thread) + k % kept_rows * padded_out;
    };
    auto put_through_norm = [&](Index row) {
      const Index k = row - tile_row;
      through_norm(g, y, row, std::min(row + kRowStep, tile_end), out, y_norm, y_gradient, mask,
                   gradient_at(k), padded_out, weight_gradient && !normalise ? &right : nullptr,
                   k);
    };

    // A few rows at a time, which stay in the first-level cache. Reading as tiles what has just
    // been written takes long, so the gradient is always some rows ahead.
    put_through_norm(tile_row);
    for (Index row = tile_row; row < tile_end; row += kRowStep) {
      const Index rows = std::min(kRowStep, tile_end - row), k = row - tile_row;
      if (row + kRowStep < tile_end) put_through_norm(row + kRowStep);
      const T *const gy = gradient_at(k), *const values = x + row * in;
      if (gx)
        multiply(tiles, Left<T>{gy, padded_out}, rows, padded_out, weights,
                 [&](const Block<R>& block) {
          if (normalise)
            mask_block(block, values, in, x_norm, gx + row * in, of_tile,
                       weight_gradient ? &right : nullptr, k);
          else
            write_block(block, in, gx + row * in, residual ? residual + row * in : nullptr);
        });
      if (weight_gradient && kTransposes<T>)
        transpose(normalise ? gy : values, normalise ? padded_out : in, rows, left_channels,
                  left + k, depth);
    }
    if (normalise) add_rows<R>(of_tile, 2 * in, sums.of(thread));
    if (weight_gradient) {
      const Index rows = tile_end - tile_row;
      R* const product = products.of(thread);
      auto add = [&](const Block<R>& block) { add_block<T>(block, product_stride, product); };
      if constexpr (kTransposes<T>) {
        right.clear_from(rows);
        for (Index c = 0; c < left_channels; ++c)
          std::fill(left + c * depth + rows, left + (c + 1) * depth, T{});
        multiply(tiles, Left<T>{left, depth}, left_channels, depth, right, add);
      } else {
        const T* const across = normalise ? gradients.of(thread) : x + tile_row * in;
        multiply(tiles, Left<T>{across, 1, left_channels}, left_channels, rows, right, add);
      }
    }
  });

  if (normalise) finish_gradient(sums.total(), in, x_norm, x_gradient);
  if (weight_gradient) add_up(products, left_channels, right_channels, normalise, weight_gradient);
}

// ------------------------------------------------------------------------ depthwise 3×3

// With stride 2 the taps lie around every second pixel, from the first one on. If `backwards`, they
// lie around every second pixel from the last one on, as where Keras pads an even side on the right
// and bottom only: that is the same convolution, of pixels and taps in the reverse order.
struct Shape {
  Index images, height, width, channels, stride, backwards;
  Index out_height() const { return (height - 1) / stride + 1; }
  Index out_width() const { return (width - 1) / stride + 1; }
  // Where the numbers of pixel `pixel` (of `count`) of an image begin, and how far on the next are.
  Index place(Index image, Index count, Index pixel) const {
    return (image * count + (backwards ? count - 1 - pixel : pixel)) * channels;
  }
  Index step() const { return backwards ? -channels : channels; }
};

// The work of a depthwise pass is cut into bands: rows of one image that stay in the cache while
// one block of channels after the other goes over them.
struct Bands {
  Index rows, per_image, count;
  Bands(Index images, Index height, Index row_bytes) {
    const Index threads = omp_get_max_threads();
    rows = std::clamp<Index>((Index{1} << 18) / row_bytes, 4, std::max<Index>(height, 4));
    if (images < threads) rows = std::min(rows, (height * images + threads - 1) / threads);
    per_image = (height + rows - 1) / rows;
    count = images * per_image;
  }
};

// Within a row, pixels are asked for that far ahead.
constexpr Index kPixelsAhead = 8;

// While a band is worked on, one block of channels after the other, the rows of the next band are
// asked for in the order in which they lie in memory, a vector for each vector that is worked on.
template <class T>
class NextBand {
 public:
  NextBand(const T* maps, const Shape& shape, Index image, Index height, Index width, Index row,
           Index rows)
      : begin_(maps + shape.place(image, height * width, row * width)), width_(width), rows_(rows) {
    begin_ += shape.step() * width * rows;
    if (shape.backwards) begin_ += shape.step() * (width * rows - 1);
  }
  // For row `row` of this band and the channels from `channel` on.
  template <int lanes>
  const T* at(Index channel, Index row) const {
    return begin_ + (channel * rows_ + row * lanes) * width_;
  }

 private:
  const T* begin_;
  Index width_, rows_;
};

// Four rows of one block of channels, with a column of zeros on either side. Row r of the picture
// lies in slot r mod 4 (rows -1 and `height` are rows of zeros).
template <class R>
class RowRing {
 public:
  explicit RowRing(Index width) : width_(width + 2), storage_(4 * width_) {}
  template <int lanes>
  R* at(Index row, Index column) {
    return (R*)storage_.data() + ((row & 3) * width_ + column + 1) * lanes;
  }
  // pixel() is called for one column after the other, from the first on.
  template <int lanes, class Pixel>
  void fill(Index row, bool inside, const Pixel& pixel) {
    const Vector<R, lanes> zero = {};
    const Index width = width_ - 2;
    store<lanes>(at<lanes>(row, -1), zero);
    store<lanes>(at<lanes>(row, width), zero);
    R* to = at<lanes>(row, 0);
    if (inside)
      for (Index column = 0; column < width; ++column, to += lanes) store<lanes>(to, pixel());
    else
      for (Index column = 0; column < width; ++column, to += lanes) store<lanes>(to, zero);
  }

 private:
  Index width_;
  std::vector<Vector<R, kVectorBytes / sizeof(R)>> storage_;
};

constexpr int kTaps = 9;

// The place of a tap among a channel's nine numbers.
inline Index tap_place(Index tap, const Shape& shape) {
  return shape.backwards ? kTaps - 1 - tap : tap;
}

// From PyTorch's channels × 9 to 9 × channels.
template <class R>
std::vector<R> by_tap(const R* weight, const Shape& shape) {
  const Index channels = shape.channels;
  std::vector<R> taps(kTaps * channels);
  for (Index c = 0; c < channels; ++c)
    for (int tap = 0; tap < kTaps; ++tap)
      taps[tap * channels + c] = weight[c * kTaps + tap_place(tap, shape)];
  return taps;
}

// A pixel of x meets the taps whose output lies on the grid: all of them for stride 1; for stride 2
// those that the parity of its row and column select. Calls body(tap, dy, dx) for each, where the
// output lies (dy, dx) from (row / stride, column / stride).
template <int stride, int row_parity, int column_parity, class Body>
inline void taps_on_grid(const Body& body) {
  unrolled<kTaps>([&](auto tap) {
    constexpr int dy = row_parity + 1 - tap / 3, dx = column_parity + 1 - tap % 3;
    if constexpr (dy % stride == 0 && dx % stride == 0) body(tap, dy / stride, dx / stride);
  });
}

// y = depthwise(x) and the statistics of y. If `normalise`, x is the raw output of the convolution
// before, and relu6(x * scale + shift) is what is convolved.
template <class T, int stride, bool normalise>
void depthwise_forward(const T* x, Norm<Real<T>> norm, const Real<T>* weight, Shape shape, T* y,
                       const NormModule& module, Norm<Real<T>> y_norm) {
  using R = Real<T>;
  const Index channels = shape.channels, width = shape.width, step = shape.step();
  const Index out_height = shape.out_height(), out_width = shape.out_width();
  const std::vector<R> taps = by_tap(weight, shape);
  const Bands bands(shape.images, out_height, out_width * channels * sizeof(T) * stride * stride);
  Sums sums(2 * channels);

  parallel(bands.count, [&](Index thread, Index begin, Index end) {
    RowRing<R> ring(width);
    for (Index band = begin; band < end; ++band) {
      const Index image = band / bands.per_image, row = band % bands.per_image * bands.rows;
      const Index row_end = std::min(row + bands.rows, out_height);
      const NextBand<T> next_x(x, shape, image, shape.height, width, row * stride,
                               bands.rows * stride);
      const NextBand<T> next_y(y, shape, image, out_height, out_width, row, bands.rows);
      for_channels<T>(channels, [&](auto lanes, Index c) {
        using V = Vector<R, lanes>;
        V scale, shift;
        if constexpr (normalise)
          scale = load<lanes>(norm.scale + c), shift = load<lanes>(norm.shift + c);

        T* to = y + shape.place(image, out_height * out_width, row * out_width) + c;
        Moments<R, lanes> moments(V{});
        Index next = row * stride - 1;
        for (Index oy = row; oy < row_end; ++oy) {
          for (; next <= oy * stride + 1; ++next) {
            const T* from = x + shape.place(image, shape.height * width, next * width) + c;
            const T* ahead = next_x.template at<lanes>(c, next - row * stride);
            ring.template fill<lanes>(next, 0 <= next && next < shape.height, [&] {
              __builtin_prefetch(ahead, 0, 2), __builtin_prefetch(from + kPixelsAhead * step);
              const V value = load<lanes>(from);
              from += step, ahead += lanes;
              if constexpr (normalise) return relu6(value * scale + shift);
              return value;
            });
          }
          const R* rows[3];
          for (int ky = 0; ky < 3; ++ky)
            rows[ky] = ring.template at<lanes>(oy * stride + ky - 1, -1);
          const T* const ahead = next_y.template at<lanes>(c, oy - row);
          V w[kTaps];  // loaded here, where GCC 12 keeps them in registers
          unrolled<kTaps>([&](auto tap) { w[tap] = load<lanes>(&taps[tap * channels + c]); });
          for (Index ox = 0; ox < out_width; ++ox, to += step) {
            __builtin_prefetch(ahead + ox * lanes, 1, 2);
            V halves[2] = {};  // one chain of nine additions would wait for itself
            unrolled<kTaps>([&](auto tap) {
              const R* const at = rows[tap / 3] + (ox * stride + tap % 3) * lanes;
              halves[tap > 4] += w[tap] * load<lanes>(at);
            });
            const V sum = halves[0] + halves[1];
            if (ox == 0 && oy == row) moments.pivot = sum;
            moments.add(sum);
            store<lanes>(to, sum);
          }
        }
        double* total = sums.of(thread) + c;
        moments.add_to(total, total + channels, (row_end - row) * out_width);
      });
    }
  });
  finish_statistics(sums.total(), shape.images * out_height * out_width, channels, module, y_norm);
}

// Both gradients of a depthwise convolution in one sweep over the pixels of x. What comes in is
// the gradient g of relu6(norm(y)) after the mask; it goes through the norm on its way into the
// cache.
//
// If `normalise`, x is the raw output of the convolution before: gx is then the gradient of
// relu6(norm(x)) after the mask, and x_gradient receives the sums over it. Else gx is that of x.
template <class T, int stride, bool normalise>
void depthwise_backward(const T* g, const T* y, Norm<Real<T>> y_norm,
                        NormGradient<Real<T>> y_gradient, const T* x, Norm<Real<T>> x_norm,
                        NormGradient<Real<T>> x_gradient, const Real<T>* weight, Shape shape,
                        T* gx, Real<T>* weight_gradient) {
  using R = Real<T>;
  const Index channels = shape.channels, height = shape.height, width = shape.width;
  const Index step = shape.step();
  const Index out_height = shape.out_height(), out_width = shape.out_width();
  const std::vector<R> taps = by_tap(weight, shape);
  const Bands bands(shape.images, height, width * channels * sizeof(T));
  Sums sums((2 + kTaps) * channels);

  parallel(bands.count, [&](Index thread, Index begin, Index end) {
    RowRing<R> ring(out_width);
    for (Index band = begin; band < end; ++band) {
      const Index image = band / bands.per_image, row = band % bands.per_image * bands.rows;
      const Index row_end = std::min(row + bands.rows, height);
      const NextBand<T> next_x(x, shape, image, height, width, row, bands.rows);
      const NextBand<T> next_gx(gx, shape, image, height, width, row, bands.rows);
      const Index grid_row = row / stride, grid_rows = bands.rows / stride;
      const NextBand<T> next_y(y, shape, image, out_height, out_width, grid_row, grid_rows);
      const NextBand<T> next_g(g, shape, image, out_height, out_width, grid_row, grid_rows);
      for_channels<T>(channels, [&](auto lanes, Index c) {
        using V = Vector<R, lanes>;
        const NormGradientAt<R, lanes> at(y_norm, y_gradient, c);
        V w[kTaps], gw[kTaps] = {}, sum = {}, product = {}, mean, scale, shift;
        unrolled<kTaps>([&](auto tap) { w[tap] = load<lanes>(&taps[tap * channels + c]); });
        if constexpr (normalise) {
          mean = load<lanes>(x_norm.mean + c);
          scale = load<lanes>(x_norm.scale + c);
          shift = load<lanes>(x_norm.shift + c);
        }

        const Index first = shape.place(image, height * width, row * width) + c;
        const T* from = x + first;
        T* to = gx + first;
        Index next = stride == 1 ? row - 1 : row / 2;
        for (Index iy = row; iy < row_end; ++iy) {
          for (; next <= (iy + 1) / stride; ++next) {
            const Index start =
                shape.place(image, out_height * out_width, next * out_width) + c;
            const T *from_y = y + start, *from_g = g + start;
            const T* ahead_y = next_y.template at<lanes>(c, next - grid_row);
            const T* ahead_g = next_g.template at<lanes>(c, next - grid_row);
            ring.template fill<lanes>(next, 0 <= next && next < out_height, [&] {
              __builtin_prefetch(ahead_y, 0, 2), __builtin_prefetch(ahead_g, 0, 2);
              __builtin_prefetch(from_y + kPixelsAhead * step);
              __builtin_prefetch(from_g + kPixelsAhead * step);
              const V value = at(load<lanes>(from_g), load<lanes>(from_y));
              from_y += step, from_g += step, ahead_y += lanes, ahead_g += lanes;
              return value;
            });
          }
          const R* rows[3];
          for (int dy = -1; dy <= 1; ++dy)
            rows[dy + 1] = ring.template at<lanes>(iy / stride + dy, 0);
          const T* ahead_x = next_x.template at<lanes>(c, iy - row);
          const T* ahead_gx = next_gx.template at<lanes>(c, iy - row);
          auto pixel = [&](auto row_parity, auto column_parity, Index column) {
            __builtin_prefetch(ahead_x, 0, 2), __builtin_prefetch(ahead_gx, 1, 2);
            ahead_x += lanes, ahead_gx += lanes;
            __builtin_prefetch(from + kPixelsAhead * step);
            const V value = load<lanes>(from);
            V before = value, after = value;
            if constexpr (normalise) before = value * scale + shift, after = relu6(before);
            V halves[2] = {};
            taps_on_grid<stride, row_parity, column_parity>([&](auto tap, int dy, int dx) {
              const V at_output = load<lanes>(rows[dy + 1] + (column + dx) * lanes);
              halves[tap > 4] += w[tap] * at_output;
              gw[tap] += after * at_output;
            });
            V gradient = halves[0] + halves[1];
            if constexpr (normalise) {
              gradient = where_relu6_passes(before, gradient);
              sum += gradient;
              product += gradient * (value - mean);
            }
            store<lanes>(to, gradient);
            from += step;
            to += step;
          };
          constexpr std::integral_constant<int, 0> even;
          constexpr std::integral_constant<int, 1> odd;
          auto row_of_pixels = [&](auto row_parity) {
            Index ix = 0;
            if constexpr (stride == 1) {
              for (; ix < width; ++ix) pixel(even, even, ix);
            } else {
              for (; ix + 1 < width; ix += 2) {
                pixel(row_parity, even, ix / 2);
                pixel(row_parity, odd, ix / 2);
              }
              if (ix < width) pixel(row_parity, even, ix / 2);
            }
          };
          if (stride == 1 || iy % 2 == 0)
            row_of_pixels(even);
          else
            row_of_pixels(odd);
        }
        double* total = sums.of(thread) + c;
        add_to<R, lanes>(total, sum);
        add_to<R, lanes>(total + channels, product);
        unrolled<kTaps>([&](auto tap) { add_to<R, lanes>(total + (2 + tap) * channels, gw[tap]); });
      });
    }
  });

  const double* total = sums.total();
  if constexpr (normalise)
    finish_gradient(total, channels, x_norm, x_gradient);
  for (Index c = 0; c < channels; ++c)
    for (int tap = 0; tap < kTaps; ++tap)
      weight_gradient[c * kTaps + tap_place(tap, shape)] = total[(2 + tap) * channels + c];
}

// Calls f(stride, normalise) with both as constants.
template <class F>
void with_constants(Index stride, bool normalise, const F& f) {
  constexpr std::integral_constant<int, 1> one;
  constexpr std::integral_constant<int, 2> two;
  if (stride == 1)
    normalise ? f(one, std::true_type()) : f(one, std::false_type());
  else
    normalise ? f(two, std::true_type()) : f(two, std::false_type());
}

// ---------------------------------------------------------------- the first 3×3 convolution

// Pictures have so few channels that a kernel's numbers for a vector of outputs fit into registers.
// (coverage.py has this number too.)
constexpr Index kMostPictureChannels = 3;

// The three rows of a picture that a row of outputs sees, as numbers side by side, with zeros
// around the picture. `backwards` leaves out the zeros above and left, as for an even side whose
// outputs lie around every second pixel from the last one on.
template <class R>
class PictureRows {
 public:
  PictureRows(const R* pictures, const Shape& shape)
      : pictures_(pictures),
        shape_(shape),
        stride_((shape.width + 2) * shape.channels),
        values_(3 * stride_) {}

  // `row` counts the rows of outputs of all pictures.
  void read(Index row) {
    const Index image = row / shape_.out_height(), before = shape_.backwards ? 0 : 1;
    const Index count = shape_.width * shape_.channels;
    const Index first = row % shape_.out_height() * shape_.stride - before;
    for (Index ky = 0; ky < 3; ++ky) {
      R* const to = values_.data() + ky * stride_ + before * shape_.channels;
      const Index y = first + ky;
      if (0 <= y && y < shape_.height)
        std::copy_n(pictures_ + (image * shape_.height + y) * count, count, to);
      else
        std::fill_n(to, count, R{});
    }
  }
  const R* at(Index ky, Index column) const {
    return values_.data() + ky * stride_ + column * shape_.stride * shape_.channels;
  }

 private:
  const R* pictures_;
  const Shape& shape_;
  Index stride_;
  std::vector<R> values_;
};

// Calls body(thread, row, seen) for the rows of outputs of all pictures, each with what it sees.
template <class R, class Body>
void for_picture_rows(const R* pictures, const Shape& shape, const Body& body) {
  parallel(shape.images * shape.out_height(), [&](Index thread, Index begin, Index end) {
    PictureRows<R> seen(pictures, shape);
    for (Index row = begin; row < end; ++row) {
      seen.read(row);
      body(thread, row, seen);
    }
  });
}

// Calls body(tap, value) for the 9 · channels numbers that the output at `column` sees.
template <int channels, class R, class Body>
inline void for_seen(const PictureRows<R>& rows, Index column, const Body& body) {
  const R* const at[3] = {rows.at(0, column), rows.at(1, column), rows.at(2, column)};
  unrolled<9 * channels>([&](auto tap) { body(tap, at[tap / (3 * channels)][tap % (3 * channels)]); });
}

// y = the convolution of pictures, and the statistics of y. The weight lies as 3×3 × channels ×
// outputs.
template <class T, int channels>
void stem_forward(const Real<T>* pictures, const Real<T>* weight, const Shape& shape, Index out,
                  T* y, const NormModule& module, Norm<Real<T>> y_norm) {
  using R = Real<T>;
  const Index out_width = shape.out_width(), rows = shape.images * shape.out_height() * out_width;
  Sums sums(2 * out);
  for_picture_rows(pictures, shape, [&](Index thread, Index row, const PictureRows<R>& seen) {
    for_channels<T>(out, [&](auto lanes, Index c) {
      using V = Vector<R, lanes>;
      V w[9 * channels];
      unrolled<9 * channels>([&](auto tap) { w[tap] = load<lanes>(weight + tap * out + c); });
      T* to = y + row * out_width * out + c;
      Moments<R, lanes> moments(V{});
      for (Index column = 0; column < out_width; ++column, to += out) {
        V halves[2] = {};  // two chains of additions hide half of their latency
        for_seen<channels>(seen, column,
                           [&](auto tap, R value) { halves[tap % 2] += w[tap] * value; });
        const V sum = halves[0] + halves[1];
        if (column == 0) moments.pivot = sum;
        moments.add(sum);
        store<lanes>(to, sum);
      }
      double* const total = sums.of(thread) + c;
      moments.add_to(total, total + out, out_width);
    });
  });
  finish_statistics(sums.total(), rows, out, module, y_norm);
}

// The gradient of the weight, which lies as the weight does, from that of relu6(norm(y)); the
// pictures get none.
template <class T, int channels>
void stem_backward(const T* g, const T* y, Norm<Real<T>> y_norm, NormGradient<Real<T>> y_gradient,
                   const Real<T>* pictures, const Shape& shape, Index out,
                   Real<T>* weight_gradient) {
  using R = Real<T>;
  const Index out_width = shape.out_width();
  Sums sums(9 * channels * out);
  for_picture_rows(pictures, shape, [&](Index thread, Index row, const PictureRows<R>& seen) {
    for_channels<T>(out, [&](auto lanes, Index c) {
      using V = Vector<R, lanes>;
      const NormGradientAt<R, lanes> at(y_norm, y_gradient, c);
      V gw[9 * channels] = {};
      Index i = row * out_width * out + c;
      for (Index column = 0; column < out_width; ++column, i += out) {
        const V passed = at.masked(load<lanes>(g + i), load<lanes>(y + i));
        for_seen<channels>(seen, column, [&](auto tap, R value) { gw[tap] += passed * value; });
      }
      unrolled<9 * channels>([&](auto tap) {
        add_to<R, lanes>(sums.of(thread) + tap * out + c, gw[tap]);
      });
    });
  });
  std::copy_n(sums.total(), 9 * channels * out, weight_gradient);
}

// Calls f(channels) with the channels of pictures as a constant.
template <class F>
void with_picture_channels(Index channels, const F& f) {
  unrolled<kMostPictureChannels>([&](auto i) {
    if (i + 1 == channels) f(std::integral_constant<int, i + 1>());
  });
}

}  // namespace

// ------------------------------------------------------------------- the network's parts

// A convolution and the norm behind it; the kernel's gradient is made if the kernel `learns`. Every
// field of these structures has 8 bytes, as those have that Python writes.
extern "C" struct Layer {
  const void* kernel;
  Index learns;
  NormModule norm;
};

// The first convolution; its kernel is not read from here.
extern "C" struct Stem {
  Shape shape;
  Index out_channels;
  Layer layer;

  Index out_rows() const { return shape.images * shape.out_height() * shape.out_width(); }
};

// An inverted residual: expansion (unless it has none), depthwise convolution, projection. `shape`
// is that of the depthwise convolution.
extern "C" struct InvertedResidual {
  Shape shape;
  Index in_channels, out_channels, expands, has_shortcut;
  Layer expansion, depthwise, projection;

  Index rows() const { return shape.images * shape.height * shape.width; }
  Index out_rows() const { return shape.images * shape.out_height() * shape.out_width(); }
  Pointwise expand() const { return {rows(), in_channels, shape.channels}; }
  Pointwise project() const { return {out_rows(), shape.channels, out_channels}; }
};

// The last 1×1 convolution, whose activations are averaged over the pixels of each image.
extern "C" struct Head {
  Index images;
  Pointwise shape;
  Layer layer;

  Index pixels() const { return shape.rows / images; }
};

// What runs in one call, part after part; stem and head are null where there is none.
extern "C" struct Chain {
  const Stem* stem;
  const InvertedResidual* blocks;
  Index count;
  const Head* head;
};

static_assert(sizeof(Layer) == 8 * 10 && sizeof(Stem) == 8 * (6 + 1 + 10) &&
              sizeof(InvertedResidual) == 8 * (6 + 4 + 3 * 10) && sizeof(Head) == 8 * (4 + 10));

namespace {

// Gives out an array piece by piece; or only counts how long it has to be, if it is null.
template <class E>
class Pieces {
 public:
  explicit Pieces(void* memory, Index multiple = 64 / sizeof(E))
      : memory_((E*)memory), multiple_(multiple) {}
  E* take(Index count) {
    E* const piece = memory_ ? memory_ + taken_ : nullptr;
    taken_ += round_up(count, multiple_);
    return piece;
  }
  Index taken() const { return taken_; }

 private:
  E* memory_;
  Index multiple_, taken_ = 0;
};

// What forward keeps for backward, and the gradients that backward puts out: those in the order of
// the layers, each with its kernel's before its norm's.
template <class T>
struct Memory {
  using R = Real<T>;
  Pieces<T> outputs;
  Pieces<R> norms, gradients;
  Memory(void* outputs, void* norms, void* gradients)
      : outputs(outputs), norms(norms, 1), gradients(gradients, 1) {}
};

// A layer's: the raw output of its convolution, the norm, and their gradients.
template <class T>
struct LayerMemory {
  using R = Real<T>;
  T* y;
  Norm<R> norm;
  R* kernel_gradient;
  NormGradient<R> gradient;

  LayerMemory(Memory<T>& memory, Index rows, Index channels, Index kernel_count)
      : y(memory.outputs.take(rows * channels)),
        norm(memory.norms.take(5 * channels), channels),
        kernel_gradient(memory.gradients.take(kernel_count)),
        gradient(memory.gradients.take(4 * channels), channels) {}

  R* wanted_gradient(const Layer& layer) const { return layer.learns ? kernel_gradient : nullptr; }
};

// The expansion's is not to be used where there is none.
template <class T>
struct BlockMemory {
  LayerMemory<T> expansion, depthwise, projection;
  T* out;

  BlockMemory(Memory<T>& memory, const InvertedResidual& block)
      : expansion(memory, block.expands * block.rows(), block.expands * block.shape.channels,
                  block.in_channels * block.shape.channels * block.expands),
        depthwise(memory, block.out_rows(), block.shape.channels, kTaps * block.shape.channels),
        projection(memory, block.out_rows(), block.out_channels,
                   block.shape.channels * block.out_channels),
        out(memory.outputs.take(block.out_rows() * block.out_channels)) {}
};

template <class T>
struct ChainMemory {
  std::vector<LayerMemory<T>> stem, head;  // one or none of each
  T* stem_out = nullptr;
  std::vector<BlockMemory<T>> blocks;

  ChainMemory(Memory<T>& memory, const Chain& chain) {
    if (const Stem* s = chain.stem) {
      stem.emplace_back(memory, s->out_rows(), s->out_channels,
                        kTaps * s->shape.channels * s->out_channels);
      stem_out = memory.outputs.take(s->out_rows() * s->out_channels);
    }
    blocks.reserve(chain.count);
    for (Index i = 0; i < chain.count; ++i) blocks.emplace_back(memory, chain.blocks[i]);
    if (const Head* h = chain.head)
      head.emplace_back(memory, h->shape.rows, h->shape.out_channels,
                        h->shape.in_channels * h->shape.out_channels);
  }
};

// What backward works in: the gradients of a part's input and output, which change places from part
// to part, and those of what the expansion and the depthwise convolution of a block put out.
template <class T>
struct Workspace {
  T *maps[2], *expanded, *convolved;
  Index count;

  Workspace(void* memory, const Chain& chain) {
    Index map = chain.head ? chain.head->shape.rows * chain.head->shape.in_channels : 0;
    Index most_expanded = 0, most_convolved = 0;
    for (Index i = 0; i < chain.count; ++i) {
      const InvertedResidual& block = chain.blocks[i];
      map = std::max(map, block.rows() * block.in_channels);
      most_expanded = std::max(most_expanded, block.expands * block.rows() * block.shape.channels);
      most_convolved = std::max(most_convolved, block.out_rows() * block.shape.channels);
    }
    Pieces<T> pieces(memory);
    maps[0] = pieces.take(map), maps[1] = pieces.take(map);
    expanded = pieces.take(most_expanded), convolved = pieces.take(most_convolved);
    count = pieces.taken();
  }
};

template <class T>
const Real<T>* kernel(const Layer& layer) {
  return (const Real<T>*)layer.kernel;
}

template <class T>
void block_forward(const InvertedResidual& block, const T* x, const BlockMemory<T>& memory,
                   T* out) {
  const auto& [expansion, depthwise, projection, _] = memory;
  if (block.expands)
    pointwise_forward(x, false, expansion.norm, kernel<T>(block.expansion), block.expand(),
                      expansion.y, block.expansion.norm, expansion.norm);
  with_constants(block.shape.stride, block.expands, [&](auto stride, auto normalise) {
    depthwise_forward<T, stride, normalise>(normalise ? expansion.y : x, expansion.norm,
                                            kernel<T>(block.depthwise), block.shape, depthwise.y,
                                            block.depthwise.norm, depthwise.norm);
  });
  pointwise_forward(depthwise.y, true, depthwise.norm, kernel<T>(block.projection),
                    block.project(), projection.y, block.projection.norm, projection.norm);
  norm_apply(projection.y, block.out_rows(), block.out_channels, projection.norm, false,
             block.has_shortcut ? x : nullptr, out);
}

// The gradient g of the output goes back to x. If the block expands, gx may be null.
template <class T>
void block_backward(const InvertedResidual& block, const T* g, const T* x,
                    const BlockMemory<T>& memory, const Workspace<T>& workspace, T* gx) {
  const auto& [expansion, depthwise, projection, _] = memory;
  const T* const residual = block.has_shortcut ? g : nullptr;
  norm_backward(Gradient<T>{g, 1}, projection.y, block.out_rows(), block.out_channels,
                projection.norm, false, projection.gradient);
  pointwise_backward(Gradient<T>{g, 1}, projection.y, projection.norm, projection.gradient, false,
                     depthwise.y, true, depthwise.norm, depthwise.gradient,
                     kernel<T>(block.projection), block.project(), (const T*)nullptr,
                     workspace.convolved, projection.wanted_gradient(block.projection));
  with_constants(block.shape.stride, block.expands, [&](auto stride, auto normalise) {
    depthwise_backward<T, stride, normalise>(
        workspace.convolved, depthwise.y, depthwise.norm, depthwise.gradient,
        normalise ? expansion.y : x, expansion.norm, expansion.gradient,
        kernel<T>(block.depthwise), block.shape, normalise ? workspace.expanded : gx,
        depthwise.kernel_gradient);
  });
  if (block.expands)
    pointwise_backward(Gradient<T>{workspace.expanded, 1}, expansion.y, expansion.norm,
                       expansion.gradient, false, x, false, expansion.norm, expansion.gradient,
                       kernel<T>(block.expansion), block.expand(), residual, gx,
                       expansion.wanted_gradient(block.expansion));
  else if (residual)
    add(residual, block.rows(), block.in_channels, gx);
}

template <class T>
void chain_forward(const Chain& chain, const void* input, const Real<T>* stem_kernel,
                   const ChainMemory<T>& memory, T* out) {
  const T* x = (const T*)input;
  if (const Stem* s = chain.stem) {
    const auto& stem = memory.stem[0];
    with_picture_channels(s->shape.channels, [&](auto channels) {
      stem_forward<T, channels>((const Real<T>*)input, stem_kernel, s->shape, s->out_channels,
                                stem.y, s->layer.norm, stem.norm);
    });
    norm_apply(stem.y, s->out_rows(), s->out_channels, stem.norm, true, (const T*)nullptr,
               memory.stem_out);
    x = memory.stem_out;
  }
  for (Index i = 0; i < chain.count; ++i) {
    const bool is_last = i + 1 == chain.count && !chain.head;
    T* const to = is_last ? out : memory.blocks[i].out;
    block_forward(chain.blocks[i], x, memory.blocks[i], to);
    x = to;
  }
  if (const Head* h = chain.head) {
    const auto& head = memory.head[0];
    pointwise_forward(x, false, head.norm, kernel<T>(h->layer), h->shape, head.y, h->layer.norm,
                      head.norm);
    norm_pool(head.y, h->images, h->pixels(), h->shape.out_channels, head.norm, out);
  }
}

// g is the gradient of what came out; behind a head, of the sum over the pixels of each image. gx,
// that of the input, may be null.
template <class T>
void chain_backward(const Chain& chain, const T* g, const void* input,
                    const ChainMemory<T>& memory, const Workspace<T>& workspace, T* gx) {
  const T* const first = chain.stem ? memory.stem_out : (const T*)input;
  const auto input_of = [&](Index part) { return part > 0 ? memory.blocks[part - 1].out : first; };
  const auto gradient_of_input = [&](Index part, bool must_be_made) {
    const bool is_asked_for = part == 0 && !chain.stem && (gx || !must_be_made);
    return is_asked_for ? gx : workspace.maps[part % 2];
  };
  if (const Head* h = chain.head) {
    const auto& head = memory.head[0];
    const Gradient<T> of_pooled{g, h->pixels()};
    T* const to = gradient_of_input(chain.count, false);
    norm_backward(of_pooled, head.y, h->shape.rows, h->shape.out_channels, head.norm, true,
                  head.gradient);
    pointwise_backward(of_pooled, head.y, head.norm, head.gradient, true, input_of(chain.count),
                       false, head.norm, head.gradient, kernel<T>(h->layer), h->shape,
                       (const T*)nullptr, to, head.wanted_gradient(h->layer));
    g = to;
  }
  for (Index i = chain.count - 1; i >= 0; --i) {
    const InvertedResidual& block = chain.blocks[i];
    T* const to = gradient_of_input(i, !block.expands);
    block_backward(block, g, input_of(i), memory.blocks[i], workspace, to);
    g = to;
  }
  if (const Stem* s = chain.stem) {
    const auto& stem = memory.stem[0];
    norm_backward(Gradient<T>{g, 1}, stem.y, s->out_rows(), s->out_channels, stem.norm, true,
                  stem.gradient);
    if (s->layer.learns) with_picture_channels(s->shape.channels, [&](auto channels) {
      stem_backward<T, channels>(g, stem.y, stem.norm, stem.gradient, (const Real<T>*)input,
                                 s->shape, s->out_channels, stem.kernel_gradient);
    });
  }
}

}  // namespace

// ------------------------------------------------------------- the step over all weights

namespace {

// Calls body(array, begin, end) for the pieces of `count` arrays that are divided between threads
// as if they were one.
template <class Body>
void for_pieces(Index count, const Index* sizes, const Body& body) {
  Index total = 0;
  for (Index array = 0; array < count; ++array) total += sizes[array];
  parallel(total, [&](Index, Index begin, Index end) {
    for (Index array = 0; array < count && end > 0; ++array) {
      if (begin < sizes[array]) body(array, begin, std::min(end, sizes[array]));
      begin = std::max<Index>(begin - sizes[array], 0), end -= sizes[array];
    }
  });
}

// A step of gradient descent. `momenta` are not looked at if `momentum` is 0.
template <class R>
void sgd_step(Index count, const Index* sizes, R* const* weights, const R* const* gradients,
              R* const* momenta, R lr, R momentum, R weight_decay, bool nesterov) {
  for_pieces(count, sizes, [&](Index array, Index begin, Index end) {
    R* const weight = weights[array] + begin;
    const R* const gradient = gradients[array] + begin;
    R* const remembered = momentum != 0 ? momenta[array] + begin : nullptr;
    for_channels<R>(end - begin, [&](auto lanes, Index i) {
      const auto before = load<lanes>(weight + i);
      auto step = load<lanes>(gradient + i) + before * weight_decay;
      if (remembered) {
        const auto moved = load<lanes>(remembered + i) * momentum + step;
        store<lanes>(remembered + i, moved);
        step = nesterov ? step + moved * momentum : moved;
      }
      store<lanes>(weight + i, before - step * lr);
    });
  });
}

}  // namespace

// ------------------------------------------------------------------ what Python calls
// A library is compiled for one type of stored activations (-DSTORED=double, float or bf16): all
// three at once would let everybody wait for what few need. Arrays are contiguous.

using T = STORED;
using R = Real<T>;

extern "C" {

void norm_statistics(const void* y, Index rows, Index channels, const NormModule* module,
                     void* norm) {
  norm_statistics((const T*)y, rows, channels, *module, Norm<R>(norm, channels));
}

void norm_apply(const void* y, Index rows, Index channels, void* norm, int activate,
                const void* residual, void* z) {
  norm_apply((const T*)y, rows, channels, Norm<R>(norm, channels), activate, (const T*)residual,
             (T*)z);
}

void norm_pool(const void* y, Index images, Index pixels, Index channels, void* norm,
               void* pooled) {
  norm_pool((const T*)y, images, pixels, channels, Norm<R>(norm, channels), (T*)pooled);
}

// `pixels` rows of y share a row of g; 1 where g is as large as y.
void norm_backward(const void* g, Index pixels, const void* y, Index rows, Index channels,
                   void* norm, int activated, void* gradient) {
  norm_backward(Gradient<T>{(const T*)g, pixels}, (const T*)y, rows, channels,
                Norm<R>(norm, channels), activated, NormGradient<R>(gradient, channels));
}

void norm_backward_apply(const void* g, Index pixels, const void* y, Index rows, Index channels,
                         void* norm, void* gradient, int mask, void* gy) {
  norm_backward_apply(Gradient<T>{(const T*)g, pixels}, (const T*)y, rows, channels,
                      Norm<R>(norm, channels), NormGradient<R>(gradient, channels), mask, (T*)gy);
}

// `x_norm` is null where x needs no normalisation.
void pointwise_forward(const void* x, void* x_norm, const void* weight, const Pointwise* shape,
                       void* y, const NormModule* module, void* y_norm) {
  pointwise_forward((const T*)x, x_norm != nullptr, Norm<R>(x_norm, shape->in_channels),
                    (const R*)weight, *shape, (T*)y, *module,
                    Norm<R>(y_norm, shape->out_channels));
}

// `x_norm` and `x_gradient` are null where x needs no normalisation; `residual`, `gx` and
// `weight_gradient` where there is none or it isn't wanted.
void pointwise_backward(const void* g, Index pixels, const void* y, void* y_norm, void* y_gradient,
                        int mask, const void* x, void* x_norm, void* x_gradient,
                        const void* weight, const Pointwise* shape, const void* residual, void* gx,
                        void* weight_gradient) {
  const Index in = shape->in_channels, out = shape->out_channels;
  pointwise_backward(Gradient<T>{(const T*)g, pixels}, (const T*)y, Norm<R>(y_norm, out),
                     NormGradient<R>(y_gradient, out), mask, (const T*)x, x_norm != nullptr,
                     Norm<R>(x_norm, in), NormGradient<R>(x_gradient, in), (const R*)weight,
                     *shape, (const T*)residual, (T*)gx, (R*)weight_gradient);
}

// `norm` is null where x needs no normalisation.
void depthwise_forward(const void* x, void* norm, const void* weight, const Shape* shape, void* y,
                       const NormModule* module, void* y_norm) {
  with_constants(shape->stride, norm != nullptr, [&](auto stride, auto normalise) {
    const Index channels = shape->channels;
    depthwise_forward<T, stride, normalise>(
        (const T*)x, Norm<R>(norm, channels), (const R*)weight, *shape, (T*)y, *module,
        Norm<R>(y_norm, channels));
  });
}

// `x_norm` and `x_gradient` are null where x needs no normalisation.
void depthwise_backward(const void* g, const void* y, void* y_norm, void* y_gradient, const void* x,
                        void* x_norm, void* x_gradient, const void* weight, const Shape* shape,
                        void* gx, void* weight_gradient) {
  with_constants(shape->stride, x_norm != nullptr, [&](auto stride, auto normalise) {
    const Index channels = shape->channels;
    depthwise_backward<T, stride, normalise>(
        (const T*)g, (const T*)y, Norm<R>(y_norm, channels), NormGradient<R>(y_gradient, channels),
        (const T*)x, Norm<R>(x_norm, channels), NormGradient<R>(x_gradient, channels),
        (const R*)weight, *shape, (T*)gx, (R*)weight_gradient);
  });
}

// Pictures and weight are of Real<T>; the weight lies as 3×3 × channels × outputs.
void stem_forward(const void* pictures, const void* weight, const Shape* shape, Index out, void* y,
                  const NormModule* module, void* y_norm) {
  with_picture_channels(shape->channels, [&](auto channels) {
    stem_forward<T, channels>((const R*)pictures, (const R*)weight, *shape, out, (T*)y, *module,
                              Norm<R>(y_norm, out));
  });
}

void stem_backward(const void* g, const void* y, void* y_norm, void* y_gradient,
                   const void* pictures, const Shape* shape, Index out, void* weight_gradient) {
  with_picture_channels(shape->channels, [&](auto channels) {
    stem_backward<T, channels>((const T*)g, (const T*)y, Norm<R>(y_norm, out),
                               NormGradient<R>(y_gradient, out), (const R*)pictures, *shape, out,
                               (R*)weight_gradient);
  });
}

// How many numbers a chain's arrays have: outputs, norms, gradients, and what backward works in.
void chain_counts(const Chain* chain, Index* counts) {
  Memory<T> memory(nullptr, nullptr, nullptr);
  const ChainMemory<T> laid_out(memory, *chain);
  counts[0] = memory.outputs.taken(), counts[1] = memory.norms.taken();
  counts[2] = memory.gradients.taken(), counts[3] = Workspace<T>(nullptr, *chain).count;
}

// `outputs` and `norms` receive what chain_backward needs; the stem's kernel is 3×3 × channels ×
// outputs, and null where there is no stem.
void chain_forward(const Chain* chain, const void* x, const void* stem_kernel, void* outputs,
                   void* norms, void* out) {
  Memory<T> memory(outputs, norms, nullptr);
  chain_forward(*chain, x, (const R*)stem_kernel, ChainMemory<T>(memory, *chain), (T*)out);
}

// `gx` is null where it is not wanted. Backward does not look at the norms' modules.
void chain_backward(const Chain* chain, const void* g, const void* x, void* outputs, void* norms,
                    void* workspace, void* gradients, void* gx) {
  Memory<T> memory(outputs, norms, gradients);
  chain_backward(*chain, (const T*)g, x, ChainMemory<T>(memory, *chain),
                 Workspace<T>(workspace, *chain), (T*)gx);
}

void sgd_step(Index count, const Index* sizes, void* const* weights, void* const* gradients,
              void* const* momenta, double lr, double momentum, double weight_decay,
              int nesterov) {
  sgd_step<R>(count, sizes, (R* const*)weights, (const R* const*)gradients, (R* const*)momenta, lr,
              momentum, weight_decay, nesterov);
}
}
