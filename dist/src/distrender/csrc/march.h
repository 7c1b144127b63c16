// What the kernels of distrender::march_step take: many rays that march together, a step of all at a time, with the
// field's values from outside. T is float or double: the type of the rays, the values and all arithmetic.
#pragma once
#include <cstdint>

#include "device.h"
#include "trace.h"

namespace distrender {

// Rows of what a march keeps of its n rays, named as in Walk of trace_math.h; ROWS of marching_kernels.py.
enum class Row : int32_t { t, last_t, last_f, out_t, out_f, in_t, in_f, tries, queries, depth, min_sdf, min_depth };
constexpr int64_t kRows = 12;

template <typename T>
struct March {
  int64_t n;
  const T *origins, *directions;  // [n, 3]
  const T *slope, *near, *far;    // [n]: df/dt to expect at the start, NaN where unknown; the ball's rim
  T* walks;                       // [kRows, n]
  int8_t* state;                  // [n]: 0 on its way or missed, 1 hit, 2 saw both signs

  HOST_DEVICE T& at(Row row, int32_t ray) const { return walks[static_cast<int64_t>(row) * n + ray]; }
};

// What becomes of a ray after a step: it has ended, or goes on and wants an exact or an approximate value.
enum Fate : int8_t { kEnded, kExact, kRough };

template <typename T>
struct Step {
  int32_t count;         // rays that were asked for, m
  int32_t exact;         // of them: the first; the values of the others are approximate
  T approximate_above;   // an approximate value is taken in where its magnitude is at least this
  const int32_t* rays;   // [m]: which of the march's; none twice
  const T* values;       // [m]: the field at their walks' t
  int8_t* fates;         // [m]: room for the kernels
  int32_t* next_rays;    // [m]: those that go on; first all that want exact values, then all others
  T* next_points;        // [m, 3]: where
  int32_t* next_counts;  // [2]: how many of the former and of the latter
  int32_t* places;       // [2]: room for the kernels
};

// Each returns nullptr, or what went wrong.
struct MarchCpu {
  template <typename T>
  static const char* step(const March<T>& march, const Options<T>& options, const Step<T>& step, void* stream);
};

struct MarchCuda {
  template <typename T>
  static const char* step(const March<T>& march, const Options<T>& options, const Step<T>& step, void* stream);
};

}  // namespace distrender
