// One ray of a march whose field is asked from outside: the rules are those of Walk, here kept in memory between steps.
#pragma once
#include "march.h"
#include "trace_math.h"

namespace distrender {

template <typename T>
HOST_DEVICE Walk<T> walk_of(const March<T>& march, const Options<T>& options, int32_t ray) {
  Walk<T> walk;
  walk.t = march.at(Row::t, ray);
  walk.last_t = march.at(Row::last_t, ray), walk.last_f = march.at(Row::last_f, ray);
  walk.out_t = march.at(Row::out_t, ray), walk.out_f = march.at(Row::out_f, ray);
  walk.in_t = march.at(Row::in_t, ray), walk.in_f = march.at(Row::in_f, ray);
  walk.tries = march.at(Row::tries, ray), walk.queries = march.at(Row::queries, ray);
  walk.depth = march.at(Row::depth, ray);
  walk.min_sdf = march.at(Row::min_sdf, ray), walk.min_depth = march.at(Row::min_depth, ray);
  walk.expected = march.slope[ray], walk.first = march.near[ray] - options.slack, walk.far = march.far[ray];
  walk.hit = march.state[ray] == 1, walk.crossed = march.state[ray] == 2;
  return walk;
}

template <typename T>
HOST_DEVICE void keep(const Walk<T>& walk, const March<T>& march, int32_t ray) {
  march.at(Row::t, ray) = walk.t;
  march.at(Row::last_t, ray) = walk.last_t, march.at(Row::last_f, ray) = walk.last_f;
  march.at(Row::out_t, ray) = walk.out_t, march.at(Row::out_f, ray) = walk.out_f;
  march.at(Row::in_t, ray) = walk.in_t, march.at(Row::in_f, ray) = walk.in_f;
  march.at(Row::tries, ray) = walk.tries, march.at(Row::queries, ray) = walk.queries;
  march.at(Row::depth, ray) = walk.depth;
  march.at(Row::min_sdf, ray) = walk.min_sdf, march.at(Row::min_depth, ray) = walk.min_depth;
  march.state[ray] = walk.hit ? 1 : walk.crossed ? 2 : 0;
}

// Takes in the i-th value of a step. An approximate one that is too small to be relied on changes nothing: the ray
// asks again, exactly; so does one that is no number. Otherwise it wants an approximate value next where this one was
// large.
template <typename T>
HOST_DEVICE Fate advance(const March<T>& march, const Options<T>& options, const Step<T>& step, int32_t i) {
  const T f = step.values[i];
  const bool small = !(magnitude(f) >= step.approximate_above);
  if (i >= step.exact && small) return kExact;
  Walk<T> walk = walk_of(march, options, step.rays[i]);
  const bool on = walk.take(f, options);
  keep(walk, march, step.rays[i]);
  return !on ? kEnded : small ? kExact : kRough;
}

// Where a ray asks next.
template <typename T>
HOST_DEVICE void point_of(const March<T>& march, int32_t ray, T* point) {
  const T *o = march.origins + 3 * static_cast<int64_t>(ray), *d = march.directions + 3 * static_cast<int64_t>(ray);
  const T t = march.at(Row::t, ray);
  for (int k = 0; k < 3; ++k) point[k] = o[k] + t * d[k];
}

}  // namespace distrender
