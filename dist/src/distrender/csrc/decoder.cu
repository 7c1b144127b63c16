// The decoder on a GPU: blocks that stay, each with one tile of points after another. Plain pointers, no PyTorch:
// decoder.cpp allocates and registers.
#include <algorithm>

#include "decoder_launch.h"

namespace distrender {
namespace {

template <typename E, int Points>
__global__ void __launch_bounds__(kMostWarps * 32)
    decode_kernel(const __grid_constant__ CudaNetwork<E> network, const float* __restrict__ points, int64_t count,
                  float* __restrict__ distances) {
  DYNAMIC_SHARED(memory);
  Tile<E, Points> tile(network, memory);
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * Points; first < count;
       first += static_cast<int64_t>(gridDim.x) * Points) {
    const auto here = static_cast<uint32_t>(count - first < Points ? count - first : Points);
    for (uint32_t i = threadIdx.x; i < Points; i += blockDim.x) {
      const float* p = points + 3 * (first + (i < here ? i : here - 1));  // the last one fills the tile up
      tile.points[i] = float4{p[0], p[1], p[2], 0};
    }
    tile.evaluate();
    for (uint32_t i = threadIdx.x; i < here; i += blockDim.x) distances[first + i] = tile.distances[i];
  }
  finish_copies();  // of weights that nobody will want
}

template <typename E, int Points>
const char* launch(const CudaNetwork<E>& network, const float* points, int64_t count, float* distances, void* stream) {
  const auto kernel = decode_kernel<E, Points>;
  const size_t bytes = Tile<E, Points>::bytes(network.warps);
  unsigned blocks = 0;
  if (const char* error = blocks_for(kernel, network.warps, bytes, (count + Points - 1) / Points, blocks)) return error;
  LAUNCH_SHARED(kernel, blocks, network.warps * 32, bytes, stream, network, points, count, distances);
  return launch_error();
}

}  // namespace

template <typename E>
const char* DecoderCuda::run(const Network<E>& from, const float* points, int64_t count, float* distances,
                             void* stream) {
  CudaNetwork<E> network{};
  if (const char* error = describe(from, network)) return error;
  if (count == 0) return nullptr;
  return wants_small_tiles<E>(network.warps, count) ? launch<E, 32>(network, points, count, distances, stream)
                                                    : launch<E, 64>(network, points, count, distances, stream);
}

template const char* DecoderCuda::run<float>(const Network<float>&, const float*, int64_t, float*, void*);
template const char* DecoderCuda::run<Half>(const Network<Half>&, const float*, int64_t, float*, void*);
template const char* DecoderCuda::run<BFloat16>(const Network<BFloat16>&, const float*, int64_t, float*, void*);

}  // namespace distrender
