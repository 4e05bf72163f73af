// Eight floats in the compiler's vector arithmetic alone, for any processor (SSE2 on x86-64). Same interface as vector_avx512.h and
// vector_avx2.h; multiply-adds are rounded twice here.
#pragma once

#include <stdint.h>

typedef float Floats __attribute__((vector_size(32)));
constexpr const char* kInstructionSet = "portable";

#include "common/portability.h"
#include "ops/cpu/vector.h"

namespace {

inline Vector minimum(Vector x, Vector y) { return {x.v < y.v ? x.v : y.v}; }
inline Vector maximum(Vector x, Vector y) { return {x.v > y.v ? x.v : y.v}; }
inline Vector fused(Vector x, Vector y, Vector z) { return x * y + z; }
inline Vector fused_negated(Vector x, Vector y, Vector z) { return z - x * y; }
inline Vector fused_less(Vector x, Vector y, Vector z) { return x * y - z; }
inline Vector rounded(Vector x) {  // adding 1.5 * 2^23 leaves no bits below the point; whole numbers beyond stay
  return {(x.v + 12582912.0f) - 12582912.0f};
}
// x 2^n for whole n in [-126, 127]; below that 0 (callers clamp above).
inline Vector scaled_by_power(Vector x, Vector n) {
  const Ints exponent = __builtin_convertvector(maximum(n, broadcast(-127.0f)).v, Ints) + 127;
  return {x.v * (Floats)(exponent << 23)};
}
inline Vector less_multiple_of_log_2(Vector x, Vector n) {  // log 2 in two parts, the first short: n times it is exact
  return (x - n * broadcast(0.693359375f)) + n * broadcast(2.12194440e-4f);
}
inline bool any_false(Ints answers) {
  int32_t all = -1;
  for (int i = 0; i < Vector::width; ++i) all &= answers[i];
  return all == 0;
}
inline bool any_below(Vector x, float limit) { return any_false(x.v >= limit); }  // or NaN
inline bool any_outside(Vector x, float low, float high) { return any_false((x.v >= low) & (x.v <= high)); }  // or NaN

inline Words words_of_upper(Halves halves) { return __builtin_convertvector(halves, Words) << 16; }
inline Halves upper_halves(Words words) { return __builtin_convertvector(words >> 16, Halves); }

inline float widen(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7FFFu;
  if (magnitude < 0x0400u) {  // zero and subnormal: a multiple of 2^-24
    const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    return sign != 0 ? -value : value;
  }
  const uint32_t special = magnitude >= 0x7C00u ? 0x38000000u : 0u;  // infinities and NaN: exponent 255 instead of 143
  const uint32_t bits = sign | ((magnitude << 13) + 0x38000000u + special);
  return bits_as<float>(bits);
}

inline uint16_t float16_bits(float x) {  // nearest, ties to even; NaN stays NaN
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  uint32_t half;
  if (magnitude > 0x7F800000u) {
    half = 0x7E00u;
  } else if (magnitude >= 0x477FF000u) {  // 65520 and more round to infinity
    half = 0x7C00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 1/2 leaves multiples of 2^-24 in the low bits
    half = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3F000000u;
  } else {
    half = (magnitude - 0x38000000u + 0x0FFFu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

inline Vector load(const Float16* p) {
  Vector x = broadcast(0.0f);
  for (int i = 0; i < Vector::width; ++i) x.v[i] = widen(p[i]);
  return x;
}
inline Halves narrowed(Vector x, Float16) {
  Halves bits{};
  for (int i = 0; i < Vector::width; ++i) bits[i] = float16_bits(x.v[i]);
  return bits;
}
template <typename Bits>
inline void stream_bits(void* p, Bits bits) {
  __builtin_memcpy(p, &bits, sizeof(bits));
}
inline void finish_streaming() {}

}  // namespace
