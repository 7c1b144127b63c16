// The decoder's kernels for PyTorch: allocation and the registration. Packing, checks and the fallback are in
// decoder_kernels.py.
#include "decoder.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "storage.h"
#include "stream.h"

namespace distrender {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename Device>
Tensor decode(const Tensor& points, const Tensor& heads, const Tensor& weights, std::vector<int64_t> sizes,
              int64_t tanh) {
  const papershelf::Scope scope(points);
  const auto layers = layers_of(sizes);
  Tensor distances = torch::stable::new_empty(points, {points.size(0)});
  const auto call = [&]<typename Weight>(Weight) {
    const char* error = Device::template run<Weight>({layers, static_cast<const float*>(heads.const_data_ptr()),
                                                      static_cast<const Weight*>(weights.const_data_ptr()), tanh},
                                                     static_cast<const float*>(points.const_data_ptr()),
                                                     points.size(0), static_cast<float*>(distances.mutable_data_ptr()),
                                                     scope.stream);
    STD_TORCH_CHECK(!error, "distrender: ", error);
  };
  if (weights.scalar_type() == ScalarType::BFloat16) {
    call(papershelf::BFloat16{});
  } else if (weights.scalar_type() == ScalarType::Half) {
    if constexpr (Device::kHalves) call(papershelf::Half{});
    STD_TORCH_CHECK(Device::kHalves, "distrender: decoders in halves are for GPUs");
  } else {
    call(float{});
  }
  return distances;
}

}  // namespace

#if defined(CUDA_ON_CPU)
using OnCpu = DecoderCuda;
#else
using OnCpu = DecoderCpu;
#endif

STABLE_TORCH_LIBRARY_IMPL(distrender, CPU, m) { m.impl("decode", TORCH_BOX(&decode<OnCpu>)); }

#if defined(USE_CUDA)
STABLE_TORCH_LIBRARY_IMPL(distrender, CUDA, m) { m.impl("decode", TORCH_BOX(&decode<DecoderCuda>)); }
#endif

}  // namespace distrender
