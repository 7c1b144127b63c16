// What adder layers on a CPU do with registers (lanes.h): the few operations that their kernels are made of.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "lanes.h"

namespace addernet {

using papershelf::kLanes;
using papershelf::kRegisters;
using papershelf::Lanes;
using papershelf::load;
using papershelf::store;

// The first `count` lanes; those behind them are 0.
template <typename T>
ALWAYS_INLINE Lanes<T> load_first(const T* from, int64_t count) {
  Lanes<T> lanes{};
  memcpy(&lanes, from, (count < kLanes<T> ? count : kLanes<T>) * sizeof(T));
  return lanes;
}

template <typename T>
ALWAYS_INLINE void store_first(T* to, const Lanes<T>& lanes, int64_t count) {
  memcpy(to, &lanes, (count < kLanes<T> ? count : kLanes<T>) * sizeof(T));
}

template <typename T>
ALWAYS_INLINE Lanes<T> broadcast(T value) {
  return value - Lanes<T>{};
}

// A number that the compiler may not look into. Added or subtracted by way of a product with an opaque 1, a
// term goes through the multiply-add units and leaves those that compare and add free.
template <typename T>
ALWAYS_INLINE Lanes<T> opaque(T value) {
  Lanes<T> lanes = broadcast(value);
#if defined(__x86_64__)
  asm("" : "+x"(lanes));
#endif
  return lanes;
}

template <typename T>
ALWAYS_INLINE Lanes<T> larger(const Lanes<T>& a, const Lanes<T>& b) {
  return a > b ? a : b;
}

// The larger ones of `a` and one number in memory. Written down, since compilers read a number that is used
// twice by an instruction of its own, which costs some processors as much as the maximum itself.
template <typename T>
ALWAYS_INLINE Lanes<T> larger(const T& number, const Lanes<T>& a) {
#if defined(__AVX512F__)
  Lanes<T> result;
  if constexpr (std::is_same_v<T, float>) {
    asm("vmaxps %2%{1to16%}, %1, %0" : "=v"(result) : "v"(a), "m"(number));
  } else {
    asm("vmaxpd %2%{1to8%}, %1, %0" : "=v"(result) : "v"(a), "m"(number));
  }
  return result;
#else
  return larger<T>(broadcast(number), a);
#endif
}

// Between -1 and 1.
template <typename T>
ALWAYS_INLINE Lanes<T> clip(const Lanes<T>& x) {
#if defined(__AVX512DQ__)
  if constexpr (std::is_same_v<T, float>) return Lanes<T>(_mm512_range_ps(__m512(x), _mm512_set1_ps(1), 0x02));
#endif
  const Lanes<T> one = broadcast(T(1));
  const Lanes<T> low = x > -one ? x : -one;
  return low < one ? low : one;
}

// Sums of kLanes registers, one in each lane: neighbours are interleaved and added until one register is left.
template <typename T>
ALWAYS_INLINE Lanes<T> sums(Lanes<T> (&registers)[kLanes<T>]) {
  constexpr int k = kLanes<T>;
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  Lanes<Index> even, odd;
  for (int i = 0; i < k; ++i) even[i] = 2 * i, odd[i] = 2 * i + 1;
  // After level l, register i holds 2^l sums of k / 2^l parts each, part by part.
  for (int width = k; width > 1; width /= 2)
    for (int i = 0; i < width / 2; ++i) {
      const Lanes<T> a = registers[2 * i], b = registers[2 * i + 1];
      registers[i] = __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, odd);
    }
  return registers[0];
}

}  // namespace addernet
