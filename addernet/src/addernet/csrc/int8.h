// What the CPU and the CUDA kernels of int8 inference have in common: their signatures. See int8_math.h.
#pragma once
#include "int8_math.h"

namespace addernet_int8 {

// Each returns nullptr, or what went wrong.
#define DECLARE_DEVICE(Name)                                                                                     \
  struct Name {                                                                                                  \
    /* For all outputs, sum |x - w| over the taps, and what the epilogue makes of it. */                         \
    static const char* forward(const Problem&, const uint8_t* x, const uint8_t* filters, const Epilogue&, void* stream); \
    static const char* quantize(const float* x, uint8_t* out, int64_t count, float inverse_step, float zero_point, \
                                void* stream);                                                                   \
  };
DECLARE_DEVICE(Int8Cpu)
DECLARE_DEVICE(Int8Cuda)
#undef DECLARE_DEVICE

}  // namespace addernet_int8
