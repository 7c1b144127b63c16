// Filling the buffers of an adder pass on a GPU: which rows and columns a block has, and how they come to shared
// memory.
//
// It is a matrix product's scheme, with the sum's dimension innermost everywhere: as activations lie channels last,
// 16 bytes of it are copied and read as they are, and halves come in pairs. What needs no conversion is copied
// without passing through registers. What lies unaligned, as with odd numbers of channels, is loaded one by one and
// filled up with zeros, which neither pass counts.
#pragma once
#include "adder_cuda_math.h"
#include "adder_cuda_plan.h"
#include "device_memory.h"

namespace addernet {

constexpr int kDepth = 4;           // chunks in a buffer: 16 floats, or 32 halves, which is as far as halves sum up
constexpr int kPitch = kDepth + 1;  // chunks from row to row: odd, so that 8 rows lie in different banks

// Each thread has kRows x kColumns results of a block's kHeight x kWidth.
template <int Height, int Width, int Rows, int Columns>
struct Tile {
  static constexpr int kHeight = Height, kWidth = Width, kRows = Rows, kColumns = Columns;
  static constexpr int kDown = kHeight / kRows, kAcross = kWidth / kColumns, kThreads = kDown * kAcross;
  static constexpr int kLoaders = kThreads / kDepth;  // threads that load the same chunk of different rows
  static constexpr int kRowLoads = kHeight / kLoaders, kColumnLoads = kWidth / kLoaders;
  static_assert(kHeight % kLoaders == 0 && kWidth % kLoaders == 0 && kThreads % 32 == 0);
};

// What a pass reads and computes in: S the source's elements (x, or y's gradient), X those of x, E the chunks'.
template <typename X_, typename T_>
struct Forward {
  static constexpr bool kGradient = false;
  using X = X_;
  using T = T_;
  using S = X;
  using Result = T;
  using E = std::conditional_t<std::is_same_v<X, BFloat16>, float, X>;
};
template <typename X_, typename T_>
struct InputGradient {
  static constexpr bool kGradient = true;
  using X = X_;
  using T = T_;
  using S = T;
  using Result = X;
  using E = std::conditional_t<std::is_same_v<X, BFloat16>, float, X>;
};

template <typename Pass>
struct Arrays {
  const typename Pass::S* __restrict__ source;
  const typename Pass::T* __restrict__ filters;
  const typename Pass::X* __restrict__ x;  // of the input gradient
  typename Pass::Result* __restrict__ result;
};

struct alignas(16) Row {
  int32_t h, w;    // of its first tap
  int64_t source;  // where that is, if it exists
};
constexpr int32_t kNowhere = -(1 << 30);

template <typename Pass, typename Tile>
struct Shared {
  using E = typename Pass::E;
  using T = typename Pass::T;
  static constexpr bool kScales = Pass::kGradient && std::is_same_v<E, Half>;
  Chunk<E> source[2][Tile::kHeight][kPitch], filters[2][Tile::kWidth][kPitch];
  Row row[Tile::kHeight];
  int64_t result[Tile::kHeight];  // where a row's results go, or -1
  T sums[Pass::kGradient ? Tile::kHeight : 1][kDepth];
  float from_half[2][kScales ? Tile::kHeight : 1];
};

// Where a thread is in the sum: one chunk of it.
struct Cursor {
  int32_t tap_h, tap_w, chunk;

  __device__ __forceinline__ void advance(int32_t by, const Walk& w, int32_t chunks) {
    chunk += by;
    while (chunk >= chunks) {
      chunk -= chunks;
      if (++tap_w == w.count) tap_w = 0, ++tap_h;
    }
  }
};

// ------------------------------------------------------------------ accesses of several elements

// K neighbours; `whole` where all exist and lie aligned, else the first `count`, and zeros.
template <int K, typename S>
__device__ __forceinline__ void load(const S* from, int32_t count, bool whole, Precision<S> (&to)[K]) {
  constexpr int bytes = K * sizeof(S) < 16 ? K * sizeof(S) : 16, each = bytes / sizeof(S);
  using W = typename Word<bytes>::type;
  if (whole) {
    UNROLL
    for (int k = 0; k < K; k += each) {
      const W word = __ldg(reinterpret_cast<const W*>(from + k));
      S stored[each];
      memcpy(stored, &word, bytes);
      UNROLL
      for (int i = 0; i < each; ++i) to[k + i] = widen(stored[i]);
    }
  } else {
    UNROLL
    for (int k = 0; k < K; ++k) to[k] = k < count ? widen(from[k]) : Precision<S>(0);
  }
}

template <int K, typename S>
__device__ __forceinline__ void store(S* to, int32_t count, bool whole, const Precision<S> (&from)[K]) {
  constexpr int bytes = K * sizeof(S) < 16 ? K * sizeof(S) : 16, each = bytes / sizeof(S);
  using W = typename Word<bytes>::type;
  if (whole) {
    UNROLL
    for (int k = 0; k < K; k += each) {
      S stored[each];
      UNROLL
      for (int i = 0; i < each; ++i) stored[i] = narrow<S>(from[k + i]);
      W word;
      memcpy(&word, stored, bytes);
      *reinterpret_cast<W*>(to + k) = word;
    }
  } else {
    UNROLL
    for (int k = 0; k < K; ++k)
      if (k < count) to[k] = narrow<S>(from[k]);
  }
}

// ------------------------------------------------------------------------------- a block's place

struct Place {
  int32_t group, first_column;
  int64_t first_row;
  int32_t remainder_h, remainder_w;
};

// Columns run fastest, so that blocks that run together read the same source.
template <typename Tile>
__device__ __forceinline__ Place place_of_block(const Plan& plan) {
  const auto column_tiles = static_cast<uint32_t>((plan.column_channels + Tile::kWidth - 1) / Tile::kWidth);
  const auto row_tiles = static_cast<uint32_t>((plan.rows + Tile::kHeight - 1) / Tile::kHeight);
  uint32_t rest = blockIdx.x;
  const auto next = [&](uint32_t count) {
    const uint32_t index = rest % count;
    rest /= count;
    return static_cast<int32_t>(index);
  };
  Place place;
  place.first_column = next(column_tiles) * Tile::kWidth;
  place.first_row = static_cast<int64_t>(next(row_tiles)) * Tile::kHeight;
  place.remainder_w = next(plan.w.classes);
  place.remainder_h = next(plan.h.classes);
  place.group = rest;
  return place;
}

template <typename Pass, typename Tile>
__device__ __forceinline__ void find_rows(Shared<Pass, Tile>& shared, const Plan& plan, const Place& place,
                                          const Walk& in_h, const Walk& in_w) {
  for (int r = threadIdx.x; r < Tile::kHeight; r += Tile::kThreads) {
    Row row{kNowhere, kNowhere, 0};
    int64_t result = -1;
    const int64_t index = place.first_row + r;
    if (index < plan.rows) {
      const int64_t line = index / plan.w.rows, n = line / plan.h.rows;
      const auto w = static_cast<int32_t>(index - line * plan.w.rows), h = static_cast<int32_t>(line - n * plan.h.rows);
      const int32_t y = Pass::kGradient ? h * plan.h.stride + place.remainder_h : h;
      const int32_t x = Pass::kGradient ? w * plan.w.stride + place.remainder_w : w;
      if (y < plan.h.result && x < plan.w.result) {
        row.h = h * in_h.mul + in_h.add, row.w = w * in_w.mul + in_w.add;
        row.source = ((n * plan.h.source + row.h) * plan.w.source + row.w) * plan.source_channels +
                     place.group * plan.sum_channels;
        result = ((n * plan.h.result + y) * plan.w.result + x) * plan.result_channels +
                 place.group * plan.column_channels + place.first_column;
      }
    }
    shared.row[r] = row;
    shared.result[r] = result;
  }
}

// ------------------------------------------------------------------------------- filling a buffer

template <typename Pass, typename Tile>
__device__ __forceinline__ void load_source(Shared<Pass, Tile>& shared, int buffer, const Plan& plan,
                                            const Arrays<Pass>& arrays, const Cursor& at, const Walk& in_h,
                                            const Walk& in_w) {
  using S = typename Pass::S;
  using E = typename Pass::E;
  constexpr int K = Chunk<E>::kElements;
  // What is to be converted waits in registers.
  [[maybe_unused]] constexpr int kTogether = std::is_same_v<S, E> ? Tile::kRowLoads : 2;
  const int own = threadIdx.x % kDepth, first = threadIdx.x / kDepth;
  const int32_t dh = at.tap_h * in_h.step, dw = at.tap_w * in_w.step;
  const int64_t step = (static_cast<int64_t>(dh) * plan.w.source + dw) * plan.source_channels + at.chunk * K;
  const bool some = at.tap_h < in_h.count;
  UNROLL_BY(kTogether)
  for (int l = 0; l < Tile::kRowLoads; ++l) {
    const int r = first + l * Tile::kLoaders;
    const Row row = shared.row[r];
    const bool exists = some && static_cast<uint32_t>(row.h + dh) < static_cast<uint32_t>(plan.h.source) &&
                        static_cast<uint32_t>(row.w + dw) < static_cast<uint32_t>(plan.w.source);
    const S* from = arrays.source + (row.source + step);
    Chunk<E>* to = &shared.source[buffer][r][own];
    if constexpr (std::is_same_v<S, E>) {
      if (plan.whole_source) {
        start_copy(to, from, exists);
        continue;
      }
    }
    Precision<S> values[K] = {};
    if (exists) load<K>(from, plan.sum_channels - at.chunk * K, plan.whole_source, values);
    if constexpr (Shared<Pass, Tile>::kScales) {
      float largest = 0;
      UNROLL
      for (int k = 0; k < K; ++k) {
        const float size = std::fabs(values[k]);
        largest = size <= largest ? largest : size;  // NaN counts as the largest
      }
      UNROLL
      for (int lanes = 1; lanes < kDepth; lanes *= 2) {  // over the threads that load the same row
        const float other = __shfl_xor_sync(0xffffffffu, largest, lanes);
        largest = other <= largest ? largest : other;
      }
      const Scale scale = scale_for(largest);
      UNROLL
      for (int k = 0; k < K; ++k) values[k] *= scale.to_half;
      if (own == 0) shared.from_half[buffer][r] = scale.from_half;
    }
    *to = chunk_of<E>(values);
  }
}

// Filters on their way to shared memory: copied at once where nothing is to be converted, else through registers
// while the thread computes. Neighbouring columns of a thread's results lie kAcross apart there.
template <typename Pass, typename Tile>
struct FilterLoads {
  using E = typename Pass::E;
  using T = typename Pass::T;
  static constexpr int K = Chunk<E>::kElements;
  static constexpr bool kAtOnce = std::is_same_v<T, E> && !Pass::kGradient;
  T values[kAtOnce ? 1 : Tile::kColumnLoads][K];

  __device__ __forceinline__ static int column(int load) { return threadIdx.x / kDepth + load * Tile::kLoaders; }
  __device__ __forceinline__ static Chunk<E>* place_of(Shared<Pass, Tile>& shared, int buffer, int column) {
    const int row = column % Tile::kColumns * Tile::kAcross + column / Tile::kColumns;
    return &shared.filters[buffer][row][threadIdx.x % kDepth];
  }

  __device__ __forceinline__ void start(Shared<Pass, Tile>& shared, int buffer, const Plan& plan, const Place& place,
                                        const T* filters, const Cursor& at, const Walk& in_h, const Walk& in_w) {
    const int64_t tap = (in_h.first + at.tap_h * in_h.every) * plan.w.kernel + in_w.first + at.tap_w * in_w.every;
    const T* from = filters + place.group * plan.filter_group + tap * plan.filter_tap + at.chunk * K * plan.filter_sum;
    const int32_t count = plan.sum_channels - at.chunk * K;
    UNROLL
    for (int l = 0; l < Tile::kColumnLoads; ++l) {
      const bool exists = at.tap_h < in_h.count && place.first_column + column(l) < plan.column_channels;
      const T* own = from + (place.first_column + column(l)) * plan.filter_column;
      if constexpr (Pass::kGradient) {
        UNROLL
        for (int k = 0; k < K; ++k) values[l][k] = exists && k < count ? __ldg(own + k * plan.filter_sum) : T(0);
      } else if constexpr (kAtOnce) {
        Chunk<E>* to = place_of(shared, buffer, column(l));
        if (plan.whole_filters) {
          start_copy(to, own, exists);
        } else {
          load<K>(own, exists ? count : 0, false, values[0]);
          *to = chunk_of<E>(values[0]);
        }
      } else {
        load<K>(own, exists ? count : 0, exists && plan.whole_filters, values[l]);
      }
    }
  }

  __device__ __forceinline__ void finish(Shared<Pass, Tile>& shared, int buffer) {
    if constexpr (!kAtOnce) {
      UNROLL
      for (int l = 0; l < Tile::kColumnLoads; ++l) {
        UNROLL
        for (int k = 0; k < K; ++k)
          if constexpr (Pass::kGradient) values[l][k] = values[l][k] * T(0.5) + T(0.5);
        *place_of(shared, buffer, column(l)) = chunk_of<E>(values[l]);
      }
    }
  }
};

}  // namespace addernet
