// A march's tensors as the kernels take them: checks of shapes and dtypes, and pointers.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include "march.h"

namespace distrender {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check(const Tensor& t, ScalarType type, int64_t numel, const char* name) {
  STD_TORCH_CHECK(t.is_contiguous() && t.scalar_type() == type && t.numel() == numel, "distrender: ", name,
                  " has the wrong shape, strides or dtype");
}

struct MarchTensors {
  const Tensor &walks, &state, &origins, &directions, &slope, &near, &far;

  ScalarType type() const { return origins.scalar_type(); }

  void check_all() const {
    const int64_t n = state.numel();
    STD_TORCH_CHECK(type() == ScalarType::Float || type() == ScalarType::Double,
                    "distrender: rays must be float or double");
    STD_TORCH_CHECK(n <= INT32_MAX, "distrender: too many rays");
    check(walks, type(), kRows * n, "walks");
    check(state, ScalarType::Char, n, "state");
    check(origins, type(), 3 * n, "origins");
    check(directions, type(), 3 * n, "directions");
    check(slope, type(), n, "slope");
    check(near, type(), n, "near");
    check(far, type(), n, "far");
  }

  template <typename T>
  March<T> pointers() const {
    const auto from = [](const Tensor& t) { return static_cast<const T*>(t.const_data_ptr()); };
    return {state.numel(), from(origins), from(directions), from(slope), from(near), from(far),
            static_cast<T*>(walks.mutable_data_ptr()), static_cast<int8_t*>(state.mutable_data_ptr())};
  }
};

// How rays march, as the operators' schemas end.
struct Rules {
  int64_t steps;
  double ratio, clamp, threshold;
  int64_t finish;
  double finish_below, slack;

  template <typename T>
  Options<T> options() const {
    STD_TORCH_CHECK(finish >= kNone && finish <= kBisect, "distrender: no such finish");
    return {static_cast<int32_t>(steps), static_cast<Finish>(finish), static_cast<T>(ratio), static_cast<T>(clamp),
            static_cast<T>(threshold),   static_cast<T>(finish_below), static_cast<T>(slack)};
  }
};

}  // namespace
}  // namespace distrender
