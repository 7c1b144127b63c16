// The marching step for PyTorch: allocation, checks of shapes and dtypes, and the registration for CPU and CUDA. The
// schema and what it means are in marching_kernels.py.
#include "march.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "stream.h"

namespace distrender {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check(const Tensor& t, ScalarType type, int64_t numel, const char* name) {
  STD_TORCH_CHECK(t.is_contiguous() && t.scalar_type() == type && t.numel() == numel, "distrender: ", name,
                  " has the wrong shape, strides or dtype");
}

template <typename Device>
std::tuple<Tensor, Tensor, Tensor> march_step(Tensor walks, Tensor state, const Tensor& origins,
                                              const Tensor& directions, const Tensor& slope, const Tensor& near,
                                              const Tensor& far, const Tensor& rays, const Tensor& values,
                                              int64_t exact, double approximate_above, int64_t steps, double ratio,
                                              double clamp, double threshold, int64_t finish, double finish_below,
                                              double slack) {
  const papershelf::Scope scope(origins);
  const ScalarType type = origins.scalar_type();
  const int64_t n = state.numel(), m = rays.numel();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "distrender: rays must be float or double");
  STD_TORCH_CHECK(finish >= kNone && finish <= kBisect, "distrender: no such finish");
  STD_TORCH_CHECK(n <= INT32_MAX && m <= n && exact >= 0 && exact <= m, "distrender: too many rays");
  check(walks, type, kRows * n, "walks");
  check(state, ScalarType::Char, n, "state");
  check(origins, type, 3 * n, "origins");
  check(directions, type, 3 * n, "directions");
  check(slope, type, n, "slope");
  check(near, type, n, "near");
  check(far, type, n, "far");
  check(rays, ScalarType::Int, m, "rays");
  check(values, type, m, "values");
  const auto empty = [&](int64_t size, ScalarType of) {
    return torch::stable::empty({size}, of, std::nullopt, origins.device());
  };
  Tensor fates = empty(m, ScalarType::Char), next_rays = empty(m, ScalarType::Int);
  Tensor counts = empty(2, ScalarType::Int), places = empty(2, ScalarType::Int);
  Tensor points = torch::stable::empty({m, 3}, type, std::nullopt, origins.device());
  const auto call = [&]<typename T>(T) {
    const auto from = [](const Tensor& t) { return static_cast<const T*>(t.const_data_ptr()); };
    const March<T> march{n,           from(origins), from(directions),
                         from(slope), from(near),    from(far),
                         static_cast<T*>(walks.mutable_data_ptr()), static_cast<int8_t*>(state.mutable_data_ptr())};
    const Options<T> options{static_cast<int32_t>(steps), static_cast<Finish>(finish), static_cast<T>(ratio),
                             static_cast<T>(clamp),       static_cast<T>(threshold),   static_cast<T>(finish_below),
                             static_cast<T>(slack)};
    const Step<T> step{static_cast<int32_t>(m),
                       static_cast<int32_t>(exact),
                       static_cast<T>(approximate_above),
                       static_cast<const int32_t*>(rays.const_data_ptr()),
                       from(values),
                       static_cast<int8_t*>(fates.mutable_data_ptr()),
                       static_cast<int32_t*>(next_rays.mutable_data_ptr()),
                       static_cast<T*>(points.mutable_data_ptr()),
                       static_cast<int32_t*>(counts.mutable_data_ptr()),
                       static_cast<int32_t*>(places.mutable_data_ptr())};
    const char* error = Device::step(march, options, step, scope.stream);
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
