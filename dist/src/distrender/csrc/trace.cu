// Tracing on a GPU: a thread a ray, the march in registers and a tape's stack in local memory. Threads whose rays have
// ended idle until a quarter of their warp does; then these take the next rays of all from one queue, side by side.
// Plain pointers, no PyTorch: trace.cpp allocates and registers.
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
constexpr unsigned kAll = 0xffffffffu;
constexpr int kWorthwhile = 8;  // idle lanes of a warp for which the others wait

template <typename T>
__device__ __forceinline__ void write(const Walk<T>& walk, const Rays<T>& rays, int32_t ray) {
  rays.depth[ray] = walk.depth;
  rays.min_sdf[ray] = walk.min_sdf;
  rays.min_depth[ray] = walk.min_depth;
  rays.state[ray] = walk.hit ? 1 : walk.crossed ? 2 : 0;
  rays.queries[ray] = static_cast<int32_t>(walk.queries);
}

template <typename T, typename Field>
__device__ __forceinline__ void trace(const Field& field, const Rays<T>& rays, const Options<T>& options) {
  const T infinity = static_cast<T>(INFINITY), nan = static_cast<T>(NAN);
  const uint32_t lane = threadIdx.x % 32;
  bool running = false, more = true;  // more: the same for all lanes
  int32_t ray = 0;
  Walk<T> walk;
  T ox, oy, oz, dx, dy, dz;
  for (;;) {
    const unsigned idle = __ballot_sync(kAll, !running);
    const int32_t wanted = __popc(idle);
    if (more && wanted >= kWorthwhile) {
      int32_t first = 0;
      if (lane == 0) first = atomicAdd(rays.queue, wanted);
      first = __shfl_sync(kAll, first, 0);
      more = first + wanted < rays.n;
      const int32_t own = first + __popc(idle & ((1u << lane) - 1));
      if (!running && own < rays.n) {
        ray = own;
        const T near = rays.near[ray], far = rays.far[ray], start = rays.start[ray];
        walk = {start, nan, nan, nan, nan, nan, nan, 0, rays.slope[ray], near - options.slack, far, infinity, infinity,
                near, 0, false, false};
        const T *o = rays.origins + 3 * ray, *d = rays.directions + 3 * ray;
        ox = o[0], oy = o[1], oz = o[2], dx = d[0], dy = d[1], dz = d[2];
        running = start < far;
        if (!running) write(walk, rays, ray);
      }
    } else if (idle == kAll) {
      return;
    }
    if (running) {
      const T f = field.template at<T>(ox + walk.t * dx, oy + walk.t * dy, oz + walk.t * dz);
      running = walk.take(f, options);
      if (!running) write(walk, rays, ray);
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

template <typename T>
__global__ void __launch_bounds__(kThreads) brick_kernel(Bricks<T> bricks, Rays<T> rays, Options<T> options) {
  trace(BrickField<T>{bricks}, rays, options);
}

__global__ void __launch_bounds__(1) clear_kernel(int32_t* queue) { *queue = 0; }

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

template <typename T, typename Kernel, typename Field>
const char* launch(Kernel kernel, const Field& field, const Rays<T>& rays, const Options<T>& options, void* stream) {
  LAUNCH(clear_kernel, 1, 1, stream, rays.queue);
  LAUNCH(kernel, blocks_for(rays.n), kThreads, stream, field, rays, options);
  return launch_error();
}

}  // namespace

template <typename T>
const char* Cuda::analytic(const Tape<T>& tape, const Rays<T>& rays, const Options<T>& options, void* stream) {
  return launch(analytic_kernel<T>, tape, rays, options, stream);
}

template <typename T>
const char* Cuda::grid(const Grid<T>& grid, const Rays<T>& rays, const Options<T>& options, void* stream) {
  return launch(grid_kernel<T>, grid, rays, options, stream);
}

template <typename T>
const char* Cuda::bricks(const Bricks<T>& bricks, const Rays<T>& rays, const Options<T>& options, void* stream) {
  return launch(brick_kernel<T>, bricks, rays, options, stream);
}

#define INSTANTIATE(T)                                                                                \
  template const char* Cuda::analytic(const Tape<T>&, const Rays<T>&, const Options<T>&, void*);      \
  template const char* Cuda::grid(const Grid<T>&, const Rays<T>&, const Options<T>&, void*);          \
  template const char* Cuda::bricks(const Bricks<T>&, const Rays<T>&, const Options<T>&, void*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace distrender
