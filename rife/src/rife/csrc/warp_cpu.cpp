// Forward passes of rife::warp and rife::warp_blend on a CPU. The mathematics is in warp_math.h.
#include <torch/csrc/stable/ops.h>

#include "cpu_rows.h"

namespace rife {
namespace {

// Locates `count` pixels in every source; with two, the weights become m's and (1 - m)'s share.
template <int Sources, typename S, typename T = Precision<S>>
void locate_all(Chunk<T> (&chunks)[Sources], const Inputs<Sources, S>& in, int64_t n, int64_t y, int64_t x, int count) {
  for (int s = 0; s < Sources; ++s) locate<false>(chunks[s], in.flow[s], in.image[s], in.shape, n, y, x, count);
  if constexpr (Sources == 2) {
    T m[kChunk], rest[kChunk];
    mix(in.mask, n, y, x, count, m, rest);
    chunks[0].scale(m, count), chunks[1].scale(rest, count);
  }
}

// Planar: channel after channel, several pixels at once.
template <int Sources, typename S, typename T = Precision<S>>
void planar(const Chunk<T> (&chunks)[Sources], const Inputs<Sources, S>& in, S* out, int64_t n, int64_t y, int64_t x,
            int count) {
  const Shape& shape = in.shape;
  T sum[kChunk];
  Plan<S> plans[Sources];
  for (int s = 0; s < Sources; ++s) plans[s] = Plan<S>(chunks[s].at, count, in.image[s], shape);
  for (int64_t c = 0; c < shape.c; ++c) {
    S* to = out + ((n * shape.c + c) * shape.h + y) * shape.w + x;
    for (int s = 0; s < Sources; ++s)
      for_each_run(in.image[s].at(n, c, 0, 0), chunks[s].at, plans[s], count, steps_of(in.image[s], shape),
                   [&]<int K>(int i, const Corners<Lanes<T, K>>& sample) {
                     auto value = blend(sample, chunks[s].template weights<K>(i));
                     if (s > 0) value += load<K>(sum + i);
                     s + 1 < Sources ? store<K>(sum + i, value) : store<K>(to + i, value);
                   });
  }
}

// Channels last: pixel after pixel, several channels at once.
template <int Sources, typename S, typename T = Precision<S>>
void channels_last(const Chunk<T> (&chunks)[Sources], const Inputs<Sources, S>& in, S* out, int64_t n, int64_t y,
                   int64_t x, int count) {
  const int64_t channels = in.shape.c;
  S* to = out + ((n * in.shape.h + y) * in.shape.w + x) * channels;
  const S* base[Sources];
  Steps steps[Sources];
  for (int s = 0; s < Sources; ++s) base[s] = in.image[s].at(n, 0, 0, 0), steps[s] = steps_of(in.image[s], in.shape);
  const auto warp_channels = [&]<int K>(int i, int64_t c) {
    Lanes<T, K> sum{};
    for (int s = 0; s < Sources; ++s) {
      const S* from = base[s] + chunks[s].at[i] + c;
      prefetch_rows_ahead(from, steps[s]);
      sum += blend(load_corners<K>(from, steps[s]), chunks[s].template weights_for_all<K>(i));
    }
    store<K>(to + i * channels + c, sum);
  };
  for (int i = 0; i < count; ++i)
    for_each_channels<S>(channels, [&]<int K>(int64_t c) { warp_channels.template operator()<K>(i, c); });
}

}  // namespace

template <int Sources, typename S>
const char* Cpu::forward(Layout layout, const Inputs<Sources, S>& in, S* out, void*) {
  const Shape s = in.shape;
  torch::stable::parallel_for(0, s.n * s.h, rows_worth_a_thread(s), [=](int64_t begin, int64_t end) {
    Chunk<Precision<S>> chunks[Sources];
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / s.h, y = row % s.h;
      for (int64_t x = 0; x < s.w; x += kChunk) {
        const int count = static_cast<int>(std::min<int64_t>(kChunk, s.w - x));
        locate_all(chunks, in, n, y, x, count);
        layout == Layout::planar ? planar(chunks, in, out, n, y, x, count)
                                 : channels_last(chunks, in, out, n, y, x, count);
      }
    }
  });
  return nullptr;
}

#define INSTANTIATE(Sources, S) template const char* Cpu::forward(Layout, const Inputs<Sources, S>&, S*, void*);
FOR_EACH_STORAGE(INSTANTIATE)

}  // namespace rife
