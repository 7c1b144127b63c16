// What the kernels of addernet::forward and addernet::input_gradient take. Activations lie channels last,
// [N, H, W, C] in memory, without gaps; so does the filter bank, [O, kh, kw, C / groups].
#pragma once
#include <cstdint>

#include "storage.h"

namespace addernet {

using papershelf::BFloat16, papershelf::Half;

struct Problem {
  int64_t n, c, h, w;        // x and its gradient
  int64_t o, ho, wo;         // y and its gradient: n, o, ho, wo
  int64_t kh, kw, groups;    // the filters: o, c / groups, kh, kw
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t group_c() const { return c / groups; }
  int64_t group_o() const { return o / groups; }
};

// Each returns nullptr, or what went wrong. X is what x and its gradient are stored as (float, double; for Cuda
// also Half or BFloat16); T is float or double: the type of filters, y, its gradient, and all arithmetic.
struct Cpu {
  template <typename T>
  static const char* forward(const Problem& problem, const T* x, const T* filters, T* y, void* stream);
  template <typename T>
  static const char* input_gradient(const Problem& problem, const T* grad, const T* x, const T* filters, T* grad_x,
                                    void* stream);
};

struct Cuda {
  template <typename X, typename T>
  static const char* forward(const Problem& problem, const X* x, const T* filters, T* y, void* stream);
  template <typename X, typename T>
  static const char* input_gradient(const Problem& problem, const T* grad, const X* x, const T* filters, X* grad_x,
                                    void* stream);
};

}  // namespace addernet
