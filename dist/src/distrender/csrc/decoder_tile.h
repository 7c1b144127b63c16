// A tile of points through a decoder's layers on a GPU, by the warps of one block.
//
// What lies between layers stays in shared memory, a row a point; every layer reads it and then writes over it. A
// warp computes 64 outputs of all the points, whose sums stay in its registers until all warps have read. So no two
// warps want the same weight, and none need share: each copies its own from L2 into a ring in shared memory, ahead of
// their use and without a stop from layer to layer and from tile to tile. Only the ends of layers make warps wait.
//
// E is what weights and numbers between layers are stored in: Half or BFloat16, multiplied by tensor cores, or float.
// Sums, biases, the point itself and the last layer's weights are float always.
//
// Packed by decoder_kernels.py: `heads` for every layer but the last [out up to a whole kColumns, 4], biases and what
// x, y and z are multiplied by; then those of the last [4] and its weights, zeros behind up to a whole 8. `weights`
// for every warp and layer [slabs][kSlabWords] of 16 bytes, in the order in which the warp's lanes read them.
#pragma once
#include "decoder.h"
#include "decoder_slabs.h"

namespace distrender {

constexpr int kMostWarps = 8;    // of a block: layers of up to 512
constexpr int kMostLayers = 32;  // LAYERS in decoder_kernels.py

struct CudaLayer {
  int32_t inputs, outputs, point;
  int32_t head;  // where its heads begin, in float4
};

template <typename E>
struct CudaNetwork {
  int32_t layers, warps, tanh;
  const float4* heads;
  const uint4* weights;
  int32_t first_slab[kMostWarps], slabs[kMostWarps];  // of each warp's weights
  CudaLayer layer[kMostLayers];
};

// Returns nullptr, or why there are no kernels for it.
template <typename E>
const char* describe(const Network<E>& from, CudaNetwork<E>& to) {
  const auto whole = [](int64_t length, int64_t each) { return (length + each - 1) / each; };
  if (from.layers.size() > kMostLayers) return "the network has too many layers";
  to.layers = static_cast<int32_t>(from.layers.size()), to.tanh = static_cast<int32_t>(from.tanh);
  to.heads = reinterpret_cast<const float4*>(from.heads), to.weights = reinterpret_cast<const uint4*>(from.weights);
  int64_t widest = 1, head = 0;
  for (int32_t l = 0; l < to.layers; ++l) {
    const Layer& layer = from.layers[l];
    to.layer[l] = {static_cast<int32_t>(layer.previous), static_cast<int32_t>(layer.out),
                   static_cast<int32_t>(layer.point), static_cast<int32_t>(head)};
    head += whole(layer.out, kColumns) * kColumns;
    if (layer.out > widest) widest = layer.out;
  }
  if (widest > kMostWarps * kColumns) return "the network's layers are too wide";
  to.warps = static_cast<int32_t>(whole(widest, kColumns));
  int64_t slab = 0;
  for (int32_t w = 0; w < to.warps; ++w) {
    to.first_slab[w] = static_cast<int32_t>(slab);
    for (int32_t l = 0; l + 1 < to.layers; ++l)
      if (w * kColumns < from.layers[l].out) slab += whole(from.layers[l].previous, Slab<E>::kDepth);
    to.slabs[w] = static_cast<int32_t>(slab) - to.first_slab[w];
  }
  return nullptr;
}

// A warp's weights as they come along, kStages slabs of them in shared memory. They begin anew behind the last one.
template <typename E>
class Stream {
 public:
  static constexpr int kWords = Slab<E>::kWords;
  static constexpr int kStages = Slab<E>::kStages;

  __device__ Stream(const uint4* from, int32_t slabs, uint4* ring) : from_(from), slabs_(slabs), ring_(ring) {
    if (slabs == 0) return;
    for (int i = 0; i < kStages - 1; ++i) fetch();
  }

  // The next slab; the last one may be overwritten from now on.
  __device__ __forceinline__ const uint4* next() {
    finish_groups<kStages - 2>();
    __syncwarp();
    fetch();
    const uint4* slab = ring_ + now_ * kWords;
    now_ = now_ + 1 == kStages ? 0 : now_ + 1;
    return slab;
  }

 private:
  __device__ __forceinline__ void fetch() {
    const uint32_t lane = threadIdx.x % 32;
    const uint4* from = from_ + static_cast<int64_t>(ahead_) * kWords + lane;
    uint4* to = ring_ + into_ * kWords + lane;
    UNROLL
    for (int i = 0; i < kWords; i += 32) start_copy(to + i, from + i);
    group_copies();
    ahead_ = ahead_ + 1 == slabs_ ? 0 : ahead_ + 1;
    into_ = into_ + 1 == kStages ? 0 : into_ + 1;
  }

  const uint4* from_;
  int32_t slabs_, ahead_ = 0, into_ = 0, now_ = 0;
  uint4* ring_;
};

template <typename E, int Points>
class Tile {
 public:
  static constexpr int kPoints = Points;

  // Bytes of shared memory, those of `own` behind it included.
  static size_t bytes(int32_t warps, size_t own = 0) {
    return Points * pitch(warps) * sizeof(E) + warps * Stream<E>::kStages * Stream<E>::kWords * sizeof(uint4) +
           Points * (sizeof(float4) + sizeof(float)) + own;
  }

  __device__ Tile(const CudaNetwork<E>& network, unsigned char* memory)
      : points(reinterpret_cast<float4*>(memory)),
        distances(reinterpret_cast<float*>(points + Points)),
        network_(network),
        pitch_(pitch(network.warps)),
        warp_(threadIdx.x / 32),
        ring_(reinterpret_cast<uint4*>(distances + Points)),
        numbers_(reinterpret_cast<E*>(ring_ + network.warps * Stream<E>::kStages * Stream<E>::kWords)),
        stream_(network.weights + static_cast<int64_t>(network.first_slab[warp_]) * Stream<E>::kWords,
                network.slabs[warp_], ring_ + warp_ * Stream<E>::kStages * Stream<E>::kWords) {}

  float4* const points;    // [Points], to be filled in before a call
  float* const distances;  // [Points], the result

  // What the caller may use: so many bytes as it asked for.
  __device__ unsigned char* own() const { return reinterpret_cast<unsigned char*>(numbers_ + Points * pitch_); }

  // All threads of the block call it, with the points in place; what they wrote before is seen by all behind it.
  __device__ __forceinline__ void evaluate() {
    __syncthreads();
    for (int32_t l = 0; l + 1 < network_.layers; ++l) {
      const CudaLayer& layer = network_.layer[l];
      const bool takes_part = static_cast<int32_t>(warp_ * kColumns) < layer.outputs;
      Sums<Points> sums;
      if (takes_part) {
        begin(layer, sums);
        for (int32_t k = 0; k < layer.inputs; k += Slab<E>::kDepth)
          Slab<E>::multiply(numbers_ + k, pitch_, stream_.next(), sums);
      }
      __syncthreads();
      if (takes_part) finish(sums);
      __syncthreads();
    }
    last_layer();
    __syncthreads();
  }

 private:
  // Numbers from row to row, so that the rows that are read at once lie in different banks.
  HOST_DEVICE static int32_t pitch(int32_t warps) { return warps * kColumns + Slab<E>::kPadding; }

  __device__ __forceinline__ static int32_t row() { return threadIdx.x % 32 / 4; }
  __device__ __forceinline__ static int32_t column() { return threadIdx.x % 4 * 2; }

  __device__ __forceinline__ static float apply(const float4& head, const float4& point) {
    return head.x + head.y * point.x + head.z * point.y + head.w * point.z;
  }

  __device__ __forceinline__ void begin(const CudaLayer& layer, Sums<Points>& sums) const {
    const float4* heads = network_.heads + layer.head + warp_ * kColumns + column();
    UNROLL
    for (int n = 0; n < kColumns / 8; ++n) {
      const float4 head[2] = {__ldg(heads + 8 * n), __ldg(heads + 8 * n + 1)};
      UNROLL
      for (int i = 0; i < Points / 8; ++i) {
        if (layer.point) {
          const float4 point = points[row() + 8 * i];
          sums.at[i][n][0] = apply(head[0], point), sums.at[i][n][1] = apply(head[1], point);
        } else {
          sums.at[i][n][0] = head[0].x, sums.at[i][n][1] = head[1].x;
        }
      }
    }
  }

  __device__ __forceinline__ void finish(const Sums<Points>& sums) const {
    const auto rectified = [](float sum) { return sum < 0 ? 0.0f : sum; };  // NaN stays
    UNROLL
    for (int i = 0; i < Points / 8; ++i) {
      E* to = numbers_ + (row() + 8 * i) * pitch_ + warp_ * kColumns + column();
      UNROLL
      for (int n = 0; n < kColumns / 8; ++n)
        store_pair(to + 8 * n, rectified(sums.at[i][n][0]), rectified(sums.at[i][n][1]));
    }
  }

  // One output: four neighbouring threads share a point.
  __device__ __forceinline__ void last_layer() const {
    const CudaLayer& layer = network_.layer[network_.layers - 1];
    const float4 head = __ldg(network_.heads + layer.head);
    const float* weights = reinterpret_cast<const float*>(network_.heads + layer.head + 1);
    for (uint32_t p = threadIdx.x / 4; p < Points; p += blockDim.x / 4) {
      const E* from = numbers_ + static_cast<int32_t>(p) * pitch_;
      float sum = 0;
      for (int32_t k = column(); k < layer.inputs; k += 8)
        sum += widen(from[k]) * __ldg(weights + k) + widen(from[k + 1]) * __ldg(weights + k + 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (threadIdx.x % 4) continue;
      sum += layer.point ? apply(head, points[p]) : head.x;
      for (int32_t i = 0; i < network_.tanh; ++i) sum = tanhf(sum);
      distances[p] = sum;
    }
  }

  const CudaNetwork<E>& network_;
  const int32_t pitch_;
  const uint32_t warp_;
  uint4* const ring_;
  E* const numbers_;
  Stream<E> stream_;
};

}  // namespace distrender
