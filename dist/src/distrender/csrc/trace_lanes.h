// Rays side by side on a CPU, by the compilers' vector types: as many as one register holds. In wider vectors GCC
// takes comparisons and choices apart, number by number.
#pragma once
#include <cstring>

#if defined(__AVX512DQ__)
#include <immintrin.h>
#endif

#include "lanes.h"
#include "trace_math.h"

namespace distrender {

#if defined(__AVX512DQ__)
constexpr int kLaneBytes = 64;
#elif defined(__AVX2__)
constexpr int kLaneBytes = 32;
#else
constexpr int kLaneBytes = 16;
#endif
template <typename T>
constexpr int kLanes = kLaneBytes / sizeof(T);

template <typename T>
using Lanes = papershelf::Lanes<T, kLanes<T>>;

template <typename T, typename I>
struct LaneKind {
  using Scalar = T;
  using Index = Lanes<I>;
  HOST_DEVICE static Lanes<T> all(T value) { return value - Lanes<T>{}; }
  HOST_DEVICE static Lanes<T> root(const Lanes<T>& x) {
    T numbers[kLanes<T>];
    memcpy(numbers, &x, sizeof(x));
    for (int i = 0; i < kLanes<T>; ++i) numbers[i] = Kind<T>::root(numbers[i]);
    return papershelf::load<Lanes<T>>(numbers);
  }
  HOST_DEVICE static Index whole(const Lanes<T>& x) { return __builtin_convertvector(x, Index); }
  HOST_DEVICE static Lanes<T> number(const Index& i) { return __builtin_convertvector(i, Lanes<T>); }
  template <typename Stored>
  HOST_DEVICE static Lanes<T> gather(const Stored* from, const Index& at) {
    I places[kLanes<T>];
    T numbers[kLanes<T>];
    memcpy(places, &at, sizeof(at));
    for (int i = 0; i < kLanes<T>; ++i) numbers[i] = papershelf::widen(from[places[i]]);
    return papershelf::load<Lanes<T>>(numbers);
  }
  HOST_DEVICE static void gather_pair(const T* from, const Index& at, Lanes<T>& first, Lanes<T>& second) {
    first = gather(from, at), second = gather(from + 1, at);
  }
};
template <>
struct Kind<Lanes<float>> : LaneKind<float, int32_t> {
#if defined(__AVX512DQ__)
  // The compiler takes sixteen loads and puts their numbers together one by one; instructions for it take half the
  // time, and a pair is one number of twice the size.
  using LaneKind::gather;
  HOST_DEVICE static Lanes<float> gather(const float* from, const Index& at) {
    return Lanes<float>(_mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, __m512i(at), from, 4));
  }
  HOST_DEVICE static void gather_pair(const float* from, const Index& at, Lanes<float>& first, Lanes<float>& second) {
    const auto half = [&](__m256i places) {
      return _mm512_castpd_ps(_mm512_mask_i32gather_pd(_mm512_setzero_pd(), 0xff, places, from, 4));
    };
    const __m512 low = half(_mm512_castsi512_si256(__m512i(at)));
    const __m512 high = half(_mm512_extracti64x4_epi64(__m512i(at), 1));
    const Index even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
    first = Lanes<float>(_mm512_permutex2var_ps(low, __m512i(even), high));
    second = Lanes<float>(_mm512_permutex2var_ps(low, __m512i(even + 1), high));
  }
#endif
};
template <>
struct Kind<Lanes<double>> : LaneKind<double, int64_t> {};

// Bit i is set where lane i of a mask is.
template <typename M>
HOST_DEVICE uint32_t bits_of(const M& mask) {
  constexpr int count = kLaneBytes / sizeof(mask[0]);
#if defined(__AVX512DQ__)
  if constexpr (count == 16) {
    return _mm512_movepi32_mask(__m512i(mask));
  } else {
    return _mm512_movepi64_mask(__m512i(mask));
  }
#else
  uint32_t bits = 0;
  for (int i = 0; i < count; ++i) bits |= static_cast<uint32_t>(mask[i] != 0) << i;
  return bits;
#endif
}

// The lanes whose bits are set.
template <typename R>
HOST_DEVICE Mask<R> mask_of(uint32_t bits) {
  Mask<R> mask;
  for (size_t i = 0; i < kLaneBytes / sizeof(mask[0]); ++i) mask[i] = bits >> i & 1 ? -1 : 0;
  return mask;
}

}  // namespace distrender
