// Several neighbouring pixels or channels at once on a CPU, by the compilers' vector types: arithmetic
// on Lanes<T, K> is K-fold arithmetic, in however many registers the processor needs for it.
#pragma once
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "storage.h"

namespace rife {

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
    S stored[K];
    for (int i = 0; i < K; ++i) stored[i] = narrow<S>(static_cast<float>(lanes[i]));
    memcpy(to, stored, sizeof(stored));
  }
}

template <int K, typename T>
HOST_DEVICE T sum(const Lanes<T, K>& lanes) {
  T total = 0;
  for (int i = 0; i < K; ++i) total += lanes[i];
  return total;
}

}  // namespace rife
