// One step of the adder kernels on a GPU, in every type that they compute in; no tensors, no threads.
//
// Forward:         sum + |x - w|                 two instructions, the absolute value being an operand's modifier
// Input gradient:  sum + g clamp(w - x, -1, 1)   with w' = w/2 + 1/2, x' = x/2 the clamp is 2 sat(w' - x') - 1, and
//                  saturation is free with a subtraction; so sum + g sat(w' - x'), and once at the end
//                  2 sum - (sum of g)
#pragma once
#include <cmath>

#include "storage.h"

namespace addernet {

using namespace papershelf;  // storage.h

// Two halves that one instruction works on: neighbours along the sum, as they lie in memory.
struct Pair {
  uint32_t bits;
};

HOST_DEVICE Half low(Pair p) { return {static_cast<uint16_t>(p.bits)}; }
HOST_DEVICE Half high(Pair p) { return {static_cast<uint16_t>(p.bits >> 16)}; }
HOST_DEVICE Pair pair_of(Half low, Half high) { return {low.bits | static_cast<uint32_t>(high.bits) << 16}; }

HOST_DEVICE float saturate(float value) {
#if defined(__CUDA_ARCH__)
  return __saturatef(value);
#else
  return value > 0 ? (value < 1 ? value : 1) : 0;  // NaN becomes 0, as on a GPU
#endif
}
HOST_DEVICE double saturate(double value) { return value > 0 ? (value < 1 ? value : 1) : 0; }

// Each rounds to half, as the instruction does.
HOST_DEVICE Half difference(Half a, Half b) { return narrow<Half>(widen(a) - widen(b)); }

HOST_DEVICE float plus_distance(float sum, float x, float w) { return sum + std::fabs(x - w); }
HOST_DEVICE double plus_distance(double sum, double x, double w) { return sum + std::fabs(x - w); }
HOST_DEVICE Half plus_distance(Half sum, Half x, Half w) {
  return narrow<Half>(widen(sum) + std::fabs(widen(difference(x, w))));
}
HOST_DEVICE Pair plus_distance(Pair sum, Pair x, Pair w) {
#if defined(__CUDA_ARCH__)
  const __half2 t = __hsub2(bits_as<__half2>(x.bits), bits_as<__half2>(w.bits));
  return {bits_as<uint32_t>(__hadd2(bits_as<__half2>(sum.bits), __habs2(t)))};
#else
  return pair_of(plus_distance(low(sum), low(x), low(w)), plus_distance(high(sum), high(x), high(w)));
#endif
}

HOST_DEVICE float plus_gated(float sum, float g, float w, float x) { return std::fma(saturate(w - x), g, sum); }
HOST_DEVICE double plus_gated(double sum, double g, double w, double x) { return std::fma(saturate(w - x), g, sum); }
HOST_DEVICE Half plus_gated(Half sum, Half g, Half w, Half x) {
  return narrow<Half>(std::fma(saturate(widen(difference(w, x))), widen(g), widen(sum)));
}
HOST_DEVICE Pair plus_gated(Pair sum, Pair g, Pair w, Pair x) {
#if defined(__CUDA_ARCH__)
  const __half2 gate = __hsub2_sat(bits_as<__half2>(w.bits), bits_as<__half2>(x.bits));
  return {bits_as<uint32_t>(__hfma2(gate, bits_as<__half2>(g.bits), bits_as<__half2>(sum.bits)))};
#else
  return pair_of(plus_gated(low(sum), low(g), low(w), low(x)), plus_gated(high(sum), high(g), high(w), high(x)));
#endif
}

// What one instruction takes of numbers stored as E: one of them, or two halves.
template <typename E>
using Lane = std::conditional_t<std::is_same_v<E, Half>, Pair, E>;

// 16 bytes of neighbours along the sum: the unit in which everything is moved.
template <typename E>
struct alignas(16) Chunk {
  static constexpr int kElements = 16 / sizeof(E), kLanes = 16 / sizeof(Lane<E>);
  Lane<E> lane[kLanes];
};

template <typename E, typename T>
HOST_DEVICE Chunk<E> chunk_of(const T (&values)[Chunk<E>::kElements]) {
  E stored[Chunk<E>::kElements];
  UNROLL
  for (int i = 0; i < Chunk<E>::kElements; ++i) stored[i] = narrow<E>(values[i]);
  Chunk<E> chunk;
  memcpy(&chunk, stored, sizeof(chunk));
  return chunk;
}

// The same number in every part of a lane.
template <typename E, typename T>
HOST_DEVICE Lane<E> spread(T value) {
  if constexpr (std::is_same_v<E, Half>)
    return pair_of(narrow<Half>(value), narrow<Half>(value));
  else
    return value;
}

// The sum of a lane's parts.
HOST_DEVICE float total(float lane) { return lane; }
HOST_DEVICE double total(double lane) { return lane; }
HOST_DEVICE float total(Pair lane) { return widen(low(lane)) + widen(high(lane)); }

// Half's range is short: gradients are stored in it as multiples of a power of two that follows the largest of
// the 32 that are summed up in halves. Of that largest, the factor that brings it between 512 and 1024 (so 16 of
// them stay below 65504), and its inverse.
struct Scale {
  float to_half, from_half;
};
HOST_DEVICE Scale scale_for(float largest) {
  const uint32_t exponent = bits_as<uint32_t>(largest) >> 23, bounded = exponent < 16 ? 16 : exponent;
  return {bits_as<float>((263 - bounded) << 23), bits_as<float>((bounded - 9) << 23)};
}

}  // namespace addernet
