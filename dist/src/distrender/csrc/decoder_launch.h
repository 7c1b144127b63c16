// How many blocks a decoder's kernels are started with, and with tiles of how many points.
#pragma once
#include <algorithm>

#include "decoder_tile.h"

namespace distrender {

inline int attribute(cudaDeviceAttr what) {
  int device = 0, value = 1;
  if (cudaGetDevice(&device) == cudaSuccess) cudaDeviceGetAttribute(&value, what, device);
  return value;
}

inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Tiles of 64 points use a weight twice as often as those of 32, which leave fewer processors idle where points are
// few and fit into the shared memory of all GPUs since Ampere.
template <typename E>
bool wants_small_tiles(int32_t warps, int64_t points, size_t own = 0) {
  return points <= int64_t{32} * attribute(cudaDevAttrMultiProcessorCount) ||
         Tile<E, 64>::bytes(warps, own) > static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

// As many as run at a time, at most one for each tile. Returns an error, or nullptr.
template <typename Kernel>
const char* blocks_for(Kernel kernel, int32_t warps, size_t bytes, int64_t tiles, unsigned& blocks) {
  int each = 0;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, warps * 32, bytes);
  if (const char* error = launch_error()) return error;
  if (each == 0) return "the GPU has too little shared memory for the decoder's kernel";
  blocks = static_cast<unsigned>(std::min<int64_t>(tiles, each * attribute(cudaDevAttrMultiProcessorCount)));
  return nullptr;
}

}  // namespace distrender
