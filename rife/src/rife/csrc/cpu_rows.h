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
void mix(const View<const T>& mask, int64_t n, int64_t y, int64_t x, int count, T* __restrict__ m,
         T* __restrict__ rest) {
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

// How kWide pixels of a chunk lie in a planar image. Where the flow is smooth, nearly all sample one run of
// neighbours, or two where its whole part changes: loaded at once, when gather instructions are slower than
// single loads. Others go by kShort, which may be a run again.
enum class Lie : uint8_t { run, two_runs, short_run, scattered };

template <typename S>
struct Plan {
  using Mask = std::conditional_t<sizeof(Precision<S>) == 8, int64_t, int32_t>;
  static constexpr int K = kWide<S>;

  Lie lie[kChunk / kShort];  // of groups of kShort; a wide group's is told by its first
  Mask first[kChunk];        // all ones where a pixel is of the first of two runs

  Plan() = default;
  Plan(const int64_t* at, int count, const View<const S>& image, const Shape& s) {
    const int64_t last = (s.h - 1) * image.y + (s.w - 1) * image.x;
    const Steps to = steps_of(image, s);
    for (int i = 0; i + K <= count; i += K) {
      if (in_a_row<K>(at + i)) {
        lie[i / kShort] = Lie::run;
      } else if (in_two_runs(at + i, first + i) && at[i] + K - 1 + to.south + to.east <= last &&
                 at[i + K - 1] >= K - 1) {  // both runs of K are in the image to their ends
        lie[i / kShort] = Lie::two_runs;
      } else {
        for (int q = i; q < i + K; q += kShort)
          lie[q / kShort] = in_a_row<kShort>(at + q) ? Lie::short_run : Lie::scattered;
      }
    }
  }

  static bool in_two_runs(const int64_t* at, Mask* first) {
    const int64_t one = at[0], other = at[K - 1] - (K - 1);
    bool neither = false;
    for (int i = 0; i < K; ++i) {
      first[i] = at[i] - i == one ? -1 : 0;
      neither |= (at[i] - i != one) & (at[i] - i != other);
    }
    return !neither;
  }
};

// The samples of K pixels, each of one of two runs of K.
template <int K, typename S>
HOST_DEVICE Corners<Lanes<Precision<S>, K>> load_either(const S* one, const S* other,
                                                        const typename Plan<S>::Mask* first, const Steps& to) {
  Lanes<typename Plan<S>::Mask, K> is_first;
  memcpy(&is_first, first, sizeof(is_first));
  const auto a = load_corners<K>(one, to), b = load_corners<K>(other, to);
  return {is_first ? a.nw : b.nw, is_first ? a.ne : b.ne, is_first ? a.sw : b.sw, is_first ? a.se : b.se};
}

// Calls body.operator()<K>(first pixel, its K samples) over a chunk of a planar image, K as large as can be.
template <typename S, typename Body>
HOST_DEVICE void for_each_run(const S* plane, const int64_t* at, const Plan<S>& plan, int count, const Steps& to,
                              Body body) {
  constexpr int K = kWide<S>;
  int i = 0;
  for (; i + K <= count; i += K) {
    prefetch_rows_ahead(plane + at[i], to);
    const Lie lie = plan.lie[i / kShort];
    if (lie == Lie::run) {
      body.template operator()<K>(i, load_corners<K>(plane + at[i], to));
    } else if (lie == Lie::two_runs) {
      const S* other = plane + at[i + K - 1] - (K - 1);
      body.template operator()<K>(i, load_either<K>(plane + at[i], other, plan.first + i, to));
    } else {
      for (int q = i; q < i + K; q += kShort)
        body.template operator()<kShort>(q, plan.lie[q / kShort] == Lie::short_run
                                                ? load_corners<kShort>(plane + at[q], to)
                                                : gather_corners<kShort>(plane, at + q, to));
    }
  }
  for (; i < count; ++i) body.template operator()<1>(i, load_corners<1>(plane + at[i], to));
}

// Calls body.operator()<K>(first channel) for all channels, K as large as can be.
template <typename S, typename Body>
HOST_DEVICE void for_each_channels(int64_t channels, Body body) {
  if (channels == 3)  // frames: no loops
    return body.template operator()<1>(0), body.template operator()<1>(1), body.template operator()<1>(2);
  int64_t c = 0;
  for (; c + kWide<S> <= channels; c += kWide<S>) body.template operator()<kWide<S>>(c);
  if constexpr (kWide<S> > 8)
    if (c + 8 <= channels) body.template operator()<8>(c), c += 8;
  if (c + kShort <= channels) body.template operator()<kShort>(c), c += kShort;
  for (; c < channels; ++c) body.template operator()<1>(c);
}

}  // namespace rife
