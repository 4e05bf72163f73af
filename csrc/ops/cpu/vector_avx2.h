// Eight floats: AVX2, FMA, F16C. Same interface as vector_avx512.h and vector_portable.h.
#pragma once

#include <immintrin.h>
#include <stdint.h>

using Floats = __m256;
constexpr const char* kInstructionSet = "avx2";

#include "ops/cpu/vector.h"

namespace {

inline Vector minimum(Vector x, Vector y) { return {_mm256_min_ps(x.v, y.v)}; }
inline Vector maximum(Vector x, Vector y) { return {_mm256_max_ps(x.v, y.v)}; }
inline Vector fused(Vector x, Vector y, Vector z) { return {_mm256_fmadd_ps(x.v, y.v, z.v)}; }          // x y + z
inline Vector fused_negated(Vector x, Vector y, Vector z) { return {_mm256_fnmadd_ps(x.v, y.v, z.v)}; }  // z - x y
inline Vector fused_less(Vector x, Vector y, Vector z) { return {_mm256_fmsub_ps(x.v, y.v, z.v)}; }     // x y - z
inline Vector rounded(Vector x) { return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// x 2^n for whole n in [-126, 127]; below that 0 (callers clamp above).
inline Vector scaled_by_power(Vector x, Vector n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  const __m256i exponent = _mm256_max_epi32(biased, _mm256_setzero_si256());
  return {_mm256_mul_ps(x.v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)))};
}
inline Vector less_multiple_of_log_2(Vector x, Vector n) { return fused_negated(n, broadcast(0.693147182f), x); }
inline bool any_below(Vector x, float limit) {  // or NaN
  return _mm256_movemask_ps(_mm256_cmp_ps(x.v, _mm256_set1_ps(limit), _CMP_NGE_UQ)) != 0;
}
inline bool any_outside(Vector x, float low, float high) {  // or NaN
  const __m256 above = _mm256_cmp_ps(x.v, _mm256_set1_ps(low), _CMP_GE_OQ);
  return _mm256_movemask_ps(_mm256_and_ps(above, _mm256_cmp_ps(x.v, _mm256_set1_ps(high), _CMP_LE_OQ))) != 0xFF;
}

inline Words words_of_upper(Halves halves) { return (Words)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)halves), 16); }
inline Halves upper_halves(Words words) {
  const __m256i lower = _mm256_srli_epi32((__m256i)words, 16);
  return (Halves)_mm_packus_epi32(_mm256_castsi256_si128(lower), _mm256_extracti128_si256(lower, 1));
}
inline Vector load(const Float16* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
inline Halves narrowed(Vector x, Float16) {
  return (Halves)_mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline void stream_bits(void* p, Floats bits) { _mm256_stream_ps(static_cast<float*>(p), bits); }
inline void stream_bits(void* p, Halves bits) { _mm_stream_si128(static_cast<__m128i*>(p), (__m128i)bits); }
inline void finish_streaming() { _mm_sfence(); }

}  // namespace
