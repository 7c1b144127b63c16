// Convolutions of 3x3 by Winograd's minimal filtering (Lavin and Gray, arXiv:1509.09308): the kernels' side of
// winograd.py, which says what they compute and packs the weights as they are read here.
#pragma once
#include <cstdint>

namespace psfcn {

constexpr int kPanel = 32;  // outputs that are packed together; PANEL in winograd.py

// Outputs along a tile's side. More of them save more products and round more: four are beyond what bfloat16 bears.
template <typename Stored>
constexpr int kTile = 2;
template <>
inline constexpr int kTile<float> = 4;
constexpr int kTileTwice = 3;  // with 2x2 weights

// Where the products of a tile are taken: polynomials' values at these points and at infinity. POINTS in winograd.py.
template <int kSide>
struct Points;
template <>
struct Points<4> {
  static constexpr double kAt[] = {0, 1, -1};
};
template <>
struct Points<6> {
  static constexpr double kAt[] = {0, 0.625, -0.625, 1.5, -1.5};
};

// The transforms of tiles with kOut outputs along a side (Toom and Cook's): B^T of the inputs, A^T of the products.
template <int kOut, int kTaps>
struct Transforms {
  static constexpr int kSide = kOut + kTaps - 1;  // inputs, and products
  float input[kSide][kSide] = {}, output[kOut][kSide] = {};

  constexpr Transforms() {
    constexpr auto& at = Points<kSide>::kAt;
    for (int product = 0; product < kSide; ++product) {
      double row[kSide] = {1};  // coefficients of the product of x - at[k] over all other points
      for (int k = 0, degree = 0; k + 1 < kSide; ++k) {
        if (k == product) continue;
        ++degree;
        for (int i = degree; i >= 0; --i) row[i] = (i ? row[i - 1] : 0) - at[k] * row[i];
      }
      for (int i = 0; i < kSide; ++i) input[product][i] = static_cast<float>(row[i]);
      double power = 1;
      for (int i = 0; i < kOut; ++i) {
        const bool infinite = product + 1 == kSide;
        output[i][product] = static_cast<float>(infinite ? i + 1 == kOut : power);
        if (!infinite) power *= at[product];
      }
    }
  }
};

// One image through one layer, with zeros around it. x: [height, width, inputs].
// weights: [parts, outputs / kPanel, kSide * kSide, inputs, kPanel], or in 16 bits [.., inputs / 2, kPanel, 2].
template <typename Stored>
struct Layer {
  int64_t height, width, inputs, outputs;
  const Stored *x, *weights;
  const float* bias;  // [outputs], or nullptr
  float slope;        // of what is below zero
  // y: [height, width, outputs], from 3x3 weights; with `twice` [2 height, 2 width, outputs], of which each of four
  // parts, at even and odd rows and columns, has 2x2 weights of its own. With `maximum` y becomes the larger of itself
  // and the result.
  bool twice, maximum;
  Stored* y;
};

template <typename Stored>
void convolve(const Layer<Stored>& layer);

}  // namespace psfcn
