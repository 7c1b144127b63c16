// Winograd's convolutions on a CPU. A thread takes a few tiles at a time, so that their transformed inputs and the
// products stay in its caches: inputs are transformed, then for every panel of outputs come the products, one
// small matrix product at each point, and what they give is transformed back, with bias and activation, and stored.
//
// The sums of a tile know nothing of the tiles beside it: they are the same whatever is computed with them.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>

#include "winograd.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "lanes.h"
#include "storage.h"

namespace psfcn {
namespace {

using papershelf::BFloat16;

using Lanes = papershelf::Lanes<float>;
using Words = papershelf::Lanes<uint32_t>;
using Shorts = papershelf::Lanes<uint16_t, papershelf::kLanes<float>>;

constexpr int kRows = papershelf::kRegisterBytes == 64 ? 14 : papershelf::kRegisterBytes == 32 ? 3 : 2;
constexpr int kLanes = papershelf::kLanes<float>;
constexpr int kVectors = kPanel / kLanes;  // registers of a panel; kRows of them are summed at a time
constexpr int64_t kCache = 1 << 20;        // bytes of transformed inputs that a thread keeps

// How numbers lie in memory, and what a row of a small matrix product adds: one input of all outputs, or two.
template <typename Stored>
struct Format;

template <>
struct Format<float> {
  using Word = float;
  static ALWAYS_INLINE Lanes load(const float* from) { return papershelf::load<Lanes>(from); }
  static ALWAYS_INLINE void store(float* to, const Lanes& lanes) { memcpy(to, &lanes, sizeof(lanes)); }
  static ALWAYS_INLINE void add(Lanes& sum, float x, const Lanes& weights) { sum += x * weights; }
};

template <>
struct Format<BFloat16> {
  using Word = uint32_t;  // two inputs
  static ALWAYS_INLINE Lanes load(const BFloat16* from) {
    return Lanes(__builtin_convertvector(papershelf::load<Shorts>(from), Words) << 16);
  }
  static ALWAYS_INLINE void store(BFloat16* to, const Lanes& lanes) {
#if defined(__AVX512BF16__)
    const auto rounded = _mm512_cvtneps_pbh(__m512(lanes));
#else
    const Words bits = Words(lanes), up = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Words kept = (lanes == lanes) ? up : Words((bits >> 16) | 0x40u);  // to even; NaN stays one
    const Shorts rounded = __builtin_convertvector(kept, Shorts);
#endif
    memcpy(to, &rounded, sizeof(rounded));
  }
  static ALWAYS_INLINE void add(Lanes& sum, uint32_t x, const Lanes& weights) {
#if defined(__AVX512BF16__)
    sum = Lanes(_mm512_dpbf16_ps(__m512(sum), __m512bh(_mm512_set1_epi32(static_cast<int>(x))), __m512bh(weights)));
#else
    const Words pair = Words(weights);
    sum += papershelf::bits_as<float>(x << 16) * Lanes(pair << 16);
    sum += papershelf::bits_as<float>(x & 0xffff0000u) * Lanes(pair & 0xffff0000u);
#endif
  }
};

// sums [kCount, kPanel] = x [kCount, words] times weights [words, kPanel].
template <typename Stored, int kCount>
void multiply(const typename Format<Stored>::Word* x, int64_t words, const Lanes* weights, float* sums) {
  Lanes sum[kCount][kVectors] = {};
  for (int64_t k = 0; k < words; ++k, weights += kVectors) {
    Lanes row[kVectors];
    UNROLLED for (int v = 0; v < kVectors; ++v) row[v] = weights[v];
    UNROLLED for (int r = 0; r < kCount; ++r) UNROLLED for (int v = 0; v < kVectors; ++v)
        Format<Stored>::add(sum[r][v], x[r * words + k], row[v]);
  }
  UNROLLED for (int r = 0; r < kCount; ++r) UNROLLED for (int v = 0; v < kVectors; ++v)
      Format<float>::store(sums + r * kPanel + v * kLanes, sum[r][v]);
}

template <typename Stored>
using Multiply = void (*)(const typename Format<Stored>::Word*, int64_t, const Lanes*, float*);

template <typename Stored>
constexpr auto kMultiply = []<int... I>(std::integer_sequence<int, I...>) {
  return std::array<Multiply<Stored>, sizeof...(I)>{multiply<Stored, I + 1>...};
}(std::make_integer_sequence<int, kRows>{});

// The dot product with a row of constants, of which many are 0 or 1.
template <int kSide>
ALWAYS_INLINE Lanes combine(const float (&factors)[kSide], const Lanes (&with)[kSide]) {
  Lanes sum{};
  bool begun = false;
  UNROLLED for (int k = 0; k < kSide; ++k) {
    if (factors[k] == 0) continue;
    sum = begun ? sum + factors[k] * with[k] : factors[k] * with[k];
    begun = true;
  }
  return sum;
}

struct Free {
  void operator()(void* at) const { operator delete[](at, std::align_val_t(64)); }
};
template <typename T>
std::unique_ptr<T[], Free> aligned(int64_t count) {
  return std::unique_ptr<T[], Free>(new (std::align_val_t(64)) T[count]);
}

// What a thread does, and what it needs for it.
template <typename Stored, int kOut, int kTaps>
class Worker {
  using F = Format<Stored>;
  using Word = typename F::Word;
  static constexpr Transforms<kOut, kTaps> kBy{};
  static constexpr int kSide = kBy.kSide, kPoints = kSide * kSide;

 public:
  // As many tiles as the caches hold, or so many fewer that every thread gets the same number.
  static int64_t tiles_at_once(int64_t inputs, int64_t tiles) {
    const int64_t each = kPoints * inputs * static_cast<int64_t>(sizeof(Stored)),
                  threads = torch::stable::get_num_threads();
    const int64_t most = std::max<int64_t>(1, kCache / each / kRows) * kRows;
    const int64_t turns = (tiles + most * threads - 1) / (most * threads);
    return (tiles + turns * threads - 1) / (turns * threads);
  }

  Worker(const Layer<Stored>& layer, int64_t most)
      : layer_(layer),
        across_((layer.width + kOut - 1) / kOut),
        most_(most),
        step_(most_ * layer.inputs + kGap),
        values_(aligned<Stored>(kPoints * step_)),
        sums_(aligned<float>(kPoints * (most_ * kPanel + kGap))),
        nothing_(aligned<Stored>(layer.inputs)) {
    std::fill_n(nothing_.get(), layer.inputs, Stored{});
  }

  void run(int64_t first, int64_t count) {
    const int64_t words = layer_.inputs * sizeof(Stored) / sizeof(Word), sums_step = most_ * kPanel + kGap;
    const int64_t products = (count + kRows - 1) / kRows, rows = (count + products - 1) / products;
    const auto* weights = reinterpret_cast<const Lanes*>(layer_.weights);
    for (int part = 0; part < (layer_.twice ? 4 : 1); ++part) {
      for (int64_t t = 0; t < count; ++t) transform(first + t, part, values_.get() + t * layer_.inputs);
      for (int64_t panel = 0; panel < layer_.outputs; panel += kPanel) {
        for (int point = 0; point < kPoints; ++point, weights += words * kVectors)
          for (int64_t t = 0; t < count; t += rows)
            kMultiply<Stored>[std::min(rows, count - t) - 1](
                reinterpret_cast<const Word*>(values_.get() + point* step_ + t* layer_.inputs), words, weights,
                sums_.get() + point* sums_step + t* kPanel);
        for (int64_t t = 0; t < count; ++t) finish(first + t, part, panel, sums_.get() + t * kPanel, sums_step);
      }
    }
  }

 private:
  static constexpr int64_t kGap = 16;  // numbers that keep the points' rows from falling on the same cache lines

  // B^T d B of a tile's inputs d.
  void transform(int64_t tile, int part, Stored* to) {
    const int64_t top = tile / across_ * kOut - 1 + part / 2, left = tile % across_ * kOut - 1 + part % 2;
    const Stored* pixels[kSide][kSide];
    for (int i = 0; i < kSide; ++i)
      for (int j = 0; j < kSide; ++j) {
        const int64_t y = top + i, x = left + j;
        const bool inside = y >= 0 && y < layer_.height && x >= 0 && x < layer_.width;
        pixels[i][j] = inside ? layer_.x + (y * layer_.width + x) * layer_.inputs : nothing_.get();
      }
    for (int64_t c = 0; c < layer_.inputs; c += kLanes) {
      Lanes half[kSide][kSide];
      UNROLLED for (int j = 0; j < kSide; ++j) {
        Lanes column[kSide];
        UNROLLED for (int i = 0; i < kSide; ++i) column[i] = F::load(pixels[i][j] + c);
        UNROLLED for (int i = 0; i < kSide; ++i) half[i][j] = combine(kBy.input[i], column);
      }
      UNROLLED for (int i = 0; i < kSide; ++i) UNROLLED for (int j = 0; j < kSide; ++j)
          F::store(to + (i * kSide + j) * step_ + c, combine(kBy.input[j], half[i]));
    }
  }

  // A^T m A of a tile's products m, bias and activation.
  void finish(int64_t tile, int part, int64_t panel, const float* sums, int64_t sums_step) {
    const int64_t top = tile / across_ * kOut, left = tile % across_ * kOut;
    const int64_t scale = layer_.twice ? 2 : 1, width = layer_.width * scale;
    for (int v = 0; v < kVectors; ++v) {
      Lanes half[kOut][kSide];
      UNROLLED for (int j = 0; j < kSide; ++j) {
        Lanes column[kSide];
        UNROLLED for (int i = 0; i < kSide; ++i) column[i] =
            papershelf::load<Lanes>(sums + (i * kSide + j) * sums_step + v * kLanes);
        UNROLLED for (int i = 0; i < kOut; ++i) half[i][j] = combine(kBy.output[i], column);
      }
      const Lanes bias = layer_.bias ? papershelf::load<Lanes>(layer_.bias + panel + v * kLanes) : Lanes{};
      UNROLLED for (int i = 0; i < kOut; ++i) UNROLLED for (int j = 0; j < kOut; ++j) {
        if (top + i >= layer_.height || left + j >= layer_.width) continue;
        const int64_t y = (top + i) * scale + part / 2, x = (left + j) * scale + part % 2;
        Stored* to = layer_.y + (y * width + x) * layer_.outputs + panel + v * kLanes;
        Lanes value = combine(kBy.output[j], half[i]) + bias;
        value = value < 0 ? value * layer_.slope : value;
        if (layer_.maximum) {
          const Lanes before = F::load(to);
          value = (value > before || value != value) ? value : before;  // NaN stays
        }
        F::store(to, value);
      }
    }
  }

  const Layer<Stored>& layer_;
  const int64_t across_, most_, step_;
  std::unique_ptr<Stored[], Free> values_;  // [points, tiles, inputs], transformed
  std::unique_ptr<float[], Free> sums_;     // [points, tiles, kPanel], of one panel
  std::unique_ptr<Stored[], Free> nothing_;
};

template <typename Stored, int kOut, int kTaps>
void convolve_by(const Layer<Stored>& layer) {
  if (!layer.height || !layer.width) return;
  const int64_t tiles = ((layer.height + kOut - 1) / kOut) * ((layer.width + kOut - 1) / kOut);
  const int64_t size = Worker<Stored, kOut, kTaps>::tiles_at_once(layer.inputs, tiles);
  torch::stable::parallel_for(0, (tiles + size - 1) / size, 1, [&](int64_t begin, int64_t end) {
    Worker<Stored, kOut, kTaps> worker(layer, size);
    for (int64_t first = begin * size; first < std::min(end * size, tiles); first += size)
      worker.run(first, std::min(size, tiles - first));
  });
}

}  // namespace

template <typename Stored>
void convolve(const Layer<Stored>& layer) {
  if (layer.twice) {
    convolve_by<Stored, kTileTwice, 2>(layer);
  } else {
    convolve_by<Stored, kTile<Stored>, 3>(layer);
  }
}

template void convolve<float>(const Layer<float>&);
template void convolve<BFloat16>(const Layer<BFloat16>&);

}  // namespace psfcn
