// What the adder kernels on a GPU sum over, and where: both passes as one kind of work.
//
// A *row* is a position of the result, a *column* one of its channels, and each result is a sum over the taps of
// the kernel and the channels of a source: of x in the forward pass, of y's gradient in the other. A tap is a
// fixed step in the source. In the input gradient of a strided convolution, which taps reach a position depends
// on its remainder by the stride alone: so each pair of remainders is a class of rows with its own taps, and no
// work is lost on taps that miss.
#pragma once
#include <algorithm>
#include <numeric>

#include "adder.h"

namespace addernet {

struct Axis {  // height or width
  int32_t source, result, kernel, stride, pad, dilation;
  int32_t rows;     // of one class
  int32_t classes;  // remainders by the stride
  int32_t period;   // taps from one of a class to its next
};

struct Plan {
  Axis h, w;
  int64_t rows;                              // of one class, over all images
  int32_t source_channels, sum_channels;     // in all; those of a group, which are summed over
  int32_t result_channels, column_channels;  // in all; those of a group
  int32_t groups;
  int64_t filter_tap, filter_sum, filter_column, filter_group;  // filters' elements from one of them to the next
  bool whole_source, whole_filters, whole_result;               // may they be accessed 16 bytes at a time?
};

// The taps of a class, in order: first, first + every, ... Their places in the source are mul * row + add, and
// then a step further for each.
struct Walk {
  int32_t first, every, count, step, mul, add;
};

template <bool kGradient>
HOST_DEVICE Walk walk(const Axis& axis, int32_t remainder) {
  if constexpr (!kGradient) {
    return {0, 1, axis.kernel, axis.dilation, axis.stride, -axis.pad};
  } else {
    int32_t first = 0;
    while (first < axis.period && (remainder + axis.pad - first * axis.dilation) % axis.stride) ++first;
    const bool some = first < axis.period && first < axis.kernel;
    return {first,
            axis.period,
            some ? (axis.kernel - first + axis.period - 1) / axis.period : 0,
            -(axis.period * axis.dilation / axis.stride),
            1,
            (remainder + axis.pad - first * axis.dilation) / axis.stride};
  }
}

constexpr int64_t kLongest = int64_t{1} << 28;  // any one size: their sums and differences are 32-bit numbers

inline Axis axis(bool gradient, int64_t x, int64_t y, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  const int64_t classes = gradient ? std::min(stride, x) : 1;
  const auto i = [](int64_t value) { return static_cast<int32_t>(value); };
  const int64_t rows = gradient ? (x + stride - 1) / stride : y, period = stride / std::gcd(stride, dilation);
  return {i(gradient ? y : x),
          i(gradient ? x : y),
          i(kernel),
          i(stride),
          i(pad),
          i(dilation),
          i(rows),
          i(classes),
          i(period)};
}

// Whether every index that is not 64 bits long stays within its range.
inline bool fits(const Problem& p) {
  for (const int64_t size :
       {p.c, p.h, p.w, p.o, p.ho, p.wo, p.kh * p.dilation_h, p.kw * p.dilation_w, p.kh * p.kw * std::max(p.c, p.o),
        p.stride_h, p.stride_w, p.pad_h, p.pad_w, p.ho * p.stride_h, p.wo * p.stride_w})
    if (size >= kLongest) return false;
  return true;
}

inline Plan make_plan(const Problem& p, bool gradient) {
  Plan plan{};
  plan.h = axis(gradient, p.h, p.ho, p.kh, p.stride_h, p.pad_h, p.dilation_h);
  plan.w = axis(gradient, p.w, p.wo, p.kw, p.stride_w, p.pad_w, p.dilation_w);
  plan.rows = p.n * plan.h.rows * plan.w.rows;
  plan.source_channels = static_cast<int32_t>(gradient ? p.o : p.c);
  plan.result_channels = static_cast<int32_t>(gradient ? p.c : p.o);
  plan.groups = static_cast<int32_t>(p.groups);
  plan.sum_channels = plan.source_channels / plan.groups;
  plan.column_channels = plan.result_channels / plan.groups;
  const int64_t filter = p.kh * p.kw * p.group_c();
  plan.filter_tap = p.group_c();
  plan.filter_sum = gradient ? filter : 1;
  plan.filter_column = gradient ? 1 : filter;
  plan.filter_group = p.group_o() * filter;
  return plan;
}

}  // namespace addernet
