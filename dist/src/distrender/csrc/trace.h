// What the kernels of distrender::trace_analytic, trace_grid and trace_bricks take. T is float or double: the type of
// the rays, the field's numbers (but for bricks) and all arithmetic.
#pragma once
#include <cstdint>

#include "storage.h"

namespace distrender {

// Instructions of a tape, numbered as distrender.tape.Op.
enum Op : int32_t {
  kSphere,
  kBox,
  kRoundBox,
  kTorus,
  kCapsule,
  kCylinder,
  kCone,
  kEllipsoid,
  kPlane,
  kUnion,
  kIntersection,
  kDifference,
  kSmoothUnion,
  kSmoothIntersection,
  kSmoothDifference,
  kShell,
  kTranslate,
  kRotate,
  kScale,
  kScaleBack,
};

// What a tape may need at most; tracing_kernels.py knows the same numbers.
constexpr int32_t kSlots = 8, kDepth = 8, kInstructions = 256, kConstants = 1024;

template <typename T>
struct Tape {
  const int32_t* code;  // three numbers an instruction: what, slot of its point, index of its first constant
  const T* constants;
  int32_t length, count;  // of instructions and constants
};

template <typename T>
struct Box {
  int32_t d, h, w;  // samples
  T low, high;
  T per_z, per_y, per_x;  // cells in a unit of length
};

template <typename T>
struct Grid {
  const T* values;  // [d, h, w]
  Box<T> box;
};

// Samples in bricks of 4 x 4 x 4, one line of a GPU's cache each: [bricks along z, along y, along x, 4, 4, 4].
template <typename T>
struct Bricks {
  const papershelf::Half* values;
  Box<T> box;
};
constexpr int32_t kBrickShift = 2, kBrickSize = 64;

enum Finish : int32_t { kNone, kSecant, kBisect };

template <typename T>
struct Options {
  int32_t steps;
  Finish finish;
  T ratio, clamp, threshold, finish_below;
  T slack;  // how far before the ball's rim a ray may go back
};

template <typename T>
struct Rays {
  int64_t n;
  const T *origins, *directions;   // [n, 3]
  const T *start, *slope;          // [n]: where it begins, and the df/dt to expect there, NaN where unknown
  const T *near, *far;             // [n]: the ball's rim
  T *depth, *min_sdf, *min_depth;  // [n]
  int8_t* state;                   // 0 missed, 1 hit, 2 saw both signs without converging
  int32_t* queries;
  int32_t* queue;                  // [1]: room for a GPU's kernels
};

// Each returns nullptr, or what went wrong.
struct Cpu {
  template <typename T>
  static const char* analytic(const Tape<T>& tape, const Rays<T>& rays, const Options<T>& options, void* stream);
  template <typename T>
  static const char* grid(const Grid<T>& grid, const Rays<T>& rays, const Options<T>& options, void* stream);
  template <typename T>
  static const char* bricks(const Bricks<T>& bricks, const Rays<T>& rays, const Options<T>& options, void* stream);
};

struct Cuda {
  template <typename T>
  static const char* analytic(const Tape<T>& tape, const Rays<T>& rays, const Options<T>& options, void* stream);
  template <typename T>
  static const char* grid(const Grid<T>& grid, const Rays<T>& rays, const Options<T>& options, void* stream);
  template <typename T>
  static const char* bricks(const Bricks<T>& bricks, const Rays<T>& rays, const Options<T>& options, void* stream);
};

}  // namespace distrender
