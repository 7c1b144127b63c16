// Eq. (6) on a CPU, each pixel of x by itself: it meets the filters' taps through those outputs that saw it.
//
// Lanes hold input channels. x and its gradient stay in registers while filters and gradients of outputs go by;
// a difference, a clip and a multiply-add for each. Every second difference is a product with 1, which
// shares the work out evenly among adders and multiply-add units.
#include "adder_cpu.h"

namespace addernet {
namespace {

// A tap (row i, column j) and where its outputs begin in the padded gradient, from a row's first pixel on.
struct Tap {
  int64_t filter, grad;  // elements from the panel's, and from the gradient's beginning
};

template <typename T, int P>
struct Tile {
  // x, grad_x: the first pixel, `step` elements before the next one; `channels` of them are there.
  // grad: the row's first pixel's. filters: [kh, kw, O of the group, lanes].
  static void run(const Problem& problem, const std::vector<Tap>& taps, const T* grad, const T* x, const T* filters,
                  T* grad_x, int64_t step, int64_t channels) {
    constexpr int k = kLanes<T>;
    const Lanes<T> one = opaque(T(1));
    Lanes<T> value[P], sum[P];
    UNROLLED for (int p = 0; p < P; ++p) {
      value[p] = channels >= k ? load<Lanes<T>>(x + p * step) : load_first(x + p * step, channels);
      sum[p] = Lanes<T>{};
    }
    const int64_t outputs = problem.group_o();
    for (const Tap& tap : taps) {
      const Pixels<T, P> pixels(grad + tap.grad, problem.o);
      const T* w = filters + tap.filter;
#pragma GCC unroll 2
      for (int64_t o = 0; o < outputs; ++o, w += k) {
        const Lanes<T> filter = load<Lanes<T>>(w);
        UNROLLED for (int p = 0; p < P; ++p) {
          const Lanes<T> difference = p % 2 ? filter * one - value[p] : filter - value[p];
          sum[p] += clip<T>(difference) * broadcast(pixels.at(p, o));
        }
      }
    }
    UNROLLED for (int p = 0; p < P; ++p)
      channels >= k ? store(grad_x + p * step, sum[p]) : store_first(grad_x + p * step, sum[p], channels);
  }
};

constexpr int kMostPixels = std::min((kRegisters - 4) / 2, 12);

template <typename T>
using Run = void (*)(const Problem&, const std::vector<Tap>&, const T*, const T*, const T*, T*, int64_t, int64_t);

template <typename T>
constexpr auto kRuns = []<int... I>(std::integer_sequence<int, I...>) {
  return std::array<Run<T>, sizeof...(I)>{Tile<T, I + 1>::run...};
}(std::make_integer_sequence<int, kMostPixels>{});

// [groups, panels, kh, kw, O / groups, lanes of input channels]
template <typename T>
std::vector<T> panels_of(const Problem& problem, const T* filters, int64_t panels) {
  constexpr int k = kLanes<T>;
  const int64_t group_o = problem.group_o(), group_c = problem.group_c(), taps = problem.kh * problem.kw;
  std::vector<T> packed(problem.groups * panels * taps * group_o * k);
  torch::stable::parallel_for(0, problem.groups * panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t group = panel / panels, c = panel % panels * k;
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t o = 0; o < group_o; ++o)
          store(packed.data() + ((panel * taps + tap) * group_o + o) * k,
                load_first(filters + ((group * group_o + o) * taps + tap) * group_c + c, group_c - c));
    }
  });
  return packed;
}

// Of the pixels `first`, `first + stride`, ... of x along one side: tap t saw them from the outputs
// `offset(t)`, `offset(t) + 1`, ...; only taps that did are listed.
struct Phase {
  std::vector<int64_t> taps, offsets;
  Phase(int64_t first, int64_t stride, int64_t pad, int64_t dilation, int64_t count) {
    for (int64_t t = 0; t < count; ++t) {
      const int64_t from = first + pad - t * dilation;  // of the output, times stride
      if (from % stride == 0) taps.push_back(t), offsets.push_back(from / stride);
    }
  }
};

}  // namespace

template <typename T>
const char* Cpu::input_gradient(const Problem& problem, const T* grad, const T* x, const T* filters, T* grad_x, void*) {
  constexpr int k = kLanes<T>;
  const int64_t group_c = problem.group_c(), group_o = problem.group_o(), panels = ceil_div(group_c, k);
  const std::vector<T> packed = panels_of(problem, filters, panels);
  const int64_t stride = problem.stride_w, step = stride * problem.c;

  // Outputs left of the first and right of the last one that some pixel of x asks for: their gradient is 0.
  std::vector<Phase> phases;
  int64_t left = 0, right = 0;
  for (int64_t first = 0; first < std::min(stride, problem.w); ++first) {
    phases.emplace_back(first, stride, problem.pad_w, problem.dilation_w, problem.kw);
    const int64_t last = (problem.w - 1 - first) / stride;
    for (const int64_t offset : phases.back().offsets) {
      left = std::max(left, -offset);
      right = std::max(right, last + offset - (problem.wo - 1));
    }
  }

  over_rows(problem.n, problem.h, ceil_div(problem.wo * problem.o * sizeof(T), problem.stride_h), [&] {
    return [&, rows = PaddedRows<T>(), taps = std::vector<Tap>()](int64_t n, int64_t begin, int64_t end) mutable {
      // Output rows that these rows of x were seen from.
      const int64_t reach = (problem.kh - 1) * problem.dilation_h;
      const int64_t above = std::max<int64_t>(begin + problem.pad_h - reach, 0) / problem.stride_h;
      const int64_t below = std::min((end - 1 + problem.pad_h) / problem.stride_h, problem.ho - 1);
      if (below >= above)
        rows.fill(grad + n * problem.ho * problem.wo * problem.o, problem.ho, problem.wo, problem.o, above,
                  below - above + 1, left, right);
      for (int64_t y = begin; y < end; ++y) {
        const Phase vertical(y % problem.stride_h, problem.stride_h, problem.pad_h, problem.dilation_h, problem.kh);
        for (size_t first = 0; first < phases.size(); ++first) {
          const Phase& horizontal = phases[first];
          taps.clear();
          for (size_t i = 0; i < vertical.taps.size(); ++i) {
            const int64_t row = y / problem.stride_h + vertical.offsets[i];
            if (row < above || row > below) continue;
            for (size_t j = 0; j < horizontal.taps.size(); ++j)
              taps.push_back({(vertical.taps[i] * problem.kw + horizontal.taps[j]) * group_o * k,
                              (row - above) * rows.row + (left + horizontal.offsets[j]) * problem.o});
          }
          const int64_t pixels = ceil_div(problem.w - static_cast<int64_t>(first), stride);
          const Tiles tiles(pixels, kMostPixels);
          const int64_t at = ((n * problem.h + y) * problem.w + first) * problem.c;
          for (int64_t panel = 0; panel < problem.groups * panels; ++panel) {
            const int64_t group = panel / panels, c = panel % panels * k;
            for (int64_t p = 0; p < pixels; p += tiles.size) {
              const int64_t count = std::min(tiles.size, pixels - p), from = at + p * step + group * group_c + c;
              kRuns<T>[count - 1](problem, taps, rows.data + p * problem.o + group * group_o, x + from,
                                  packed.data() + panel * problem.kh * problem.kw * group_o * k, grad_x + from, step,
                                  group_c - c);
            }
          }
        }
      }
    };
  });
  return nullptr;
}

template const char* Cpu::input_gradient<float>(const Problem&, const float*, const float*, const float*, float*,
                                                void*);
template const char* Cpu::input_gradient<double>(const Problem&, const double*, const double*, const double*, double*,
                                                 void*);

}  // namespace addernet
