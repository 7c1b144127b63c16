// What the forward and the gradient kernels share on a CPU: tiles of neighbouring pixels, rows with zeros
// around them, and the sharing of rows among threads.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "adder.h"
#include "adder_lanes.h"

namespace addernet {

ALWAYS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Addresses of P neighbouring pixels. Four of them are one pointer and three offsets, so that all fit into
// registers and each number is read by an instruction that also computes with it.
template <typename T, int P>
struct Pixels {
  static constexpr int kQuads = (P + 3) / 4;
  const char* quads[kQuads];
  int64_t step, step3;

  ALWAYS_INLINE Pixels(const T* first, int64_t step_elements)
      : step(step_elements * sizeof(T)), step3(3 * step_elements * sizeof(T)) {
    asm("" : "+r"(step3));
    UNROLLED for (int q = 0; q < kQuads; ++q) {
      quads[q] = reinterpret_cast<const char*>(first + 4 * q * step_elements);
      asm("" : "+r"(quads[q]));
    }
  }
  ALWAYS_INLINE const T& at(int p, int64_t channel) const {
    const char* quad = quads[p / 4] + channel * sizeof(T);
    return *reinterpret_cast<const T*>(p % 4 == 3 ? quad + step3 : quad + p % 4 * step);
  }
};

// How a row of `pixels` is cut into tiles of at most `most`: as even as can be.
struct Tiles {
  int64_t count, size;
  Tiles(int64_t pixels, int64_t most) : count(ceil_div(pixels, most)), size(ceil_div(pixels, std::max<int64_t>(count, 1))) {}
};

// Rows of an image with zeros at their left and right ends and, where a row lies outside, instead of it;
// or the image itself where there is nothing to add.
template <typename T>
class PaddedRows {
 public:
  const T* data = nullptr;
  int64_t row = 0;  // elements from one row to the next

  void fill(const T* image, int64_t height, int64_t width, int64_t channels, int64_t first, int64_t count, int64_t left,
            int64_t right) {
    row = (width + left + right) * channels;
    if (left == 0 && right == 0 && first >= 0 && first + count <= height) {
      data = image + first * row;
      return;
    }
    if (storage_.size() < static_cast<size_t>(count * row)) storage_.resize(count * row);
    T* to = storage_.data();
    for (int64_t r = first; r < first + count; ++r, to += row) {
      if (r < 0 || r >= height) {
        std::fill_n(to, row, T(0));
        continue;
      }
      std::fill_n(to, left * channels, T(0));
      memcpy(to + left * channels, image + r * width * channels, width * channels * sizeof(T));
      std::fill_n(to + (left + width) * channels, right * channels, T(0));
    }
    data = storage_.data();
  }

 private:
  std::vector<T> storage_;
};

// Calls work(image, first row, end) for all rows of all images, on all threads; several rows at once so that
// what is prepared for them pays, few enough that `bytes_per_row` of them stay in a core's cache.
template <typename Work>
void over_rows(int64_t images, int64_t rows, int64_t bytes_per_row, Work work) {
  constexpr int64_t kCache = 384 << 10;
  int64_t band = std::clamp<int64_t>(kCache / std::max<int64_t>(bytes_per_row, 1), 1, rows);
  const int64_t wanted = 4 * torch::stable::get_num_threads();  // pieces, so that no thread waits long
  if (images * ceil_div(rows, band) < wanted) band = std::clamp<int64_t>(images * rows / wanted, 1, band);
  const int64_t bands = ceil_div(rows, band);
  band = ceil_div(rows, bands);
  torch::stable::parallel_for(0, images * bands, 1, [&](int64_t begin, int64_t end) {
    auto with_scratch = work();
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t first = piece % bands * band;
      if (first < rows) with_scratch(piece / bands, first, std::min(first + band, rows));
    }
  });
}

}  // namespace addernet
