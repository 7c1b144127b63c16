// The GPU and the stream that a kernel is to be started on.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace papershelf {

// While it lives the tensor's GPU is the current one; `stream` is the one that PyTorch uses there, or nullptr
// on a CPU.
class Scope {
 public:
  void* stream = nullptr;

  explicit Scope([[maybe_unused]] const torch::stable::Tensor& t) {
#if defined(USE_CUDA)
    if (!t.is_cuda()) return;
    guard_.emplace(t.get_device_index());
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
#endif
  }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

#if defined(USE_CUDA)
 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
#endif
};

}  // namespace papershelf
