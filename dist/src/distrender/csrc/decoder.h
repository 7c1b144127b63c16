// A decoder's layers one after another for many points: the kernels' side of decoder_kernels.py, which packs the
// numbers as they are read here.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace distrender {

constexpr int kBlock = 14;  // outputs of a layer that are packed together for a CPU; BLOCK in decoder_kernels.py

// A layer takes in `previous` numbers, and the point where `point` says so, and gives `out`.
struct Layer {
  int64_t previous, point, out;

  int64_t blocks() const { return (out + kBlock - 1) / kBlock; }
};

// From the layers' three numbers one after another.
inline std::vector<Layer> layers_of(const std::vector<int64_t>& sizes) {
  std::vector<Layer> layers;
  for (std::size_t i = 0; i + 2 < sizes.size(); i += 3) layers.push_back({sizes[i], sizes[i + 1], sizes[i + 2]});
  return layers;
}

// On a CPU:
// `heads`: for every layer and block [4, kBlock], the biases and what x, y and z are multiplied by.
// `weights`: for every layer and block [previous, kBlock]; or in 16 bits [ceil(previous / 2), kBlock, 2].
// On a GPU: as decoder_tile.h says.
template <typename Weight>
struct Network {
  std::vector<Layer> layers;
  const float* heads;
  const Weight* weights;
  int64_t tanh;  // how often it is applied at the end
};

// points: [count, 3]; distances: [count]. Each returns nullptr, or what went wrong.
struct DecoderCpu {
  static constexpr bool kHalves = false;
  template <typename Weight>
  static const char* run(const Network<Weight>& network, const float* points, int64_t count, float* distances,
                         void* stream);
};

struct DecoderCuda {
  static constexpr bool kHalves = true;
  template <typename Weight>
  static const char* run(const Network<Weight>& network, const float* points, int64_t count, float* distances,
                         void* stream);
};

}  // namespace distrender
