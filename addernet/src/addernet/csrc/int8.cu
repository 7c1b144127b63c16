// Int8 adder layers on a GPU: |x - w| of four bytes is one instruction that also adds up.
//
// A block computes 8 * OutTiles output channels of kPixels * kThreads / OutTiles pixels, a thread 8 x 8 of
// them in registers. The taps go by in chunks, kept in shared memory as words of four bytes. Plain pointers,
// no PyTorch: int8.cpp allocates and registers.
#include <algorithm>
#include <cstring>

#include "int8.h"

namespace addernet_int8 {
namespace {

constexpr int kThreads = 128;
constexpr int kPixels = 8;           // of a thread, as kOutputs are its channels
constexpr int kSteps = 4;            // of the filter, eight bytes each, in a chunk
constexpr int kWords = 2 * kSteps;   // of four bytes

// The sum of the four absolute differences of bytes, plus `sum`.
__device__ __forceinline__ uint32_t add_differences(uint32_t x, uint32_t w, uint32_t sum) {
#if defined(CUDA_ON_CPU)
  for (int i = 0; i < 32; i += 8) {
    const int32_t d = static_cast<int32_t>(x >> i & 255) - static_cast<int32_t>(w >> i & 255);
    sum += static_cast<uint32_t>(d < 0 ? -d : d);
  }
  return sum;
#else
  uint32_t total;
  asm("vabsdiff4.u32.u32.u32.add %0, %1, %2, %3;" : "=r"(total) : "r"(x), "r"(w), "r"(sum));
  return total;
#endif
}

__device__ __forceinline__ uint2 load_eight(const uint8_t* from) {
  return *reinterpret_cast<const uint2*>(from);
}

// Eight channels of a pixel from `c` on, of which those below `channels` exist; the others are zeros.
__device__ __forceinline__ uint2 gather_eight(const uint8_t* pixel, int32_t c, int32_t channels) {
  uint64_t bytes = 0;
  for (int32_t i = 0; i < kLane && c + i < channels; ++i) bytes |= static_cast<uint64_t>(pixel[c + i]) << 8 * i;
  return {static_cast<uint32_t>(bytes), static_cast<uint32_t>(bytes >> 32)};
}

// What a thread stages: one pixel, at successive taps.
struct Source {
  int32_t y, x;        // of the filter's first tap in the image
  const uint8_t* from;  // the image's group; null beyond the last pixel
};

__device__ __forceinline__ uint2 stage(const Problem& p, const Source& source, int32_t ky, int32_t kx, int32_t lane,
                                       bool whole) {
  const int32_t y = source.y + ky * static_cast<int32_t>(p.dilation_h), c = lane * kLane;
  const int32_t x = source.x + kx * static_cast<int32_t>(p.dilation_w), channels = static_cast<int32_t>(p.group_c());
  if (!source.from) return {0, 0};
  if (y < 0 || y >= p.h || x < 0 || x >= p.w) {
    uint64_t border = 0x0101010101010101u * p.zero_point;
    if (channels - c < kLane) border &= (uint64_t{1} << 8 * (channels - c)) - 1;
    return {static_cast<uint32_t>(border), static_cast<uint32_t>(border >> 32)};
  }
  const uint8_t* pixel = source.from + (static_cast<int64_t>(y) * p.w + x) * p.c;
  return whole ? load_eight(pixel + c) : gather_eight(pixel, c, channels);
}

__device__ __forceinline__ void finish(const Epilogue& e, int64_t at, int64_t o, uint32_t sum) {
  if (e.sums) {
    e.sums[at] = static_cast<int32_t>(sum);
    return;
  }
  float v = e.scale[o] * static_cast<float>(sum) + e.offset[o];
  if (e.residual) v += e.residual[at];
  if (e.relu) v = v < 0.0f ? 0.0f : v;
  if (e.out) e.out[at] = v;
  if (e.quantized) e.quantized[at] = to_byte(v, e.inverse_step, e.zero_point);
}

template <int OutTiles>
__global__ void __launch_bounds__(kThreads, 3)
    forward_kernel(const Problem p, const uint8_t* __restrict__ x, const uint8_t* __restrict__ filters,
                   const Epilogue e, bool whole) {
  constexpr int kTilePixels = kPixels * kThreads / OutTiles, kStaged = kTilePixels / kThreads;
  __shared__ uint4 xs[kWords][kTilePixels / 4], ws[kWords][OutTiles * kOutputs / 4];
  auto* const x_words = reinterpret_cast<uint32_t*>(xs);
  auto* const w_words = reinterpret_cast<uint32_t*>(ws);

  const int32_t thread = static_cast<int32_t>(threadIdx.x), lanes = static_cast<int32_t>(p.lanes());
  const int32_t out_tile = thread % OutTiles, pixel_tile = thread / OutTiles;
  const int64_t tiles = (p.group_blocks() + OutTiles - 1) / OutTiles, pixels = p.n * p.ho * p.wo;
  const int64_t group = blockIdx.x % (tiles * p.groups) / tiles, block = blockIdx.x % tiles * OutTiles;
  const int64_t first = blockIdx.x / (tiles * p.groups) * kTilePixels;
  const int32_t steps = static_cast<int32_t>(p.steps());
  filters += group * p.group_blocks() * steps * kOutputs * kLane;

  Source source[kStaged];
  UNROLL
  for (int i = 0; i < kStaged; ++i) {
    const int64_t at = first + thread + i * kThreads, row = at / p.wo;
    source[i].y = static_cast<int32_t>(row % p.ho * p.stride_h - p.pad_h);
    source[i].x = static_cast<int32_t>(at % p.wo * p.stride_w - p.pad_w);
    source[i].from = at < pixels ? x + row / p.ho * p.h * p.w * p.c + group * p.group_c() : nullptr;
  }

  uint32_t sums[kOutputs][kPixels] = {};
  int32_t ky = 0, kx = 0, lane = 0;  // of the step to stage
  for (int32_t begin = 0; begin < steps; begin += kSteps) {
    UNROLL
    for (int s = 0; s < kSteps; ++s) {
      const bool exists = begin + s < steps;
      UNROLL
      for (int i = 0; i < kStaged; ++i) {
        const uint2 bytes = exists ? stage(p, source[i], ky, kx, lane, whole) : uint2{0, 0};
        x_words[(2 * s) * kTilePixels + thread + i * kThreads] = bytes.x;
        x_words[(2 * s + 1) * kTilePixels + thread + i * kThreads] = bytes.y;
      }
      if (++lane == lanes) lane = 0, ++kx;
      if (kx == p.kw) kx = 0, ++ky;
    }
    for (int32_t i = thread; i < kSteps * OutTiles * kOutputs; i += kThreads) {
      const int32_t step = i / (OutTiles * kOutputs), o = i % (OutTiles * kOutputs);
      const int64_t b = block + o / kOutputs;
      const bool exists = begin + step < steps && b < p.group_blocks();
      const uint8_t* from = filters + ((b * steps + begin + step) * kOutputs + o % kOutputs) * kLane;
      const uint2 bytes = exists ? load_eight(from) : uint2{0, 0};
      w_words[2 * step * OutTiles * kOutputs + o] = bytes.x;
      w_words[(2 * step + 1) * OutTiles * kOutputs + o] = bytes.y;
    }
    __syncthreads();
    UNROLL_BY(2)
    for (int k = 0; k < kWords; ++k) {
      const uint4 x0 = xs[k][2 * pixel_tile], x1 = xs[k][2 * pixel_tile + 1];
      const uint4 w0 = ws[k][2 * out_tile], w1 = ws[k][2 * out_tile + 1];
      const uint32_t xk[kPixels] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w};
      const uint32_t wk[kOutputs] = {w0.x, w0.y, w0.z, w0.w, w1.x, w1.y, w1.z, w1.w};
      UNROLL
      for (int o = 0; o < kOutputs; ++o) {
        UNROLL
        for (int i = 0; i < kPixels; ++i) sums[o][i] = add_differences(xk[i], wk[o], sums[o][i]);
      }
    }
    __syncthreads();
  }

  const int64_t o_in_group = (block + out_tile) * kOutputs;
  UNROLL
  for (int i = 0; i < kPixels; ++i) {
    const int64_t pixel = first + pixel_tile * kPixels + i;
    UNROLL
    for (int o = 0; o < kOutputs; ++o) {
      const int64_t channel = group * p.group_o() + o_in_group + o;
      if (pixel < pixels && o_in_group + o < p.group_o()) finish(e, pixel * p.o + channel, channel, sums[o][i]);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const float* __restrict__ x, uint8_t* __restrict__ out, int64_t count, float inverse_step,
                    float zero_point) {
  const int64_t all = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count; i += all)
    out[i] = to_byte(x[i], inverse_step, zero_point);
}

const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <int OutTiles>
const char* launch(const Problem& p, const uint8_t* x, const uint8_t* filters, const Epilogue& e, void* stream) {
  constexpr int64_t kTilePixels = kPixels * kThreads / OutTiles;
  const int64_t tiles = (p.group_blocks() + OutTiles - 1) / OutTiles * p.groups;
  const int64_t blocks = tiles * ((p.n * p.ho * p.wo + kTilePixels - 1) / kTilePixels);
  if (blocks > INT32_MAX) return "the result is too large for one launch";
  // Eight channels in one load where every pixel of every group begins at a multiple of eight bytes.
  const bool whole = p.group_c() % kLane == 0 && reinterpret_cast<uintptr_t>(x) % kLane == 0;
  LAUNCH(forward_kernel<OutTiles>, static_cast<unsigned>(blocks), kThreads, stream, p, x, filters, e, whole);
  return launch_error();
}

}  // namespace

const char* Int8Cuda::forward(const Problem& p, const uint8_t* x, const uint8_t* filters, const Epilogue& e,
                              void* stream) {
  if (reinterpret_cast<uintptr_t>(filters) % kLane) return "the packed filters must begin at a multiple of 8 bytes";
  if (p.group_blocks() <= 2) return launch<2>(p, x, filters, e, stream);
  if (p.group_blocks() <= 4) return launch<4>(p, x, filters, e, stream);
  return launch<8>(p, x, filters, e, stream);
}

const char* Int8Cuda::quantize(const float* x, uint8_t* out, int64_t count, float inverse_step, float zero_point,
                               void* stream) {
  const auto blocks = static_cast<unsigned>(std::min<int64_t>((count + kThreads - 1) / kThreads, 1 << 16));
  LAUNCH(quantize_kernel, blocks, kThreads, stream, x, out, count, inverse_step, zero_point);
  return launch_error();
}

}  // namespace addernet_int8
