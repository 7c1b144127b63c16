// Int8 adder layers on a CPU. psadbw subtracts bytes and adds up the differences by eights, so eight channels
// of one tap are one lane, and the lanes of a register are eight output channels: x is repeated over them,
// and no sum crosses lanes. Without AVX-512 and AVX2 the same loops run on plain arrays.
//
// A band of the image, padded with the zero point, is copied once per group; where there is nothing to pad
// the image is read as it lies.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "int8.h"
#include "lanes.h"

namespace addernet_int8 {
namespace {

using papershelf::Lanes;
using papershelf::load;

#if defined(__AVX512BW__) && defined(__AVX512VL__)

constexpr int kMostBlocks = 4;
constexpr int most_pixels(int blocks) { return blocks == 4 ? 6 : 8; }  // accumulators leave room in 32 registers

struct Bytes {
  __m512i v;
  static Bytes load(const uint8_t* from) { return {_mm512_loadu_si512(from)}; }
  static Bytes repeat(const uint8_t* from) {
    int64_t eight;
    memcpy(&eight, from, sizeof eight);
    return {_mm512_set1_epi64(eight)};
  }
};

struct Sums {
  __m512i v = _mm512_setzero_si512();
  void add(Bytes x, Bytes w) { v = _mm512_add_epi64(v, _mm512_sad_epu8(x.v, w.v)); }
  void store(int32_t* to) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi64_epi32(v)); }
};

#elif defined(__AVX2__)

constexpr int kMostBlocks = 1;
constexpr int most_pixels(int) { return 5; }  // ten accumulators of 16 registers

struct Bytes {
  __m256i low, high;
  static Bytes load(const uint8_t* from) {
    const auto* at = reinterpret_cast<const __m256i*>(from);
    return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
  }
  static Bytes repeat(const uint8_t* from) {
    long long eight;
    memcpy(&eight, from, sizeof eight);
    return {_mm256_set1_epi64x(eight), _mm256_set1_epi64x(eight)};
  }
};

struct Sums {
  __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256();
  void add(Bytes x, Bytes w) {
    low = _mm256_add_epi64(low, _mm256_sad_epu8(x.low, w.low));
    high = _mm256_add_epi64(high, _mm256_sad_epu8(x.high, w.high));
  }
  void store(int32_t* to) const {
    alignas(32) int64_t wide[kOutputs];
    _mm256_store_si256(reinterpret_cast<__m256i*>(wide), low);
    _mm256_store_si256(reinterpret_cast<__m256i*>(wide + 4), high);
    for (int k = 0; k < kOutputs; ++k) to[k] = static_cast<int32_t>(wide[k]);
  }
};

#else

constexpr int kMostBlocks = 1;
constexpr int most_pixels(int) { return 2; }

struct Bytes {
  const uint8_t* v;
  bool one;
  static Bytes load(const uint8_t* from) { return {from, false}; }
  static Bytes repeat(const uint8_t* from) { return {from, true}; }
};

struct Sums {
  int32_t v[kOutputs] = {};
  void add(Bytes x, Bytes w) {
    for (int k = 0; k < kOutputs; ++k) {
      int32_t sum = 0;
      for (int i = 0; i < kLane; ++i) sum += std::abs(static_cast<int32_t>(x.v[i]) - w.v[k * kLane + i]);
      v[k] += sum;
    }
  }
  void store(int32_t* to) const { std::copy_n(v, kOutputs, to); }
};

#endif

// Where the taps of an output pixel lie. A run is what is contiguous: all taps of a filter's row, or one.
struct Taps {
  int64_t rows, row;          // of the filter; bytes between two of them in x
  int64_t runs, run, steps;   // in a row; bytes between two of them in x; lanes in one
  int64_t pixel;              // bytes in x between the output pixels of a row
  int64_t block;              // bytes of the filters of kOutputs channels
};

// `Blocks * kOutputs` output channels of `Pixels` neighbours; `count` of the channels exist.
template <int Blocks, int Pixels>
void tile(const Taps& taps, const uint8_t* x, const uint8_t* filters, int32_t* out, int64_t pitch, int64_t count) {
  Sums sums[Blocks][Pixels];
  for (int64_t i = 0; i < taps.rows; ++i)
    for (int64_t j = 0; j < taps.runs; ++j) {
      const uint8_t* from = x + i * taps.row + j * taps.run;
      for (int64_t step = 0; step < taps.steps; ++step, from += kLane, filters += kOutputs * kLane) {
        Bytes w[Blocks];
#pragma GCC unroll 8
        for (int b = 0; b < Blocks; ++b) w[b] = Bytes::load(filters + b * taps.block);
#pragma GCC unroll 8
        for (int p = 0; p < Pixels; ++p) {
          const Bytes bytes = Bytes::repeat(from + p * taps.pixel);
#pragma GCC unroll 8
          for (int b = 0; b < Blocks; ++b) sums[b][p].add(bytes, w[b]);
        }
      }
    }
#pragma GCC unroll 8
  for (int p = 0; p < Pixels; ++p)
#pragma GCC unroll 8
    for (int b = 0; b < Blocks; ++b) {
      int32_t* to = out + p * pitch + b * kOutputs;
      if (count >= (b + 1) * kOutputs) {
        sums[b][p].store(to);
      } else {
        int32_t all[kOutputs];
        sums[b][p].store(all);
        std::copy_n(all, count - b * kOutputs, to);
      }
    }
}

using Tile = decltype(&tile<1, 1>);

template <int Blocks>
constexpr auto tiles = []<int... P>(std::integer_sequence<int, P...>) {
  return std::array<Tile, sizeof...(P)>{tile<Blocks, P + 1>...};
}(std::make_integer_sequence<int, most_pixels(Blocks)>{});

// Calls the tiles of a row of `pixels`, as even as they come.
template <int Blocks>
void row_of_tiles(const Taps& taps, int64_t pixels, const uint8_t* x, const uint8_t* filters, int32_t* out,
                  int64_t pitch, int64_t count) {
  for (int64_t done = 0, left = (pixels + most_pixels(Blocks) - 1) / most_pixels(Blocks); left > 0; --left) {
    const int64_t some = (pixels - done + left - 1) / left;
    tiles<Blocks>[some - 1](taps, x + done * taps.pixel, filters, out + done * pitch, pitch, count);
    done += some;
  }
}

// K neighbouring channels from `o` on of `pixels` pixels; `at` is the first one's place among [pixels, all].
template <int K>
void finish(const Epilogue& e, const int32_t* sums, int64_t pitch, int64_t pixels, int64_t at, int64_t o, int64_t all) {
  using F = Lanes<float, K>;
  const F scale = load<F>(e.scale + o), offset = load<F>(e.offset + o);
  const F floor = F{} + (e.relu ? 0.0f : -INFINITY);
  for (int64_t p = 0; p < pixels; ++p, sums += pitch, at += all) {
    F v = scale * __builtin_convertvector(load<Lanes<int32_t, K>>(sums), F) + offset;
    if (e.residual) v += load<F>(e.residual + at);
    v = v < floor ? floor : v;
    if (e.out) memcpy(e.out + at, &v, sizeof v);
    if (e.quantized) {
      const auto whole = __builtin_convertvector(to_grid(v, e.inverse_step, e.zero_point), Lanes<int32_t, K>);
      const auto bytes = __builtin_convertvector(whole, Lanes<uint8_t, K>);
      memcpy(e.quantized + at, &bytes, sizeof bytes);
    }
  }
}

// Output rows [y, y + rows) of one image and one group.
struct Band {
  int64_t n, group, y, rows;
};

int64_t span(const Problem& p, int64_t rows) { return (rows - 1) * p.stride_h + (p.kh - 1) * p.dilation_h + 1; }

// Rows of x that a band reads, as [span, w + 2 pad_w, lanes * kLane].
void copy_band(const Problem& p, const Band& band, const uint8_t* x, uint8_t* to) {
  const int64_t c = p.group_c(), missing = p.lanes() * kLane - c, width = (p.w + 2 * p.pad_w) * (c + missing);
  const auto border = [&](uint8_t* at, int64_t pixels) {
    for (int64_t i = 0; i < pixels; ++i, at += c + missing)
      std::fill_n(at, c, p.zero_point), std::fill_n(at + c, missing, uint8_t{0});
    return at;
  };
  for (int64_t i = 0; i < span(p, band.rows); ++i, to += width) {
    const int64_t y = band.y * p.stride_h - p.pad_h + i;
    if (y < 0 || y >= p.h) {
      border(to, p.w + 2 * p.pad_w);
      continue;
    }
    const uint8_t* from = x + ((band.n * p.h + y) * p.w) * p.c + band.group * c;
    uint8_t* at = border(to, p.pad_w);
    if (missing == 0 && p.groups == 1) {
      at = std::copy_n(from, p.w * c, at);
    } else {
      for (int64_t j = 0; j < p.w; ++j, from += p.c) at = std::fill_n(std::copy_n(from, c, at), missing, uint8_t{0});
    }
    border(at, p.pad_w);
  }
}

// What a thread works in.
struct Scratch {
  std::vector<uint8_t> padded;
  std::vector<int32_t> sums;  // [pixels of a band, kMostBlocks * kOutputs]
};

void forward_band(const Problem& p, const Band& band, const uint8_t* x, const uint8_t* filters, const Epilogue& e,
                  Scratch& scratch) {
  const int64_t lanes = p.lanes(), og = p.group_o(), block = p.steps() * kOutputs * kLane;
  const bool in_place = p.pad_h == 0 && p.pad_w == 0 && p.group_c() % kLane == 0;
  const int64_t pixel = in_place ? p.c : lanes * kLane, row = (in_place ? p.w : p.w + 2 * p.pad_w) * pixel;
  if (in_place) {
    x += (band.n * p.h + band.y * p.stride_h) * row + band.group * p.group_c();
  } else {
    scratch.padded.resize(span(p, band.rows) * row);
    copy_band(p, band, x, scratch.padded.data());
    x = scratch.padded.data();
  }
  const bool joined = p.dilation_w == 1 && pixel == lanes * kLane;
  const Taps taps{p.kh,  p.dilation_h * row,      joined ? 1 : p.kw,    p.dilation_w * pixel,
                  joined ? p.kw * lanes : lanes, p.stride_w * pixel, block};
  const int64_t first = (band.n * p.ho + band.y) * p.wo, pixels = band.rows * p.wo;
  filters += band.group * p.group_blocks() * block;
  if (!e.sums) scratch.sums.resize(pixels * kMostBlocks * kOutputs);

  for (int64_t b = 0; b < p.group_blocks();) {
    const int64_t left = p.group_blocks() - b;
    const int blocks = left >= 4 && kMostBlocks >= 4 ? 4 : (left >= 2 && kMostBlocks >= 2 ? 2 : 1);
    const int64_t o = band.group * og + b * kOutputs, count = std::min<int64_t>(blocks * kOutputs, og - b * kOutputs);
    const int64_t pitch = e.sums ? p.o : blocks * kOutputs;
    int32_t* sums = e.sums ? e.sums + first * p.o + o : scratch.sums.data();
    for (int64_t y = 0; y < band.rows; ++y) {
      const uint8_t *from = x + y * p.stride_h * row, *w = filters + b * block;
      int32_t* to = sums + y * p.wo * pitch;
      if constexpr (kMostBlocks >= 4)
        if (blocks == 4) row_of_tiles<4>(taps, p.wo, from, w, to, pitch, count);
      if constexpr (kMostBlocks >= 2)
        if (blocks == 2) row_of_tiles<2>(taps, p.wo, from, w, to, pitch, count);
      if (blocks == 1) row_of_tiles<1>(taps, p.wo, from, w, to, pitch, count);
    }
    if (!e.sums) {
      int64_t done = 0;
      for (; done + 16 <= count; done += 16)
        finish<16>(e, sums + done, pitch, pixels, first * p.o + o + done, o + done, p.o);
      for (; done < count; ++done) finish<1>(e, sums + done, pitch, pixels, first * p.o + o + done, o + done, p.o);
    }
    b += blocks;
  }
}

// Output rows in a band: what they read and what is summed for them should stay in the L2 cache, and every
// thread should have some.
int64_t rows_of_band(const Problem& p) {
  const int64_t read = p.stride_h * (p.w + 2 * p.pad_w) * p.lanes() * kLane;
  const int64_t made = p.wo * kMostBlocks * kOutputs * static_cast<int64_t>(sizeof(int32_t));
  const int64_t fit = std::max<int64_t>(1, (1 << 18) / (read + made));
  const int64_t threads = torch::stable::get_num_threads(), bands = (threads + p.n * p.groups - 1) / (p.n * p.groups);
  return std::min(fit, (p.ho + bands - 1) / bands);
}

}  // namespace

const char* Int8Cpu::forward(const Problem& p, const uint8_t* x, const uint8_t* filters, const Epilogue& e, void*) {
  const int64_t rows = rows_of_band(p), bands = (p.ho + rows - 1) / rows;
  const int64_t work = rows * p.wo * p.group_o() * p.steps() * kLane;
  torch::stable::parallel_for(0, p.n * p.groups * bands, 1 + (1 << 20) / work, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t y = i % bands * rows;
      const Band band{i / bands / p.groups, i / bands % p.groups, y, std::min(rows, p.ho - y)};
      forward_band(p, band, x, filters, e, scratch);
    }
  });
  return nullptr;
}

const char* Int8Cpu::quantize(const float* x, uint8_t* out, int64_t count, float inverse_step, float zero_point,
                              void*) {
  torch::stable::parallel_for(0, count, 1 << 15, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = to_byte(x[i], inverse_step, zero_point);
  });
  return nullptr;
}

}  // namespace addernet_int8
