// What the CPU and the CUDA kernels of inference have in common: their signatures. See fused_math.h.
#pragma once
#include "device.h"
#include "fused_math.h"

namespace rife {

// Elements of a channels-last array, for activate.
template <typename S>
struct Activation {
  S* x;             // [pixels, channels], in place
  const float* bias;   // [channels], or null
  const float* slope;  // [channels]
  const S* before;  // added before the activation, or null
  const S* after;   // added after it, or null
  int64_t pixels;
  int32_t channels;
};

// Each function returns an error message, or null. S: how convolutions store their numbers.
#define DECLARE_DEVICE(Name)                                                                                          \
  struct Name {                                                                                                       \
    template <typename S>                                                                                             \
    static const char* assemble(const Pair&, const Recipe&, S* out, void* stream);                                    \
    template <typename S>                                                                                             \
    static const char* add_upsampled(const Change<S>&, int32_t factor, float* state, int32_t n, int32_t h, int32_t w, \
                                     void* stream);                                                                   \
    template <typename S>                                                                                             \
    static const char* blend_pair(const Pair&, const S* residual, float* out, int32_t rows, int32_t columns,          \
                                  void* stream);                                                                      \
    template <typename S>                                                                                             \
    static const char* activate(const Activation<S>&, void* stream);                                                  \
  };
DECLARE_DEVICE(FusedCpu)
DECLARE_DEVICE(FusedCuda)
#undef DECLARE_DEVICE

#define INSTANTIATE_FUSED(Name, S)                                                                               \
  template const char* Name::assemble(const Pair&, const Recipe&, S*, void*);                                    \
  template const char* Name::add_upsampled(const Change<S>&, int32_t, float*, int32_t, int32_t, int32_t, void*); \
  template const char* Name::blend_pair(const Pair&, const S*, float*, int32_t, int32_t, void*);                 \
  template const char* Name::activate(const Activation<S>&, void*);

}  // namespace rife
