// addernet's kernels for PyTorch: allocation and dtypes, and the registration for CPU and CUDA. What they
// compute, their checks and gradients are in adder.py, which also brings all tensors into channels last.
#include "adder.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <type_traits>
#include <vector>

#include "stream.h"

namespace addernet {
namespace {

using papershelf::Scope;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Problem problem_of(const Tensor& x, const Tensor& filters, const std::vector<int64_t>& stride,
                   const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups) {
  const auto size = [&](int side) {
    return (x.size(2 + side) + 2 * padding[side] - dilation[side] * (filters.size(2 + side) - 1) - 1) / stride[side] + 1;
  };
  return {x.size(0),  x.size(1), x.size(2),  x.size(3),  filters.size(0), size(0),     size(1),    filters.size(2),
          filters.size(3), groups, stride[0], stride[1], padding[0],  padding[1], dilation[0], dilation[1]};
}

Tensor new_tensor(const Tensor& like, std::vector<int64_t> sizes, ScalarType type) {
  return torch::stable::empty(sizes, type, std::nullopt, like.device(), std::nullopt, MemoryFormat::ChannelsLast);
}

// Calls body(X{}, T{}) with the types that x and the filters are stored as.
template <typename Device, typename Body>
void with_types(const Tensor& x, const Tensor& filters, Body body) {
  if (filters.scalar_type() == ScalarType::Double) return body(double{}, double{});
  if constexpr (std::is_same_v<Device, Cpu>) {
    return body(float{}, float{});
#if defined(USE_CUDA) || defined(CUDA_ON_CPU)
  } else {
    if (x.scalar_type() == ScalarType::Half) return body(Half{}, float{});
    if (x.scalar_type() == ScalarType::BFloat16) return body(BFloat16{}, float{});
    return body(float{}, float{});
#endif
  }
}

template <typename Device>
Tensor forward(const Tensor& x, const Tensor& filters, std::vector<int64_t> stride, std::vector<int64_t> padding,
               std::vector<int64_t> dilation, int64_t groups) {
  const Scope scope(x);
  const Problem problem = problem_of(x, filters, stride, padding, dilation, groups);
  Tensor y = new_tensor(x, {problem.n, problem.o, problem.ho, problem.wo}, filters.scalar_type());
  if (y.numel() > 0)
    with_types<Device>(x, filters, [&]<typename X, typename T>(X, T) {
      const char* error = Device::forward(problem, static_cast<const X*>(x.const_data_ptr()),
                                          static_cast<const T*>(filters.const_data_ptr()),
                                          static_cast<T*>(y.mutable_data_ptr()), scope.stream);
      STD_TORCH_CHECK(!error, "addernet: ", error);
    });
  return y;
}

template <typename Device>
Tensor input_gradient(const Tensor& grad, const Tensor& x, const Tensor& filters, std::vector<int64_t> stride,
                      std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups) {
  const Scope scope(x);
  const Problem problem = problem_of(x, filters, stride, padding, dilation, groups);
  Tensor grad_x = new_tensor(x, {problem.n, problem.c, problem.h, problem.w}, x.scalar_type());
  if (grad_x.numel() > 0)
    with_types<Device>(x, filters, [&]<typename X, typename T>(X, T) {
      const char* error = Device::input_gradient(
          problem, static_cast<const T*>(grad.const_data_ptr()), static_cast<const X*>(x.const_data_ptr()),
          static_cast<const T*>(filters.const_data_ptr()), static_cast<X*>(grad_x.mutable_data_ptr()), scope.stream);
      STD_TORCH_CHECK(!error, "addernet: ", error);
    });
  return grad_x;
}

}  // namespace

#if defined(CUDA_ON_CPU)
using OnCpu = Cuda;
#else
using OnCpu = Cpu;
#endif

STABLE_TORCH_LIBRARY_IMPL(addernet, CPU, m) {
  m.impl("forward_kernel", TORCH_BOX(&forward<OnCpu>));
  m.impl("input_gradient_kernel", TORCH_BOX(&input_gradient<OnCpu>));
}

#if defined(USE_CUDA)
STABLE_TORCH_LIBRARY_IMPL(addernet, CUDA, m) {
  m.impl("forward_kernel", TORCH_BOX(&forward<Cuda>));
  m.impl("input_gradient_kernel", TORCH_BOX(&input_gradient<Cuda>));
}
#endif

}  // namespace addernet
