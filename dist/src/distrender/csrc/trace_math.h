// One ray, or as many as R has lanes: the fields, and the rules by which a ray marches. R is float or double, or a
// vector of them on a CPU (trace_lanes.h). The formulas are those of tape.py, grid.py and tracing.py, in their order.
#pragma once
#include <cmath>
#include <type_traits>

#include "device.h"
#include "trace.h"

namespace distrender {

// What differs between a number and a vector of numbers.
template <typename R>
struct Kind {
  using Scalar = R;
  using Index = int32_t;
  HOST_DEVICE static R all(R value) { return value; }
  HOST_DEVICE static R root(R x) {
    if constexpr (std::is_same_v<R, float>) {
      return sqrtf(x);
    } else {
      return sqrt(x);
    }
  }
  HOST_DEVICE static Index whole(R x) { return static_cast<Index>(x); }
  HOST_DEVICE static R number(Index i) { return static_cast<R>(i); }
  HOST_DEVICE static R gather(const R* from, Index at) {
#if defined(__CUDA_ARCH__) || defined(CUDA_ON_CPU)
    return __ldg(from + at);
#else
    return from[at];
#endif
  }
  // Two numbers side by side.
  HOST_DEVICE static void gather_pair(const R* from, Index at, R& first, R& second) {
    first = gather(from, at), second = gather(from + 1, at);
  }
  HOST_DEVICE static R gather(const papershelf::Half* from, Index at) {
#if defined(__CUDA_ARCH__)
    return papershelf::widen(papershelf::Half{__ldg(&from[at].bits)});
#else
    return papershelf::widen(from[at]);
#endif
  }
};
template <typename R>
using Scalar = typename Kind<R>::Scalar;
template <typename R>
using Index = typename Kind<R>::Index;
template <typename R>
using Mask = decltype(R{} < R{});

HOST_DEVICE bool no(bool mask) { return !mask; }
template <typename M>
HOST_DEVICE M no(const M& mask) {
  return ~mask;
}

template <typename R>
HOST_DEVICE R all(Scalar<R> value) {
  return Kind<R>::all(value);
}
template <typename R>
HOST_DEVICE R smaller(const R& a, const R& b) {
  return a < b ? a : b;
}
template <typename R>
HOST_DEVICE R larger(const R& a, const R& b) {
  return a > b ? a : b;
}
template <typename R>
HOST_DEVICE R above_zero(const R& x) {
  return x > 0 ? x : all<R>(0);
}
template <typename R>
HOST_DEVICE R magnitude(const R& x) {
  return x < 0 ? -x : x;
}
// NaN stays NaN.
template <typename R>
HOST_DEVICE R between(const R& x, Scalar<R> low, Scalar<R> high) {
  const R raised = x < low ? all<R>(low) : x;
  return raised > high ? all<R>(high) : raised;
}
template <typename R>
HOST_DEVICE R length(const R& x, const R& y) {
  return Kind<R>::root(x * x + y * y);
}
template <typename R>
HOST_DEVICE R length(const R& x, const R& y, const R& z) {
  return Kind<R>::root(x * x + y * y + z * z);
}

// Distance to a corner of right angles, from the signed distances to its sides.
template <typename R>
HOST_DEVICE R outside_corner(const R& x, const R& y) {
  const R inside = larger(x, y);
  return length<R>(above_zero(x), above_zero(y)) + smaller(inside, all<R>(0));
}
template <typename R>
HOST_DEVICE R outside_corner(const R& x, const R& y, const R& z) {
  const R inside = larger(larger(x, y), z);
  return length<R>(above_zero(x), above_zero(y), above_zero(z)) + smaller(inside, all<R>(0));
}

template <typename R>
HOST_DEVICE R cone(const R& x, const R& y, const R& z, const Scalar<R>* c) {
  using T = Scalar<R>;
  const T half = c[0], bottom = c[1], top = c[2];
  const R radius = length(x, z);
  const R past_cap = above_zero<R>(radius - (y < 0 ? all<R>(bottom) : all<R>(top)));
  const R above = magnitude(y) - half;
  const T along_r = bottom - top, along_y = -2 * half;
  const R along = ((radius - top) * along_r + (y - half) * along_y) / (along_r * along_r + along_y * along_y);
  const R share = between<R>(along, 0, 1);
  const R side_r = radius - top - share * along_r, side_y = y - half - share * along_y;
  const R cap = past_cap * past_cap + above * above, side = side_r * side_r + side_y * side_y;
  const R distance = Kind<R>::root(smaller(cap, side));
  return (side_r < 0) & (above < 0) ? -distance : distance;
}

template <typename R>
HOST_DEVICE R ellipsoid(const R& x, const R& y, const R& z, const Scalar<R>* c) {
  using T = Scalar<R>;
  const R u = x / c[0], v = y / c[1], w = z / c[2];
  const R k = length(u, v, w), slope = length<R>(u / c[0], v / c[1], w / c[2]);
  const Mask<R> inside = k < 1;
  const T shortest = smaller(smaller(c[0], c[1]), c[2]);
  const R outer = k * (k - 1) / (inside ? all<R>(1) : slope);
  return inside ? (k - 1) * shortest : outer;
}

template <typename R>
HOST_DEVICE R primitive(int32_t op, const R& x, const R& y, const R& z, const Scalar<R>* c) {
  switch (op) {
    case kSphere:
      return length(x, y, z) - c[0];
    case kBox:
      return outside_corner<R>(magnitude(x) - c[0], magnitude(y) - c[1], magnitude(z) - c[2]);
    case kRoundBox:
      return outside_corner<R>(magnitude(x) - (c[0] - c[3]), magnitude(y) - (c[1] - c[3]),
                               magnitude(z) - (c[2] - c[3])) -
             c[3];
    case kTorus:
      return length<R>(length(x, z) - c[0], y) - c[1];
    case kCapsule:
      return length<R>(x, above_zero<R>(magnitude(y) - c[0]), z) - c[1];
    case kCylinder:
      return outside_corner<R>(length(x, z) - c[1], magnitude(y) - c[0]);
    case kCone:
      return cone(x, y, z, c);
    case kEllipsoid:
      return ellipsoid(x, y, z, c);
    default:  // kPlane
      return x * c[0] + y * c[1] + z * c[2] - c[3];
  }
}

template <typename R>
HOST_DEVICE R smooth_min(const R& a, const R& b, Scalar<R> k) {
  const R h = above_zero<R>(k - magnitude<R>(a - b));
  return smaller(a, b) - h * h / (4 * k);
}

template <typename R>
HOST_DEVICE R set_operation(int32_t op, const R& a, const R& b, const Scalar<R>* c) {
  switch (op) {
    case kUnion:
      return smaller(a, b);
    case kIntersection:
      return larger(a, b);
    case kDifference:
      return larger<R>(a, -b);
    case kSmoothUnion:
      return smooth_min(a, b, c[0]);
    case kSmoothIntersection:
      return -smooth_min<R>(-a, -b, c[0]);
    default:  // kSmoothDifference
      return -smooth_min<R>(-a, b, c[0]);
  }
}

// Runs a tape. The distance found last is kept at hand, those below it and transformed points in memory.
template <typename T>
struct TapeField {
  Tape<T> tape;

  template <typename R>
  HOST_DEVICE R at(const R& x, const R& y, const R& z) const {
    R top = all<R>(0), below[kDepth], points[kSlots][3];
    points[0][0] = x, points[0][1] = y, points[0][2] = z;
    int32_t depth = 0;
    for (int32_t i = 0; i < tape.length; ++i) {
      const int32_t op = tape.code[3 * i], slot = tape.code[3 * i + 1];
      const T* c = tape.constants + tape.code[3 * i + 2];
      const R* p = points[slot];
      if (op <= kPlane) {
        below[depth++] = top;
        top = primitive(op, p[0], p[1], p[2], c);
      } else if (op <= kSmoothDifference) {
        top = set_operation(op, below[--depth], top, c);
      } else if (op == kShell) {
        top = magnitude(top) - c[0];
      } else if (op == kScaleBack) {
        top = top * c[0];
      } else {
        R* moved = points[slot + 1];
        for (int k = 0; k < 3; ++k)
          moved[k] = op == kTranslate ? p[k] - c[k]
                     : op == kScale   ? p[k] / c[0]
                                      : c[3 * k] * p[0] + c[3 * k + 1] * p[1] + c[3 * k + 2] * p[2];
      }
    }
    return top;
  }
};

// A point among a box's samples: the first of the eight around it and the share of the way to the last one. A point
// outside is moved to the box, and `beyond` is how far.
template <typename R>
struct Among {
  using T = Scalar<R>;
  Index<R> i, j, k;
  R share_x, share_y, share_z, beyond;

  HOST_DEVICE Among(const Box<T>& box, const R& x, const R& y, const R& z) {
    const R in_x = between(x, box.low, box.high), in_y = between(y, box.low, box.high),
            in_z = between(z, box.low, box.high);
    i = cell(in_x - box.low, box.per_x, box.w, share_x), j = cell(in_y - box.low, box.per_y, box.h, share_y),
    k = cell(in_z - box.low, box.per_z, box.d, share_z);
    beyond = length<R>(x - in_x, y - in_y, z - in_z);
  }

 private:
  // NaN counts as the first cell.
  HOST_DEVICE static Index<R> cell(const R& along, T per_unit, int32_t size, R& share) {
    const R position = along * per_unit;
    const Index<R> found = Kind<R>::whole(smaller(above_zero(position), all<R>(static_cast<T>(size - 2))));
    share = position - Kind<R>::number(found);
    return found;
  }
};

template <typename R>
HOST_DEVICE R blend(const R& low, const R& high, const R& share) {
  return low + share * (high - low);
}

// Trilinear between a grid's samples; beyond them the distance to the grid's cube is added.
template <typename T>
struct GridField {
  Grid<T> grid;

  template <typename R>
  HOST_DEVICE R at(const R& x, const R& y, const R& z) const {
    const Among<R> here(grid.box, x, y, z);
    const Index<R> corner = (here.k * grid.box.h + here.j) * grid.box.w + here.i;
    const int32_t plane = grid.box.h * grid.box.w;
    const R near = layer(corner, here), far = layer<R>(corner + plane, here);
    return blend(near, far, here.share_z) + here.beyond;
  }

 private:
  template <typename R>
  HOST_DEVICE R layer(const Index<R>& corner, const Among<R>& here) const {
    return blend(row(corner, here), row<R>(corner + grid.box.w, here), here.share_y);
  }
  template <typename R>
  HOST_DEVICE R row(const Index<R>& corner, const Among<R>& here) const {
    R low, high;
    Kind<R>::gather_pair(grid.values, corner, low, high);
    return blend(low, high, here.share_x);
  }
};

// The same between samples in bricks. Where one lies is a sum of three terms, one for each axis.
template <typename T>
struct BrickField {
  Bricks<T> bricks;

  template <typename R>
  HOST_DEVICE R at(const R& x, const R& y, const R& z) const {
    const Among<R> here(bricks.box, x, y, z);
    const int32_t row = kBrickSize * count(bricks.box.w), layer = row * count(bricks.box.h);
    const Index<R> x0 = place<R>(here.i, kBrickSize, 1), x1 = place<R>(here.i + 1, kBrickSize, 1);
    const auto line = [&](const Index<R>& yz) {
      return blend<R>(Kind<R>::gather(bricks.values, yz + x0), Kind<R>::gather(bricks.values, yz + x1), here.share_x);
    };
    const auto plane = [&](const Index<R>& k) {
      const Index<R> z0 = place<R>(k, layer, 16);
      return blend<R>(line(z0 + place<R>(here.j, row, 4)), line(z0 + place<R>(here.j + 1, row, 4)), here.share_y);
    };
    return blend<R>(plane(here.k), plane(here.k + 1), here.share_z) + here.beyond;
  }

 private:
  HOST_DEVICE static int32_t count(int32_t samples) { return (samples + 3) >> kBrickShift; }
  template <typename R>
  HOST_DEVICE static Index<R> place(const Index<R>& index, int32_t brick, int32_t within) {
    return (index >> kBrickShift) * brick + (index & 3) * within;
  }
};

// Where a ray is, what it has seen, and where it asks next: tracing.py's march_reference and _Walk.
template <typename R>
struct Walk {
  static constexpr Scalar<R> kStretch = 4;  // a secant step is at most that many times |f|

  R t, last_t, last_f;          // the next query and the last one
  R out_t, out_f, in_t, in_f;   // the last samples outside and inside
  R tries;                      // queries since both are known, modulo 4
  R expected;                   // df/dt before there are two samples, NaN where unknown
  R first, far;                 // between which the ray may move
  R depth, min_sdf, min_depth;  // the result
  R queries;
  Mask<R> hit, crossed;

  // Takes in the sample at t. Returns whether the ray goes on.
  HOST_DEVICE Mask<R> take(const R& f, const Options<Scalar<R>>& options) {
    queries = queries + 1;
    const Mask<R> better = magnitude(f) < magnitude(min_sdf);
    min_sdf = better ? f : min_sdf;
    min_depth = better ? t : min_depth;
    const Mask<R> converged = magnitude(f) < options.threshold;
    const R slope = last_t == last_t ? (f - last_f) / (t - last_t) : expected;
    depth = converged ? refined(f, slope, options) : depth;
    hit = hit | converged;
    move(f, slope, options);
    return (t < far) & (t > first) & no(converged) & (queries < static_cast<Scalar<R>>(options.steps));
  }

 private:
  HOST_DEVICE R refined(const R& f, const R& slope, const Options<Scalar<R>>& options) const {
    if (options.finish != kSecant) return t;
    const R further = -f / slope;
    return magnitude(further) < kStretch * magnitude<R>(t - last_t) ? t + further : t;
  }

  HOST_DEVICE void move(const R& f, const R& slope, const Options<Scalar<R>>& options) {
    R forward = options.ratio * between(f, -options.clamp, options.clamp);
    if (options.finish == kSecant) {
      const R line = slope < -1 / kStretch ? -f / slope : kStretch * f;
      forward = (magnitude(f) < options.finish_below) & (slope < 0) ? line : forward;
    }
    R following = t + forward;

    const Mask<R> outside = f > 0;
    if (options.finish == kSecant) {  // an end that stays a second time counts half (Illinois)
      const Mask<R> was_outside = last_f > 0;
      const Mask<R> again = crossed & ((outside & was_outside) | no(outside | was_outside));
      in_f = again & outside ? in_f / 2 : in_f;
      out_f = again & no(outside) ? out_f / 2 : out_f;
    }
    out_t = outside ? t : out_t;
    out_f = outside ? f : out_f;
    in_t = outside ? in_t : t;
    in_f = outside ? in_f : f;
    crossed = (out_t == out_t) & (in_t == in_t);  // neither is NaN

    if (options.finish != kNone) {
      const Mask<R> bracketed = out_t < in_t;
      R middle = (out_t + in_t) / 2;
      if (options.finish == kSecant) {
        const R line = out_t + out_f / (out_f - in_f) * (in_t - out_t);
        middle = tries == 3 ? middle : line;
      }
      following = bracketed ? middle : following;
      const R next = tries == 3 ? all<R>(0) : tries + 1;
      tries = bracketed ? next : tries;
    }
    last_t = t, last_f = f, t = following;
  }
};

}  // namespace distrender
