// addernet::int8_forward and its kin for PyTorch: checks, allocation, and the registration of the CPU and the
// CUDA kernels. Schemas and what each operator means are in int8.py.
#include "int8.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "stream.h"

namespace addernet_int8 {
namespace {

using papershelf::Scope;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// Dense, channels last; the tensor itself where it is so already.
Tensor channels_last(const Tensor& t) { return torch::stable::contiguous(t, MemoryFormat::ChannelsLast); }

Tensor new_output(const Problem& p, ScalarType type, const Tensor& like) {
  return torch::stable::empty({p.n, p.o, p.ho, p.wo}, type, std::nullopt, like.device(), std::nullopt,
                              MemoryFormat::ChannelsLast);
}

// An operator must give a tensor for each result; one that nobody wants has no elements.
Tensor nothing(ScalarType type, const Tensor& like) {
  return torch::stable::empty({0}, type, std::nullopt, like.device());
}

int64_t outputs(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  return (size + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
}

Problem problem_of(const Tensor& x, const Tensor& filters, int64_t out_channels, int64_t zero_point,
                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                   const std::vector<int64_t>& dilation, int64_t groups) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Byte && x.dim() == 4, "addernet::int8: x must be uint8 [N, C, H, W]");
  STD_TORCH_CHECK(filters.scalar_type() == ScalarType::Byte && filters.dim() == 7 && filters.is_contiguous(),
                  "addernet::int8: the filters must be packed");
  Problem p{x.size(0), x.size(1), x.size(2), x.size(3), out_channels, 0, 0, filters.size(2), filters.size(3),
            groups, stride[0], stride[1], padding[0], padding[1], dilation[0], dilation[1],
            static_cast<uint8_t>(zero_point)};
  p.ho = outputs(p.h, p.kh, p.stride_h, p.pad_h, p.dilation_h);
  p.wo = outputs(p.w, p.kw, p.stride_w, p.pad_w, p.dilation_w);
  STD_TORCH_CHECK(filters.size(0) == groups && filters.size(1) == p.group_blocks() && filters.size(4) == p.lanes() &&
                      filters.size(5) == kOutputs && filters.size(6) == kLane && p.ho > 0 && p.wo > 0,
                  "addernet::int8: the packed filters do not fit x");
  return p;
}

template <typename T = float>
T* data_of(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

template <typename Device>
void launch(const Problem& p, const Tensor& x, const Tensor& filters, const Epilogue& epilogue) {
  if (p.n == 0 || p.o == 0) return;
  const Scope scope(x);
  const char* error = Device::forward(p, static_cast<const uint8_t*>(x.const_data_ptr()),
                                      static_cast<const uint8_t*>(filters.const_data_ptr()), epilogue, scope.stream);
  STD_TORCH_CHECK(!error, "addernet::int8: ", error);
}

template <typename Device>
Tensor forward(const Tensor& x, const Tensor& filters, int64_t out_channels, int64_t zero_point,
               std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
               int64_t groups) {
  const Tensor from = channels_last(x);
  const Problem p = problem_of(from, filters, out_channels, zero_point, stride, padding, dilation, groups);
  Tensor y = new_output(p, ScalarType::Int, x);
  Epilogue epilogue{};
  epilogue.sums = data_of<int32_t>(y);
  launch<Device>(p, from, filters, epilogue);
  return y;
}

template <typename Device>
std::tuple<Tensor, Tensor> layer(const Tensor& x, const Tensor& filters, int64_t zero_point,
                                 std::vector<int64_t> stride, std::vector<int64_t> padding,
                                 std::vector<int64_t> dilation, int64_t groups, const Tensor& scale,
                                 const Tensor& offset, const MaybeTensor& residual, bool relu, bool want_float,
                                 double next_inverse_step, int64_t next_zero_point) {
  const Tensor from = channels_last(x);
  const Problem p = problem_of(from, filters, scale.numel(), zero_point, stride, padding, dilation, groups);
  for (const Tensor* t : {&scale, &offset})
    STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float && t->is_contiguous() && t->numel() == p.o,
                    "addernet::int8_layer: scale and offset must be contiguous float32 [O]");
  std::optional<Tensor> added;
  if (residual) {
    STD_TORCH_CHECK(residual->scalar_type() == ScalarType::Float && residual->dim() == 4 && residual->size(0) == p.n &&
                        residual->size(1) == p.o && residual->size(2) == p.ho && residual->size(3) == p.wo,
                    "addernet::int8_layer: residual must be float32 and like the result");
    added = channels_last(*residual);
  }
  const bool want_bytes = next_inverse_step > 0;
  Tensor out = want_float ? new_output(p, ScalarType::Float, x) : nothing(ScalarType::Float, x);
  Tensor quantized = want_bytes ? new_output(p, ScalarType::Byte, x) : nothing(ScalarType::Byte, x);
  launch<Device>(p, from, filters,
                 {nullptr, data_of(scale), data_of(offset), added ? data_of(*added) : nullptr,
                  want_float ? data_of(out) : nullptr, want_bytes ? data_of<uint8_t>(quantized) : nullptr,
                  static_cast<float>(next_inverse_step), static_cast<float>(next_zero_point), relu});
  return {out, quantized};
}

template <typename Device>
Tensor quantize(const Tensor& x, double inverse_step, int64_t zero_point) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.dim() == 4,
                  "addernet::int8_quantize: x must be float32 [N, C, H, W]");
  const Scope scope(x);
  const Tensor from = channels_last(x);
  Tensor out = torch::stable::empty(x.sizes(), ScalarType::Byte, std::nullopt, x.device(), std::nullopt,
                                    MemoryFormat::ChannelsLast);
  if (x.numel() > 0) {
    const char* error = Device::quantize(static_cast<const float*>(from.const_data_ptr()), data_of<uint8_t>(out),
                                         x.numel(), static_cast<float>(inverse_step), static_cast<float>(zero_point),
                                         scope.stream);
    STD_TORCH_CHECK(!error, "addernet::int8_quantize: ", error);
  }
  return out;
}

}  // namespace
}  // namespace addernet_int8

#define REGISTER(Device)                                             \
  m.impl("int8_forward_kernel", TORCH_BOX(&addernet_int8::forward<Device>)); \
  m.impl("int8_layer_kernel", TORCH_BOX(&addernet_int8::layer<Device>));     \
  m.impl("int8_quantize_kernel", TORCH_BOX(&addernet_int8::quantize<Device>));

#if defined(CUDA_ON_CPU)
STABLE_TORCH_LIBRARY_IMPL(addernet, CPU, m) { REGISTER(addernet_int8::Int8Cuda) }
#else
STABLE_TORCH_LIBRARY_IMPL(addernet, CPU, m) { REGISTER(addernet_int8::Int8Cpu) }
#endif

#if defined(USE_CUDA)
STABLE_TORCH_LIBRARY_IMPL(addernet, CUDA, m) { REGISTER(addernet_int8::Int8Cuda) }
#endif
