// Computing an adder pass on a GPU from its buffers: a thread's results, and writing them.
#pragma once
#include "adder_cuda_buffers.h"

namespace addernet {

// A thread's results, and what they are made of.
template <typename Pass, typename Tile>
struct Results {
  using E = typename Pass::E;
  using T = typename Pass::T;
  using L = Lane<E>;
  static constexpr bool kHalves = std::is_same_v<E, Half>;
  // Beyond this the code would leave its cache, or registers run out.
  static constexpr int kUnroll = Tile::kRows * Tile::kColumns * (Pass::kGradient ? 2 : 1) > 32 ? 1 : 2;
  T sum[Tile::kRows][Tile::kColumns] = {};
  L x[Tile::kRows][Tile::kColumns];                          // x / 2, of the input gradient
  T source_sum[Pass::kGradient ? Tile::kRowLoads : 1] = {};  // of the chunks that this thread loads

  __device__ __forceinline__ static int row() { return threadIdx.x / Tile::kAcross; }
  __device__ __forceinline__ static int column() { return threadIdx.x % Tile::kAcross; }

  template <typename Accumulator>
  __device__ __forceinline__ void accumulate(const Shared<Pass, Tile>& shared, int buffer, Accumulator& to) {
    UNROLL_BY(kUnroll)
    for (int chunk = 0; chunk < kDepth; ++chunk) {
      Chunk<E> filters[Tile::kColumns];
      UNROLL
      for (int j = 0; j < Tile::kColumns; ++j) filters[j] = shared.filters[buffer][column() + j * Tile::kAcross][chunk];
      UNROLL
      for (int i = 0; i < Tile::kRows; ++i) {
        const Chunk<E> source = shared.source[buffer][row() + i * Tile::kDown][chunk];
        UNROLL
        for (int k = 0; k < Chunk<E>::kLanes; ++k) {
          UNROLL
          for (int j = 0; j < Tile::kColumns; ++j) {
            if constexpr (Pass::kGradient)
              to[i][j] = plus_gated(to[i][j], source.lane[k], filters[j].lane[k], x[i][j]);
            else
              to[i][j] = plus_distance(to[i][j], source.lane[k], filters[j].lane[k]);
          }
        }
      }
    }
  }

  __device__ __forceinline__ void add(const Shared<Pass, Tile>& shared, int buffer) {
    if constexpr (kHalves) {
      Pair few[Tile::kRows][Tile::kColumns] = {};  // 16 terms in each of a pair's halves, then float again
      accumulate(shared, buffer, few);
      UNROLL
      for (int i = 0; i < Tile::kRows; ++i) {
        const T scale = Pass::kGradient ? shared.from_half[buffer][row() + i * Tile::kDown] : T(1);
        UNROLL
        for (int j = 0; j < Tile::kColumns; ++j)
          sum[i][j] = Pass::kGradient ? std::fma(scale, total(few[i][j]), sum[i][j]) : sum[i][j] + total(few[i][j]);
      }
    } else {
      accumulate(shared, buffer, sum);
    }
  }

  __device__ __forceinline__ void add_source(const Shared<Pass, Tile>& shared, int buffer) {
    UNROLL
    for (int l = 0; l < Tile::kRowLoads; ++l) {
      const int r = threadIdx.x / kDepth + l * Tile::kLoaders;
      const Chunk<E> chunk = shared.source[buffer][r][threadIdx.x % kDepth];
      T few = 0;
      UNROLL
      for (int k = 0; k < Chunk<E>::kLanes; ++k) few += total(chunk.lane[k]);
      if constexpr (kHalves) few *= shared.from_half[buffer][r];
      source_sum[l] += few;
    }
  }

  __device__ __forceinline__ void load_x(const Shared<Pass, Tile>& shared, const Plan& plan, const Place& place,
                                         const typename Pass::X* from) {
    const int32_t first = column() * Tile::kColumns, count = plan.column_channels - place.first_column - first;
    UNROLL
    for (int i = 0; i < Tile::kRows; ++i) {
      const int64_t at = shared.result[row() + i * Tile::kDown];
      T values[Tile::kColumns] = {};
      if (at >= 0 && count > 0) load<Tile::kColumns>(from + at + first, count, plan.whole_result, values);
      UNROLL
      for (int j = 0; j < Tile::kColumns; ++j) x[i][j] = spread<E>(values[j] * T(0.5));
    }
  }

  __device__ __forceinline__ void write(Shared<Pass, Tile>& shared, const Plan& plan, const Place& place,
                                        typename Pass::Result* to) {
    if constexpr (Pass::kGradient) {
      UNROLL
      for (int l = 0; l < Tile::kRowLoads; ++l)
        shared.sums[threadIdx.x / kDepth + l * Tile::kLoaders][threadIdx.x % kDepth] = source_sum[l];
      __syncthreads();
    }
    const int32_t first = column() * Tile::kColumns, count = plan.column_channels - place.first_column - first;
    UNROLL
    for (int i = 0; i < Tile::kRows; ++i) {
      const int r = row() + i * Tile::kDown;
      const int64_t at = shared.result[r];
      if (at < 0 || count <= 0) continue;
      T values[Tile::kColumns];
      if constexpr (Pass::kGradient) {
        T all = 0;
        UNROLL
        for (int chunk = 0; chunk < kDepth; ++chunk) all += shared.sums[r][chunk];
        UNROLL
        for (int j = 0; j < Tile::kColumns; ++j) {
          const T own = total(x[i][j]);
          values[j] = own == own ? 2 * sum[i][j] - all : own;  // saturation hides NaN
        }
      } else {
        UNROLL
        for (int j = 0; j < Tile::kColumns; ++j) values[j] = -sum[i][j];
      }
      store<Tile::kColumns>(to + at + first, count, plan.whole_result, values);
    }
  }
};

}  // namespace addernet
