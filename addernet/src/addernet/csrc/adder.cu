// CUDA kernels of addernet::forward and addernet::input_gradient. Plain pointers, no PyTorch: adder.cpp allocates
// and registers. Each launcher returns an error message, or null.
//
// Both passes are one scheme over the work that adder_cuda_plan.h lays out: while a block computes from one buffer
// in shared memory (adder_cuda_results.h) it fills the other (adder_cuda_buffers.h). Here are the kernel, the shapes
// of its tiles and the choice among them. x stored as halves is computed with in halves, two at a time, but summed up
// in float; bfloat16 is widened as it is loaded.
#include <climits>
#include <tuple>

#include "adder_cuda_results.h"

namespace addernet {
namespace {

// Registers that a thread may have: two or three blocks of 128 threads run beside each other, so that one computes
// while another waits.
template <typename Pass>
constexpr int kRegisters = Pass::kGradient && std::is_same_v<typename Pass::E, Half> ? 208 : 168;

template <typename Pass, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, 65536 / (Tile::kThreads * kRegisters<Pass>))
    adder_kernel(const __grid_constant__ Plan plan, const __grid_constant__ Arrays<Pass> arrays) {
  __shared__ Shared<Pass, Tile> shared;
  const Place place = place_of_block<Tile>(plan);
  const Walk in_h = walk<Pass::kGradient>(plan.h, place.remainder_h);
  const Walk in_w = walk<Pass::kGradient>(plan.w, place.remainder_w);
  find_rows(shared, plan, place, in_h, in_w);
  __syncthreads();

  Results<Pass, Tile> results;
  if constexpr (Pass::kGradient) results.load_x(shared, plan, place, arrays.x);

  constexpr int K = Chunk<typename Pass::E>::kElements;
  const int32_t chunks = (plan.sum_channels + K - 1) / K;
  const int32_t steps = (in_h.count * in_w.count * chunks + kDepth - 1) / kDepth;
  Cursor at{0, 0, 0};
  if (steps) at.advance(threadIdx.x % kDepth, in_w, chunks);
  for (int32_t step = -1; step < steps; ++step) {
    const int now = step & 1, next = now ^ 1;
    const bool more = step + 1 < steps;
    FilterLoads<Pass, Tile> loads;
    if (more) {
      load_source(shared, next, plan, arrays, at, in_h, in_w);
      loads.start(shared, next, plan, place, arrays.filters, at, in_h, in_w);
      at.advance(kDepth, in_w, chunks);
    }
    if (step >= 0) {
      if constexpr (Pass::kGradient) results.add_source(shared, now);
      results.add(shared, now);
    }
    if (more) loads.finish(shared, next);
    finish_copies();
    __syncthreads();
  }
  results.write(shared, plan, place, arrays.result);
}

// ------------------------------------------------------------------------------- launching

template <typename Tile>
int64_t blocks_of(const Plan& plan) {
  const auto tiles = [](int64_t length, int64_t each) { return (length + each - 1) / each; };
  return tiles(plan.rows, Tile::kHeight) * tiles(plan.column_channels, Tile::kWidth) * plan.h.classes * plan.w.classes *
         plan.groups;
}

// The time that the busiest multiprocessor takes, in results of one tile after the other. Smaller tiles compute
// less for each number that they load, and fewer than 8 warps cannot keep a multiprocessor busy.
template <typename Tile>
double cost(const Plan& plan, int multiprocessors) {
  const int each = Tile::kRows * Tile::kColumns;
  const double per_result = each >= 64 ? 1.0 : each >= 32 ? 1.05 : each >= 16 ? 1.3 : 2.0;
  const int64_t blocks = (blocks_of<Tile>(plan) + multiprocessors - 1) / multiprocessors;
  const double warps = std::min<double>(8, static_cast<double>(blocks) * Tile::kThreads / 32);
  return blocks * Tile::kHeight * Tile::kWidth * per_result * (8 / warps);
}

template <typename Pass, typename Tile>
const char* launch(Plan plan, const Arrays<Pass>& arrays, void* stream) {
  const int64_t blocks = blocks_of<Tile>(plan);
  if (blocks > INT_MAX) return "there are more results than the kernels for CUDA can count";
  const auto aligned = [](const auto* array, int32_t all, int32_t group, int32_t elements) {
    return reinterpret_cast<uintptr_t>(array) % 16 == 0 && all % elements == 0 && group % elements == 0;
  };
  constexpr int K = Chunk<typename Pass::E>::kElements;
  plan.whole_source = aligned(arrays.source, plan.source_channels, plan.sum_channels, K);
  plan.whole_filters = aligned(arrays.filters, plan.sum_channels, plan.sum_channels, K);
  plan.whole_result = aligned(arrays.result, plan.result_channels, plan.column_channels, Tile::kColumns) &&
                      reinterpret_cast<uintptr_t>(arrays.x) % 16 == 0;
  const auto kernel = adder_kernel<Pass, Tile>;
  LAUNCH(kernel, dim3(static_cast<unsigned>(blocks)), dim3(Tile::kThreads), stream, plan, arrays);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <typename... Tiles>
struct Shapes {
  template <typename Pass>
  static const char* launch_best(const Plan& plan, const Arrays<Pass>& arrays, void* stream) {
    int device = 0, multiprocessors = 1;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    const double costs[] = {cost<Tiles>(plan, multiprocessors)...};
    const auto best = std::min_element(costs, costs + sizeof...(Tiles)) - costs;
    const char* error = nullptr;
    int index = 0;
    ((index++ == best ? void(error = launch<Pass, Tiles>(plan, arrays, stream)) : void()), ...);
    return error;
  }
};

// A thread of the float forward pass has registers for 64 sums; where it keeps x or halves as well, for 32.
using Large =
    Shapes<Tile<128, 64, 8, 8>, Tile<128, 32, 8, 4>, Tile<128, 16, 8, 4>, Tile<32, 32, 4, 4>, Tile<16, 16, 2, 2>>;
using Medium =
    Shapes<Tile<64, 64, 8, 4>, Tile<128, 32, 8, 4>, Tile<128, 16, 8, 4>, Tile<32, 32, 4, 4>, Tile<16, 16, 2, 2>>;
using Small = Shapes<Tile<16, 16, 2, 2>>;  // double is for checking gradients

template <typename Pass>
const char* run(const Problem& problem, const Arrays<Pass>& arrays, void* stream) {
  using E = typename Pass::E;
  using Choice = std::conditional_t<std::is_same_v<E, double>, Small,
                                    std::conditional_t<Pass::kGradient || std::is_same_v<E, Half>, Medium, Large>>;
  if (!fits(problem)) return "a size is too large for the kernels for CUDA";
  const Plan plan = make_plan(problem, Pass::kGradient);
  if (plan.rows == 0 || plan.column_channels == 0) return nullptr;
  return Choice::template launch_best<Pass>(plan, arrays, stream);
}

}  // namespace

template <typename X, typename T>
const char* Cuda::forward(const Problem& problem, const X* x, const T* filters, T* y, void* stream) {
  return run(problem, Arrays<Forward<X, T>>{x, filters, nullptr, y}, stream);
}

template <typename X, typename T>
const char* Cuda::input_gradient(const Problem& problem, const T* grad, const X* x, const T* filters, X* grad_x,
                                 void* stream) {
  return run(problem, Arrays<InputGradient<X, T>>{grad, filters, x, grad_x}, stream);
}

#define INSTANTIATE(X, T)                                                                  \
  template const char* Cuda::forward<X, T>(const Problem&, const X*, const T*, T*, void*); \
  template const char* Cuda::input_gradient<X, T>(const Problem&, const T*, const X*, const T*, X*, void*);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(Half, float)
INSTANTIATE(BFloat16, float)
#undef INSTANTIATE

}  // namespace addernet
