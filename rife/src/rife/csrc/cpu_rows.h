// A row of pixels at a time on a CPU: where each one samples, worked out once for all channels.
#pragma once
#include <algorithm>

#include "lanes.h"
#include "warp.h"
#include "warp_math.h"

namespace rife {

// Rows that are worth a thread of their own.
inline int64_t rows_worth_a_thread(const Shape& s) { return 1 + (1 << 15) / (s.w * s.c); }

constexpr int kChunk = 256;  // pixels located at once: what is known of them stays in the L1 cache

// Distances from a north-west sample to its eastern and southern neighbours; 0 on a side of one pixel.
struct Steps {
  int64_t east, south;
};

template <typename S>
Steps steps_of(const View<S>& image, const Shape& s) {
  return {s.w > 1 ? image.x : 0, s.h > 1 ? image.y : 0};
}

// Where up to kChunk pixels of a row sample one image.
template <typename T>
struct Chunk {
  int64_t at[kChunk];                                               // offset of the north-west sample
  T nw[kChunk], ne[kChunk], sw[kChunk], se[kChunk];                 // weights of the samples
  T x[kChunk], y[kChunk], slope_x[kChunk], slope_y[kChunk];         // both taps, for gradients of the flow
  int32_t row[kChunk];                                              // of the north-west sample

  template <int K>
  Corners<Lanes<T, K>> weights(int i) const {
    return {load<K>(nw + i), load<K>(ne + i), load<K>(sw + i), load<K>(se + i)};
  }
  template <int K>
  Corners<Lanes<T, K>> weights_for_all(int i) const {
    return {broadcast<K>(nw[i]), broadcast<K>(ne[i]), broadcast<K>(sw[i]), broadcast<K>(se[i])};
  }
  void scale(const T* by, int count) {
    for (int i = 0; i < count; ++i) nw[i] *= by[i], ne[i] *= by[i], sw[i] *= by[i], se[i] *= by[i];
  }
};

// `count` values of a view's row, copied only where they are not contiguous already.
template <typename T>
const T* row_of(const View<const T>& view, int64_t n, int64_t c, int64_t y, int64_t x, int count, T* copy) {
  const T* from = view.at(n, c, y, x);
  if (view.x == 1) return from;
  for (int i = 0; i < count; ++i) copy[i] = from[i * view.x];
  return copy;
}

// Fills `chunk` for the pixels x .. x + count - 1 of row y: with what gradients need, or with weights.
template <bool gradients, typename T, typename S>
void locate(Chunk<T>& __restrict__ chunk, const View<const T>& flow, const View<S>& image, const Shape& s, int64_t n,
            int64_t y, int64_t x, int count) {
  T copy_u[kChunk], copy_v[kChunk];
  const T* __restrict__ u = row_of(flow, n, 0, y, x, count, copy_u);
  const T* __restrict__ v = row_of(flow, n, 1, y, x, count, copy_v);
  const int32_t w = s.w, h = s.h, x0 = x, y0 = y;
  const int64_t stride_x = image.x, stride_y = image.y;
  for (int i = 0; i < count; ++i) {
    const auto tx = tap<T>(x0 + i, u[i], w), ty = tap<T>(y0, v[i], h);
    chunk.at[i] = ty.lo * stride_y + tx.lo * stride_x;
    chunk.row[i] = ty.lo;
    if constexpr (gradients) {
      chunk.x[i] = tx.w, chunk.y[i] = ty.w;
      chunk.slope_x[i] = tx.slope, chunk.slope_y[i] = ty.slope;
    } else {
      const auto weight = corner_weights(tx.w, ty.w);
      chunk.nw[i] = weight.nw, chunk.ne[i] = weight.ne, chunk.sw[i] = weight.sw, chunk.se[i] = weight.se;
    }
  }
}

// m and 1 - m of `count` pixels.
template <typename T>
void mix(const View<const T>& mask, int64_t n, int64_t y, int64_t x, int count, T* __restrict__ m, T* __restrict__ rest) {
  T copy[kChunk];
  const T* __restrict__ logit = row_of(mask, n, 0, y, x, count, copy);
  for (int i = 0; i < count; ++i) m[i] = sigmoid(logit[i]), rest[i] = 1 - m[i];
}

// Whether pixels i .. i + K - 1 sample neighbours, so that K of them load like one.
template <int K>
bool in_a_row(const int64_t* at) {
  int64_t apart = 0;
  for (int i = 1; i < K; ++i) apart |= at[i] - at[0] - i;
  return apart == 0;
}

// The samples of K pixels that lie in a row, or of K pixels anywhere, in a planar image.
template <int K, typename S>
HOST_DEVICE Corners<Lanes<Precision<S>, K>> load_corners(const S* from, const Steps& to) {
  return {load<K>(from), load<K>(from + to.east), load<K>(from + to.south), load<K>(from + to.south + to.east)};
}

template <int K, typename S>
HOST_DEVICE Corners<Lanes<Precision<S>, K>> gather_corners(const S* plane, const int64_t* at, const Steps& to) {
  S nw[K], ne[K], sw[K], se[K];
  for (int i = 0; i < K; ++i) {
    const S* from = plane + at[i];
    nw[i] = from[0], ne[i] = from[to.east], sw[i] = from[to.south], se[i] = from[to.south + to.east];
  }
  return {load<K>(nw), load<K>(ne), load<K>(sw), load<K>(se)};
}

// Where flow moves a picture up and down, its rows come in short pieces that a processor's own
// prefetching does not foresee. The rows to come can be foreseen: near those of this row's pixels.
template <typename S>
HOST_DEVICE void prefetch_rows_ahead(const S* from, const Steps& to) {
  __builtin_prefetch(from + 3 * to.south);
}

// How the groups of kShort pixels of a chunk lie in a planar image. Where the flow is smooth nearly all
// are part of kWide neighbours, which are loaded at once; gather instructions would be slower than any.
enum class Lie : uint8_t { scattered, in_a_row, part_of_wide };

template <typename S>
struct Plan {
  Lie lie[kChunk / kShort];
  Plan() = default;
  Plan(const int64_t* at, int count) {
    for (int i = 0; i + kWide<S> <= count; i += kWide<S>) {
      const bool wide = in_a_row<kWide<S>>(at + i);
      for (int q = i; q < i + kWide<S>; q += kShort)
        lie[q / kShort] = wide ? Lie::part_of_wide : (in_a_row<kShort>(at + q) ? Lie::in_a_row : Lie::scattered);
    }
  }
};

// Calls body.operator()<K>(first pixel, its K samples) over a chunk of a planar image, K as large as can be.
template <typename S, typename Body>
HOST_DEVICE void for_each_run(const S* plane, const int64_t* at, const Plan<S>& plan, int count, const Steps& to,
                              Body body) {
  int i = 0;
  for (; i + kWide<S> <= count; i += kWide<S>) {
    prefetch_rows_ahead(plane + at[i], to);
    
    if (plan.lie[i / kShort] == Lie::part_of_wide) {
      body.template operator()<kWide<S>>(i, load_corners<kWide<S>>(plane + at[i], to));
      continue;
    }
    for (int q = i; q < i + kWide<S>; q += kShort)
      body.template operator()<kShort>(q, plan.lie[q / kShort] == Lie::in_a_row ? load_corners<kShort>(plane + at[q], to)
                                                                   : gather_corners<kShort>(plane, at + q, to));
  }
  for (; i < count; ++i) body.template operator()<1>(i, load_corners<1>(plane + at[i], to));
}

// Calls body.operator()<K>(first channel) for all channels, K as large as can be.
template <typename S, typename Body>
HOST_DEVICE void for_each_channels(int64_t channels, Body body) {
  int64_t c = 0;
  for (; c + kWide<S> <= channels; c += kWide<S>) body.template operator()<kWide<S>>(c);
  if constexpr (kWide<S> > 8)
    if (c + 8 <= channels) body.template operator()<8>(c), c += 8;
  if (c + kShort <= channels) body.template operator()<kShort>(c), c += kShort;
  for (; c < channels; ++c) body.template operator()<1>(c);
}

}  // namespace rife
