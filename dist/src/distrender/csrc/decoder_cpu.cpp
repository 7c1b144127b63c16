// A decoder on a CPU. A tile of points goes through all layers while what it is made of stays in the second cache;
// a block of weights is read once for a tile. Lanes hold points: a block's outputs for a group of points stay in
// registers while the inputs go by, and bias, ReLU and storing follow there.
//
// In 16 bits two inputs of a point share a lane, as the processor's dot product of pairs wants them; sums, biases and
// the point itself stay in float32.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <type_traits>
#include <utility>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "decoder.h"
#include "lanes.h"
#include "storage.h"

namespace distrender {
namespace {

using papershelf::BFloat16;

using Lanes = papershelf::Lanes<float>;
using Words = papershelf::Lanes<uint32_t>;

constexpr int kOutputs = papershelf::kRegisterBytes == 64 ? kBlock : 6;  // of a layer, at a time
constexpr int kLanes = papershelf::kLanes<float>;
constexpr int kVectors = 2;                  // registers of points in a group
constexpr int kGroup = kVectors * kLanes;    // points whose numbers lie together: [input, kGroup]
constexpr int kTile = 128;                   // points

// How the numbers between layers are kept, and what one of a block's weights adds to the sums: a row is one input of
// each point, or two.
template <typename Weight>
struct Rows;

template <>
struct Rows<float> {
  using Word = float;
  static constexpr int kInputs = 1;
  static ALWAYS_INLINE void add(Lanes& sum, const Lanes& x, const float& weight) { sum += x * weight; }
  static ALWAYS_INLINE Lanes word(const Lanes& value, const Lanes&) { return value; }
};

template <>
struct Rows<BFloat16> {
  using Word = uint32_t;
  static constexpr int kInputs = 2;
  static ALWAYS_INLINE void add(Lanes& sum, const Lanes& x, const uint32_t& weight) {
#if defined(__AVX512BF16__)
    sum = Lanes(_mm512_dpbf16_ps(__m512(sum), __m512bh(x), __m512bh(_mm512_set1_epi32(static_cast<int>(weight)))));
#else
    const Words pair = Words(x);
    sum += Lanes(pair << 16) * papershelf::bits_as<float>(weight << 16);
    sum += Lanes(pair & 0xffff0000u) * papershelf::bits_as<float>(weight & 0xffff0000u);
#endif
  }
  static ALWAYS_INLINE Lanes word(const Lanes& low, const Lanes& high) {
    const auto rounded = [](const Lanes& value) {  // to the nearest, ties to even; NaN stays one
      const Words bits = Words(value), up = bits + 0x7fffu + ((bits >> 16) & 1u);
      return (value == value) ? up : Words(bits | 0x400000u);
    };
    return Lanes((rounded(low) >> 16) | (rounded(high) & 0xffff0000u));
  }
};

// C outputs of a layer for V registers of points.
template <typename Weight, int V, int C>
struct Micro {
  using R = Rows<Weight>;

  // x, y: [rows, kGroup] from the group's first point on; y's rows from the first output on. point: [3, kGroup].
  static void run(const Layer& layer, bool last, const float* head, const typename R::Word* weights, const Lanes* x,
                  const Lanes* point, Lanes* y) {
    Lanes sum[V][C];
    UNROLLED for (int c = 0; c < C; ++c)
      UNROLLED for (int v = 0; v < V; ++v) sum[v][c] = head[c] - Lanes{};
    if (layer.point)
      for (int axis = 0; axis < 3; ++axis)
        UNROLLED for (int c = 0; c < C; ++c)
          UNROLLED for (int v = 0; v < V; ++v) sum[v][c] += point[axis * kVectors + v] * head[(axis + 1) * kBlock + c];
    const int64_t rows = (layer.previous + R::kInputs - 1) / R::kInputs;
    for (int64_t k = 0; k < rows; ++k, weights += kBlock, x += kVectors) {
      Lanes in[V];
      UNROLLED for (int v = 0; v < V; ++v) in[v] = x[v];
      UNROLLED for (int c = 0; c < C; ++c)
        UNROLLED for (int v = 0; v < V; ++v) R::add(sum[v][c], in[v], weights[c]);
    }
    if (last) {
      UNROLLED for (int v = 0; v < V; ++v) y[v] = sum[v][0];
      return;
    }
    UNROLLED for (int c = 0; c < C; ++c)
      UNROLLED for (int v = 0; v < V; ++v) sum[v][c] = sum[v][c] < 0 ? Lanes{} : sum[v][c];  // NaN stays
    UNROLLED for (int c = 0; c < C; c += R::kInputs)
      UNROLLED for (int v = 0; v < V; ++v)
        y[c / R::kInputs * kVectors + v] = R::word(sum[v][c], c + 1 < C ? sum[v][c + 1 < C ? c + 1 : c] : Lanes{});
  }
};

template <typename Weight>
using Run = void (*)(const Layer&, bool, const float*, const typename Rows<Weight>::Word*, const Lanes*, const Lanes*,
                     Lanes*);

template <typename Weight, int V>
constexpr auto kRuns = []<int... I>(std::integer_sequence<int, I...>) {
  return std::array<Run<Weight>, sizeof...(I)>{Micro<Weight, V, I + 1>::run...};
}(std::make_integer_sequence<int, kOutputs>{});

// What a thread needs for a tile: two sets of numbers between layers, [groups, rows, kGroup] each, and the points.
template <typename Weight>
class Tile {
  using R = Rows<Weight>;
  static constexpr int kGroups = kTile / kGroup;

 public:
  explicit Tile(const Network<Weight>& network) : network_(network) {
    for (const Layer& layer : network.layers) rows_ = std::max(rows_, (layer.out + R::kInputs - 1) / R::kInputs);
    const size_t vectors = kGroups * rows_ * kVectors;
    for (auto& buffer : buffers_) buffer.reset(new (std::align_val_t(64)) Lanes[vectors]);
  }

  void run(const float* points, int64_t count, float* distances) {
    const int64_t vectors = (count + kLanes - 1) / kLanes;
    for (int64_t i = 0; i < vectors * kLanes; ++i)  // the last vector is filled up with its last point
      for (int axis = 0; axis < 3; ++axis)
        floats(point_[i / kGroup])[axis * kGroup + i % kGroup] = points[3 * std::min(i, count - 1) + axis];
    const float* head = network_.heads;
    auto* weights = reinterpret_cast<const typename R::Word*>(network_.weights);
    Lanes *x = buffers_[0].get(), *y = buffers_[1].get();
    for (size_t l = 0; l < network_.layers.size(); ++l) {
      const Layer& layer = network_.layers[l];
      const bool last = l + 1 == network_.layers.size();
      const int64_t step = (layer.previous + R::kInputs - 1) / R::kInputs * kBlock;
      for (int64_t block = 0; block < layer.blocks(); ++block, head += 4 * kBlock, weights += step)
        for (int64_t first = 0; first < kBlock; first += kOutputs) {
          const int64_t output = block * kBlock + first;
          const int64_t outputs = std::min<int64_t>({kOutputs, kBlock - first, layer.out - output});
          if (outputs <= 0) break;
          for (int64_t group = 0; group * kVectors < vectors; ++group) {
            const auto& runs = vectors - group * kVectors > 1 ? kRuns<Weight, kVectors> : kRuns<Weight, 1>;
            runs[outputs - 1](layer, last, head + first, weights + first, x + group * rows_ * kVectors, point_[group],
                              y + (group * rows_ + output / R::kInputs) * kVectors);
          }
        }
      std::swap(x, y);
    }
    for (int64_t i = 0; i < count; ++i) {
      float distance = floats(x + i / kGroup * rows_ * kVectors)[i % kGroup];
      for (int64_t n = 0; n < network_.tanh; ++n) distance = std::tanh(distance);
      distances[i] = distance;
    }
  }

 private:
  static float* floats(Lanes* lanes) { return reinterpret_cast<float*>(lanes); }

  struct Free {
    void operator()(Lanes* at) const { operator delete[](at, std::align_val_t(64)); }
  };
  const Network<Weight>& network_;
  int64_t rows_ = 1;
  std::unique_ptr<Lanes[], Free> buffers_[2];
  Lanes point_[kGroups][3 * kVectors];
};

}  // namespace

template <typename Weight>
const char* DecoderCpu::run(const Network<Weight>& network, const float* points, int64_t count, float* distances,
                            void*) {
  // Few points are dealt out evenly, in whole groups.
  const int64_t threads = torch::stable::get_num_threads(), groups = (count + kGroup - 1) / kGroup;
  const int64_t size = std::min<int64_t>(kTile, kGroup * ((groups + threads - 1) / threads));
  torch::stable::parallel_for(0, size ? (count + size - 1) / size : 0, 1, [&](int64_t begin, int64_t end) {
    Tile<Weight> tile(network);
    for (int64_t first = begin * size; first < std::min(end * size, count); first += size)
      tile.run(points + 3 * first, std::min<int64_t>(size, count - first), distances + first);
  });
  return nullptr;
}

template const char* DecoderCpu::run<float>(const Network<float>&, const float*, int64_t, float*, void*);
template const char* DecoderCpu::run<BFloat16>(const Network<BFloat16>&, const float*, int64_t, float*, void*);

}  // namespace distrender
