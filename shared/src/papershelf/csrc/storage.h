// How numbers are stored: float, double, or 16 bits that are widened to float before any arithmetic.
#pragma once
#include <cmath>
#include <cstring>
#include <type_traits>

#include "device.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace papershelf {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// What is computed in, for numbers stored as S.
template <typename S>
using Precision = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <typename To, typename From>
HOST_DEVICE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

HOST_DEVICE float widen(float stored) { return stored; }
HOST_DEVICE double widen(double stored) { return stored; }
HOST_DEVICE float widen(BFloat16 stored) { return bits_as<float>(static_cast<uint32_t>(stored.bits) << 16); }
HOST_DEVICE float widen(Half stored) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(stored.bits));
#else
  // Exponent and fraction land in float's fields; the product moves the exponent's bias from 15 to
  // 127 and normalises what was denormal.
  const uint32_t magnitude = stored.bits & 0x7fffu, sign = (stored.bits & 0x8000u) << 16;
  const float scaled = bits_as<float>(magnitude << 13) * 0x1p112f;
  const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;  // infinity or NaN
  return bits_as<float>(bits_as<uint32_t>(scaled) | special | sign);
#endif
}

// The nearest S, ties to even.
template <typename S, typename T>
HOST_DEVICE S narrow(T value) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    const uint32_t x = bits_as<uint32_t>(value);
    const uint32_t rounded = (x + 0x7fffu + ((x >> 16) & 1u)) >> 16;
    // Rounding a NaN up could turn it into an infinity.
    return {static_cast<uint16_t>((x & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
  } else if constexpr (std::is_same_v<S, Half>) {
#if defined(__CUDA_ARCH__)
    return {__half_as_ushort(__float2half_rn(value))};
#else
    const uint32_t x = bits_as<uint32_t>(value), sign = (x >> 16) & 0x8000u, magnitude = x & 0x7fffffffu;
    // Below 2^-14 halves are denormal: the sum with 0.5 has their last bit as its last, so the
    // processor does the rounding. Above, the bias goes from 127 to 15 and a carry may reach infinity.
    const uint32_t denormal = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t half = magnitude >= 0x47800000u ? special : (magnitude < 0x38800000u ? denormal : normal);
    return {static_cast<uint16_t>(half | sign)};
#endif
  } else {
    return value;
  }
}

}  // namespace papershelf
