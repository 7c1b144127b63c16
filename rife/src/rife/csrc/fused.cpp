// rife_fused for PyTorch: checks, dtypes and allocation, and the registration of the CPU and the CUDA
// kernels. Schemas and what each operator means are in fused.py.
#include "fused.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "stream.h"

namespace rife {
namespace {

using papershelf::Scope;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// Calls body(S{}) with what the convolutions' numbers are stored as.
template <typename Body>
void with_storage(ScalarType type, Body body) {
  switch (type) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Half:
      return body(Half{});
    case ScalarType::BFloat16:
      return body(BFloat16{});
    default:
      STD_TORCH_CHECK(false, "rife_fused: features must be float16, bfloat16 or float32");
  }
}

template <typename T>
const T* data_of(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

void check_float(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.is_contiguous(), "rife_fused: ", name,
                  " must be contiguous float32");
}

// [N, C, H, W] with the channels of a pixel beside each other and nothing in between.
void check_channels_last(const Tensor& t, const char* name) {
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  const bool dense = (t.stride(1) == 1 || c == 1) && (t.stride(3) == c || w == 1) && (t.stride(2) == c * w || h == 1) &&
                     (t.stride(0) == c * w * h || t.size(0) == 1);
  STD_TORCH_CHECK(dense, "rife_fused: ", name, " must be dense channels_last");
}

Pair pair_of(const Tensor& img0, const Tensor& img1, const Tensor* state, const Tensor* t) {
  check_float(img0, "img0"), check_float(img1, "img1");
  if (state) check_float(*state, "state");
  if (t) check_float(*t, "t");
  return {data_of<Pixel>(img0),
          data_of<Pixel>(img1),
          state ? data_of<float>(*state) : nullptr,
          t ? data_of<float>(*t) : nullptr,
          static_cast<int32_t>(state ? state->size(0) : t->size(0)),
          static_cast<int32_t>(img0.size(0)),
          static_cast<int32_t>(img0.size(1))};
}

template <typename Device>
Tensor assemble(const Tensor& img0, const Tensor& img1, const MaybeTensor& state, const Tensor& t,
                std::vector<int64_t> planes, int64_t scale, int64_t channels, ScalarType type) {
  const Scope scope(img0);
  Recipe recipe{};
  recipe.planes = static_cast<int32_t>(planes.size()), recipe.scale = static_cast<int32_t>(scale);
  STD_TORCH_CHECK(recipe.planes <= kPlanes, "rife_fused: too many planes");
  for (int32_t i = 0; i < recipe.planes; ++i) {
    STD_TORCH_CHECK(planes[i] >= 0 && planes[i] < kPlanes, "rife_fused: no such plane");
    recipe.plane[i] = planes[i], recipe.used += channels_of(planes[i]);
  }
  recipe.channels = static_cast<int32_t>(std::max<int64_t>(channels, recipe.used));
  const Pair pair = pair_of(img0, img1, state ? &*state : nullptr, &t);
  Tensor out = torch::stable::empty({pair.n, recipe.channels, pair.h / scale, pair.w / scale}, type, std::nullopt,
                                    img0.device(), std::nullopt, MemoryFormat::ChannelsLast);
  with_storage(type, [&]<typename S>(S) {
    const char* error = Device::assemble(pair, recipe, static_cast<S*>(out.mutable_data_ptr()), scope.stream);
    STD_TORCH_CHECK(!error, "rife_fused::assemble: ", error);
  });
  return out;
}

template <typename Device>
void add_upsampled(const Tensor& state, const Tensor& change, int64_t factor, bool shuffle) {
  const Scope scope(state);
  check_float(state, "state"), check_channels_last(change, "change");
  with_storage(change.scalar_type(), [&]<typename S>(S) {
    const Change<S> from{data_of<S>(change), static_cast<int32_t>(change.size(2)), static_cast<int32_t>(change.size(3)),
                         static_cast<int32_t>(change.size(1)), shuffle};
    STD_TORCH_CHECK(from.height() * factor == state.size(1) && from.width() * factor == state.size(2) &&
                        from.channels >= kState * (shuffle ? 4 : 1),
                    "rife_fused::add_upsampled: change does not fit state");
    const char* error = Device::add_upsampled(
        from, static_cast<int32_t>(factor), static_cast<float*>(state.mutable_data_ptr()),
        static_cast<int32_t>(state.size(0)), static_cast<int32_t>(state.size(1)), static_cast<int32_t>(state.size(2)),
        scope.stream);
    STD_TORCH_CHECK(!error, "rife_fused::add_upsampled: ", error);
  });
}

template <typename Device>
Tensor blend_pair(const Tensor& img0, const Tensor& img1, const Tensor& state, const MaybeTensor& residual,
                  int64_t rows, int64_t columns) {
  const Scope scope(img0);
  const Pair pair = pair_of(img0, img1, &state, nullptr);
  STD_TORCH_CHECK(rows <= pair.h && columns <= pair.w, "rife_fused::blend_pair: more is wanted than there is");
  if (residual) check_channels_last(*residual, "residual");
  Tensor out = torch::stable::empty({pair.n, 3, rows, columns}, ScalarType::Float, std::nullopt, img0.device());
  with_storage(residual ? residual->scalar_type() : ScalarType::Float, [&]<typename S>(S) {
    const char* error =
        Device::blend_pair(pair, residual ? data_of<S>(*residual) : nullptr, static_cast<float*>(out.mutable_data_ptr()),
                           static_cast<int32_t>(rows), static_cast<int32_t>(columns), scope.stream);
    STD_TORCH_CHECK(!error, "rife_fused::blend_pair: ", error);
  });
  return out;
}

template <typename Device>
void activate(const Tensor& x, const MaybeTensor& bias, const Tensor& slope, const MaybeTensor& before,
              const MaybeTensor& after) {
  const Scope scope(x);
  check_channels_last(x, "x"), check_float(slope, "slope");
  if (bias) check_float(*bias, "bias");
  for (const MaybeTensor* other : {&before, &after})
    if (*other) {
      check_channels_last(**other, "before and after");
      STD_TORCH_CHECK((*other)->scalar_type() == x.scalar_type() && (*other)->numel() == x.numel(),
                      "rife_fused::activate: before and after must be like x");
    }
  with_storage(x.scalar_type(), [&]<typename S>(S) {
    const Activation<S> a{static_cast<S*>(x.mutable_data_ptr()),
                          bias ? data_of<float>(*bias) : nullptr,
                          data_of<float>(slope),
                          before ? data_of<S>(*before) : nullptr,
                          after ? data_of<S>(*after) : nullptr,
                          x.size(0) * x.size(2) * x.size(3),
                          static_cast<int32_t>(x.size(1))};
    const char* error = Device::activate(a, scope.stream);
    STD_TORCH_CHECK(!error, "rife_fused::activate: ", error);
  });
}

}  // namespace
}  // namespace rife

#define REGISTER(Device)                                            \
  m.impl("assemble", TORCH_BOX(&rife::assemble<Device>));           \
  m.impl("add_upsampled", TORCH_BOX(&rife::add_upsampled<Device>)); \
  m.impl("blend_pair", TORCH_BOX(&rife::blend_pair<Device>));       \
  m.impl("activate", TORCH_BOX(&rife::activate<Device>));

#if defined(CUDA_ON_CPU)
STABLE_TORCH_LIBRARY_IMPL(rife_fused, CPU, m) { REGISTER(rife::FusedCuda) }
#else
STABLE_TORCH_LIBRARY_IMPL(rife_fused, CPU, m) { REGISTER(rife::FusedCpu) }
#endif

#if defined(USE_CUDA)
STABLE_TORCH_LIBRARY_IMPL(rife_fused, CUDA, m) { REGISTER(rife::FusedCuda) }
#endif
