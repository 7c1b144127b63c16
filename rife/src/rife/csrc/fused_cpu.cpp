// Inference between the convolutions on a CPU: rows of pixels to threads. The mathematics is in fused_math.h.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "fused.h"
#include "lanes.h"

namespace rife {
namespace {

constexpr int64_t kGrain = 4;  // rows that are worth a thread

template <typename Body>
void for_each_row(int64_t rows, Body body) {
  torch::stable::parallel_for(0, rows, kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row);
  });
}

}  // namespace

template <typename S>
const char* FusedCpu::assemble(const Pair& in, const Recipe& recipe, S* out, void*) {
  const int32_t h = in.h / recipe.scale, w = in.w / recipe.scale;
  for_each_row(int64_t{in.n} * h, [=](int64_t row) {
    const int32_t n = row / h, y = row % h;
    for (int32_t x = 0; x < w; ++x) assemble_pixel(in, recipe, n, y, x, out + (row * w + x) * recipe.channels);
  });
  return nullptr;
}

// add_change, a row at a time: first between two rows of the answer, then between the columns of that.
template <typename S>
const char* FusedCpu::add_upsampled(const Change<S>& change, int32_t factor, float* state, int32_t n, int32_t h,
                                    int32_t w, void*) {
  const int32_t source_h = change.height(), source_w = change.width();
  std::vector<Tap<float>> columns(w);
  for (int32_t x = 0; x < w; ++x) columns[x] = upsample_tap(x, factor, source_w);
  torch::stable::parallel_for(0, int64_t{n} * h, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<float> between((source_w + 1) * kState);
    for (int64_t row = begin; row < end; ++row) {
      const int32_t image = row / h;
      const auto ty = upsample_tap(row % h, factor, source_h);
      const int32_t next = ty.lo + (ty.lo + 1 < source_h);
      for (int32_t x = 0; x < source_w; ++x)
        for (int c = 0; c < kState; ++c) {
          const float above = change.at(image, c, ty.lo, x), below = change.at(image, c, next, x);
          between[x * kState + c] = (c < kMask ? factor : 1) * (above + ty.w * (below - above));
        }
      // One more, so that the last column has a neighbour like any other.
      std::copy_n(&between[(source_w - 1) * kState], kState, &between[source_w * kState]);
      float* to = state + row * w * kState;
      for (int32_t x = 0; x < w; ++x) {
        const float* from = &between[columns[x].lo * kState];
        for (int c = 0; c < kState; ++c) to[x * kState + c] += from[c] + columns[x].w * (from[kState + c] - from[c]);
      }
    }
  });
  return nullptr;
}

template <typename S>
const char* FusedCpu::blend_pair(const Pair& in, const S* residual, float* out, int32_t rows, int32_t columns, void*) {
  for_each_row(int64_t{in.n} * rows, [=](int64_t row) {
    const int32_t n = row / rows, y = row % rows;
    const int64_t plane = int64_t{rows} * columns;
    float* to = out + n * 3 * plane + int64_t{y} * columns;
    for (int32_t x = 0; x < columns; ++x) {
      const Rgb c = blend_pixel(in, residual, n, y, x);
      to[x] = c.r, to[plane + x] = c.g, to[2 * plane + x] = c.b;
    }
  });
  return nullptr;
}

template <typename S>
const char* FusedCpu::activate(const Activation<S>& a, void*) {
  constexpr int K = 16;
  const int64_t grain = 1 + (1 << 14) / a.channels;
  torch::stable::parallel_for(0, a.pixels, grain, [=](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t at = p * a.channels;
      int32_t c = 0;
      for (; c + K <= a.channels; c += K) {
        Lanes<float, K> v = load<K>(a.x + at + c);
        if (a.bias) v += load<K>(a.bias + c);
        if (a.before) v += load<K>(a.before + at + c);
        v = v > 0 ? v : v * load<K>(a.slope + c);
        if (a.after) v += load<K>(a.after + at + c);
        store<K>(a.x + at + c, v);
      }
      for (; c < a.channels; ++c) {
        const float before = a.before ? widen(a.before[at + c]) : 0, after = a.after ? widen(a.after[at + c]) : 0;
        const float v = activated(widen(a.x[at + c]), a.bias ? a.bias[c] : 0, a.slope[c], before, after);
        a.x[at + c] = narrow<S>(v);
      }
    }
  });
  return nullptr;
}

INSTANTIATE_FUSED(FusedCpu, float)
INSTANTIATE_FUSED(FusedCpu, Half)
INSTANTIATE_FUSED(FusedCpu, BFloat16)

}  // namespace rife
