// Training kernels of MobileNetV2 for the CPU: batch norm with ReLU6, and depthwise 3×3.
//
// What a reader needs to know:
//
// * Every tensor is NHWC and is seen as a matrix: `rows` pixels (N·H·W) of `channels` neighbours.
//   The 1×1 convolutions are matrix products on the same view and are left to PyTorch.
// * Values are stored as T (double, float or bfloat16) and computed as Real<T> (double or float).
//   Sums that run over a whole batch are gathered tile by tile in Real<T> and added up in double.
// * Batch norm is kept as numbers per channel, never as a normalised tensor. Whoever reads a
//   convolution's output y normalises it on the fly:   z = relu6(y * scale + shift),
//   and a gradient goes back through the norm likewise: gy = scale * mask(g) + b * (y - mean) + c.
//   Masks are recomputed from y. So only the convolutions' raw outputs live until backward.
// * The work is split over threads in contiguous pieces and partial sums are added in the order of
//   the threads: the same number of threads gives the same bits.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
#include <immintrin.h>
#endif

namespace {

using Index = std::int64_t;

// ------------------------------------------------------------------- vectors of numbers

struct bf16 {
  std::uint16_t bits;
};

template <class T>
using Real = std::conditional_t<std::is_same_v<T, bf16>, float, T>;

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class E, int lanes>
struct VectorOf {
  typedef E type __attribute__((vector_size(lanes * sizeof(E))));
};
template <class E, int lanes>
using Vector = typename VectorOf<E, lanes>::type;

template <int lanes, class T>
inline Vector<Real<T>, lanes> load(const T* from) {
  if constexpr (std::is_same_v<T, bf16>) {
    Vector<std::uint16_t, lanes> bits;
    std::memcpy(&bits, from, sizeof bits);
    return (Vector<float, lanes>)(__builtin_convertvector(bits, Vector<std::uint32_t, lanes>)
                                  << 16);
  } else {
    Vector<T, lanes> values;
    std::memcpy(&values, from, sizeof values);
    return values;
  }
}

// Rounds to nearest, ties to even, when T is bfloat16. A NaN stays one.
template <int lanes, class T>
inline void store(T* to, Vector<Real<T>, lanes> values) {
  if constexpr (std::is_same_v<T, bf16>) {
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
    if constexpr (lanes == 16) {
      const __m256bh bits = _mm512_cvtneps_pbh((__m512)values);
      std::memcpy(to, &bits, sizeof bits);
      return;
    }
    if constexpr (lanes == 8) {
      const __m128bh bits = _mm256_cvtneps_pbh((__m256)values);
      std::memcpy(to, &bits, sizeof bits);
      return;
    }
#endif
    using Bits = Vector<std::uint32_t, lanes>;
    const Bits exact = (Bits)values;
    const Bits rounded = (exact + 0x7fff + ((exact >> 16) & 1)) >> 16;
    const Bits quiet_nan = (exact >> 16) | 0x40;
    const auto half = __builtin_convertvector(values == values ? rounded : quiet_nan,
                                              Vector<std::uint16_t, lanes>);
    std::memcpy(to, &half, sizeof half);
  } else {
    std::memcpy(to, &values, sizeof values);
  }
}

template <class R, int lanes>
inline void add_to(double* sums, Vector<R, lanes> values) {
  const auto wide = __builtin_convertvector(values, Vector<double, lanes>);
  store<lanes>(sums, load<lanes>(sums) + wide);
}

template <class V>
inline V relu6(V value) {
  const V zero = {}, six = zero + 6;
  value = value < zero ? zero : value;  // written so that a NaN comes through
  return value > six ? six : value;
}

template <class V>
inline V where_relu6_passes(V before, V gradient) {
  const V zero = {}, six = zero + 6;
  return before > zero ? (before < six ? gradient : zero) : zero;
}

// --------------------------------------------------------------------- loops and threads

// Calls body(thread, begin, end) for equal, contiguous pieces of [0, count).
template <class Body>
void parallel(Index count, const Body& body) {
#pragma omp parallel
  {
    const Index thread = omp_get_thread_num(), threads = omp_get_num_threads();
    body(thread, count * thread / threads, count * (thread + 1) / threads);
  }
}

// Calls body(lanes, c) for blocks of channels that fill a vector, then half of one, then one.
template <class T, class Body>
void for_channels(Index channels, const Body& body) {
  constexpr int full = kVectorBytes / sizeof(Real<T>), half = full / 2;
  Index c = 0;
  for (; c + full <= channels; c += full) body(std::integral_constant<int, full>(), c);
  for (; c + half <= channels; c += half) body(std::integral_constant<int, half>(), c);
  for (; c < channels; ++c) body(std::integral_constant<int, 1>(), c);
}

constexpr Index kTileRows = 32;  // 32 rows of 960 bf16 channels fill a quarter of a small L2

// Calls body(lanes, thread, row, row_end, c) for every tile of rows and block of channels.
template <class T, class Body>
void for_tiles(Index rows, Index channels, Index tile_rows, const Body& body) {
  const Index tiles = (rows + tile_rows - 1) / tile_rows;
  parallel(tiles, [&](Index thread, Index begin, Index end) {
    for (Index tile = begin; tile < end; ++tile) {
      const Index row = tile * tile_rows, row_end = std::min(rows, row + tile_rows);
      for_channels<T>(channels,
                      [&](auto lanes, Index c) { body(lanes, thread, row, row_end, c); });
    }
  });
}

// `count` doubles for each thread, and their sum in the order of the threads.
class Sums {
 public:
  explicit Sums(Index count)
      : threads_(omp_get_max_threads()), count_(count), values_(threads_ * count) {}
  double* of(Index thread) { return values_.data() + thread * count_; }
  const double* total() {
    for (Index thread = 1; thread < threads_; ++thread)
      for (Index i = 0; i < count_; ++i) values_[i] += values_[thread * count_ + i];
    return values_.data();
  }

 private:
  Index threads_, count_;
  std::vector<double> values_;
};

}  // namespace

// ---------------------------------------------------------------------------- batch norm

// A batch norm's parameters and buffers; one Real<T> per channel.
extern "C" struct NormModule {
  const void *weight, *bias;
  void *running_mean, *running_var;
  double eps, momentum;
};

namespace {

// What forward leaves for whoever reads y: rows of a 4 × channels array.
template <class R>
struct Norm {
  R *mean, *inverse_deviation, *scale, *shift;
  Norm(void* array, Index channels)
      : mean((R*)array),
        inverse_deviation(mean + channels),
        scale(mean + 2 * channels),
        shift(mean + 3 * channels) {}
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

// Turns Σy and Σy² (2 × channels) into the norm, and updates the module's running statistics.
template <class R>
void finish_statistics(const double* sums, Index rows, Index channels, const NormModule& module,
                       Norm<R> norm) {
  R* const running_mean = (R*)module.running_mean;
  R* const running_var = (R*)module.running_var;
  for (Index c = 0; c < channels; ++c) {
    const double mean = sums[c] / rows;
    const double var = std::max(sums[channels + c] / rows - mean * mean, 0.0);
    const double inverse_deviation = 1 / std::sqrt(var + module.eps);
    const double scale = ((const R*)module.weight)[c] * inverse_deviation;
    norm.mean[c] = mean;
    norm.inverse_deviation[c] = inverse_deviation;
    norm.scale[c] = scale;
    norm.shift[c] = ((const R*)module.bias)[c] - mean * scale;
    const double unbiased = var * rows / (rows - 1);
    running_mean[c] += module.momentum * (mean - running_mean[c]);
    running_var[c] += module.momentum * (unbiased - running_var[c]);
  }
}

// Turns Σg and Σg(y - mean) (2 × channels, g masked) into the norm's gradient.
template <class R>
void finish_gradient(const double* sums, Index rows, Index channels, Norm<R> norm,
                     NormGradient<R> gradient) {
  for (Index c = 0; c < channels; ++c) {
    const double inverse_deviation = norm.inverse_deviation[c], scale = norm.scale[c];
    const double bias = sums[c], weight = sums[channels + c] * inverse_deviation;
    gradient.bias[c] = bias;
    gradient.weight[c] = weight;
    gradient.b[c] = -scale * inverse_deviation * weight / rows;
    gradient.c[c] = -scale * bias / rows;
  }
}

template <class T>
void norm_statistics(const T* y, Index rows, Index channels, const NormModule& module,
                     Norm<Real<T>> norm) {
  Sums sums(2 * channels);
  for_tiles<T>(rows, channels, kTileRows,
               [&](auto lanes, Index thread, Index row, Index row_end, Index c) {
                 const T* from = y + row * channels + c;
                 Moments<Real<T>, lanes> even(load<lanes>(from)), odd(even.pivot);
                 Index r = row;  // two chains of additions hide half of their latency
                 for (; r + 1 < row_end; r += 2, from += 2 * channels) {
                   even.add(load<lanes>(from));
                   odd.add(load<lanes>(from + channels));
                 }
                 if (r < row_end) even.add(load<lanes>(from));
                 even.sum += odd.sum;
                 even.square += odd.square;
                 double* sum = sums.of(thread) + c;
                 even.add_to(sum, sum + channels, row_end - row);
               });
  finish_statistics(sums.total(), rows, channels, module, norm);
}

// z = relu6(y * scale + shift) or, without relu6, y * scale + shift + residual (may be null).
template <class T>
void norm_apply(const T* y, Index rows, Index channels, Norm<Real<T>> norm, bool activate,
                const T* residual, T* z) {
  for_tiles<T>(rows, channels, kTileRows,
               [&](auto lanes, Index, Index row, Index row_end, Index c) {
                 const auto scale = load<lanes>(norm.scale + c);
                 const auto shift = load<lanes>(norm.shift + c);
                 const Index begin = row * channels + c, end = row_end * channels;
                 if (activate)
                   for (Index i = begin; i < end; i += channels)
                     store<lanes>(z + i, relu6(load<lanes>(y + i) * scale + shift));
                 else if (residual)
                   for (Index i = begin; i < end; i += channels)
                     store<lanes>(z + i, load<lanes>(y + i) * scale + shift +
                                             load<lanes>(residual + i));
                 else
                   for (Index i = begin; i < end; i += channels)
                     store<lanes>(z + i, load<lanes>(y + i) * scale + shift);
               });
}

// pooled = the mean of relu6(y * scale + shift) over the pixels of each image; z is never stored.
template <class T>
void norm_pool(const T* y, Index images, Index pixels, Index channels, Norm<Real<T>> norm,
               T* pooled) {
  for_tiles<T>(images * pixels, channels, pixels,
               [&](auto lanes, Index, Index row, Index row_end, Index c) {
                 const auto scale = load<lanes>(norm.scale + c);
                 const auto shift = load<lanes>(norm.shift + c);
                 Vector<Real<T>, lanes> sum = {};
                 for (Index r = row; r < row_end; ++r)
                   sum += relu6(load<lanes>(y + r * channels + c) * scale + shift);
                 store<lanes>(pooled + row / pixels * channels + c, sum / (Real<T>)pixels);
               });
}

// The sums over the batch that a norm's gradient needs, from the gradient g of its output.
// Behind a pooling layer all `pixels` of an image share one row of g; elsewhere pixels is 0.
// If z is given, relu6(y * scale + shift) is written there on the way.
template <class T>
void norm_backward(const T* g, Index pixels, const T* y, Index rows, Index channels,
                   Norm<Real<T>> norm, bool activated, NormGradient<Real<T>> gradient, T* z) {
  Sums sums(2 * channels);
  for_tiles<T>(rows, channels, pixels ? pixels : kTileRows,
               [&](auto lanes, Index thread, Index row, Index row_end, Index c) {
                 using V = Vector<Real<T>, lanes>;
                 const V mean = load<lanes>(norm.mean + c), scale = load<lanes>(norm.scale + c),
                         shift = load<lanes>(norm.shift + c);
                 const T* from = g + (pixels ? row / pixels : row) * channels + c;
                 const Index step = pixels ? 0 : channels;
                 V sum = {}, product = {};
                 for (Index r = row; r < row_end; ++r, from += step) {
                   const V value = load<lanes>(y + r * channels + c);
                   V passed = load<lanes>(from);
                   if (activated) {
                     const V before = value * scale + shift;
                     passed = where_relu6_passes(before, passed);
                     if (z) store<lanes>(z + r * channels + c, relu6(before));
                   }
                   sum += passed;
                   product += passed * (value - mean);
                 }
                 add_to<Real<T>, lanes>(sums.of(thread) + c, sum);
                 add_to<Real<T>, lanes>(sums.of(thread) + channels + c, product);
               });
  finish_gradient(sums.total(), rows, channels, norm, gradient);
}

// gy = scale * mask(g) + b * (y - mean) + c, the gradient of the convolution's output. The mask is
// left out where g has gone through it already. gy may be g.
template <class T>
void norm_backward_apply(const T* g, Index pixels, const T* y, Index rows, Index channels,
                         Norm<Real<T>> norm, bool mask, NormGradient<Real<T>> gradient, T* gy) {
  for_tiles<T>(rows, channels, pixels ? pixels : kTileRows,
               [&](auto lanes, Index, Index row, Index row_end, Index channel) {
                 const NormGradientAt<Real<T>, lanes> at(norm, gradient, channel);
                 const T* from = g + (pixels ? row / pixels : row) * channels + channel;
                 const Index step = pixels ? 0 : channels;
                 const Index begin = row * channels + channel, end = row_end * channels;
                 if (mask)
                   for (Index i = begin; i < end; i += channels, from += step)
                     store<lanes>(gy + i, at.masked(load<lanes>(from), load<lanes>(y + i)));
                 else
                   for (Index i = begin; i < end; i += channels, from += step)
                     store<lanes>(gy + i, at(load<lanes>(from), load<lanes>(y + i)));
               });
}

// ------------------------------------------------------------------------ depthwise 3×3

struct Shape {
  Index images, height, width, channels, stride;
  Index out_height() const { return (height - 1) / stride + 1; }
  Index out_width() const { return (width - 1) / stride + 1; }
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
  template <int lanes, class Pixel>
  void fill(Index row, bool inside, const Pixel& pixel) {
    const Vector<R, lanes> zero = {};
    const Index width = width_ - 2;
    store<lanes>(at<lanes>(row, -1), zero);
    store<lanes>(at<lanes>(row, width), zero);
    R* to = at<lanes>(row, 0);
    if (inside)
      for (Index column = 0; column < width; ++column) store<lanes>(to + column * lanes, pixel(column));
    else
      for (Index column = 0; column < width; ++column) store<lanes>(to + column * lanes, zero);
  }

 private:
  Index width_;
  std::vector<Vector<R, kVectorBytes / sizeof(R)>> storage_;
};

constexpr int kTaps = 9;

// From PyTorch's channels × 9 to 9 × channels.
template <class R>
std::vector<R> by_tap(const R* weight, Index channels) {
  std::vector<R> taps(kTaps * channels);
  for (Index c = 0; c < channels; ++c)
    for (int tap = 0; tap < kTaps; ++tap) taps[tap * channels + c] = weight[c * kTaps + tap];
  return taps;
}

// Calls body(integral_constant) for 0, …, count - 1, so that arrays of vectors stay in registers.
template <int count, class Body>
inline void unrolled(const Body& body) {
  [&]<int... i>(std::integer_sequence<int, i...>) {
    (body(std::integral_constant<int, i>()), ...);
  }(std::make_integer_sequence<int, count>());
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
  const Index channels = shape.channels, width = shape.width;
  const Index out_height = shape.out_height(), out_width = shape.out_width();
  const std::vector<R> taps = by_tap(weight, channels);
  const Bands bands(shape.images, out_height, out_width * channels * sizeof(T) * stride * stride);
  Sums sums(2 * channels);

  parallel(bands.count, [&](Index thread, Index begin, Index end) {
    RowRing<R> ring(width);
    for (Index band = begin; band < end; ++band) {
      const Index image = band / bands.per_image, row = band % bands.per_image * bands.rows;
      const Index row_end = std::min(row + bands.rows, out_height);
      for_channels<T>(channels, [&](auto lanes, Index c) {
        using V = Vector<R, lanes>;
        V w[kTaps], scale, shift;
        unrolled<kTaps>([&](auto tap) { w[tap] = load<lanes>(&taps[tap * channels + c]); });
        if constexpr (normalise)
          scale = load<lanes>(norm.scale + c), shift = load<lanes>(norm.shift + c);

        T* to = y + (image * out_height + row) * out_width * channels + c;
        Moments<R, lanes> moments(V{});
        Index next = row * stride - 1;
        for (Index oy = row; oy < row_end; ++oy) {
          for (; next <= oy * stride + 1; ++next) {
            const T* from = x + (image * shape.height + next) * width * channels + c;
            ring.template fill<lanes>(next, 0 <= next && next < shape.height, [&](Index column) {
              const V value = load<lanes>(from + column * channels);
              if constexpr (normalise) return relu6(value * scale + shift);
              return value;
            });
          }
          const R* rows[3];
          for (int ky = 0; ky < 3; ++ky)
            rows[ky] = ring.template at<lanes>(oy * stride + ky - 1, -1);
          for (Index ox = 0; ox < out_width; ++ox, to += channels) {
            V sum = {};
            unrolled<kTaps>([&](auto tap) {
              sum += w[tap] * load<lanes>(rows[tap / 3] + (ox * stride + tap % 3) * lanes);
            });
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
// the gradient g of relu6(norm(y)); it goes through that norm on its way into the cache.
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
  const Index out_height = shape.out_height(), out_width = shape.out_width();
  const std::vector<R> taps = by_tap(weight, channels);
  const Bands bands(shape.images, height, width * channels * sizeof(T));
  Sums sums((2 + kTaps) * channels);

  parallel(bands.count, [&](Index thread, Index begin, Index end) {
    RowRing<R> ring(out_width);
    for (Index band = begin; band < end; ++band) {
      const Index image = band / bands.per_image, row = band % bands.per_image * bands.rows;
      const Index row_end = std::min(row + bands.rows, height);
      for_channels<T>(channels, [&](auto lanes, Index c) {
        using V = Vector<R, lanes>;
        const NormGradientAt<R, lanes> through_norm(y_norm, y_gradient, c);
        V w[kTaps], gw[kTaps] = {}, sum = {}, product = {}, mean, scale, shift;
        unrolled<kTaps>([&](auto tap) { w[tap] = load<lanes>(&taps[tap * channels + c]); });
        if constexpr (normalise) {
          mean = load<lanes>(x_norm.mean + c);
          scale = load<lanes>(x_norm.scale + c);
          shift = load<lanes>(x_norm.shift + c);
        }

        const Index first = (image * height + row) * width * channels + c;
        const T* from = x + first;
        T* to = gx + first;
        Index next = stride == 1 ? row - 1 : row / 2;
        for (Index iy = row; iy < row_end; ++iy) {
          for (; next <= (iy + 1) / stride; ++next) {
            const Index start = (image * out_height + next) * out_width * channels + c;
            ring.template fill<lanes>(next, 0 <= next && next < out_height, [&](Index column) {
              const Index i = start + column * channels;
              return through_norm.masked(load<lanes>(g + i), load<lanes>(y + i));
            });
          }
          auto pixel = [&](auto row_parity, auto column_parity, Index column) {
            const V value = load<lanes>(from);
            V before = value, after = value;
            if constexpr (normalise) before = value * scale + shift, after = relu6(before);
            V gradient = {};
            taps_on_grid<stride, row_parity, column_parity>([&](auto tap, int dy, int dx) {
              const V at_output =
                  load<lanes>(ring.template at<lanes>(iy / stride + dy, column + dx));
              gradient += w[tap] * at_output;
              gw[tap] += after * at_output;
            });
            if constexpr (normalise) {
              gradient = where_relu6_passes(before, gradient);
              sum += gradient;
              product += gradient * (value - mean);
            }
            store<lanes>(to, gradient);
            from += channels;
            to += channels;
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
    finish_gradient(total, shape.images * height * width, channels, x_norm, x_gradient);
  for (Index c = 0; c < channels; ++c)
    for (int tap = 0; tap < kTaps; ++tap)
      weight_gradient[c * kTaps + tap] = total[(2 + tap) * channels + c];
}

// Calls f with a null pointer to the type that Python's code stands for.
template <class F>
void with_type(int type, const F& f) {
  if (type == 0) f((double*)nullptr);
  if (type == 1) f((float*)nullptr);
  if (type == 2) f((bf16*)nullptr);
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

}  // namespace

// ------------------------------------------------------------------ what Python calls
// `type` is 0 for double, 1 for float, 2 for bfloat16. Arrays are contiguous.

extern "C" {

void norm_statistics(int type, const void* y, Index rows, Index channels, const NormModule* module,
                     void* norm) {
  with_type(type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    norm_statistics((const T*)y, rows, channels, *module, Norm<Real<T>>(norm, channels));
  });
}

void norm_apply(int type, const void* y, Index rows, Index channels, void* norm, int activate,
                const void* residual, void* z) {
  with_type(type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    norm_apply((const T*)y, rows, channels, Norm<Real<T>>(norm, channels), activate,
               (const T*)residual, (T*)z);
  });
}

void norm_pool(int type, const void* y, Index images, Index pixels, Index channels, void* norm,
               void* pooled) {
  with_type(type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    norm_pool((const T*)y, images, pixels, channels, Norm<Real<T>>(norm, channels), (T*)pooled);
  });
}

void norm_backward(int type, const void* g, Index pixels, const void* y, Index rows,
                   Index channels, void* norm, int activated, void* gradient, void* z) {
  with_type(type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    norm_backward((const T*)g, pixels, (const T*)y, rows, channels,
                  Norm<Real<T>>(norm, channels), activated,
                  NormGradient<Real<T>>(gradient, channels), (T*)z);
  });
}

void norm_backward_apply(int type, const void* g, Index pixels, const void* y, Index rows,
                         Index channels, void* norm, int mask, void* gradient, void* gy) {
  with_type(type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    norm_backward_apply((const T*)g, pixels, (const T*)y, rows, channels,
                        Norm<Real<T>>(norm, channels), mask,
                        NormGradient<Real<T>>(gradient, channels), (T*)gy);
  });
}

// `norm` is null where x needs no normalisation.
void depthwise_forward(int type, const void* x, void* norm, const void* weight,
                       const Shape* shape, void* y, const NormModule* module, void* y_norm) {
  with_type(type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using R = Real<T>;
    with_constants(shape->stride, norm != nullptr, [&](auto stride, auto normalise) {
      const Index channels = shape->channels;
      depthwise_forward<T, stride, normalise>(
          (const T*)x, Norm<R>(norm, channels), (const R*)weight, *shape, (T*)y, *module,
          Norm<R>(y_norm, channels));
    });
  });
}

// `x_norm` and `x_gradient` are null where x needs no normalisation.
void depthwise_backward(int type, const void* g, const void* y, void* y_norm, void* y_gradient,
                        const void* x, void* x_norm, void* x_gradient, const void* weight,
                        const Shape* shape, void* gx, void* weight_gradient) {
  with_type(type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using R = Real<T>;
    with_constants(shape->stride, x_norm != nullptr, [&](auto stride, auto normalise) {
      const Index channels = shape->channels;
      depthwise_backward<T, stride, normalise>(
          (const T*)g, (const T*)y, Norm<R>(y_norm, channels),
          NormGradient<R>(y_gradient, channels), (const T*)x, Norm<R>(x_norm, channels),
          NormGradient<R>(x_gradient, channels), (const R*)weight, *shape, (T*)gx,
          (R*)weight_gradient);
    });
  });
}
}
