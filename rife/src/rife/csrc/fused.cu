// Inference between the convolutions on a GPU: one thread per pixel, or per element. Plain pointers, no
// PyTorch: fused.cpp allocates and registers. Each launcher returns an error message, or null.
#include <algorithm>

#include "fused.h"

namespace rife {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(int64_t work) {
  return static_cast<unsigned>(std::min<int64_t>((work + kThreads - 1) / kThreads, 1 << 20));
}

__device__ __forceinline__ int64_t first_index() {
  return blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
}

__device__ __forceinline__ int64_t all_threads() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <typename S>
__global__ void __launch_bounds__(kThreads, 2) assemble_kernel(Pair in, Recipe recipe, S* __restrict__ out) {
  const int32_t h = in.h / recipe.scale, w = in.w / recipe.scale;
  for (int64_t i = first_index(); i < int64_t{in.n} * h * w; i += all_threads()) {
    const int32_t x = i % w, y = i / w % h, n = i / (int64_t{w} * h);
    assemble_pixel(in, recipe, n, y, x, out + i * recipe.channels);
  }
}

template <typename S>
__global__ void __launch_bounds__(kThreads)
    add_upsampled_kernel(Change<S> change, int32_t factor, float* __restrict__ state, int32_t n, int32_t h, int32_t w) {
  for (int64_t i = first_index(); i < int64_t{n} * h * w; i += all_threads())
    add_change(change, factor, static_cast<int32_t>(i / (int64_t{w} * h)), static_cast<int32_t>(i / w % h),
               static_cast<int32_t>(i % w), state + i * kState);
}

template <typename S>
__global__ void __launch_bounds__(kThreads)
    blend_pair_kernel(Pair in, const S* __restrict__ residual, float* __restrict__ out, int32_t rows, int32_t columns) {
  const int64_t plane = int64_t{rows} * columns;
  for (int64_t i = first_index(); i < in.n * plane; i += all_threads()) {
    const int32_t x = i % columns, y = i / columns % rows, n = i / plane;
    const Rgb c = blend_pixel(in, residual, n, y, x);
    float* to = out + n * 3 * plane + int64_t{y} * columns + x;
    to[0] = c.r, to[plane] = c.g, to[2 * plane] = c.b;
  }
}

// V neighbouring channels of a pixel, moved as one piece of 16 bytes.
template <typename S, int V>
struct alignas(V * sizeof(S)) Piece {
  S value[V];
};

template <int V, typename S>
__device__ __forceinline__ Piece<S, V> piece(const S* from, int64_t at) {
  return from ? *reinterpret_cast<const Piece<S, V>*>(from + at) : Piece<S, V>{};
}

template <typename S, int V>
__global__ void __launch_bounds__(kThreads) activate_kernel(Activation<S> a) {
  for (int64_t i = first_index() * V; i < a.pixels * a.channels; i += all_threads() * V) {
    const int32_t c = i % a.channels;
    auto x = piece<V>(a.x, i);
    const auto before = piece<V>(a.before, i), after = piece<V>(a.after, i);
    for (int k = 0; k < V; ++k)
      x.value[k] = narrow<S>(activated(widen(x.value[k]), a.bias ? a.bias[c + k] : 0.0f, a.slope[c + k],
                                       widen(before.value[k]), widen(after.value[k])));
    *reinterpret_cast<Piece<S, V>*>(a.x + i) = x;
  }
}

}  // namespace

template <typename S>
const char* FusedCuda::assemble(const Pair& in, const Recipe& recipe, S* out, void* stream) {
  const int64_t pixels = int64_t{in.n} * (in.h / recipe.scale) * (in.w / recipe.scale);
  LAUNCH(assemble_kernel<S>, blocks_for(pixels), kThreads, stream, in, recipe, out);
  return launch_error();
}

template <typename S>
const char* FusedCuda::add_upsampled(const Change<S>& change, int32_t factor, float* state, int32_t n, int32_t h,
                                     int32_t w, void* stream) {
  LAUNCH(add_upsampled_kernel<S>, blocks_for(int64_t{n} * h * w), kThreads, stream, change, factor, state, n, h, w);
  return launch_error();
}

template <typename S>
const char* FusedCuda::blend_pair(const Pair& in, const S* residual, float* out, int32_t rows, int32_t columns,
                                  void* stream) {
  LAUNCH(blend_pair_kernel<S>, blocks_for(int64_t{in.n} * rows * columns), kThreads, stream, in, residual, out, rows,
         columns);
  return launch_error();
}

template <typename S>
const char* FusedCuda::activate(const Activation<S>& a, void* stream) {
  constexpr int V = 16 / sizeof(S);
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const int64_t elements = a.pixels * a.channels;
  if (a.channels % V == 0 && aligned(a.x) && aligned(a.before) && aligned(a.after))
    LAUNCH((activate_kernel<S, V>), blocks_for(elements / V), kThreads, stream, a);
  else
    LAUNCH((activate_kernel<S, 1>), blocks_for(elements), kThreads, stream, a);
  return launch_error();
}

INSTANTIATE_FUSED(FusedCuda, float)
INSTANTIATE_FUSED(FusedCuda, Half)
INSTANTIATE_FUSED(FusedCuda, BFloat16)

}  // namespace rife
