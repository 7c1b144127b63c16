// The decoder's kernels for PyTorch: allocation and the registration. Packing, checks and the fallback are in
// decoder_kernels.py.
#include "decoder.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "storage.h"

namespace distrender {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor decode(const Tensor& points, const Tensor& heads, const Tensor& weights, std::vector<int64_t> sizes, int64_t tanh) {
  std::vector<Layer> layers;
  for (size_t i = 0; i + 2 < sizes.size(); i += 3) layers.push_back({sizes[i], sizes[i + 1], sizes[i + 2]});
  Tensor distances = torch::stable::new_empty(points, {points.size(0)});
  const auto call = [&]<typename Weight>(Weight) {
    DecoderCpu::run<Weight>({layers, static_cast<const float*>(heads.const_data_ptr()),
                             static_cast<const Weight*>(weights.const_data_ptr()), tanh},
                            static_cast<const float*>(points.const_data_ptr()), points.size(0),
                            static_cast<float*>(distances.mutable_data_ptr()));
  };
  weights.scalar_type() == ScalarType::BFloat16 ? call(papershelf::BFloat16{}) : call(float{});
  return distances;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(distrender, CPU, m) { m.impl("decode", TORCH_BOX(&decode)); }

}  // namespace distrender
