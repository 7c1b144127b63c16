// Adder layers on bytes: the problem's description and what happens to one sum, for CPU and CUDA.
//
// Activations and filters lie on one grid, value = step * (byte - zero_point), so that the zero point drops
// out of |x - w| and a sum is a whole number. Nothing here knows of tensors or threads.
#pragma once
#include <cstdint>

#include "device.h"

namespace addernet_int8 {

constexpr int kLane = 8;     // bytes that are summed together: a tap's channels are padded to a multiple
constexpr int kOutputs = 8;  // output channels whose filters lie interleaved

// x is [n, h, w, c]; filters are [groups, group_blocks(), kh, kw, lanes(), kOutputs, kLane]: for each eight
// bytes of x, the eight that go with them of eight output channels. Missing channels hold zeros in both.
struct Problem {
  int64_t n, c, h, w, o, ho, wo;
  int64_t kh, kw, groups;
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  uint8_t zero_point;  // what padding is made of

  HOST_DEVICE int64_t group_c() const { return c / groups; }
  HOST_DEVICE int64_t group_o() const { return o / groups; }
  HOST_DEVICE int64_t lanes() const { return (group_c() + kLane - 1) / kLane; }
  HOST_DEVICE int64_t group_blocks() const { return (group_o() + kOutputs - 1) / kOutputs; }
  HOST_DEVICE int64_t steps() const { return kh * kw * lanes(); }
};

// What becomes of the sums: either they are the result, or
//   v = scale[o] * sum + offset[o], plus residual, then max(v, 0), each where wanted,
// is stored as it is, or on the grid of the next layer, or both. All arrays are [pixels, o].
struct Epilogue {
  int32_t* sums;                 // the result; null where the rest applies
  const float *scale, *offset;   // [o]
  const float* residual;         // or null
  float* out;                    // or null
  uint8_t* quantized;            // or null
  float inverse_step, zero_point;  // of the next layer's grid
  bool relu;
};

// The byte nearest to a value, ties to even, saturating, as a float (or a vector of them); NaN gives 0. Adding
// and taking away 1.5 * 2^23 rounds what is far below it, which every processor can do for vectors.
template <typename F>
HOST_DEVICE F to_grid(F value, float inverse_step, float zero_point) {
  constexpr float kRound = 12582912.0f;
  const F least = F{} - zero_point, most = F{} + (255.0f - zero_point);
  F steps = value * inverse_step;
  steps = steps > least ? steps : least;
  steps = steps < most ? steps : most;
  return (steps + kRound) - kRound + zero_point;
}

HOST_DEVICE uint8_t to_byte(float value, float inverse_step, float zero_point) {
  return static_cast<uint8_t>(static_cast<int32_t>(to_grid(value, inverse_step, zero_point)));
}

}  // namespace addernet_int8
