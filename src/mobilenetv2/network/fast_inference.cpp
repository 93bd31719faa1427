// Inference of MobileNetV2 on the CPU: pictures in, logits or features out, the whole network in
// one call.
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
// * Work is cut into bands of pictures; whichever thread is free takes the next. Where there are
//   fewer pictures than threads and a block's weights are more than its map, it is cut into slices
//   of channels instead, so that each thread reads a part of the weights only.
// * Every number is summed up in one order, whatever the batch and the threads: a picture's logits
//   are the same bits in any company.

#include <atomic>
#include <memory>

#include "products.h"

#if !defined(STORED)
#define STORED float
#endif

// What Python describes. Weights are out × in, as PyTorch's; a depthwise kernel is channels × 9, the
// stem's out × 9 × channels.
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
  std::int64_t picture_channels, stem_stride, keras, count, features, classes;
  const float *mean, *scale;  // a picture is (value - mean) * scale
  const BlockWeights* blocks;
  Weights head, classifier;
};

// What goes through it in one call: bytes, images × channels × height × width.
extern "C" struct Pictures {
  const std::uint8_t* bytes;
  std::int64_t images, height, width;
};

namespace {

using T = STORED;
using R = Real<T>;
static_assert(std::is_same_v<R, float>, "weights come as floats");

constexpr int kTaps = 9;

// Channels of a hidden map that are made at a time.
#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
constexpr Index kSlice = std::is_same_v<T, bf16> ? 32 : 48;
#else
constexpr Index kSlice = kBlockVectors * kLanes<T>;
#endif

// What a band of a hidden map may take of the second-level cache, before and behind its filters.
constexpr Index kBandBytes = 2 * kSecondLevelBytes;

constexpr Index ceil_divide(Index value, Index divisor) { return (value + divisor - 1) / divisor; }

// What is taken from one piece of memory, aligned for vectors.
constexpr Index kAlignment = 64;

template <class E>
Index size(Index count) {
  return round_up(count * (Index)sizeof(E), kAlignment);
}

struct Memory {
  char* rest;
  explicit Memory(char* begin) : rest(begin) {}
  template <class E>
  E* take(Index count) {
    E* const taken = (E*)rest;
    rest += size<E>(count);
    return taken;
  }
};

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
      panels_.back().clear_from(in);
      panels_.back().fill_columns(weights.weight + slice * kSlice * in, in, 0, columns(slice));
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

// A 3×3 kernel of each channel: from channels × 9 to 9 × channels.
struct Taps {
  std::vector<R> weight, bias;
  Index channels;

  Taps(Weights weights, Index channels)
      : weight(kTaps * channels),
        bias(weights.bias, weights.bias + channels),
        channels(channels) {
    for (Index c = 0; c < channels; ++c)
      for (int tap = 0; tap < kTaps; ++tap)
        weight[tap * channels + c] = weights.weight[c * kTaps + tap];
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
  Index pixels() const { return height * width; }
  Index out_pixels() const { return out_height * out_width; }
  // The rows that the outputs of [row, row_end) see, without those outside.
  Index first_row(Index row) const { return std::max<Index>(0, row * stride - top); }
  Index last_row(Index row_end) const {
    return std::min(height, (row_end - 1) * stride - top + 3);
  }
};

// What an inverted residual is made of.
struct Layer {
  std::unique_ptr<Matrix> expansion;  // the first has the stem instead
  Taps depthwise;
  Matrix projection;
  Index stride;
  bool has_shortcut;

  Index hidden() const { return projection.in(); }
  Index slices() const { return ceil_divide(hidden(), kSlice); }
};

// ---------------------------------------------------------------------------- the two 3×3s

// Rows of a map from `first` on, one slice of channels; pixels lie kSlice apart.
struct Band {
  const R* values;
  Index first;
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
    V shared[3] = {};  // the column left of an output's, and right of the last one's
    if (grid.left == 0) column(shared, 0);
    for (Index ox = 0; ox < grid.out_width; ++ox, to += to_stride) {
      const Index center = 2 * ox + 1 - grid.left;
      V sum = bias, other = {};
      add(sum, shared, first);
      column(x, center);
      add(other, x, middle);
      if (center + 1 < grid.width)
        column(shared, center + 1);
      else
        unrolled<3>([&](auto ky) { shared[ky] = V{}; });
      add(sum, shared, last);
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

// Bytes as floats.
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
class Normalised {
 public:
  static constexpr Index kAtOnce = 16;  // numbers; three pixels have to fit in

  Normalised(const std::vector<R>& mean, const std::vector<R>& scale, const Grid& grid)
      : grid_(grid), channels_(mean.size()) {
    for (Index x = 0; x < grid.width; ++x) {
      mean_.insert(mean_.end(), mean.begin(), mean.end());
      scale_.insert(scale_.end(), scale.begin(), scale.end());
    }
  }

  Index bytes() const { return channels_ * grid_.pixels(); }
  // What one output of the stem sees: the rows of its 3×3 in turn, then something finite that weighs
  // nothing. Outputs lie so far apart.
  Index seen_stride() const { return round_up(kTaps * channels_ + 1, 32); }
  // Numbers of the rows that so many rows of outputs see.
  Index rows_size(Index rows) const {
    return ((rows - 1) * grid_.stride + 3) * row_size() + kAtOnce;
  }
  // Numbers that all outputs of a row see.
  Index seen_size() const { return grid_.out_width * seen_stride() + kAtOnce; }

  // The rows that the outputs of rows [row, row_end) see.
  void prepare(const std::uint8_t* picture, Index row, Index row_end, T* rows) const {
    const Index first = row * grid_.stride - grid_.top;
    const Index last = (row_end - 1) * grid_.stride - grid_.top + 3;
    std::fill_n(rows + (last - first) * row_size(), kAtOnce, T{});  // read, but weighs nothing
    for (Index y = first; y < last; ++y) {
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
    for (Index ox = 0; ox < grid_.out_width; ++ox, from += step, to += seen_stride())
      for (Index ky = 0; ky < 3; ++ky)  // what is too much is overwritten by the next
        std::memcpy(to + ky * side, from + ky * row_size(), kAtOnce * sizeof(T));
  }

 private:
  Index row_size() const { return (grid_.width + 2) * channels_; }

  void prepare_row(const std::uint8_t* row, T* to) const {
    const Index plane = grid_.pixels();
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
    using Bytes = Vector<std::uint8_t, 16>;
    Bytes of_two = {}, of_three = {};  // constants: where each number is taken from
    for (int i = 0; i < 16; ++i) {
      const int place = (16 * part + i) / 3, channel = (16 * part + i) % 3;
      of_two[i] = channel == 1 ? 16 + place : place;
      of_three[i] = channel == 2 ? 16 + place : i;
    }
    return __builtin_shuffle(__builtin_shuffle(c[0], c[1], of_two), c[2], of_three);
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

// `rows` pixels of `count` channels, kSlice apart, to `to`, `stride` apart.
void keep(const R* from, Index rows, Index count, T* to, Index stride) {
  for (Index r = 0; r < rows; ++r)
    for_channels<T>(count, [&](auto lanes, Index c) {
      store<lanes>(to + r * stride + c, load<lanes>(from + r * kSlice + c));
    });
}

// `rows` pixels of x through one slice of a projection, plus `residual` (may be null); to `to`.
// Both begin at the first pixel's first channel.
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

// Numbers, stored otherwise.
template <class From, class To>
void convert(const From* from, Index count, To* to) {
  for_channels<T>(count,
                  [&](auto lanes, Index i) { store<lanes>(to + i, load<lanes>(from + i)); });
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

// How a block of the network is worked on in one call.
struct Share {
  Grid grid;
  bool by_channels;
  Index rows, bands;  // of a picture

  Share(const Layer& layer, Grid grid, Index images, Index threads) : grid(grid) {
    const Index hidden = layer.hidden(), weights = hidden * layer.projection.out();
    by_channels = images < threads && weights > grid.out_pixels() * hidden;
    const Index row_bytes = grid.out_width * hidden * (Index)sizeof(T) +
                            grid.stride * grid.width * kSlice * (Index)sizeof(R);
    const Index fitting = std::max<Index>(4, kBandBytes / row_bytes);
    bands = ceil_divide(grid.out_height, fitting);
    if (images < threads) bands = std::min(round_up(bands, threads), grid.out_height);
    if (by_channels) bands = 1;
    rows = ceil_divide(grid.out_height, bands);
    bands = ceil_divide(grid.out_height, rows);
  }
  // Rows of the map that a band's outputs see, at most.
  Index seen_rows() const { return std::min(grid.height, (rows - 1) * grid.stride + 3); }
};

class Network {
 public:
  explicit Network(const Description& what)
      : keras_(what.keras),
        stem_stride_(what.stem_stride),
        mean_(what.mean, what.mean + what.picture_channels),
        scale_(what.scale, what.scale + what.picture_channels),
        stem_(what.blocks[0].expansion, kTaps * what.picture_channels,
              what.blocks[0].hidden_channels, round_up(kTaps * what.picture_channels, 2)),
        head_(what.head, what.blocks[what.count - 1].out_channels, what.features),
        classifier_(what.classifier, what.features, what.classes) {
    for (Index i = 0; i < what.count; ++i) {
      const BlockWeights& block = what.blocks[i];
      const Index hidden = block.hidden_channels;
      layers_.emplace_back(new Layer{
          i == 0 ? nullptr : std::make_unique<Matrix>(block.expansion, block.in_channels, hidden),
          Taps(block.depthwise, hidden), Matrix(block.projection, hidden, block.out_channels),
          block.stride, block.has_shortcut != 0});
    }
  }

  // What a call works in: where it lies, and how much of it there is.
  struct Plan {
    Normalised pictures;
    std::vector<Share> shares;
    Index map = 0, slice = 0, filtered = 0, common_filtered = 0, zeros = 0;  // numbers
    Index lines, seen;
    Index per_thread, bytes;

    Plan(const Network& network, const Pictures& what, Index threads)
        : Plan(network, what, threads,
               Grid(what.height, what.width, network.stem_stride_, network.keras_)) {}

   private:
    Plan(const Network& network, const Pictures& what, Index threads, const Grid& stem)
        : pictures(network.mean_, network.scale_, stem) {
      Index height = stem.out_height, width = stem.out_width;
      for (const auto& layer : network.layers_) {
        const Index hidden = layer->hidden();
        shares.emplace_back(*layer, Grid(height, width, layer->stride, network.keras_),
                            what.images, threads);
        const Share& share = shares.back();
        const Grid& grid = share.grid;
        map = std::max(map, what.images * grid.out_pixels() * layer->projection.out());
        slice = std::max(slice, share.seen_rows() * grid.width * kSlice);
        Index& room = share.by_channels ? common_filtered : filtered;
        room = std::max(room, share.rows * grid.out_width * hidden *
                                  (share.by_channels ? what.images : 1));
        zeros = std::max(zeros, grid.width * kSlice);
        height = grid.out_height, width = grid.out_width;
      }
      lines = pictures.rows_size(shares[0].seen_rows());
      seen = pictures.seen_size();
      per_thread = size<T>(filtered) + size<R>(slice) + size<T>(lines) + size<T>(seen) +
                   size<R>(zeros);
      bytes = 2 * size<T>(map) + size<T>(what.images * network.head_.out()) +
              size<T>(common_filtered) + threads * per_thread + kAlignment;
    }
  };

  // Features (images × features) and logits (images × classes): each unless it is null.
  void run(const Pictures& what, Index threads, void* memory, float* features,
           float* logits) const {
    const Plan plan(*this, what, threads);
    const Index images = what.images;
    Memory common((char*)round_up((Index)memory, kAlignment));
    T* const maps[2] = {common.take<T>(plan.map), common.take<T>(plan.map)};
    T* const stem_map = maps[1];  // where a shortcut leads around the first block
    T* const pooled = common.take<T>(images * head_.out());
    T* const common_filtered = common.take<T>(plan.common_filtered);
    std::vector<std::atomic<Index>> counters(2 * layers_.size() + 3);

#pragma omp parallel num_threads(threads)
    {
      Memory own(common.rest + omp_get_thread_num() * plan.per_thread);
      T* const own_filtered = own.take<T>(plan.filtered);
      R* const slice = own.take<R>(plan.slice);
      T* const lines = own.take<T>(plan.lines);
      T* const seen = own.take<T>(plan.seen);
      R* const zeros = own.take<R>(plan.zeros);
      std::fill_n(zeros, plan.zeros, R{});
      Tiles tiles;

      // Slice s of the hidden map of rows [first, last).
      auto hidden_map = [&](Index number, Index image, const T* x, Index first, Index last,
                            Index s) {
        const Grid& grid = plan.shares[number].grid;
        if (number > 0) {
          const Matrix& expansion = *layers_[number]->expansion;
          expand(tiles, x + (image * grid.pixels() + first * grid.width) * expansion.in(),
                 expansion.in(), (last - first) * grid.width, expansion, s, slice);
          return;
        }
        for (Index row = 0; row < last - first; ++row) {
          plan.pictures.gather(lines, row, seen);
          expand(tiles, seen, plan.pictures.seen_stride(), grid.width, stem_, s,
                 slice + row * grid.width * kSlice);
        }
      };

      // The hidden map filtered, slices [from, end) of the outputs' rows [row, row_end).
      auto filter = [&](Index number, Index image, const T* x, Index row, Index row_end,
                        Index from, Index end, T* to) {
        const Layer& layer = *layers_[number];
        const Grid& grid = plan.shares[number].grid;
        const Index first = grid.first_row(row), last = grid.last_row(row_end);
        if (number == 0)
          plan.pictures.prepare(what.bytes + image * plan.pictures.bytes(), first, last, lines);
        for (Index s = from; s < end; ++s) {
          hidden_map(number, image, x, first, last, s);
          const Index channel = s * kSlice, hidden = layer.hidden();
          const Index count = std::min(kSlice, hidden - channel);
          depthwise(Band{slice, first}, grid, layer.depthwise, channel, count, row, row_end, zeros,
                    to + channel, hidden);
          if (number == 0 && layer.has_shortcut)
            keep(slice + (row - first) * grid.width * kSlice, (row_end - row) * grid.width, count,
                 stem_map + (image * grid.pixels() + row * grid.width) * hidden + channel, hidden);
        }
      };

      // Calls body(i) for the items that this thread gets: who is done takes the next.
      Index round = 0;
      auto share_out = [&](Index items, const auto& body) {
        std::atomic<Index>& next = counters[round++];
        for (Index i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;) body(i);
#pragma omp barrier
      };

      const T* x = nullptr;
      for (Index number = 0; number < (Index)layers_.size(); ++number) {
        const Layer& layer = *layers_[number];
        const Share& share = plan.shares[number];
        const Grid& grid = share.grid;
        T* const y = maps[number % 2];
        const T* const input = number == 0 ? stem_map : x;
        const T* const residual = layer.has_shortcut ? input : nullptr;
        const Matrix& projection = layer.projection;
        if (share.by_channels) {
          share_out(images * layer.slices(), [&](Index i) {
            const Index image = i / layer.slices(), s = i % layer.slices();
            filter(number, image, x, 0, grid.out_height, s, s + 1,
                   common_filtered + image * grid.out_pixels() * layer.hidden());
          });
          share_out(projection.slices(), [&](Index s) {
            project(tiles, common_filtered, images * grid.out_pixels(), projection, s, residual,
                    y);
          });
        } else {
          share_out(images * share.bands, [&](Index i) {
            const Index image = i / share.bands, row = i % share.bands * share.rows;
            const Index row_end = std::min(row + share.rows, grid.out_height);
            filter(number, image, x, row, row_end, 0, layer.slices(), own_filtered);
            const Index pixels = (row_end - row) * grid.out_width;
            const Index at =
                (image * grid.out_pixels() + row * grid.out_width) * projection.out();
            for (Index s = 0; s < projection.slices(); ++s)
              project(tiles, own_filtered, pixels, projection, s,
                      residual ? residual + at : nullptr, y + at);
          });
        }
        x = y;
      }

      const Index pixels = plan.shares.back().grid.out_pixels(), count = head_.out();
      share_out(head_.slices() * images, [&](Index i) {
        const Index s = i / images, image = i % images;
        pool(tiles, x + image * pixels * head_.in(), pixels, head_, s, pooled + image * count);
      });
      if (features)
        share_out(images,
                  [&](Index i) { convert(pooled + i * count, count, features + i * count); });
      if (logits)
        share_out(classifier_.slices(),
                  [&](Index s) { classify(tiles, pooled, images, classifier_, s, logits); });
    }
  }

  // The logits of images whose features are known: the same bits as `run` gives.
  void classify_features(const float* features, Index images, float* logits) const {
    const Buffer<T> pooled(images * classifier_.in());
    convert(features, images * classifier_.in(), pooled.get());
    Tiles tiles;
    for (Index s = 0; s < classifier_.slices(); ++s)
      classify(tiles, pooled.get(), images, classifier_, s, logits);
  }

 private:
  Index keras_, stem_stride_;
  std::vector<R> mean_, scale_;
  Matrix stem_;
  std::vector<std::unique_ptr<const Layer>> layers_;
  Matrix head_, classifier_;
};

}  // namespace

extern "C" {

// Null where memory is short.
void* network_new(const Description* what) {
  try {
    return new Network(*what);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void network_free(void* network) { delete (Network*)network; }

// Bytes that a call needs to work in; -1 where memory is short.
Index network_memory(const void* network, const Pictures* what, Index threads) {
  try {
    return Network::Plan(*(const Network*)network, *what, threads).bytes;
  } catch (const std::bad_alloc&) {
    return -1;
  }
}

// `features` are images × features and `logits` images × classes, each unless it is null. Says
// whether there was memory enough.
int network_run(const void* network, const Pictures* what, Index threads, void* memory,
                float* features, float* logits) {
  try {
    ((const Network*)network)->run(*what, threads, memory, features, logits);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

// Logits of features that `network_run` gave. Says whether there was memory enough.
int network_classify(const void* network, const float* features, Index images, float* logits) {
  try {
    ((const Network*)network)->classify_features(features, images, logits);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

}
