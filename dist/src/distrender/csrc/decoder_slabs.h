// Some inputs of a layer for 64 of its outputs: how a warp multiplies them with a tile of points.
//
// Lane 4 g + t has the sums of points g + 8 i and, for every n below 8, of outputs 8 n + 2 t and 8 n + 2 t + 1, as the
// tensor cores' products m16n8k16 deal them out. Which of a product's 16 inputs is which does not matter as long as
// points and weights agree: here lane t of four has four that lie side by side, one access for both.
#pragma once
#include "device_memory.h"
#include "storage.h"

namespace distrender {

using papershelf::BFloat16;
using papershelf::finish_copies;
using papershelf::finish_groups;
using papershelf::group_copies;
using papershelf::Half;
using papershelf::narrow;
using papershelf::start_copy;
using papershelf::widen;

constexpr int kColumns = 64;  // COLUMNS in decoder_kernels.py

template <int Points>
struct Sums {
  float at[Points / 8][kColumns / 8][2];
};

__device__ __forceinline__ void store_pair(float* to, float a, float b) {
  *reinterpret_cast<float2*>(to) = float2{a, b};
}
template <typename E>
__device__ __forceinline__ void store_pair(E* to, float a, float b) {
  *reinterpret_cast<uint32_t*>(to) = narrow<E>(a).bits | static_cast<uint32_t>(narrow<E>(b).bits) << 16;
}

// 16 bits. A slab is [4][lane][2][4]: for outputs 8 n + g and 8 n + 8 + g, n even, inputs 4 t to 4 t + 3.
template <typename E>
struct Slab {
  static constexpr int kDepth = 16, kWords = kDepth * kColumns * sizeof(E) / sizeof(uint4);
  static constexpr int kStages = 4, kPadding = 16;

  // from: the points' numbers, from the slab's first input on.
  template <int Points>
  __device__ __forceinline__ static void multiply(const E* from, int32_t pitch, const uint4* slab,
                                                  Sums<Points>& sums) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    uint2 x[Points / 8];
    UNROLL
    for (int i = 0; i < Points / 8; ++i) x[i] = *reinterpret_cast<const uint2*>(from + (g + 8 * i) * pitch + 4 * t);
    UNROLL
    for (int q = 0; q < kColumns / 16; ++q) {
      const uint4 w = slab[32 * q + lane];
      UNROLL
      for (int i = 0; i < Points / 8; i += 2) {
        product(sums.at[i][2 * q], sums.at[i + 1][2 * q], x[i], x[i + 1], w.x, w.y);
        product(sums.at[i][2 * q + 1], sums.at[i + 1][2 * q + 1], x[i], x[i + 1], w.z, w.w);
      }
    }
#else  // the same sums, from where the lanes that would take part read
    for (int n = 0; n < kColumns / 8; ++n)
      for (uint32_t e = 0; e < 2; ++e)
        for (uint32_t k = 0; k < kDepth; ++k) {
          const uint32_t owner = 4 * (2 * t + e) + k / 4;
          const float w = widen(reinterpret_cast<const E*>(slab + 32 * (n / 2) + owner)[4 * (n % 2) + k % 4]);
          for (int i = 0; i < Points / 8; ++i) sums.at[i][n][e] += widen(from[(g + 8 * i) * pitch + k]) * w;
        }
#endif
  }

 private:
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  // Sums of points g and g + 8 with 8 outputs: x holds inputs 2 t and 2 t + 1 of a product and its 2 t + 8 and 2 t + 9.
  __device__ __forceinline__ static void product(float (&low)[2], float (&high)[2], const uint2& x_low,
                                                 const uint2& x_high, uint32_t w0, uint32_t w1) {
    if constexpr (std::is_same_v<E, Half>) {
      asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(low[0]), "+f"(low[1]), "+f"(high[0]), "+f"(high[1])
          : "r"(x_low.x), "r"(x_high.x), "r"(x_low.y), "r"(x_high.y), "r"(w0), "r"(w1));
    } else {
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(low[0]), "+f"(low[1]), "+f"(high[0]), "+f"(high[1])
          : "r"(x_low.x), "r"(x_high.x), "r"(x_low.y), "r"(x_high.y), "r"(w0), "r"(w1));
    }
  }
#endif
};

// float. A slab is [input][4][t][2][2]: outputs 8 n + 2 t and that behind it, and 8 further the same, n even.
template <>
struct Slab<float> {
  static constexpr int kDepth = 4, kWords = kDepth * kColumns * sizeof(float) / sizeof(uint4);
  static constexpr int kStages = 3, kPadding = 4;

  template <int Points>
  __device__ __forceinline__ static void multiply(const float* from, int32_t pitch, const uint4* slab,
                                                  Sums<Points>& sums) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float4 x[Points / 8];
    UNROLL
    for (int i = 0; i < Points / 8; ++i) x[i] = *reinterpret_cast<const float4*>(from + (g + 8 * i) * pitch);
    UNROLL
    for (int k = 0; k < kDepth; ++k) {
      UNROLL
      for (int q = 0; q < kColumns / 16; ++q) {
        const float4 w = reinterpret_cast<const float4*>(slab)[(k * 4 + q) * 4 + t];
        UNROLL
        for (int i = 0; i < Points / 8; ++i) {
          const float number = k == 0 ? x[i].x : k == 1 ? x[i].y : k == 2 ? x[i].z : x[i].w;
          sums.at[i][2 * q][0] += number * w.x, sums.at[i][2 * q][1] += number * w.y;
          sums.at[i][2 * q + 1][0] += number * w.z, sums.at[i][2 * q + 1][1] += number * w.w;
        }
      }
    }
  }
};

}  // namespace distrender
