// What the kernel of distrender::march_decoder takes: a march (march.h) whose field is a decoder (decoder.h).
#pragma once
#include "decoder.h"
#include "march.h"
#include "storage.h"

namespace distrender {

// Rays that wait, and how far the kernels have come with them.
struct Waiting {
  const int32_t* rays;   // [n]
  int32_t n;             // or, where it becomes known on the GPU only, an upper bound, and the number is
  const int32_t* count;  // here; else nullptr
  int32_t* taken;        // [1], 0 at first
};

struct MarchDecoderCuda {
  // Marches the rays [n] of a march to their ends, one kernel after the other: in halves while |f| >= rough_above,
  // without an end for rough = nullptr, and exactly from there on. room: [n + 3]; its first number counts afterwards
  // the queries in halves that were not taken in.
  static const char* run(const March<float>& march, const Options<float>& options, const int32_t* rays, int32_t n,
                         const Network<float>& exact, const Network<papershelf::Half>* rough, float rough_above,
                         int32_t* room, void* stream);
};

}  // namespace distrender
