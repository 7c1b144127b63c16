// Several numbers at once on a CPU, by the compilers' vector types: arithmetic on Lanes<T> is arithmetic on as many
// numbers as the processor's widest registers hold, and on Lanes<T, K> on K, in however many registers that takes.
#pragma once
#include <cstring>

#define ALWAYS_INLINE inline __attribute__((always_inline))

// Arrays of registers are only ever indexed in loops that are written out: then they are registers.
#define UNROLLED _Pragma("GCC unroll 16")

namespace papershelf {

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kRegisterBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kRegisterBytes = 16, kRegisters = 32;
#else
constexpr int kRegisterBytes = 16, kRegisters = 16;
#endif

template <typename T>
constexpr int kLanes = kRegisterBytes / sizeof(T);

template <typename T, int K>
struct LanesOf {
  typedef T type __attribute__((vector_size(K * sizeof(T))));
};
template <typename T, int K = kLanes<T>>
using Lanes = typename LanesOf<T, K>::type;

// As many numbers as V has, from any address on.
template <typename V>
ALWAYS_INLINE V load(const void* from) {
  V lanes;
  memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

template <typename V>
ALWAYS_INLINE void store(void* to, const V& lanes) {
  memcpy(to, &lanes, sizeof(lanes));
}

}  // namespace papershelf
