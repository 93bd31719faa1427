// Vectors of numbers, loops over channels and tiles, threads, and memory for them.

#pragma once

// Clang's parallel loops call an OpenMP runtime of its own beside GCC's, which PyTorch has loaded: two
// that do not know each other's threads.
#if defined(__clang__)
#error "these kernels need GCC, whose OpenMP PyTorch uses; this is Clang"
#endif

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__AVX__)
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
constexpr bool k16Registers = kVectorBytes < 64;  // else 32

template <class E, int lanes>
struct VectorOf {
  typedef E type __attribute__((vector_size(lanes * sizeof(E))));
};
template <class E, int lanes>
using Vector = typename VectorOf<E, lanes>::type;

// 16-bit numbers as 32-bit ones.
template <int lanes>
inline Vector<std::uint32_t, lanes> widened(Vector<std::uint16_t, lanes> bits) {
#if defined(__AVX512F__)  // one instruction, which GCC 12 does not find
  if constexpr (lanes == 16)
    return (Vector<std::uint32_t, lanes>)_mm512_cvtepu16_epi32((__m256i)bits);
#endif
  return __builtin_convertvector(bits, Vector<std::uint32_t, lanes>);
}

template <int lanes, class T>
inline Vector<Real<T>, lanes> load(const T* from) {
  if constexpr (std::is_same_v<T, bf16>) {
    Vector<std::uint16_t, lanes> bits;
    std::memcpy(&bits, from, sizeof bits);
    return (Vector<float, lanes>)(widened<lanes>(bits) << 16);
  } else {
    Vector<T, lanes> values;
    std::memcpy(&values, from, sizeof values);
    return values;
  }
}

// Writes a vector to where numbers of its kind lie. (memcpy would tell the compiler that anything
// may have changed, the variables of the loop around it too.)
template <class E, int lanes>
inline void write(void* to, Vector<E, lanes> values) {
  typedef E Unaligned __attribute__((vector_size(lanes * sizeof(E)), aligned(alignof(E))));
  *(Unaligned*)to = values;
}

// The upper halves of floats, rounded to nearest, ties to even. A NaN stays one.
template <int lanes>
inline Vector<std::uint16_t, lanes> narrowed(Vector<float, lanes> values) {
  using Half = Vector<std::uint16_t, lanes>;
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
  if constexpr (lanes == 16) return (Half)_mm512_cvtneps_pbh((__m512)values);
  if constexpr (lanes == 8) return (Half)_mm256_cvtneps_pbh((__m256)values);
#endif
  using Bits = Vector<std::uint32_t, lanes>;
  const Bits exact = (Bits)values;
  const Bits rounded = (exact + 0x7fff + ((exact >> 16) & 1)) >> 16;
  const Bits quiet_nan = (exact >> 16) | 0x40;
  return __builtin_convertvector(values == values ? rounded : quiet_nan, Half);
}

template <int lanes, class T>
inline void store(T* to, Vector<Real<T>, lanes> values) {
  if constexpr (std::is_same_v<T, bf16>)
    write<std::uint16_t, lanes>(to, narrowed<lanes>(values));
  else
    write<T, lanes>(to, values);
}

// Writes two vectors to two places, which takes less than one after the other.
template <int lanes, class T>
inline void store_both(T* to, Vector<Real<T>, lanes> values, T* other_to,
                       Vector<Real<T>, lanes> other) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<T, bf16> && lanes == 16) {
    const auto both = (__m512i)_mm512_cvtne2ps_pbh((__m512)other, (__m512)values);
    _mm256_storeu_si256((__m256i*)to, _mm512_castsi512_si256(both));
    _mm256_storeu_si256((__m256i*)other_to, _mm512_extracti64x4_epi64(both, 1));
    return;
  }
#endif
  store<lanes>(to, values);
  store<lanes>(other_to, other);
}

template <class R, int lanes>
inline void add_to(double* sums, Vector<R, lanes> values) {
  const auto wide = __builtin_convertvector(values, Vector<double, lanes>);
  store<lanes>(sums, load<lanes>(sums) + wide);
}

// A NaN comes through: these instructions give their second operand where one of the two is NaN.
// GCC 12 does not find them by itself.
template <class V>
inline V relu6(V value) {
  const V zero = {}, six = zero + 6;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, Vector<float, 16>>)
    return (V)_mm512_min_ps((__m512)six, _mm512_max_ps((__m512)zero, (__m512)value));
#endif
#if defined(__AVX__)
  if constexpr (std::is_same_v<V, Vector<float, 8>>)
    return (V)_mm256_min_ps((__m256)six, _mm256_max_ps((__m256)zero, (__m256)value));
#endif
  value = value < zero ? zero : value;
  return value > six ? six : value;
}

template <class V>
inline V where_relu6_passes(V before, V gradient) {
  const V zero = {}, six = zero + 6;
  return before > zero ? (before < six ? gradient : zero) : zero;
}

// --------------------------------------------------------------------- loops and threads

constexpr Index round_up(Index value, Index multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

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

// What may be taken of the caches.
constexpr Index kFirstLevelBytes = 1 << 15, kSecondLevelBytes = 1 << 18;
constexpr Index kTileRows = 32;  // 32 rows of 960 bf16 channels fill a quarter of a small L2

// Calls body(mine, thread, row, row_end) for every tile of rows; each thread has a `Mine`.
template <class Mine, class Body>
void for_tiles_with(Index rows, Index tile_rows, const Body& body) {
  const Index unit = k16Registers ? 1 : tile_rows;  // that is not divided between threads
  parallel((rows + unit - 1) / unit, [&](Index thread, Index begin, Index end) {
    Mine mine;
    const Index last = std::min(rows, end * unit);
    for (Index row = begin * unit; row < last; row += tile_rows)
      body(mine, thread, row, std::min(last, row + tile_rows));
  });
}

// Calls body(thread, row, row_end) for every tile of rows.
template <class Body>
void for_tiles(Index rows, Index tile_rows, const Body& body) {
  struct Nothing {};
  for_tiles_with<Nothing>(rows, tile_rows, [&](Nothing, Index thread, Index row, Index row_end) {
    body(thread, row, row_end);
  });
}

// Makes a tile, rows × channels, one block of channels after the other, two rows at a time.
// make(lanes, c) loads what the block of channels from c on needs, and returns a function:
// value(r, i, next) is the vector of row r, for place i of the tile. put(lanes, r, c, first,
// second) takes the vectors of rows r and r + 1, put_last(lanes, r, c, value) that of a row that
// is left over. `next` goes over what lies behind the tile in the order in which it lies, to be
// asked for: a core waits for memory less if it says early what it will read.
template <class T, class Make, class Put, class PutLast>
void for_row_pairs(Index rows, Index channels, const Make& make, const Put& put,
                   const PutLast& put_last) {
  for_channels<T>(channels, [&](auto lanes, Index c) {
    const auto value = make(lanes, c);
    Index row = 0, i = c, next = rows * channels + c * rows;
    for (; row + 1 < rows; row += 2, i += 2 * channels, next += 2 * lanes) {
      const auto first = value(row, i, next);
      put(lanes, row, c, first, value(row + 1, i + channels, next + lanes));
    }
    if (row < rows) put_last(lanes, row, c, value(row, i, next));
  });
}

// Fills the tile at `to`, whose rows lie `stride` apart.
template <class T, class Make>
void fill_tile(Index rows, Index channels, T* to, Index stride, const Make& make) {
  for_row_pairs<T>(
      rows, channels, make,
      [=](auto lanes, Index r, Index c, auto first, auto second) {
        T* const place = to + r * stride + c;
        store_both<lanes>(place, first, place + stride, second);
      },
      [=](auto lanes, Index r, Index c, auto value) { store<lanes>(to + r * stride + c, value); });
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

// Memory aligned for vectors, with nothing in it yet.
template <class E>
class Buffer {
 public:
  explicit Buffer(Index count) : values_((E*)::operator new(count * sizeof(E), kAlignment)) {}
  ~Buffer() { ::operator delete(values_, kAlignment); }
  Buffer(const Buffer&) = delete;
  E* get() const { return values_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  E* values_;
};

// A buffer for each thread.
template <class E>
class Scratch {
 public:
  explicit Scratch(Index count)
      : stride_(round_up(count, 64)), values_(omp_get_max_threads() * stride_) {}
  E* of(Index thread) const { return values_.get() + thread * stride_; }
  // Zeros in the first `count` of each.
  void clear(Index count) const {
    parallel(omp_get_max_threads(), [&](Index, Index thread, Index end) {
      for (; thread < end; ++thread) std::fill_n(of(thread), count, E{});
    });
  }

 private:
  Index stride_;
  Buffer<E> values_;
};

// Calls body(integral_constant) for 0, …, count - 1, so that arrays of vectors stay in registers.
template <int count, class Body>
inline void unrolled(const Body& body) {
  [&]<int... i>(std::integer_sequence<int, i...>) {
    (body(std::integral_constant<int, i>()), ...);
  }(std::make_integer_sequence<int, count>());
}
