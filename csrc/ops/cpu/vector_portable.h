// Eight floats in the compiler's vector arithmetic alone, for any processor (SSE2 on x86-64). Same interface as vector_avx512.h and
// vector_avx2.h; multiply-adds are rounded twice here.
#pragma once

#include <c10/util/Half.h>
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

inline Vector load(const Float16* p) {
  Vector x = broadcast(0.0f);
  for (int i = 0; i < Vector::width; ++i) x.v[i] = c10::Half(p[i].bits, c10::Half::from_bits());
  return x;
}
inline Halves narrowed(Vector x, Float16) {
  Halves bits{};
  for (int i = 0; i < Vector::width; ++i) bits[i] = c10::Half(x.v[i]).x;
  return bits;
}
template <typename Bits>
inline void stream_bits(void* p, Bits bits) {
  __builtin_memcpy(p, &bits, sizeof(bits));
}
inline void finish_streaming() {}

}  // namespace
