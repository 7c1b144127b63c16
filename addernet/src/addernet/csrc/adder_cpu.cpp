// Eq. (2) on a CPU.
//
// sum |x - w| = 2 sum max(x, w) - sum x - sum w, and the sums of x and w alone cost next to nothing. What is
// left, one maximum and one addition for each tap, runs at the speed of a convolution's multiply-adds: the
// maximum on the adders, the addition, as max * 1 + sum, on the multiply-add units. Lanes hold output channels;
// a tile of up to P pixels by V registers of channels stays in registers while the taps go by.
#include "adder_cpu.h"

namespace addernet {
namespace {

// Where a pixel's taps lie: `count` runs of `length` numbers without gaps.
struct Runs {
  int64_t count, length, pixel_step;
  std::vector<int64_t> starts;

  Runs(const Problem& problem, int64_t row) : pixel_step(problem.stride_w * problem.c) {
    const bool joined = problem.groups == 1 && problem.dilation_w == 1;  // then a filter's row is one run
    count = problem.kh * (joined ? 1 : problem.kw);
    length = problem.group_c() * (joined ? problem.kw : 1);
    for (int64_t i = 0; i < problem.kh; ++i)
      for (int64_t j = 0; j < (joined ? 1 : problem.kw); ++j)
        starts.push_back(i * problem.dilation_h * row + j * problem.dilation_w * problem.c);
  }
};

// Sums of V registers of output channels, for P pixels.
template <typename T, int V, int P>
struct Tile {
  static constexpr int kWidth = V * kLanes<T>;

  // x: the first pixel's first tap. filters: [kh, kw, C of the group, kWidth]. y: the first pixel's first
  // channel; `outputs` of them are there, and `o` from one pixel to the next. box: sums of each pixel's taps.
  // filter_sums: [kWidth].
  static void run(const Runs& runs, const T* x, const T* filters, const T* box, const T* filter_sums, T* y,
                  int64_t outputs, int64_t o) {
    Lanes<T> sum[V][P];
    UNROLLED for (int v = 0; v < V; ++v)
      UNROLLED for (int p = 0; p < P; ++p) sum[v][p] = Lanes<T>{};
    const Lanes<T> one = opaque(T(1));
    const int64_t length = runs.length, count = runs.count;
    const int64_t* const starts = runs.starts.data();
    for (int64_t r = 0; r < count; ++r) {
      const Pixels<T, P> pixels(x + starts[r], runs.pixel_step);
#pragma GCC unroll 2
      for (int64_t k = 0; k < length; ++k, filters += kWidth) {
        Lanes<T> w[V];
        UNROLLED for (int v = 0; v < V; ++v) w[v] = load<Lanes<T>>(filters + v * kLanes<T>);
        UNROLLED for (int p = 0; p < P; ++p)
          UNROLLED for (int v = 0; v < V; ++v) sum[v][p] += larger(pixels.at(p, k), w[v]) * one;
      }
    }
    UNROLLED for (int v = 0; v < V; ++v) {
      const Lanes<T> w = load<Lanes<T>>(filter_sums + v * kLanes<T>);
      const int64_t here = outputs - v * kLanes<T>;
      if (here <= 0) break;
      UNROLLED for (int p = 0; p < P; ++p) {
        const Lanes<T> result = (broadcast(box[p]) - sum[v][p]) + (w - sum[v][p]);
        T* to = y + p * o + v * kLanes<T>;
        here >= kLanes<T> ? store(to, result) : store_first(to, result, here);
      }
    }
  }
};

constexpr int most_pixels(int v) { return std::min((kRegisters - v - 2) / v, 16); }

template <typename T>
using Run = void (*)(const Runs&, const T*, const T*, const T*, const T*, T*, int64_t, int64_t);

template <typename T, int V>
constexpr auto kRuns = []<int... I>(std::integer_sequence<int, I...>) {
  return std::array<Run<T>, sizeof...(I)>{Tile<T, V, I + 1>::run...};
}(std::make_integer_sequence<int, most_pixels(V)>{});

// Filters in panels: [groups, panels, kh, kw, C / groups, V registers of output channels], and their sums.
template <typename T>
struct Panels {
  int64_t width, count, taps;  // of the panels; panels of a group; elements of one filter
  std::vector<T> filters, sums;

  Panels(const Problem& problem, const T* from, int64_t width_)
      : width(width_),
        count(ceil_div(problem.group_o(), width)),
        taps(problem.kh * problem.kw * problem.group_c()),
        filters(problem.groups * count * width * taps),
        sums(problem.groups * count * width) {
    const int64_t group_o = problem.group_o();
    torch::stable::parallel_for(0, problem.groups * count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) {
        const int64_t group = panel / count, first = panel % count * width;
        for (int64_t lane = 0; lane < std::min(width, group_o - first); ++lane) {
          const T* filter = from + (group * group_o + first + lane) * taps;
          T* to = filters.data() + panel * width * taps + lane;
          T total = 0;
          for (int64_t k = 0; k < taps; ++k) to[k * width] = filter[k];
#pragma omp simd reduction(+ : total)
          for (int64_t k = 0; k < taps; ++k) total += filter[k];
          sums[panel * width + lane] = total;
        }
      }
    });
  }
};

// Sums over `channels` of `pixels` pixels that lie `step` apart.
template <typename T>
void channel_sums(const T* x, int64_t pixels, int64_t step, int64_t channels, T* to) {
  constexpr int k = kLanes<T>;
  int64_t p = 0;
  if (channels % k == 0)
    for (; p + k <= pixels; p += k) {
      Lanes<T> sum[k];
      for (int i = 0; i < k; ++i) {
        const T* pixel = x + (p + i) * step;
        sum[i] = load<Lanes<T>>(pixel);
        for (int64_t c = k; c < channels; c += k) sum[i] += load<Lanes<T>>(pixel + c);
      }
      store(to + p, sums<T>(sum));
    }
  for (; p < pixels; ++p) {
    T total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t c = 0; c < channels; ++c) total += x[p * step + c];
    to[p] = total;
  }
}

template <typename T, int V>
void run(const Problem& problem, const T* x, const T* filters, T* y) {
  const Panels<T> panels(problem, filters, V * kLanes<T>);
  const Tiles tiles(problem.wo, most_pixels(V));
  const int64_t width = problem.w + 2 * problem.pad_w, group_c = problem.group_c(), group_o = problem.group_o();
  const int64_t bytes = problem.stride_h * width * problem.c * sizeof(T);
  over_rows(problem.n, problem.ho, bytes, [&] {
    return [&, rows = PaddedRows<T>(), plane = std::vector<T>(), box = std::vector<T>()](int64_t n, int64_t first,
                                                                                       int64_t end) mutable {
      const int64_t height = (end - first - 1) * problem.stride_h + (problem.kh - 1) * problem.dilation_h + 1;
      rows.fill(x + n * problem.h * problem.w * problem.c, problem.h, problem.w, problem.c,
                first * problem.stride_h - problem.pad_h, height, problem.pad_w, problem.pad_w);
      const Runs runs(problem, rows.row);
      plane.resize(height * width);
      box.resize((end - first) * problem.wo);
      for (int64_t group = 0; group < problem.groups; ++group) {
        const T* image = rows.data + group * group_c;
        channel_sums(image, height * width, problem.c, group_c, plane.data());
        std::fill(box.begin(), box.end(), T(0));
        for (int64_t r = 0; r < end - first; ++r)
          for (int64_t i = 0; i < problem.kh; ++i)
            for (int64_t j = 0; j < problem.kw; ++j) {
              const T* from = plane.data() + (r * problem.stride_h + i * problem.dilation_h) * width + j * problem.dilation_w;
              T* to = box.data() + r * problem.wo;
              for (int64_t p = 0; p < problem.wo; ++p) to[p] += from[p * problem.stride_w];
            }
        for (int64_t panel = 0; panel < panels.count; ++panel) {
          const int64_t which = group * panels.count + panel, o = panel * panels.width;
          for (int64_t r = 0; r < end - first; ++r)
            for (int64_t p = 0; p < problem.wo; p += tiles.size) {
              const int64_t count = std::min(tiles.size, problem.wo - p);
              kRuns<T, V>[count - 1](runs, image + r * problem.stride_h * rows.row + p * runs.pixel_step,
                                     panels.filters.data() + which * panels.width * panels.taps,
                                     box.data() + r * problem.wo + p, panels.sums.data() + which * panels.width,
                                     y + ((n * problem.ho + first + r) * problem.wo + p) * problem.o + group * group_o + o,
                                     group_o - o, problem.o);
            }
        }
      }
    };
  });
}

}  // namespace

// A multiply-add unit is free again after some 8 sums, so tiles of few pixels are made up for by channels.
template <typename T>
const char* Cpu::forward(const Problem& problem, const T* x, const T* filters, T* y, void*) {
  const int64_t registers = ceil_div(problem.group_o(), kLanes<T>);
  if (registers >= 4 && problem.wo <= most_pixels(4)) {
    run<T, 4>(problem, x, filters, y);
  } else if (registers >= 2) {
    run<T, 2>(problem, x, filters, y);
  } else {
    run<T, 1>(problem, x, filters, y);
  }
  return nullptr;
}

template const char* Cpu::forward<float>(const Problem&, const float*, const float*, float*, void*);
template const char* Cpu::forward<double>(const Problem&, const double*, const double*, double*, void*);

}  // namespace addernet
