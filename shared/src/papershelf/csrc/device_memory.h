// Accesses of several numbers at once on a GPU, and copies to shared memory that go on beside the computing.
#pragma once
#include <cstring>

#include "device.h"

namespace papershelf {

// Words that hold so many bytes: a GPU loads and stores 1, 2, 4, 8 or 16 at once.
template <int bytes>
struct Word;
template <>
struct Word<2> {
  using type = uint16_t;
};
template <>
struct Word<4> {
  using type = uint32_t;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

// 16 bytes from global to shared memory, or zeros, while the thread goes on.
__device__ __forceinline__ void start_copy(void* to, const void* from, bool exists = true) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(exists ? 16 : 0) : "memory");
#else
  *static_cast<uint4*>(to) = exists ? *static_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
#endif
}

// What the thread has started since the last call becomes one group.
__device__ __forceinline__ void group_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all of the thread's groups but the last `Pending`.
template <int Pending>
__device__ __forceinline__ void finish_groups() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#endif
}

__device__ __forceinline__ void finish_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

}  // namespace papershelf
