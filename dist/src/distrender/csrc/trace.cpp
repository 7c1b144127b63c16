// distrender's tracing kernels for PyTorch: allocation and dtypes, and the registration for CPU and CUDA. Schemas and
// what the operators mean are in tracing_kernels.py, which hands all tensors over dense and of one dtype.
#include "trace.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "stream.h"

namespace distrender {
namespace {

using papershelf::Scope;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename T>
const T* data_of(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

void check(const Tensor& t, ScalarType type, const char* name) {
  STD_TORCH_CHECK(t.is_contiguous() && t.scalar_type() == type, "distrender: ", name,
                  " must be contiguous and of the rays' dtype");
}

// Calls body(Rays<T>, Options<T>, stream) with the rays' T, which returns an error or nullptr.
template <typename Body>
Results with_rays(const Tensor& origins, const Tensor& directions, const Tensor& start, const Tensor& slope,
                  const Tensor& near, const Tensor& far, int64_t steps, double ratio, double clamp, double threshold,
                  int64_t finish, double finish_below, double slack, Body body) {
  const Scope scope(origins);
  const ScalarType type = origins.scalar_type();
  const int64_t n = origins.size(0);
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "distrender: rays must be float or double");
  STD_TORCH_CHECK(finish >= kNone && finish <= kBisect, "distrender: no such finish");
  STD_TORCH_CHECK(n <= INT32_MAX / 3, "distrender: too many rays for one call");
  for (const Tensor* t : {&origins, &directions}) {
    check(*t, type, "origins and directions");
    STD_TORCH_CHECK(t->numel() == 3 * n, "distrender: origins and directions must be [N, 3]");
  }
  for (const Tensor* t : {&start, &slope, &near, &far}) {
    check(*t, type, "start, slope, near and far");
    STD_TORCH_CHECK(t->numel() == n, "distrender: start, slope, near and far must be [N]");
  }
  const auto empty = [&](ScalarType of) {
    return torch::stable::empty({n}, of, std::nullopt, origins.device());
  };
  Tensor depth = empty(type), min_sdf = empty(type), min_depth = empty(type);
  Tensor state = empty(ScalarType::Char), queries = empty(ScalarType::Int);
  Tensor queue = torch::stable::empty({1}, ScalarType::Int, std::nullopt, origins.device());
  const auto call = [&]<typename T>(T) {
    const auto to = [](Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); };
    const Rays<T> rays{n,
                       data_of<T>(origins),
                       data_of<T>(directions),
                       data_of<T>(start),
                       data_of<T>(slope),
                       data_of<T>(near),
                       data_of<T>(far),
                       to(depth),
                       to(min_sdf),
                       to(min_depth),
                       static_cast<int8_t*>(state.mutable_data_ptr()),
                       static_cast<int32_t*>(queries.mutable_data_ptr()),
                       static_cast<int32_t*>(queue.mutable_data_ptr())};
    const Options<T> options{static_cast<int32_t>(steps), static_cast<Finish>(finish),   static_cast<T>(ratio),
                             static_cast<T>(clamp),       static_cast<T>(threshold),     static_cast<T>(finish_below),
                             static_cast<T>(slack)};
    const char* error = body(rays, options, scope.stream);
    STD_TORCH_CHECK(!error, "distrender: ", error);
  };
  if (n > 0) type == ScalarType::Float ? call(float{}) : call(double{});
  return {depth, min_sdf, min_depth, state, queries};
}

template <typename Device>
Results trace_analytic(const Tensor& origins, const Tensor& directions, const Tensor& start, const Tensor& slope,
                       const Tensor& near, const Tensor& far, const Tensor& tape, const Tensor& constants,
                       int64_t steps, double ratio, double clamp, double threshold, int64_t finish,
                       double finish_below, double slack) {
  STD_TORCH_CHECK(tape.is_contiguous() && tape.scalar_type() == ScalarType::Int, "distrender: tape must be int32");
  check(constants, origins.scalar_type(), "constants");
  STD_TORCH_CHECK(tape.size(0) <= kInstructions && constants.numel() <= kConstants, "distrender: tape is too long");
  return with_rays(origins, directions, start, slope, near, far, steps, ratio, clamp, threshold, finish, finish_below,
                   slack,
                   [&]<typename T>(const Rays<T>& rays, const Options<T>& options, void* stream) {
                     const Tape<T> program{data_of<int32_t>(tape), data_of<T>(constants),
                                           static_cast<int32_t>(tape.size(0)),
                                           static_cast<int32_t>(constants.numel())};
                     return Device::analytic(program, rays, options, stream);
                   });
}

template <typename T>
Box<T> box_of(int64_t d, int64_t h, int64_t w, double low, double high) {
  const auto per_unit = [&](int64_t size) { return static_cast<T>((size - 1) / (high - low)); };
  return {static_cast<int32_t>(d), static_cast<int32_t>(h), static_cast<int32_t>(w), static_cast<T>(low),
          static_cast<T>(high),    per_unit(d),             per_unit(h),             per_unit(w)};
}

template <typename Device>
Results trace_grid(const Tensor& origins, const Tensor& directions, const Tensor& start, const Tensor& slope,
                   const Tensor& near, const Tensor& far, const Tensor& values, double low, double high, int64_t steps,
                   double ratio, double clamp, double threshold, int64_t finish, double finish_below, double slack) {
  check(values, origins.scalar_type(), "values");
  STD_TORCH_CHECK(values.dim() == 3 && values.size(0) > 1 && values.size(1) > 1 && values.size(2) > 1 &&
                      values.numel() <= INT32_MAX,
                  "distrender: values must be [D, H, W] of at least 2 each and fewer than 2^31 in all");
  return with_rays(origins, directions, start, slope, near, far, steps, ratio, clamp, threshold, finish, finish_below,
                   slack,
                   [&]<typename T>(const Rays<T>& rays, const Options<T>& options, void* stream) {
                     const auto box = box_of<T>(values.size(0), values.size(1), values.size(2), low, high);
                     return Device::grid(Grid<T>{data_of<T>(values), box}, rays, options, stream);
                   });
}

template <typename Device>
Results trace_bricks(const Tensor& origins, const Tensor& directions, const Tensor& start, const Tensor& slope,
                     const Tensor& near, const Tensor& far, const Tensor& bricks, int64_t d, int64_t h, int64_t w,
                     double low, double high, int64_t steps, double ratio, double clamp, double threshold,
                     int64_t finish, double finish_below, double slack) {
  const auto fits = [&](int axis, int64_t samples) { return samples > 1 && bricks.size(axis) == (samples + 3) / 4; };
  STD_TORCH_CHECK(bricks.is_contiguous() && bricks.scalar_type() == ScalarType::Half && bricks.dim() == 6 &&
                      fits(0, d) && fits(1, h) && fits(2, w) && bricks.numel() <= INT32_MAX &&
                      bricks.numel() == kBrickSize * bricks.size(0) * bricks.size(1) * bricks.size(2),
                  "distrender: bricks must be half [D / 4, H / 4, W / 4, 4, 4, 4], rounded up, of at least 2 samples "
                  "along each axis and fewer than 2^31 in all");
  return with_rays(origins, directions, start, slope, near, far, steps, ratio, clamp, threshold, finish, finish_below,
                   slack,
                   [&]<typename T>(const Rays<T>& rays, const Options<T>& options, void* stream) {
                     const auto* values = static_cast<const papershelf::Half*>(bricks.const_data_ptr());
                     return Device::bricks(Bricks<T>{values, box_of<T>(d, h, w, low, high)}, rays, options, stream);
                   });
}

}  // namespace

#if defined(CUDA_ON_CPU)
using OnCpu = Cuda;
#else
using OnCpu = Cpu;
#endif

STABLE_TORCH_LIBRARY_IMPL(distrender, CPU, m) {
  m.impl("trace_analytic", TORCH_BOX(&trace_analytic<OnCpu>));
  m.impl("trace_grid", TORCH_BOX(&trace_grid<OnCpu>));
  m.impl("trace_bricks", TORCH_BOX(&trace_bricks<OnCpu>));
}

#if defined(USE_CUDA)
STABLE_TORCH_LIBRARY_IMPL(distrender, CUDA, m) {
  m.impl("trace_analytic", TORCH_BOX(&trace_analytic<Cuda>));
  m.impl("trace_grid", TORCH_BOX(&trace_grid<Cuda>));
  m.impl("trace_bricks", TORCH_BOX(&trace_bricks<Cuda>));
}
#endif

}  // namespace distrender
