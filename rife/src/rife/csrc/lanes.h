// Several neighbouring pixels or channels at once on a CPU, by the compilers' vector types: arithmetic
// on Lanes<T, K> is K-fold arithmetic, in however many registers the processor needs for it.
#pragma once
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "storage.h"

namespace rife {

using namespace papershelf;  // storage.h

template <typename T, int K>
struct LanesOf {
  typedef T type __attribute__((vector_size(K * sizeof(T))));
};
template <typename T, int K>
using Lanes = typename LanesOf<T, K>::type;

// Lanes of Precision<S> that fill the widest registers, and those that make a short vector.
template <typename S>
constexpr int kWide = 64 / sizeof(Precision<S>);
constexpr int kShort = 4;

template <int K, typename T>
HOST_DEVICE Lanes<T, K> broadcast(T value) {
  return value - Lanes<T, K>{};
}

template <int K, typename S>
HOST_DEVICE Lanes<Precision<S>, K> load(const S* from) {
  using T = Precision<S>;
  if constexpr (std::is_same_v<S, T>) {
    Lanes<T, K> lanes;
    memcpy(&lanes, from, sizeof(lanes));
    return lanes;
  } else if constexpr (K == 1) {
    return Lanes<T, 1>{widen(*from)};
  } else {
    Lanes<T, K> lanes;
#if defined(__F16C__)
    if constexpr (std::is_same_v<S, Half> && K % 8 == 0) {
      for (int i = 0; i < K; i += 8) {
        __m128i raw;
        memcpy(&raw, from + i, sizeof(raw));
        const __m256 eight = _mm256_cvtph_ps(raw);
        memcpy(reinterpret_cast<T*>(&lanes) + i, &eight, sizeof(eight));
      }
      return lanes;
    }
#endif
    if constexpr (std::is_same_v<S, BFloat16> && K >= 8) {
      Lanes<uint16_t, K> raw;
      memcpy(&raw, from, sizeof(raw));
      return bits_as<Lanes<T, K>>(__builtin_convertvector(raw, Lanes<uint32_t, K>) << 16);
    }
    T wide[K];
    for (int i = 0; i < K; ++i) wide[i] = widen(from[i]);
    memcpy(&lanes, wide, sizeof(lanes));
    return lanes;
  }
}

template <int K, typename S>
HOST_DEVICE void store(S* to, const Lanes<Precision<S>, K>& lanes) {
  if constexpr (std::is_same_v<S, Precision<S>>) {
    memcpy(to, &lanes, sizeof(lanes));
  } else {
#if defined(__F16C__)
    if constexpr (std::is_same_v<S, Half> && K % 8 == 0) {
      for (int i = 0; i < K; i += 8) {
        __m256 eight;
        memcpy(&eight, reinterpret_cast<const float*>(&lanes) + i, sizeof(eight));
        const __m128i raw = _mm256_cvtps_ph(eight, _MM_FROUND_TO_NEAREST_INT);
        memcpy(to + i, &raw, sizeof(raw));
      }
      return;
    }
#endif
    if constexpr (std::is_same_v<S, BFloat16> && K >= 8) {  // as narrow() does it
      const auto x = bits_as<Lanes<uint32_t, K>>(lanes);
      const auto rounded = (x + 0x7fffu + ((x >> 16) & 1u)) >> 16;
      const auto bits = (x & 0x7fffffffu) > 0x7f800000u ? broadcast<K>(0x7fc0u) : rounded;
      const auto raw = __builtin_convertvector(bits, Lanes<uint16_t, K>);
      memcpy(to, &raw, sizeof(raw));
      return;
    }
    S stored[K];
    for (int i = 0; i < K; ++i) stored[i] = narrow<S>(static_cast<float>(lanes[i]));
    memcpy(to, stored, sizeof(stored));
  }
}

// By halves, which the processor adds side by side.
template <int K, typename T>
HOST_DEVICE T sum(const Lanes<T, K>& lanes) {
  if constexpr (K == 1) {
    return lanes[0];
  } else {
    Lanes<T, K / 2> halves[2];
    memcpy(halves, &lanes, sizeof(halves));
    return sum<K / 2, T>(halves[0] + halves[1]);
  }
}

}  // namespace rife
