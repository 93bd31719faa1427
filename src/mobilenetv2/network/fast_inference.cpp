// Inference of MobileNetV2 on the CPU: pictures in, logits out, the whole network in one call.
//
// What a reader needs to know:
//
// * Batch norms are folded beforehand: a layer is weights and a bias.
// * Maps are NHWC, stored as T (float or bfloat16) and computed as Real<T> (float), as in
//   fast_ops.cpp.
// * Between blocks lie their narrow outputs alone. A block's hidden map is six times as wide; it is
//   made for a band of rows and a slice of channels at a time, goes through the depthwise
//   convolution while it is in the cache, and never exists as a whole. The stem is treated as what
//   makes the hidden map of the first block.
// * Threads share out bands of pictures. Where there are fewer pictures than threads and a block's
//   weights are more than its map, they share out slices of channels instead: each then reads a
//   part of the weights.

#include <atomic>
#include <memory>

#include "products.h"

#if !defined(STORED)
#define STORED float
#endif

// What Python describes. Weights are Real<T>, out × in as PyTorch's; a depthwise kernel is
// channels × 9, the stem's out × channels × 9.
extern "C" struct Weights {
  const float *weight, *bias;
};

// The first one's `in_channels` are those of the pictures, and its expansion is the stem: a 3×3
// convolution with a stride of its own. `keras` pads an even side of maps below and right only.
extern "C" struct BlockWeights {
  std::int64_t in_channels, hidden_channels, out_channels, stride, has_shortcut;
  Weights expansion, depthwise, projection;
};

extern "C" struct Description {
  std::int64_t channels, height, width, stem_stride, keras;
  const float *mean, *scale;  // a picture is (value - mean) * scale
  const BlockWeights* blocks;
  std::int64_t count, features, classes;
  Weights head, classifier;
};

namespace {

using T = STORED;
using R = Real<T>;

constexpr int kTaps = 9;

// Channels of a hidden map that are made at a time.
#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
constexpr Index kSlice = std::is_same_v<T, bf16> ? 32 : 48;
#else
constexpr Index kSlice = kBlockVectors * kLanes<T>;
#endif

constexpr Index ceil_divide(Index value, Index divisor) { return (value + divisor - 1) / divisor; }

// ------------------------------------------------------------------------ prepared weights

// A matrix of weights, out × in, as the right side of products, a slice of columns at a time.
class Matrix {
 public:
  // `depth`, if given, is more than `in`; what comes behind weighs nothing.
  Matrix(Weights weights, Index in, Index out, Index depth = 0)
      : in_(std::max(in, depth)),
        out_(out),
        slice_memory_(round_up(Panels<T>::memory(in_, kSlice), 64)),
        memory_(slice_memory_ * slices()),
        bias_(weights.bias, weights.bias + out) {
    for (Index slice = 0; slice < slices(); ++slice) {
      panels_.emplace_back(memory_.get() + slice * slice_memory_, in_, columns(slice));
      panels_.back().fill_transposed(weights.weight + slice * kSlice * in, in);
    }
  }
  Index in() const { return in_; }
  Index out() const { return out_; }
  Index slices() const { return ceil_divide(out_, kSlice); }
  Index columns(Index slice) const { return std::min(kSlice, out_ - slice * kSlice); }
  const Panels<T>& panels(Index slice) const { return panels_[slice]; }
  const R* bias() const { return bias_.data(); }

 private:
  Index in_, out_, slice_memory_;
  Buffer<T> memory_;
  std::vector<Panels<T>> panels_;
  std::vector<R> bias_;
};

// A 3×3 kernel of each channel (or of each pair of an input's and an output's), tap by tap.
struct Taps {
  std::vector<R> weight, bias;
  Index channels;

  // From `channels` × inputs × 9 to inputs × 9 × channels.
  Taps(Weights weights, Index inputs, Index channels)
      : weight(kTaps * inputs * channels),
        bias(weights.bias, weights.bias + channels),
        channels(channels) {
    for (Index c = 0; c < channels; ++c)
      for (Index i = 0; i < inputs * kTaps; ++i)
        weight[i * channels + c] = weights.weight[c * inputs * kTaps + i];
  }
};

// A 3×3 convolution's grid: the first row it sees is -top, the first column -left.
struct Grid {
  Index height, width, stride, out_height, out_width, top, left;
  Grid(Index height, Index width, Index stride, bool keras)
      : height(height),
        width(width),
        stride(stride),
        out_height((height - 1) / stride + 1),
        out_width((width - 1) / stride + 1),
        top(stride == 2 && keras ? height % 2 : 1),
        left(stride == 2 && keras ? width % 2 : 1) {}
  // The rows that the outputs of [row, row_end) see, without those outside.
  Index first_row(Index row) const { return std::max<Index>(0, row * stride - top); }
  Index last_row(Index row_end) const {
    return std::min(height, (row_end - 1) * stride - top + 3);
  }
};

struct Layer {
  Grid grid;
  std::unique_ptr<Matrix> expansion;  // none in the first
  Taps depthwise;
  Matrix projection;
  bool has_shortcut;

  Index in() const { return expansion->in(); }
  Index hidden() const { return projection.in(); }
  Index out() const { return projection.out(); }
  Index slices() const { return ceil_divide(hidden(), kSlice); }
  Index in_pixels() const { return grid.height * grid.width; }
  Index out_pixels() const { return grid.out_height * grid.out_width; }
};

// ---------------------------------------------------------------------------- the two 3×3s

// A band of a map: `rows` of it, from `first` on, for one slice of channels, kSlice apart.
struct Band {
  const R* values;
  Index first, rows;
};

// One row of depthwise outputs for one vector of channels: out = relu6(bias + Σ w · x). `rows` are
// the three rows of the map, or zeros.
template <int lanes>
inline void depthwise_row(const R* const rows[3], const Grid& grid, const R* taps, Index channels,
                          const R* bias_at, T* to, Index to_stride) {
  using V = Vector<R, lanes>;
  V w[kTaps];
  unrolled<kTaps>([&](auto tap) { w[tap] = load<lanes>(taps + tap * channels); });
  const V bias = load<lanes>(bias_at);
  auto column = [&](V (&x)[3], Index at) {
    unrolled<3>([&](auto ky) { x[ky] = load<lanes>(rows[ky] + at * kSlice); });
  };
  auto add = [&](V& sum, const V (&x)[3], auto kx) {
    unrolled<3>([&](auto ky) { sum += w[3 * ky + kx] * x[ky]; });
  };
  constexpr std::integral_constant<int, 0> first;
  constexpr std::integral_constant<int, 1> middle;
  constexpr std::integral_constant<int, 2> last;
  V x[3];
  if (grid.stride == 1) {
    // Each column is loaded once, for the outputs before, at, and behind it.
    V at = bias;
    column(x, 0);
    V before = bias;
    add(before, x, middle), add(at, x, first);
    for (Index ox = 1; ox < grid.width; ++ox, to += to_stride) {
      column(x, ox);
      V next = bias;
      add(before, x, last), add(at, x, middle), add(next, x, first);
      store<lanes>(to, relu6(before));
      before = at, at = next;
    }
    store<lanes>(to, relu6(before));
  } else {
    V from_left[3] = {};
    if (grid.left == 0) column(from_left, 0);
    for (Index ox = 0; ox < grid.out_width; ++ox, to += to_stride) {
      const Index center = 2 * ox + 1 - grid.left;
      V sum = bias, other = {};
      add(sum, from_left, first);
      column(x, center);
      add(other, x, middle);
      if (center + 1 < grid.width)
        column(from_left, center + 1);
      else
        unrolled<3>([&](auto ky) { from_left[ky] = V{}; });
      add(sum, from_left, last);
      store<lanes>(to, relu6(sum + other));
    }
  }
}

// The outputs' rows [row, row_end) for `count` channels from `channel` on, the same that the band
// holds; to `to`, where pixels lie to_stride apart.
void depthwise(Band band, const Grid& grid, const Taps& taps, Index channel, Index count,
               Index row, Index row_end, const R* zeros, T* to, Index to_stride) {
  for (Index oy = row; oy < row_end; ++oy) {
    const R* rows[3];
    for (Index ky = 0; ky < 3; ++ky) {
      const Index y = oy * grid.stride - grid.top + ky;
      rows[ky] = y < 0 || y >= grid.height ? zeros
                                           : band.values + (y - band.first) * grid.width * kSlice;
    }
    T* const place = to + (oy - row) * grid.out_width * to_stride;
    for_channels<T>(count, [&](auto lanes, Index c) {
      const R* const at[3] = {rows[0] + c, rows[1] + c, rows[2] + c};
      depthwise_row<lanes>(at, grid, taps.weight.data() + channel + c, taps.channels,
                           taps.bias.data() + channel + c, place + c, to_stride);
    });
  }
}

template <int lanes>
inline Vector<R, lanes> numbers(Vector<std::uint8_t, lanes> bytes) {
#if defined(__AVX512F__)  // one instruction, which GCC 12 does not find
  if constexpr (lanes == 16)
    return (Vector<R, lanes>)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32((__m128i)bytes));
#endif
  return __builtin_convertvector(bytes, Vector<R, lanes>);
}

// A picture as the network sees it: planes of bytes in, rows of normalised T out, channel beside
// channel, with zeros where the stem's kernel looks over the edge.
class Pictures {
 public:
  Pictures(const Description& what, const Grid& grid)
      : grid_(grid), channels_(what.channels) {
    for (Index x = 0; x < grid.width; ++x)
      for (Index c = 0; c < channels_; ++c)
        mean_.push_back(what.mean[c]), scale_.push_back(what.scale[c]);
  }

  Index channels() const { return channels_; }
  Index bytes() const { return channels_ * grid_.height * grid_.width; }
  // What one output of the stem sees: the rows of its 3×3 in turn, then something that weighs
  // nothing. Outputs lie `stride()` apart.
  Index seen() const { return kTaps * channels_; }
  Index stride() const { return round_up(seen() + 1, 32); }
  // Numbers of the rows that so many rows of outputs see.
  Index rows_size(Index rows) const {
    return ((rows - 1) * grid_.stride + 3) * row_size() + kAtOnce;
  }
  // Numbers that all outputs of a row see.
  Index seen_size() const { return grid_.out_width * stride() + kAtOnce; }

  // The rows that the outputs of rows [row, row_end) see.
  void prepare(const std::uint8_t* picture, Index row, Index row_end, T* rows) const {
    const Index first = row * grid_.stride - grid_.top;
    for (Index y = first; y < (row_end - 1) * grid_.stride - grid_.top + 3; ++y) {
      T* const to = rows + (y - first) * row_size();
      std::fill_n(to, row_size(), T{});
      if (y >= 0 && y < grid_.height)
        prepare_row(picture + y * grid_.width, to + grid_.left * channels_);
    }
  }

  // What each output of one row sees, the `number`th of those that were prepared.
  void gather(const T* rows, Index number, T* to) const {
    const Index side = 3 * channels_, step = grid_.stride * channels_;
    const T* from = rows + number * grid_.stride * row_size();
    for (Index ox = 0; ox < grid_.out_width; ++ox, from += step, to += stride())
      for (Index ky = 0; ky < 3; ++ky)  // what is too much is overwritten by the next
        std::memcpy(to + ky * side, from + ky * row_size(), kAtOnce * sizeof(T));
  }

 private:
  static constexpr Index kAtOnce = 16;  // numbers, of which three pixels' are wanted
  Index row_size() const { return (grid_.width + 2) * channels_; }

  void prepare_row(const std::uint8_t* row, T* to) const {
    const Index plane = grid_.height * grid_.width;
    auto put = [&](Index i, auto bytes) {
      constexpr int lanes = sizeof bytes;
      const auto value = numbers<lanes>(bytes);
      store<lanes>(to + i, (value - load<lanes>(&mean_[i])) * load<lanes>(&scale_[i]));
    };
    Index x = 0;
    if (channels_ == 3)
      for (; x + kAtOnce <= grid_.width; x += kAtOnce) {
        Vector<std::uint8_t, kAtOnce> c[3];
        for (Index i = 0; i < 3; ++i) std::memcpy(&c[i], row + i * plane + x, sizeof c[i]);
        put(3 * x, beside<0>(c)), put(3 * x + 16, beside<1>(c)), put(3 * x + 32, beside<2>(c));
      }
    for (; x < grid_.width; ++x)
      for (Index c = 0; c < channels_; ++c)
        put(x * channels_ + c, Vector<std::uint8_t, 1>{row[c * plane + x]});
  }

  // Numbers 16 · part to 16 · part + 15 of three channels beside one another.
  template <int part>
  static Vector<std::uint8_t, 16> beside(const Vector<std::uint8_t, 16> (&c)[3]) {
    return [&]<int... i>(std::integer_sequence<int, i...>) {
      constexpr auto place = [](int at) { return (16 * part + at) / 3; };
      constexpr auto channel = [](int at) { return (16 * part + at) % 3; };
      const auto two = __builtin_shufflevector(
          c[0], c[1], (channel(i) == 2 ? 0 : 16 * channel(i) + place(i))...);
      return __builtin_shufflevector(two, c[2], (channel(i) == 2 ? 16 + place(i) : i)...);
    }(std::make_integer_sequence<int, 16>());
  }

  Grid grid_;
  Index channels_;
  std::vector<R> mean_, scale_;  // for each number of a row
};

// ------------------------------------------------------------------------------ 1×1 layers

// `rows` pixels of x, `stride` apart, through one slice of an expansion, with ReLU6; to `to`,
// kSlice apart.
void expand(Tiles& tiles, const T* x, Index stride, Index rows, const Matrix& matrix, Index slice,
            R* to) {
  const R* const bias = matrix.bias() + slice * kSlice;
  multiply(tiles, Left<T>{x, stride}, rows, matrix.in(), matrix.panels(slice),
           [&](const Block<R>& block) {
             for_channels<T>(block.columns, [&](auto lanes, Index c) {
               const auto shift = load<lanes>(bias + block.column + c);
               R* place = to + block.row * kSlice + block.column + c;
               for (Index r = 0; r < block.rows; ++r, place += kSlice)
                 store<lanes>(place, relu6(block.template at<lanes>(r, c) + shift));
             });
           });
}

// `rows` pixels of x, x_stride apart, through one slice of a projection, plus `residual` (may be
// null); to `to`. Both begin at the first pixel's first channel.
void project(Tiles& tiles, const T* x, Index rows, const Matrix& matrix, Index slice,
             const T* residual, T* to) {
  const Index out = matrix.out(), first = slice * kSlice;
  multiply(tiles, Left<T>{x, matrix.in()}, rows, matrix.in(), matrix.panels(slice),
           [&](const Block<R>& block) {
             for_channels<T>(block.columns, [&](auto lanes, Index c) {
               const Index channel = first + block.column + c;
               const auto shift = load<lanes>(matrix.bias() + channel);
               Index i = block.row * out + channel;
               for (Index r = 0; r < block.rows; ++r, i += out) {
                 auto value = block.template at<lanes>(r, c) + shift;
                 if (residual) value += load<lanes>(residual + i);
                 store<lanes>(to + i, value);
               }
             });
           });
}

// One slice of the head: the mean over `rows` pixels of x of relu6(matrix · x), to `pooled`.
void pool(Tiles& tiles, const T* x, Index rows, const Matrix& matrix, Index slice, T* pooled) {
  const R* const bias = matrix.bias() + slice * kSlice;
  alignas(64) R sums[kSlice] = {};
  multiply(tiles, Left<T>{x, matrix.in()}, rows, matrix.in(), matrix.panels(slice),
           [&](const Block<R>& block) {
             for_channels<T>(block.columns, [&](auto lanes, Index c) {
               const auto shift = load<lanes>(bias + block.column + c);
               auto sum = load<lanes>(sums + block.column + c);
               for (Index r = 0; r < block.rows; ++r)
                 sum += relu6(block.template at<lanes>(r, c) + shift);
               store<lanes>(sums + block.column + c, sum);
             });
           });
  for_channels<T>(matrix.columns(slice), [&](auto lanes, Index c) {
    store<lanes>(pooled + slice * kSlice + c, load<lanes>(sums + c) * (R(1) / R(rows)));
  });
}

// One slice of the classifier: its logits for `rows` pictures.
void classify(Tiles& tiles, const T* x, Index rows, const Matrix& matrix, Index slice,
              float* logits) {
  multiply(tiles, Left<T>{x, matrix.in()}, rows, matrix.in(), matrix.panels(slice),
           [&](const Block<R>& block) {
             for_channels<T>(block.columns, [&](auto lanes, Index c) {
               const Index column = slice * kSlice + block.column + c;
               const auto shift = load<lanes>(matrix.bias() + column);
               for (Index r = 0; r < block.rows; ++r)
                 store<lanes>(logits + (block.row + r) * matrix.out() + column,
                              block.template at<lanes>(r, c) + shift);
             });
           });
}

// ------------------------------------------------------------------------------ the network

// How the threads of one call share out a block.
struct Share {
  bool by_channels;
  Index rows, bands;  // of a picture

  Share(const Layer& layer, Index images, Index threads) {
    const Index weights = layer.hidden() * layer.out();
    by_channels = images < threads && weights > layer.out_pixels() * layer.hidden();
    const Grid& grid = layer.grid;
    const Index row_bytes = grid.out_width * layer.hidden() * (Index)sizeof(T) +
                            grid.stride * grid.width * kSlice * (Index)sizeof(R);
    const Index fitting = std::max<Index>(4, 2 * kSecondLevelBytes / row_bytes);
    bands = ceil_divide(grid.out_height, fitting);
    if (images < threads) bands = std::min(round_up(bands, threads), grid.out_height);
    if (by_channels) bands = 1;
    rows = ceil_divide(grid.out_height, bands);
    bands = ceil_divide(grid.out_height, rows);
  }
  // Pixels of a band's outputs and of what they see.
  Index out_pixels(const Layer& layer) const { return rows * layer.grid.out_width; }
  Index in_pixels(const Layer& layer) const {
    const Grid& grid = layer.grid;
    return std::min(grid.height, (rows - 1) * grid.stride + 3) * grid.width;
  }
};

class Network {
 public:
  explicit Network(const Description& what)
      : what_(what),
        stem_grid_(what.height, what.width, what.stem_stride, what.keras),
        pictures_(what, Grid(what.height, what.width, what.stem_stride, what.keras)),
        stem_(what.blocks[0].expansion, pictures_.seen(), what.blocks[0].hidden_channels,
              round_up(pictures_.seen(), 2)),
        head_(what.head, what.blocks[what.count - 1].out_channels, what.features),
        classifier_(what.classifier, what.features, what.classes) {
    Index height = stem_grid_.out_height, width = stem_grid_.out_width;
    for (Index i = 0; i < what.count; ++i) {
      const BlockWeights& block = what.blocks[i];
      const Index hidden = block.hidden_channels;
      layers_.emplace_back(new Layer{
          Grid(height, width, block.stride, what.keras),
          i == 0 ? nullptr : std::make_unique<Matrix>(block.expansion, block.in_channels, hidden),
          Taps(block.depthwise, 1, hidden),
          Matrix(block.projection, hidden, block.out_channels), block.has_shortcut != 0});
      height = layers_.back()->grid.out_height, width = layers_.back()->grid.out_width;
    }
  }

  // Where everything lies in a call's memory.
  struct Plan {
    std::vector<Share> shares;
    Index map = 0, slice = 0, filtered = 0, lines = 0, seen = 0, zeros = 0;  // numbers
    Index per_thread = 0, bytes = 0;
  };

  Plan plan(Index images, Index threads) const {
    Plan plan;
    for (const auto& each : layers_) {
      const Layer& layer = *each;
      plan.shares.emplace_back(layer, images, threads);
      const Share& share = plan.shares.back();
      plan.map = std::max(plan.map, images * layer.out_pixels() * layer.out());
      plan.slice = std::max(plan.slice, share.in_pixels(layer) * kSlice);
      plan.filtered = std::max(plan.filtered, share.out_pixels(layer) * layer.hidden() *
                                                  (share.by_channels ? images : 1));
      plan.zeros = std::max(plan.zeros, layer.grid.width * kSlice);
    }
    const Index stem_pixels = plan.shares[0].in_pixels(*layers_[0]);
    plan.lines = pictures_.rows_size(stem_pixels / stem_grid_.out_width);
    plan.seen = pictures_.seen_size();
    auto aligned = [](Index bytes) { return round_up(bytes, 64); };
    plan.per_thread = aligned(plan.slice * sizeof(R)) + aligned(plan.lines * sizeof(T)) +
                      aligned(plan.seen * sizeof(T)) +
                      aligned(plan.zeros * sizeof(R)) + aligned(plan.filtered * sizeof(T));
    plan.bytes = 2 * aligned(plan.map * sizeof(T)) +
                 aligned(images * what_.features * sizeof(T)) + threads * plan.per_thread + 64;
    return plan;
  }

  void run(const std::uint8_t* pictures, Index images, Index threads, void* memory,
           float* features, float* logits) const {
    const Plan plan = this->plan(images, threads);
    char* free = (char*)round_up((Index)memory, 64);
    auto take = [&](auto* kind, Index count) {
      auto* const taken = (decltype(kind))free;
      free += round_up(count * (Index)sizeof *kind, 64);
      return taken;
    };
    T* const maps[2] = {take((T*)0, plan.map), take((T*)0, plan.map)};
    T* const pooled = take((T*)0, images * what_.features);
    char* const scratch = free;
    T* const shared_filtered = (T*)scratch;  // the first thread's comes first

    std::vector<std::atomic<Index>> counters(2 * layers_.size() + 3);
#pragma omp parallel num_threads(threads)
    {
      const Index thread = omp_get_thread_num();
      char* own = scratch + thread * plan.per_thread;
      auto take_own = [&](auto* kind, Index count) {
        auto* const taken = (decltype(kind))own;
        own += round_up(count * (Index)sizeof *kind, 64);
        return taken;
      };
      T* const own_filtered = take_own((T*)0, plan.filtered);
      R* const slice = take_own((R*)0, plan.slice);
      T* const lines = take_own((T*)0, plan.lines);
      T* const seen = take_own((T*)0, plan.seen);
      R* const zeros = take_own((R*)0, plan.zeros);
      std::fill_n(zeros, plan.zeros, R{});
      Tiles tiles;

      // The hidden map of a band, filtered: outputs' rows [row, row_end), slices [from, end).
      auto filter = [&](Index number, Index image, const T* x, Index row, Index row_end,
                        Index from, Index end, T* to) {
        const Layer& layer = *layers_[number];
        const Grid& grid = layer.grid;
        const Index first = grid.first_row(row), last = grid.last_row(row_end);
        const Matrix& expansion = number == 0 ? stem_ : *layer.expansion;
        if (number == 0)
          pictures_.prepare(pictures + image * pictures_.bytes(), first, last, lines);
        for (Index s = from; s < end; ++s) {
          const Index channel = s * kSlice, count = expansion.columns(s);
          if (number == 0) {
            for (Index row = 0; row < last - first; ++row) {
              pictures_.gather(lines, row, seen);
              expand(tiles, seen, pictures_.stride(), grid.width, expansion, s,
                     slice + row * grid.width * kSlice);
            }
          } else {
            expand(tiles, x + (image * layer.in_pixels() + first * grid.width) * layer.in(),
                   layer.in(), (last - first) * grid.width, expansion, s, slice);
          }
          depthwise(Band{slice, first, last - first}, grid, layer.depthwise, channel, count, row,
                    row_end, zeros, to + channel, layer.hidden());
        }
      };

      // Calls body(i) for the items that this thread gets: who is done takes the next.
      Index step = 0;
      auto share_out = [&](Index items, const auto& body) {
        std::atomic<Index>& next = counters[step++];
        for (Index i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;) body(i);
#pragma omp barrier
      };

      const T* x = nullptr;
      for (Index number = 0; number < (Index)layers_.size(); ++number) {
        const Layer& layer = *layers_[number];
        const Share& share = plan.shares[number];
        T* const y = maps[number % 2];
        const T* const residual = layer.has_shortcut ? x : nullptr;
        const Matrix& projection = layer.projection;
        if (share.by_channels) {
          const Index image_size = layer.out_pixels() * layer.hidden();
          share_out(images * layer.slices(), [&](Index i) {
            const Index image = i / layer.slices(), s = i % layer.slices();
            filter(number, image, x, 0, layer.grid.out_height, s, s + 1,
                   shared_filtered + image * image_size);
          });
          share_out(projection.slices(), [&](Index s) {
            project(tiles, shared_filtered, images * layer.out_pixels(), projection, s, residual,
                    y);
          });
        } else {
          share_out(images * share.bands, [&](Index i) {
            const Index image = i / share.bands, row = i % share.bands * share.rows;
            const Index row_end = std::min(row + share.rows, layer.grid.out_height);
            filter(number, image, x, row, row_end, 0, layer.slices(), own_filtered);
            const Index width = layer.grid.out_width, pixels = (row_end - row) * width;
            const Index at = (image * layer.out_pixels() + row * width) * layer.out();
            for (Index s = 0; s < projection.slices(); ++s)
              project(tiles, own_filtered, pixels, projection, s,
                      residual ? residual + at : nullptr, y + at);
          });
        }
        x = y;
      }

      const Index pixels = layers_.back()->out_pixels();
      share_out(head_.slices() * images, [&](Index i) {
        const Index s = i / images, image = i % images;
        pool(tiles, x + image * pixels * head_.in(), pixels, head_, s,
             pooled + image * what_.features);
      });
      if (features)
        share_out(images, [&](Index image) {
          for (Index i = image * what_.features; i < (image + 1) * what_.features; ++i)
            features[i] = load<1>(pooled + i)[0];
        });
      if (logits)
        share_out(classifier_.slices(),
                  [&](Index s) { classify(tiles, pooled, images, classifier_, s, logits); });
    }
  }

 private:
  Description what_;
  Grid stem_grid_;
  Pictures pictures_;
  Matrix stem_;
  std::vector<std::unique_ptr<const Layer>> layers_;
  Matrix head_, classifier_;
};

}  // namespace

extern "C" {

void* network_new(const Description* what) { return new Network(*what); }

void network_free(void* network) { delete (Network*)network; }

// Bytes that a call needs to work in.
std::int64_t network_memory(const void* network, Index images, Index threads) {
  return ((const Network*)network)->plan(images, threads).bytes;
}

// `pictures` are images × channels × height × width. `features` and `logits` may be null.
void network_run(const void* network, const std::uint8_t* pictures, Index images, Index threads,
                 void* memory, float* features, float* logits) {
  ((const Network*)network)->run(pictures, images, threads, memory, features, logits);
}

}
