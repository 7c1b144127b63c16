// The march through a decoder for PyTorch, on GPUs only: allocation, checks and the registration. The schema and what
// it means are in marching_kernels.py.
#include "march_decoder.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "march_tensors.h"
#include "stream.h"

#if defined(USE_CUDA) || defined(CUDA_ON_CPU)
namespace distrender {
namespace {

Tensor march_decoder(Tensor walks, Tensor state, const Tensor& origins, const Tensor& directions, const Tensor& slope,
                     const Tensor& near, const Tensor& far, const Tensor& rays, const Tensor& heads,
                     const Tensor& weights, const Tensor& rough_weights, std::vector<int64_t> sizes, int64_t tanh,
                     double approximate_above, int64_t steps, double ratio, double clamp, double threshold,
                     int64_t finish, double finish_below, double slack) {
  const papershelf::Scope scope(origins);
  const MarchTensors march{walks, state, origins, directions, slope, near, far};
  const Rules rules{steps, ratio, clamp, threshold, finish, finish_below, slack};
  const int64_t m = rays.numel();
  march.check_all();
  check(rays, ScalarType::Int, m, "rays");
  STD_TORCH_CHECK(march.type() == ScalarType::Float, "distrender: decoders are marched through in float");
  STD_TORCH_CHECK(weights.scalar_type() == ScalarType::Float && rough_weights.scalar_type() == ScalarType::Half,
                  "distrender: a decoder's weights must be float and half");
  Tensor room = torch::stable::empty({m + 3}, ScalarType::Int, std::nullopt, origins.device());
  const auto* biases = static_cast<const float*>(heads.const_data_ptr());
  const auto layers = layers_of(sizes);
  const Network<float> exact{layers, biases, static_cast<const float*>(weights.const_data_ptr()), tanh};
  const Network<papershelf::Half> rough{
      layers, biases, static_cast<const papershelf::Half*>(rough_weights.const_data_ptr()), tanh};
  const char* error =
      MarchDecoderCuda::run(march.pointers<float>(), rules.options<float>(),
                            static_cast<const int32_t*>(rays.const_data_ptr()), static_cast<int32_t>(m), exact,
                            rough_weights.numel() ? &rough : nullptr, static_cast<float>(approximate_above),
                            static_cast<int32_t*>(room.mutable_data_ptr()), scope.stream);
  STD_TORCH_CHECK(!error, "distrender: ", error);
  return room;
}

}  // namespace

#if defined(CUDA_ON_CPU)
STABLE_TORCH_LIBRARY_IMPL(distrender, CPU, m) { m.impl("march_decoder", TORCH_BOX(&march_decoder)); }
#else
STABLE_TORCH_LIBRARY_IMPL(distrender, CUDA, m) { m.impl("march_decoder", TORCH_BOX(&march_decoder)); }
#endif

}  // namespace distrender
#endif
