// Tracing on a GPU: a thread a ray, the march in registers and a tape's stack in local memory. A thread whose ray has
// ended takes its next one in the same loop, so that a warp does not wait for its longest ray. Plain pointers, no
// PyTorch: trace.cpp allocates and registers.
#include <algorithm>

#include "trace_math.h"

namespace distrender {
namespace {

#if defined(CUDA_ON_CPU)
constexpr int kThreads = 32;  // each a real thread
#else
constexpr int kThreads = 128;
#endif
constexpr int kBlocksPerProcessor = 16;

template <typename T, typename Field>
__device__ __forceinline__ void trace(const Field& field, const Rays<T>& rays, const Options<T>& options) {
  const T infinity = static_cast<T>(INFINITY), nan = static_cast<T>(NAN);
  const int64_t all_threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t ray = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  bool running = false;
  Walk<T> walk;
  T ox, oy, oz, dx, dy, dz;
  while (running || ray < rays.n) {
    if (!running) {
      const T near = rays.near[ray], far = rays.far[ray], start = rays.start[ray];
      walk = {start, nan, nan, nan, nan, nan, nan, 0, rays.slope[ray], near - options.slack, far, infinity, infinity,
              near, 0, false, false};
      const T *o = rays.origins + 3 * ray, *d = rays.directions + 3 * ray;
      ox = o[0], oy = o[1], oz = o[2], dx = d[0], dy = d[1], dz = d[2];
      running = start < far;
    }
    if (running) {
      const T f = field.template at<T>(ox + walk.t * dx, oy + walk.t * dy, oz + walk.t * dz);
      running = walk.take(f, options);
    }
    if (!running) {
      rays.depth[ray] = walk.depth;
      rays.min_sdf[ray] = walk.min_sdf;
      rays.min_depth[ray] = walk.min_depth;
      rays.state[ray] = walk.hit ? 1 : walk.crossed ? 2 : 0;
      rays.queries[ray] = static_cast<int32_t>(walk.queries);
      ray += all_threads;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) analytic_kernel(Tape<T> tape, Rays<T> rays, Options<T> options) {
  // All lanes of a warp read the same instruction and the same number, which shared memory serves at once.
  __shared__ int32_t code[3 * kInstructions];
  __shared__ T constants[kConstants];
  for (int32_t i = threadIdx.x; i < 3 * tape.length; i += kThreads) code[i] = tape.code[i];
  for (int32_t i = threadIdx.x; i < tape.count; i += kThreads) constants[i] = tape.constants[i];
  __syncthreads();
  trace(TapeField<T>{{code, constants, tape.length, tape.count}}, rays, options);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) grid_kernel(Grid<T> grid, Rays<T> rays, Options<T> options) {
  trace(GridField<T>{grid}, rays, options);
}

// Threads for all rays, or as many as the GPU runs at a time.
unsigned blocks_for(int64_t rays) {
  int device = 0, processors = 1;
  if (cudaGetDevice(&device) == cudaSuccess)
    cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  return static_cast<unsigned>(std::min<int64_t>((rays + kThreads - 1) / kThreads, processors * kBlocksPerProcessor));
}

const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

template <typename T>
const char* Cuda::analytic(const Tape<T>& tape, const Rays<T>& rays, const Options<T>& options, void* stream) {
  LAUNCH(analytic_kernel<T>, blocks_for(rays.n), kThreads, stream, tape, rays, options);
  return launch_error();
}

template <typename T>
const char* Cuda::grid(const Grid<T>& grid, const Rays<T>& rays, const Options<T>& options, void* stream) {
  LAUNCH(grid_kernel<T>, blocks_for(rays.n), kThreads, stream, grid, rays, options);
  return launch_error();
}

#define INSTANTIATE(T)                                                                                \
  template const char* Cuda::analytic(const Tape<T>&, const Rays<T>&, const Options<T>&, void*);      \
  template const char* Cuda::grid(const Grid<T>&, const Rays<T>&, const Options<T>&, void*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace distrender
