// Inference with IFNet between its convolutions, one pixel at a time, written once for CPU and CUDA.
//
// Frames are stored as [H, W, 4] float (R, G, B, 0), the running estimate as [N, H, W, 5] float: the
// flow towards both frames in pixels, and the mask's logit. Nothing here knows of tensors or threads.
#pragma once
#include "storage.h"
#include "warp_math.h"

namespace rife {

using namespace papershelf;  // storage.h

struct Rgb {
  float r, g, b;
};

HOST_DEVICE Rgb operator+(Rgb a, Rgb b) { return {a.r + b.r, a.g + b.g, a.b + b.b}; }
HOST_DEVICE Rgb operator*(float k, Rgb a) { return {k * a.r, k * a.g, k * a.b}; }

constexpr int kState = 5, kMask = 4;  // channels of the estimate; which one is the mask

// What a block's input is put together from; a bit mask would lose the order.
enum Plane : int64_t { kImg0, kImg1, kWarped0, kWarped1, kTime, kMaskPlane, kFlow, kPlanes };

HOST_DEVICE int channels_of(int64_t plane) { return plane <= kWarped1 ? 3 : (plane == kFlow ? 4 : 1); }

struct alignas(16) Pixel {
  float r, g, b, unused;
};

HOST_DEVICE Rgb pixel(const Pixel* frame, int64_t at) {
  const Pixel p = frame[at];
  return {p.r, p.g, p.b};
}

// The frame at (x + u, y + v), bilinear, border-clamped.
HOST_DEVICE Rgb warped(const Pixel* frame, int32_t h, int32_t w, int32_t y, int32_t x, float u, float v) {
  const auto tx = tap<float>(x, u, w), ty = tap<float>(y, v, h);
  const int64_t north = static_cast<int64_t>(ty.lo) * w + tx.lo, east = w > 1, south = h > 1 ? w : 0;
  const auto weight = corner_weights(tx.w, ty.w);
  return weight.nw * pixel(frame, north) + weight.ne * pixel(frame, north + east) +
         weight.sw * pixel(frame, north + south) + weight.se * pixel(frame, north + south + east);
}

struct Pair {
  const Pixel *img0, *img1;  // [h, w]
  const float* state;        // [n, h, w, 5], or null before the first block
  const float* t;            // [n]
  int32_t n, h, w;
};

// The planes of a block's input at 1/scale, and their order; channels that are not used hold zeros.
struct Recipe {
  int64_t plane[kPlanes];
  int32_t planes, used, channels, scale;
};

// One pixel (y, x) of the input at 1/scale: bilinear without antialiasing takes, for a power of two,
// the mean of the four pixels in the middle of each scale x scale cell.
template <typename S>
HOST_DEVICE void assemble_pixel(const Pair& in, const Recipe& recipe, int32_t n, int32_t y, int32_t x, S* out) {
  const int32_t s = recipe.scale, cells = s > 1 ? 2 : 1, first = s > 1 ? s / 2 - 1 : 0;
  const float share = s > 1 ? 0.25f : 1.0f;
  Rgb img[2] = {}, warp[2] = {};
  float sum[kState] = {};
  bool straight = false, moved = false;
  for (int i = 0; i < recipe.planes; ++i)
    straight |= recipe.plane[i] <= kImg1, moved |= recipe.plane[i] == kWarped0 || recipe.plane[i] == kWarped1;
  for (int32_t j = 0; j < cells; ++j)
    for (int32_t i = 0; i < cells; ++i) {
      const int32_t fy = y * s + first + j, fx = x * s + first + i;
      const int64_t at = static_cast<int64_t>(fy) * in.w + fx;
      if (straight) img[0] = img[0] + pixel(in.img0, at), img[1] = img[1] + pixel(in.img1, at);
      if (in.state) {
        const float* e = in.state + (static_cast<int64_t>(n) * in.h * in.w + at) * kState;
        for (int k = 0; k < kState; ++k) sum[k] += e[k];
        if (moved) {
          warp[0] = warp[0] + warped(in.img0, in.h, in.w, fy, fx, e[0], e[1]);
          warp[1] = warp[1] + warped(in.img1, in.h, in.w, fy, fx, e[2], e[3]);
        }
      }
    }
  const auto put = [&](float value) { *out++ = narrow<S>(value); };
  const auto put_rgb = [&](Rgb c) { put(share * c.r), put(share * c.g), put(share * c.b); };
  for (int i = 0; i < recipe.planes; ++i) {
    switch (recipe.plane[i]) {
      case kImg0:
      case kImg1:
        put_rgb(img[recipe.plane[i] - kImg0]);
        break;
      case kWarped0:
      case kWarped1:
        put_rgb(warp[recipe.plane[i] - kWarped0]);
        break;
      case kTime:
        put(in.t[n]);
        break;
      case kMaskPlane:
        put(share * sum[kMask]);
        break;
      default:
        for (int k = 0; k < kMask; ++k) put(share / s * sum[k]);
    }
  }
  for (int32_t c = recipe.used; c < recipe.channels; ++c) put(0);
}

// A block's raw output, [n, h, w, channels]; with `shuffle`, channel c of pixel (y, x) of the twice as
// large plane lies in channel 4 c + 2 (y % 2) + x % 2 of pixel (y / 2, x / 2).
template <typename S>
struct Change {
  const S* data;
  int32_t h, w, channels;  // as stored
  bool shuffle;
  HOST_DEVICE int32_t height() const { return shuffle ? 2 * h : h; }
  HOST_DEVICE int32_t width() const { return shuffle ? 2 * w : w; }
  HOST_DEVICE float at(int32_t n, int32_t c, int32_t y, int32_t x) const {
    const int64_t row = shuffle ? y >> 1 : y, column = shuffle ? x >> 1 : x;
    const int32_t channel = shuffle ? 4 * c + 2 * (y & 1) + (x & 1) : c;
    return widen(data[((static_cast<int64_t>(n) * h + row) * w + column) * channels + channel]);
  }
};

// Where a pixel of the full size lies between two samples of a plane `factor` times smaller
// (pixel centres aligned as areas, the first and last sample repeated).
HOST_DEVICE Tap<float> upsample_tap(int32_t at, int32_t factor, int32_t size) {
  const float place = (at + 0.5f) / factor - 0.5f;
  const float clamped = place < 0 ? 0.0f : place;
  const int32_t lo = static_cast<int32_t>(clamped), last = size - 1;
  return {lo < last ? lo : last, lo < last ? clamped - lo : 0.0f, 0.0f};
}

// Adds a block's output, `factor` times enlarged, to the estimate of one pixel; flow grows in length too.
template <typename S>
HOST_DEVICE void add_change(const Change<S>& change, int32_t factor, int32_t n, int32_t y, int32_t x, float* state) {
  const int32_t h = change.height(), w = change.width();
  const auto tx = upsample_tap(x, factor, w), ty = upsample_tap(y, factor, h);
  const int32_t x1 = tx.lo + (tx.lo + 1 < w), y1 = ty.lo + (ty.lo + 1 < h);
  const auto weight = corner_weights(tx.w, ty.w);
  for (int c = 0; c < kState; ++c) {
    const float value = weight.nw * change.at(n, c, ty.lo, tx.lo) + weight.ne * change.at(n, c, ty.lo, x1) +
                        weight.sw * change.at(n, c, y1, tx.lo) + weight.se * change.at(n, c, y1, x1);
    state[c] += c < kMask ? factor * value : value;
  }
}

// Eq. (1) at one pixel, with the refinement's residual where there is one (logits of the last layer).
template <typename S>
HOST_DEVICE Rgb blend_pixel(const Pair& in, const S* residual, int32_t n, int32_t y, int32_t x) {
  const int64_t at = (static_cast<int64_t>(n) * in.h + y) * in.w + x;
  const float* e = in.state + at * kState;
  const float m = sigmoid(e[kMask]);
  Rgb out = m * warped(in.img0, in.h, in.w, y, x, e[0], e[1]) + (1 - m) * warped(in.img1, in.h, in.w, y, x, e[2], e[3]);
  if (residual) {
    const S* r = residual + at * 3;
    out = out + Rgb{2 * sigmoid(widen(r[0])) - 1, 2 * sigmoid(widen(r[1])) - 1, 2 * sigmoid(widen(r[2])) - 1};
  }
  return out;
}

// act(x + bias + before) + after, act(v) = v for v > 0 and slope v below: one element.
HOST_DEVICE float activated(float x, float bias, float slope, float before, float after) {
  const float v = x + bias + before;
  return (v > 0 ? v : slope * v) + after;
}

}  // namespace rife
