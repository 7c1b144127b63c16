// The marching step for PyTorch: allocation, checks of shapes and dtypes, and the registration for CPU and CUDA. The
// schema and what it means are in marching_kernels.py.
#include "march.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "march_tensors.h"
#include "stream.h"

namespace distrender {
namespace {

template <typename Device>
std::tuple<Tensor, Tensor, Tensor> march_step(Tensor walks, Tensor state, const Tensor& origins,
                                              const Tensor& directions, const Tensor& slope, const Tensor& near,
                                              const Tensor& far, const Tensor& rays, const Tensor& values,
                                              int64_t exact, double approximate_above, int64_t steps, double ratio,
                                              double clamp, double threshold, int64_t finish, double finish_below,
                                              double slack) {
  const papershelf::Scope scope(origins);
  const MarchTensors march{walks, state, origins, directions, slope, near, far};
  const Rules rules{steps, ratio, clamp, threshold, finish, finish_below, slack};
  const ScalarType type = march.type();
  const int64_t m = rays.numel();
  march.check_all();
  STD_TORCH_CHECK(m <= state.numel() && exact >= 0 && exact <= m, "distrender: too many rays");
  check(rays, ScalarType::Int, m, "rays");
  check(values, type, m, "values");
  const auto empty = [&](int64_t size, ScalarType of) {
    return torch::stable::empty({size}, of, std::nullopt, origins.device());
  };
  Tensor fates = empty(m, ScalarType::Char), next_rays = empty(m, ScalarType::Int);
  Tensor counts = empty(2, ScalarType::Int), places = empty(2, ScalarType::Int);
  Tensor points = torch::stable::empty({m, 3}, type, std::nullopt, origins.device());
  const auto call = [&]<typename T>(T) {
    const Step<T> step{static_cast<int32_t>(m),
                       static_cast<int32_t>(exact),
                       static_cast<T>(approximate_above),
                       static_cast<const int32_t*>(rays.const_data_ptr()),
                       static_cast<const T*>(values.const_data_ptr()),
                       static_cast<int8_t*>(fates.mutable_data_ptr()),
                       static_cast<int32_t*>(next_rays.mutable_data_ptr()),
                       static_cast<T*>(points.mutable_data_ptr()),
                       static_cast<int32_t*>(counts.mutable_data_ptr()),
                       static_cast<int32_t*>(places.mutable_data_ptr())};
    const char* error = Device::step(march.pointers<T>(), rules.options<T>(), step, scope.stream);
    STD_TORCH_CHECK(!error, "distrender: ", error);
  };
  type == ScalarType::Float ? call(float{}) : call(double{});
  return {next_rays, points, counts};
}

}  // namespace

#if defined(CUDA_ON_CPU)
using OnCpu = MarchCuda;
#else
using OnCpu = MarchCpu;
#endif

STABLE_TORCH_LIBRARY_IMPL(distrender, CPU, m) { m.impl("march_step", TORCH_BOX(&march_step<OnCpu>)); }

#if defined(USE_CUDA)
STABLE_TORCH_LIBRARY_IMPL(distrender, CUDA, m) { m.impl("march_step", TORCH_BOX(&march_step<MarchCuda>)); }
#endif

}  // namespace distrender
