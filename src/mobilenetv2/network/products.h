// Products of matrices: blocks in registers, or in the processor's matrix tiles (AMX).

#pragma once

#include <limits>
#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "vectors.h"

namespace {

// A block of a product is summed up in registers: rows × vectors of columns. Blocks under one
// another make a group. Its results lie in the first-level cache, and so does a slice of the right
// side while the group's blocks go over it.
constexpr int kBlockRows = k16Registers ? 6 : 8, kBlockVectors = k16Registers ? 2 : 3;
constexpr Index kGroupRows = k16Registers ? 8 * kBlockRows : kBlockRows;
constexpr Index kSliceSteps = k16Registers ? 256 : std::numeric_limits<Index>::max();

template <class T>
constexpr int kLanes = kVectorBytes / sizeof(Real<T>);

// Numbers that one step along the inner dimension takes: bfloat16 is multiplied in pairs.
template <class T>
constexpr int kStep = sizeof(Real<T>) / sizeof(T);

// Whether the rows of a product's left side have to be contiguous. Else they are read across.
template <class T>
constexpr bool kTransposes = !k16Registers || std::is_same_v<T, bf16>;

// How deep a left side is made that has to be written anyway, with zeros behind: tiles are read
// fastest where their rows are whole lines of the cache.
template <class T>
constexpr Index padded(Index depth) {
#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
  if (std::is_same_v<T, bf16>) return round_up(depth, 32);
#endif
  return depth;
}

// What rows are gathered in: as deep as a tile of the processor's, if it has them; else a group.
constexpr Index kRowStep = std::max<Index>(32, kGroupRows);

// One step's numbers for each lane, and the same of one number for all lanes.
template <class T>
struct Steps {
  using Bits = std::conditional_t<std::is_same_v<T, bf16>, std::uint32_t, T>;
  using V = Vector<Bits, kLanes<T>>;

  static V load(const T* from) {
    V values;
    std::memcpy(&values, from, sizeof values);
    return values;
  }
  static V all(const T* from) {
    Bits value;
    std::memcpy(&value, from, sizeof value);
    return value - V{};
  }
};

// sum += a · b, lane by lane.
template <class T>
inline Vector<Real<T>, kLanes<T>> multiply_add(typename Steps<T>::V a, typename Steps<T>::V b,
                                               Vector<Real<T>, kLanes<T>> sum) {
  if constexpr (std::is_same_v<T, bf16>) {
    using V = Vector<float, kLanes<T>>;
#if defined(__AVX512BF16__)
    return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    constexpr std::uint32_t high = 0xffff0000;
    return sum + (V)(a << 16) * (V)(b << 16) + (V)(a & high) * (V)(b & high);
#endif
  } else {
    return sum + a * b;
  }
}

// Two rows of bfloat16 as one of pairs.
template <int lanes>
inline Vector<std::uint32_t, lanes> in_pairs(Vector<std::uint16_t, lanes> first,
                                             Vector<std::uint16_t, lanes> second) {
  return widened<lanes>(first) | widened<lanes>(second) << 16;
}

template <int lanes>
inline Vector<std::uint32_t, lanes> narrowed_in_pairs(Vector<float, lanes> first,
                                                      Vector<float, lanes> second) {
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
  if constexpr (lanes == 16) {
    const auto both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    static constexpr auto places = [] {
      struct { alignas(64) std::uint16_t at[2 * lanes]; } p{};
      for (std::uint16_t i = 0; i < lanes; ++i) p.at[2 * i] = i, p.at[2 * i + 1] = lanes + i;
      return p;
    }();
    return (Vector<std::uint32_t, lanes>)_mm512_permutexvar_epi16(
        _mm512_load_si512(places.at), both);
  }
#endif
  return in_pairs<lanes>(narrowed<lanes>(first), narrowed<lanes>(second));
}

// The right side of a product, depth × columns, as panels of a vector of columns each. A panel
// holds step after step; zeros fill up the last panel and the last step.
template <class T>
class Panels {
 public:
  Panels(T* memory, Index depth, Index columns)
      : memory_(memory),
        depth_(depth),
        columns_(columns),
        size_(round_up(depth, kStep<T>) * kLanes<T>) {
    if (columns % kLanes<T> != 0) std::fill_n(at(count() - 1), size_, T{});
    if (depth % kStep<T> != 0)
      for (Index panel = 0; panel < count(); ++panel)
        std::fill_n(at(panel + 1) - kLanes<T> * kStep<T>, kLanes<T> * kStep<T>, T{});
  }
  static Index memory(Index depth, Index columns) {
    return round_up(depth, kStep<T>) * round_up(columns, kLanes<T>);
  }

  Index columns() const { return columns_; }
  Index count() const { return (columns_ + kLanes<T> - 1) / kLanes<T>; }
  Index size() const { return size_; }
  T* at(Index panel) const { return memory_ + panel * size_; }
  T* at(Index k, Index column) const {
    return at(column / kLanes<T>) + k * kLanes<T> + column % kLanes<T> * kStep<T>;
  }

  // Takes a vector of columns of the rows k and k + 1, whose place is at(k, column); k is even.
  // The next two rows' place is kRowsApart behind it.
  static constexpr Index kRowsApart = 2 * kLanes<T>;
  template <int lanes>
  static void put(T* place, Vector<Real<T>, lanes> first, Vector<Real<T>, lanes> second) {
    if constexpr (std::is_same_v<T, bf16>) {
      write<std::uint32_t, lanes>(place, narrowed_in_pairs<lanes>(first, second));
    } else {
      store<lanes>(place, first);
      store<lanes>(place + kLanes<T>, second);
    }
  }

  // Takes weights, depth (or less: zeros follow) × columns, and rounds them to T.
  void fill(const Real<T>* weights, Index depth) const {
    parallel((depth + 1) / 2, [&](Index, Index pair, Index end) {
      for (; pair < end; ++pair) {
        const Real<T>* const row = weights + 2 * pair * columns_;
        const bool alone = 2 * pair + 1 == depth;
        for_channels<T>(columns_, [&](auto lanes, Index column) {
          const auto first = load<lanes>(row + column);
          T* const place = at(2 * pair, column);
          if (!alone)
            put<lanes>(place, first, load<lanes>(row + columns_ + column));
          else if constexpr (kStep<T> == 2)
            put<lanes>(place, first, Vector<Real<T>, lanes>{});
          else
            store<lanes>(place, first);
        });
      }
    });
    if (depth < depth_) clear_from(depth);
  }

  // Takes weights that lie transposed, columns × depth (or less: zeros follow).
  void fill_transposed(const Real<T>* weights, Index depth) const {
    parallel(columns_, [&](Index, Index column, Index end) {
      fill_columns(weights, depth, column, end);
    });
    if (depth < depth_) clear_from(depth);
  }

  // The same for columns [column, end), without the zeros.
  void fill_columns(const Real<T>* weights, Index depth, Index column, Index end) const {
    for (; column < end; ++column) {
      if (depth % kStep<T> != 0) at(depth - 1, column)[1] = T{};
      for_channels<T>(depth, [&](auto lanes, Index k) {
        T values[lanes];
        store<lanes>(values, load<lanes>(weights + column * depth + k));
        constexpr Index at_once = lanes % kStep<T> == 0 ? kStep<T> : 1;
        for (Index i = 0; i < lanes; i += at_once) {
          const Index step = (k + i) / kStep<T> * kStep<T>;
          std::memcpy(at(step, column) + (k + i - step), values + i, at_once * sizeof(T));
        }
      });
    }
  }

  // Zeros in the steps behind row k.
  void clear_from(Index k) const {
    k = round_up(k, kStep<T>);
    for (Index panel = 0; panel < count(); ++panel)
      std::fill(at(panel) + k * kLanes<T>, at(panel + 1), T{});
  }

 private:
  T* memory_;
  Index depth_, columns_, size_;
};

// The matrix `from` (rows × columns, rows `from_stride` apart) transposed; row c of it begins at
// to + c * stride.
template <class T>
void transpose(const T* from, Index from_stride, Index rows, Index columns, T* to, Index stride) {
  Index done = 0;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, bf16>) {
    constexpr Index side = 16;  // 16 pairs of rows by 16 columns, as a square of 32-bit numbers
    static constexpr auto masks = [] {
      struct { alignas(64) std::uint32_t lower[4][side], upper[4][side]; } m{};
      for (std::uint32_t bit = 0; bit < 4; ++bit)
        for (std::uint32_t i = 0; i < side; ++i) {
          const std::uint32_t distance = 1 << bit;
          m.lower[bit][i] = i & distance ? side + i - distance : i;
          m.upper[bit][i] = i & distance ? side + i : i + distance;
        }
      return m;
    }();
    for (; done + 2 * side <= rows; done += 2 * side)
      for (Index column = 0; column < columns; column += side) {
        const Index count = std::min(side, columns - column);
        Vector<std::uint32_t, side> square[side];
        for (Index pair = 0; pair < side; ++pair) {
          Vector<std::uint16_t, side> first = {}, second = {};
          const T* row = from + (done + 2 * pair) * from_stride + column;
          if (count == side) {
            std::memcpy(&first, row, sizeof first);
            std::memcpy(&second, row + from_stride, sizeof second);
          } else {
            std::memcpy(&first, row, count * sizeof(T));
            std::memcpy(&second, row + from_stride, count * sizeof(T));
          }
          square[pair] = in_pairs<side>(first, second);
        }
        unrolled<4>([&](auto bit) {
          const __m512i lower = _mm512_load_si512(masks.lower[bit]);
          const __m512i upper = _mm512_load_si512(masks.upper[bit]);
          unrolled<side>([&](auto i) {
            if constexpr ((i >> bit) % 2 == 0) {
              auto &a = square[i], &b = square[i + (1 << bit)];
              const auto first = (__m512i)a, second = (__m512i)b;
              a = (Vector<std::uint32_t, side>)_mm512_permutex2var_epi32(first, lower, second);
              b = (Vector<std::uint32_t, side>)_mm512_permutex2var_epi32(first, upper, second);
            }
          });
        });
        for (Index c = 0; c < count; ++c)
          write<std::uint32_t, side>(to + (column + c) * stride + done, square[c]);
      }
  }
#endif
  for (Index row = done; row < rows; ++row)
    for (Index c = 0; c < columns; ++c) to[c * stride + row] = from[row * from_stride + c];
}

// A block of a product, `rows` × `columns` numbers from (row, column) on; rows of results lie
// `stride` apart. Blocks begin at even rows and at whole vectors.
template <class R>
struct Block {
  Index row, rows, column, columns;
  const R* results;
  Index stride;

  template <int lanes>
  Vector<R, lanes> at(Index r, Index c) const {
    return load<lanes>(results + r * stride + c);
  }
};

// The left side of a product: where it begins, and how far apart its rows and its steps lie.
template <class T>
struct Left {
  const T* values;
  Index row, step = kStep<T>;
};

// A block of a product in registers: `rows` rows of a times `vectors` panels, written or added to
// `results`, whose rows are `vectors` vectors long.
template <class T, int rows, int vectors>
inline void multiply_block(Left<T> a, Index depth, const T* b, Index panel_size, bool add,
                           Real<T>* results) {
  using S = Steps<T>;
  constexpr int lanes = kLanes<T>;
  Vector<Real<T>, lanes> sums[rows][vectors] = {};
  auto each = [&](const auto& body) {
    unrolled<rows>([&](auto r) {
      unrolled<vectors>([&](auto v) { body(sums[r][v], results + (r * vectors + v) * lanes); });
    });
  };
  if (k16Registers && add) each([](auto& sum, Real<T>* at) { sum = load<lanes>(at); });
  auto step = [&](const T* a, Index stride, const T* b) {
    typename S::V right[vectors];
    unrolled<vectors>([&](auto v) { right[v] = S::load(b + v * panel_size); });
    unrolled<rows>([&](auto r) {
      const auto left = S::all(a + r * stride);
      unrolled<vectors>([&](auto v) { sums[r][v] = multiply_add<T>(left, right[v], sums[r][v]); });
    });
  };
  Index k = 0;
  const T* from = a.values;
  for (; k + kStep<T> <= depth; k += kStep<T>, from += a.step) step(from, a.row, b + k * lanes);
  if (k < depth) {  // half a pair is left
    T last[rows][kStep<T>] = {};
    for (int r = 0; r < rows; ++r) last[r][0] = from[r * a.row];
    step(last[0], kStep<T>, b + k * lanes);
  }
  each([](auto& sum, Real<T>* at) { store<lanes>(at, sum); });
}

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
// Whether this processor's matrix tiles (AMX) may be used: Linux wants to be asked, once.
inline bool have_tiles() {
  constexpr long request_permission = 0x1023, tile_data = 18;
  static const bool granted = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  return granted;
}

// What was written there has to be in memory now. GCC 12 does not tell itself that tiles read it.
inline void settle(const void* memory) { asm volatile("" : : "r"(memory) : "memory"); }

constexpr int kTileSide = 16;  // rows of a tile; 16 floats or 16 pairs of bfloat16 in each

// This thread's tiles. Telling them their shapes takes longer than many products of tiles, so it is
// done only where they change.
class Tiles {
 public:
  Tiles() = default;
  Tiles(const Tiles&) = delete;
  ~Tiles() {
    if (above_ > 0) _tile_release();
  }

  // 0 to 3 are sums (`above` rows, then `below` rows), 4 and 5 pieces of a, 6 and 7 pieces of
  // panels, `pairs` steps deep.
  void shape(Index above, Index below, Index pairs) {
    if (above == above_ && below == below_ && pairs == pairs_) return;
    above_ = above, below_ = below, pairs_ = pairs;
    struct alignas(64) {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } shapes;
    auto shape = [&](int tile, Index rows, Index row_bytes) {
      shapes.rows[tile] = rows;
      shapes.row_bytes[tile] = rows ? row_bytes : 0;
    };
    shape(0, above, 64), shape(1, above, 64), shape(2, below, 64), shape(3, below, 64);
    shape(4, above, 4 * pairs), shape(5, below, 4 * pairs);
    shape(6, pairs, 64), shape(7, pairs, 64);
    settle(&shapes);
    _tile_loadconfig(&shapes);
  }

 private:
  Index above_ = 0, below_ = 0, pairs_ = 0;
};

// Between two instructions on tiles: back to back they take longer while another thread is busy on
// the same core, as on a Xeon of 2023 that is shared with others.
inline void apart() { asm volatile("nop\n nop\n nop\n nop\n nop\n nop"); }

// Up to 2 × 2 tiles of a product, written to `sums`, whose rows are two tiles long.
template <bool two_down, bool two_across>
inline void multiply_tiles(const bf16* a, Index stride, Index depth, Index pairs, const bf16* b,
                           Index panel_size, float* sums) {
  constexpr Index row = 2 * kTileSide, bytes = row * sizeof(float);
  _tile_zero(0);
  if constexpr (two_across) _tile_zero(1);
  if constexpr (two_down) _tile_zero(2);
  if constexpr (two_down && two_across) _tile_zero(3);
  for (Index k = 0; k < depth; k += 2 * pairs) {
    _tile_loadd(4, a + k, stride * sizeof(bf16)); apart();
    _tile_loadd(6, b + k * kTileSide, 64); apart();
    _tile_dpbf16ps(0, 4, 6); apart();
    if constexpr (two_across) {
      _tile_loadd(7, b + panel_size + k * kTileSide, 64); apart();
      _tile_dpbf16ps(1, 4, 7); apart();
    }
    if constexpr (two_down) {
      _tile_loadd(5, a + kTileSide * stride + k, stride * sizeof(bf16)); apart();
      _tile_dpbf16ps(2, 5, 6); apart();
      if constexpr (two_across) {
        _tile_dpbf16ps(3, 5, 7); apart();
      }
    }
  }
  _tile_stored(0, sums, bytes);
  if constexpr (two_across) _tile_stored(1, sums + kTileSide, bytes);
  if constexpr (two_down) _tile_stored(2, sums + kTileSide * row, bytes);
  if constexpr (two_down && two_across) _tile_stored(3, sums + kTileSide * row + kTileSide, bytes);
}

// As multiply() below, for an even depth.
template <class Finish>
void multiply_by_tiles(Tiles& tiles, const bf16* a, Index rows, Index stride, Index depth,
                       const Panels<bf16>& b, const Finish& finish) {
  constexpr Index side = kTileSide;
  Index steps = (depth + 2 * side - 1) / (2 * side);
  while (depth / 2 % steps != 0) ++steps;
  const Index pairs = depth / 2 / steps;
  // A block is finished while the next one is multiplied: tiles take their time.
  alignas(64) float sums[2][2 * side * 2 * side];
  Block<float> waiting{};
  int turn = 0;
  settle(a), settle(b.at(0));
  constexpr std::true_type two;
  constexpr std::false_type one;
  for (Index row = 0; row < rows; row += 2 * side) {
    const Index above = std::min(rows - row, side), below = std::min(rows - row - above, side);
    tiles.shape(above, below, pairs);
    for (Index panel = 0; panel < b.count(); panel += 2) {
      auto multiply = [&](auto two_down, auto two_across) {
        multiply_tiles<two_down, two_across>(a + row * stride, stride, depth, pairs, b.at(panel),
                                             b.size(), sums[turn]);
      };
      const bool two_across = panel + 1 < b.count();
      if (below > 0)
        two_across ? multiply(two, two) : multiply(two, one);
      else
        two_across ? multiply(one, two) : multiply(one, one);
      const Index column = panel * side, columns = std::min(2 * side, b.columns() - column);
      if (waiting.rows > 0) finish(waiting);
      waiting = Block<float>{row, above + below, column, columns, sums[turn], 2 * side};
      turn = 1 - turn;
    }
  }
  finish(waiting);
}
#else
struct Tiles {};
#endif

// Calls block(rows, r) for the blocks of a group, as large as they may be. A block of two rows waits
// for its own additions, so 8 rows are 4 and 4 rather than 6 and 2.
template <class Body>
inline void for_blocks(Index rows, const Body& block) {
  Index r = 0;
  for (; rows - r >= kBlockRows && rows - r != kBlockRows + 2; r += kBlockRows)
    block(std::integral_constant<int, kBlockRows>(), r);
  if constexpr (k16Registers) {
    for (; rows - r >= 4; r += 4) block(std::integral_constant<int, 4>(), r);
    for (; rows - r >= 2; r += 2) block(std::integral_constant<int, 2>(), r);
  }
  for (; r < rows; ++r) block(std::integral_constant<int, 1>(), r);
}

// a (rows × depth) times the panels. Calls finish(block) for each block.
template <class T, class Finish>
void multiply([[maybe_unused]] Tiles& tiles, Left<T> a, Index rows, Index depth,
              const Panels<T>& b, const Finish& finish) {
#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
  if constexpr (std::is_same_v<T, bf16>)
    if (have_tiles() && depth % 2 == 0)
      return multiply_by_tiles(tiles, a.values, rows, a.row, depth, b, finish);
#endif
  auto panels = [&](auto vectors, Index panel) {
    constexpr Index width = vectors * kLanes<T>;
    const Index first = panel * kLanes<T>, columns = std::min(width, b.columns() - first);
    alignas(64) Real<T> results[kGroupRows * width];
    for (Index row = 0; row < rows; row += kGroupRows) {
      const Index count = std::min(kGroupRows, rows - row);
      for (Index k = 0; k < depth; k += std::min(kSliceSteps, depth)) {
        const Index slice = std::min(kSliceSteps, depth - k);
        auto block = [&](auto block_rows, Index r) {
          const T* const from = a.values + (row + r) * a.row + k / kStep<T> * a.step;
          multiply_block<T, block_rows, vectors>(Left<T>{from, a.row, a.step}, slice,
                                                 b.at(panel) + k * kLanes<T>, b.size(), k > 0,
                                                 results + r * width);
        };
        for_blocks(count, block);
      }
      finish(Block<Real<T>>{row, count, first, columns, results, width});
    }
  };
  Index panel = 0;
  for (; panel + kBlockVectors <= b.count(); panel += kBlockVectors)
    panels(std::integral_constant<int, kBlockVectors>(), panel);
  if (panel + 2 == b.count()) panels(std::integral_constant<int, 2>(), panel);
  if (panel + 1 == b.count()) panels(std::integral_constant<int, 1>(), panel);
}

}  // namespace
