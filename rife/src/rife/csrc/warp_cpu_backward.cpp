// Backward passes of rife::warp and rife::warp_blend on a CPU; which equations, warp_math.h says.
// Flow and mask belong to the pixel; the samples of an image to whoever owns their row (see bands).
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "cpu_rows.h"

namespace rife {
namespace {

// ------------------------------------------------------------------- gradients of flow and mask

// Moments of up to kChunk pixels.
template <typename T>
struct ChunkMoments {
  T value[kChunk], north[kChunk], south[kChunk], west[kChunk];

  template <int K>
  void add(int i, const Lanes<T, K>& g, const Corners<Lanes<T, K>>& sample) {
    Moments<Lanes<T, K>> sum{load<K>(value + i), load<K>(north + i), load<K>(south + i), load<K>(west + i)};
    sum.add(g, sample);
    store<K>(value + i, sum.value), store<K>(north + i, sum.north);
    store<K>(south + i, sum.south), store<K>(west + i, sum.west);
  }
  Moments<T> of(int i) const { return {value[i], north[i], south[i], west[i]}; }
};

template <typename S, typename T = Precision<S>>
void planar_moments(ChunkMoments<T>& moments, const Chunk<T>& chunk, const View<const S>& image, const Shape& s,
                    const S* grad, int64_t n, int64_t y, int64_t x, int count) {
  const Plan<S> plan(chunk.at, count, image, s);
  std::fill_n(moments.value, count, T(0)), std::fill_n(moments.north, count, T(0));
  std::fill_n(moments.south, count, T(0)), std::fill_n(moments.west, count, T(0));
  for (int64_t c = 0; c < s.c; ++c) {
    const S* g = grad + ((n * s.c + c) * s.h + y) * s.w + x;
    for_each_run(image.at(n, c, 0, 0), chunk.at, plan, count, steps_of(image, s),
                 [&]<int K>(int i, const Corners<Lanes<T, K>>& sample) {
                   moments.template add<K>(i, load<K>(g + i), sample);
                 });
  }
}

template <typename S, typename T = Precision<S>>
void channels_last_moments(ChunkMoments<T>& moments, const Chunk<T>& chunk, const View<const S>& image, const Shape& s,
                           const S* grad, int64_t n, int64_t y, int64_t x, int count) {
  const Steps steps = steps_of(image, s);
  const S* base = image.at(n, 0, 0, 0);
  for (int i = 0; i < count; ++i) {
    const S* g = grad + ((n * s.h + y) * s.w + x + i) * s.c;
    const S* from = base + chunk.at[i];
    Moments<T> total{};
    for_each_channels<S>(s.c, [&]<int K>(int64_t c) {
      prefetch_rows_ahead(from + c, steps);
      Moments<Lanes<T, K>> some{};
      some.add(load<K>(g + c), load_corners<K>(from + c, steps));
      total.value += sum<K, T>(some.value), total.north += sum<K, T>(some.north);
      total.south += sum<K, T>(some.south), total.west += sum<K, T>(some.west);
    });
    moments.value[i] = total.value, moments.north[i] = total.north;
    moments.south[i] = total.south, moments.west[i] = total.west;
  }
}

template <int Sources, typename S, typename T = Precision<S>>
void flow_gradients(Layout layout, const Inputs<Sources, S>& in, const S* grad, const Gradients<Sources, S>& d,
                    int64_t n, int64_t y, int64_t x, int count) {
  const Shape& s = in.shape;
  Chunk<T> chunk;
  ChunkMoments<T> moments;
  T share[2][kChunk], warped[2][kChunk];  // m and 1 - m; sums over channels of gradient times warped image
  std::fill_n(share[0], count, T(1));
  if constexpr (Sources == 2) mix(in.mask, n, y, x, count, share[0], share[1]);
  for (int k = 0; k < Sources; ++k) {
    locate<true>(chunk, in.flow[k], in.image[k], s, n, y, x, count);
    layout == Layout::planar ? planar_moments(moments, chunk, in.image[k], s, grad, n, y, x, count)
                             : channels_last_moments(moments, chunk, in.image[k], s, grad, n, y, x, count);
    T* du = d.flow + (n * 2 * Sources + 2 * k) * s.plane() + y * s.w + x;
    T* dv = du + s.plane();
    for (int i = 0; i < count; ++i) {
      const auto moment = moments.of(i);
      du[i] = share[k][i] * chunk.slope_x[i] * moment.du(chunk.y[i]);
      dv[i] = share[k][i] * chunk.slope_y[i] * moment.dv(chunk.x[i]);
      warped[k][i] = moment.warped(chunk.x[i], chunk.y[i]);
    }
  }
  if constexpr (Sources == 2) {
    T* d_mask = d.mask + n * s.plane() + y * s.w + x;
    for (int i = 0; i < count; ++i) d_mask[i] = share[0][i] * share[1][i] * (warped[0][i] - warped[1][i]);
  }
}

// ------------------------------------------------------------------------ gradients of an image

// Two pixels may hand their gradient to one sample. So an image goes by bands of kBand rows: a band has
// one owner, which takes all pixels that reach into it in order. Sums are the same for any number of
// threads, since bands do not depend on it. `reach` says which chunks can be skipped.
constexpr int64_t kBand = 32;

struct Reach {  // rows that a chunk of pixels samples
  int32_t first, last;
};

// Runs of pixels in a chunk that sample neighbours of a planar image. There a sample gets the western share
// of one pixel and the eastern of the one before: added up first, many samples at once.
template <typename T>
struct NeighbourRuns {
  int16_t begin[kChunk + 1], number = 0;
  T ne_before[kChunk], se_before[kChunk];  // weights of the pixel before, 0 at the beginning of a run

  NeighbourRuns(const Chunk<T>& chunk, int count) {
    for (int i = 0; i < count; ++i) {
      const bool goes_on = i > 0 && chunk.at[i] == chunk.at[i - 1] + 1;
      if (!goes_on) begin[number++] = static_cast<int16_t>(i);
      ne_before[i] = goes_on ? chunk.ne[i - 1] : T(0), se_before[i] = goes_on ? chunk.se[i - 1] : T(0);
    }
    begin[number] = static_cast<int16_t>(count);
  }

  // Adds pixels `first` to `last` to the samples at `row + first` and on. `g[i + 1]` is pixel i's gradient.
  void add(T* row, const Steps& to, int first, int last, const T* west, const T* east_before, T last_east,
           const T* g) const {
    const auto add_some = [&]<int K>(int i) {
      if (K > 1) prefetch_rows_ahead(row + i, to);
      const auto share = load<K>(west + i) * load<K>(g + i + 1) + load<K>(east_before + i) * load<K>(g + i);
      store<K>(row + i, load<K>(row + i) + share);
    };
    int i = first;
    for (; i + kWide<T> <= last + 1; i += kWide<T>) add_some.template operator()<kWide<T>>(i);
    for (; i + kShort <= last + 1; i += kShort) add_some.template operator()<kShort>(i);
    for (; i <= last; ++i) add_some.template operator()<1>(i);
    row[last + to.east] += last_east * g[last + 1];
  }
};

// What the part of a chunk whose rows are in [begin, end) adds to one band of d_image.
template <typename S, typename T = Precision<S>>
struct Band {
  Layout layout;
  Shape s;
  const S* grad;
  T* d_image;
  int32_t begin, end;
  Steps steps = steps_of(dense(d_image, s, layout), s);
  int32_t below = s.h > 1;  // rows from the northern samples to the southern

  bool owns(int32_t row) const { return row >= begin && row < end; }

  void planar(const Chunk<T>& chunk, int64_t n, int64_t y, int64_t x, int count) const {
    const NeighbourRuns<T> runs(chunk, count);
    T g[kChunk + 1];  // of the pixel before, and so on
    g[0] = 0;
    for (int64_t c = 0; c < s.c; ++c) {
      T* plane = d_image + (n * s.c + c) * s.plane();
      const S* from = grad + (n * s.c + c) * s.plane() + y * s.w + x;
      for (int i = 0; i < count; i += kWide<T>) __builtin_prefetch(from + i + 2 * s.w);
      for (int i = 0; i < count; ++i) g[i + 1] = widen(from[i]);
      for (int r = 0; r < runs.number; ++r) {
        const int first = runs.begin[r], last = runs.begin[r + 1] - 1;
        T* at = plane + chunk.at[first] - first;  // a run's samples are in one row
        if (owns(chunk.row[first])) runs.add(at, steps, first, last, chunk.nw, runs.ne_before, chunk.ne[last], g);
        if (owns(chunk.row[first] + below))
          runs.add(at + steps.south, steps, first, last, chunk.sw, runs.se_before, chunk.se[last], g);
      }
    }
  }

  // Channels last, of few channels: a pixel's eastern shares wait for the next one, which mostly samples there.
  template <int C>
  void few_channels_last(const Chunk<T>& chunk, int64_t n, int64_t y, int64_t x, int count) const {
    T* image = d_image + n * C * s.plane();
    const S* g = grad + ((n * s.h + y) * s.w + x) * C;
    T north[C] = {}, south[C] = {};
    for (int i = 0; i < count; ++i, g += C) {
      T* at = image + chunk.at[i];
      prefetch_rows_ahead(at, steps);
      const bool owns_north = owns(chunk.row[i]), owns_south = owns(chunk.row[i] + below);
      const bool last = i + 1 == count || chunk.at[i + 1] != chunk.at[i] + C;
      T value[C];
      for (int c = 0; c < C; ++c) value[c] = widen(g[c]);
      if (owns_north)
        for (int c = 0; c < C; ++c) at[c] += chunk.nw[i] * value[c] + north[c];
      if (owns_south)
        for (int c = 0; c < C; ++c) at[steps.south + c] += chunk.sw[i] * value[c] + south[c];
      for (int c = 0; c < C; ++c) north[c] = chunk.ne[i] * value[c], south[c] = chunk.se[i] * value[c];
      if (!last) continue;
      for (int c = 0; c < C; ++c) {
        if (owns_north) at[steps.east + c] += north[c];
        if (owns_south) at[steps.south + steps.east + c] += south[c];
        north[c] = south[c] = 0;
      }
    }
  }

  void channels_last(const Chunk<T>& chunk, int64_t n, int64_t y, int64_t x, int count) const {
    T* image = d_image + n * s.c * s.plane();
    for (int i = 0; i < count; ++i) {
      const S* g = grad + ((n * s.h + y) * s.w + x + i) * s.c;
      T* at = image + chunk.at[i];
      prefetch_rows_ahead(at, steps);
      const bool north = owns(chunk.row[i]), south = owns(chunk.row[i] + below);
      const T nw = chunk.nw[i], ne = chunk.ne[i], sw = chunk.sw[i], se = chunk.se[i];
      for_each_channels<S>(s.c, [&]<int K>(int64_t c) {
        const Lanes<T, K> value = load<K>(g + c);
        const auto add = [&](T* sample, T weight) { store<K>(sample, load<K>(sample) + weight * value); };
        if (north) add(at + c, nw), add(at + steps.east + c, ne);
        if (south) add(at + steps.south + c, sw), add(at + steps.south + steps.east + c, se);
      });
    }
  }
};

template <int Sources, typename S, typename T = Precision<S>>
void image_gradient(Layout layout, const Inputs<Sources, S>& in, int source, const S* grad, T* d_image) {
  const Shape s = in.shape;
  const View<T> target = dense(d_image, s, layout);
  const View<const T> flow = in.flow[source], mask = in.mask;
  const int64_t chunks = (s.w + kChunk - 1) / kChunk, bands = (s.h + kBand - 1) / kBand;
  const int32_t below = s.h > 1;

  std::vector<Reach> reach(s.n * s.h * chunks);
  torch::stable::parallel_for(0, s.n * s.h, 16, [&](int64_t begin, int64_t end) {
    T copy[kChunk];
    for (int64_t k = begin * chunks; k < end * chunks; ++k) {
      const int64_t n = k / chunks / s.h, y = k / chunks % s.h, x = k % chunks * kChunk;
      const int count = static_cast<int>(std::min<int64_t>(kChunk, s.w - x));
      const T* v = row_of(flow, n, 1, y, x, count, copy);
      int32_t first = s.h, last = 0;
      for (int i = 0; i < count; ++i) {
        const int32_t row = tap<T>(y, v[i], s.h).lo;
        first = std::min(first, row), last = std::max(last, row);
      }
      reach[k] = {first, last + below};
    }
  });

  torch::stable::parallel_for(0, s.n * bands, 1, [&](int64_t begin, int64_t end) {
    Chunk<T> chunk;
    T share[2][kChunk];
    for (int64_t b = begin; b < end; ++b) {
      const int64_t n = b / bands, first = b % bands * kBand;
      const Band<S> band{layout, s, grad, d_image, static_cast<int32_t>(first),
                         static_cast<int32_t>(std::min(first + kBand, s.h))};
      for (int64_t k = n * s.h * chunks; k < (n + 1) * s.h * chunks; ++k) {
        if (reach[k].first >= band.end || reach[k].last < band.begin) continue;
        const int64_t y = k / chunks - n * s.h, x = k % chunks * kChunk;
        const int count = static_cast<int>(std::min<int64_t>(kChunk, s.w - x));
        locate<false>(chunk, flow, target, s, n, y, x, count);
        if constexpr (Sources == 2) {
          mix(mask, n, y, x, count, share[0], share[1]);
          chunk.scale(share[source], count);
        }
        if (layout == Layout::planar)
          band.planar(chunk, n, y, x, count);
        else if (s.c == 3)
          band.template few_channels_last<3>(chunk, n, y, x, count);
        else
          band.channels_last(chunk, n, y, x, count);
      }
    }
  });
}

}  // namespace

template <int Sources, typename S>
const char* Cpu::backward(Layout layout, const Inputs<Sources, S>& in, const S* grad, Gradients<Sources, S> d, void*) {
  const Shape s = in.shape;
  for (int k = 0; k < Sources; ++k)
    if (d.image[k]) image_gradient(layout, in, k, grad, d.image[k]);
  if (!d.flow) return nullptr;
  torch::stable::parallel_for(0, s.n * s.h, rows_worth_a_thread(s), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t x = 0; x < s.w; x += kChunk)
        flow_gradients(layout, in, grad, d, row / s.h, row % s.h, x,
                       static_cast<int>(std::min<int64_t>(kChunk, s.w - x)));
  });
  return nullptr;
}

#define INSTANTIATE(Sources, S) \
  template const char* Cpu::backward(Layout, const Inputs<Sources, S>&, const S*, Gradients<Sources, S>, void*);
FOR_EACH_STORAGE(INSTANTIATE)

}  // namespace rife
