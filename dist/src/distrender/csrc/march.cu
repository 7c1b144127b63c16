// A step of a march on a GPU: one pass takes the values in and counts who goes on, a second one packs these. Neighbours
// that go on together find their places with one atomic addition a warp, so their order may differ from run to run;
// what a ray finds does not depend on it. Plain pointers, no PyTorch: march.cpp allocates and registers.
#include <algorithm>

#include "march_math.h"

namespace distrender {
namespace {

#if defined(CUDA_ON_CPU)
constexpr int kThreads = 32;  // each a real thread
#else
constexpr int kThreads = 256;
#endif
constexpr unsigned kAll = 0xffffffffu;
constexpr int64_t kMostBlocks = 4096;

// Calls body(i, whether i < count) until all are done; all threads of a warp take as many turns.
template <typename Body>
__device__ __forceinline__ void for_each(int32_t count, Body body) {
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads; first < count;
       first += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t i = first + threadIdx.x;
    body(static_cast<int32_t>(i), i < count);
  }
}

__global__ void __launch_bounds__(2) clear_kernel(int32_t* counts, int32_t* places) {
  counts[threadIdx.x] = places[threadIdx.x] = 0;
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) advance_kernel(March<T> march, Options<T> options, Step<T> step) {
  for_each(step.count, [&](int32_t i, bool exists) {
    const Fate fate = exists ? advance(march, options, step, i) : kEnded;
    if (exists) step.fates[i] = fate;
    const unsigned exact = __ballot_sync(kAll, fate == kExact), rough = __ballot_sync(kAll, fate == kRough);
    if (threadIdx.x % 32 == 0) {
      if (exact) atomicAdd(&step.next_counts[0], static_cast<int32_t>(__popc(exact)));
      if (rough) atomicAdd(&step.next_counts[1], static_cast<int32_t>(__popc(rough)));
    }
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads) pack_kernel(March<T> march, Step<T> step) {
  const uint32_t lane = threadIdx.x % 32;
  const int32_t before[2] = {0, step.next_counts[0]};
  for_each(step.count, [&](int32_t i, bool exists) {
    const Fate fate = exists ? static_cast<Fate>(step.fates[i]) : kEnded;
    UNROLL
    for (int kind = 0; kind < 2; ++kind) {
      const bool own = fate == (kind ? kRough : kExact);
      const unsigned all = __ballot_sync(kAll, own);
      if (!all) continue;
      int32_t first = 0;
      if (lane == 0) first = atomicAdd(&step.places[kind], static_cast<int32_t>(__popc(all)));
      first = __shfl_sync(kAll, first, 0);
      if (!own) continue;
      const int32_t place = before[kind] + first + __popc(all & ((1u << lane) - 1));
      step.next_rays[place] = step.rays[i];
      point_of(march, step.rays[i], step.next_points + 3 * static_cast<int64_t>(place));
    }
  });
}

}  // namespace

template <typename T>
const char* MarchCuda::step(const March<T>& march, const Options<T>& options, const Step<T>& step, void* stream) {
  LAUNCH(clear_kernel, 1, 2, stream, step.next_counts, step.places);
  if (step.count) {
    const auto blocks = static_cast<unsigned>(std::min((step.count + kThreads - int64_t{1}) / kThreads, kMostBlocks));
    LAUNCH(advance_kernel<T>, blocks, kThreads, stream, march, options, step);
    LAUNCH(pack_kernel<T>, blocks, kThreads, stream, march, step);
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template const char* MarchCuda::step(const March<float>&, const Options<float>&, const Step<float>&, void*);
template const char* MarchCuda::step(const March<double>&, const Options<double>&, const Step<double>&, void*);

}  // namespace distrender
