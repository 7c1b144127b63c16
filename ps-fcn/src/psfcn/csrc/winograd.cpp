// psfcn_winograd for PyTorch: checks, allocation and the registration. What the operators mean is in winograd.py.
#include "winograd.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "storage.h"

namespace psfcn {
namespace {

using papershelf::BFloat16;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// [N, C, H, W] with the channels of a pixel beside each other and nothing in between.
void check_channels_last(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4, "psfcn_winograd: ", name, " must be [N, C, H, W]");
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  const bool dense = (t.stride(1) == 1 || c == 1) && (t.stride(3) == c || w == 1) && (t.stride(2) == c * w || h == 1) &&
                     (t.stride(0) == c * w * h || t.size(0) == 1);
  STD_TORCH_CHECK(dense, "psfcn_winograd: ", name, " must be dense channels_last");
}

// y: of every image of x, or with `maximum` one for all.
void run(const Tensor& x, const Tensor& weights, const std::optional<Tensor>& bias, bool twice, double slope,
         bool maximum, Tensor& y) {
  check_channels_last(x, "x"), check_channels_last(y, "y");
  const int64_t inputs = x.size(1), outputs = weights.size(1) * kPanel, scale = twice ? 2 : 1;
  const bool pairs = x.scalar_type() == ScalarType::BFloat16;
  const int64_t tile = pairs ? kTile<BFloat16> : kTile<float>, side = twice ? kTileTwice + 1 : tile + 2;
  STD_TORCH_CHECK(pairs || x.scalar_type() == ScalarType::Float, "psfcn_winograd: x must be float32 or bfloat16");
  STD_TORCH_CHECK(inputs % kPanel == 0, "psfcn_winograd: inputs must be a multiple of 32");
  STD_TORCH_CHECK(weights.scalar_type() == x.scalar_type() && weights.is_contiguous() &&
                      weights.numel() == scale * scale * outputs * inputs * side * side,
                  "psfcn_winograd: weights do not fit x");
  STD_TORCH_CHECK(
      !bias || (bias->scalar_type() == ScalarType::Float && bias->is_contiguous() && bias->numel() == outputs),
      "psfcn_winograd: bias must be contiguous float32, one for each output");
  STD_TORCH_CHECK(y.scalar_type() == x.scalar_type() && y.size(0) == (maximum ? 1 : x.size(0)) &&
                      y.size(1) == outputs && y.size(2) == x.size(2) * scale && y.size(3) == x.size(3) * scale,
                  "psfcn_winograd: the result does not fit x and weights");
  const auto call = [&]<typename Stored>(Stored) {
    Layer<Stored> layer{x.size(2),
                        x.size(3),
                        inputs,
                        outputs,
                        static_cast<const Stored*>(x.const_data_ptr()),
                        static_cast<const Stored*>(weights.const_data_ptr()),
                        bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr,
                        static_cast<float>(slope),
                        twice,
                        maximum,
                        static_cast<Stored*>(y.mutable_data_ptr())};
    for (int64_t n = 0; n < x.size(0); ++n) {
      convolve(layer);
      layer.x += layer.height * layer.width * inputs;
      if (!maximum) layer.y += scale * scale * layer.height * layer.width * outputs;
    }
  };
  pairs ? call(BFloat16{}) : call(float{});
}

Tensor conv(const Tensor& x, const Tensor& weights, const std::optional<Tensor>& bias, bool twice, double slope) {
  const int64_t scale = twice ? 2 : 1;
  Tensor y = torch::stable::empty({x.size(0), weights.size(1) * kPanel, x.size(2) * scale, x.size(3) * scale},
                                  x.scalar_type(), std::nullopt, x.device(), std::nullopt, MemoryFormat::ChannelsLast);
  run(x, weights, bias, twice, slope, false, y);
  return y;
}

void conv_maximum(Tensor most, const Tensor& x, const Tensor& weights, const std::optional<Tensor>& bias,
                  double slope) {
  run(x, weights, bias, false, slope, true, most);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(psfcn_winograd, CPU, m) {
  m.impl("conv", TORCH_BOX(&conv));
  m.impl("conv_maximum", TORCH_BOX(&conv_maximum));
}

}  // namespace psfcn
