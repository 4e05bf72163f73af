// Sixteen floats: AVX-512 F, BW, DQ, VL. Same interface as vector_avx2.h and vector_portable.h.
#pragma once

#include <immintrin.h>
#include <stdint.h>

// GCC 12 reports its own headers' deliberately undefined vectors.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

using Floats = __m512;
constexpr const char* kInstructionSet = "avx512";

#include "ops/cpu/vector.h"

namespace {

inline Vector minimum(Vector x, Vector y) { return {_mm512_min_ps(x.v, y.v)}; }
inline Vector maximum(Vector x, Vector y) { return {_mm512_max_ps(x.v, y.v)}; }
inline Vector fused(Vector x, Vector y, Vector z) { return {_mm512_fmadd_ps(x.v, y.v, z.v)}; }          // x y + z
inline Vector fused_negated(Vector x, Vector y, Vector z) { return {_mm512_fnmadd_ps(x.v, y.v, z.v)}; }  // z - x y
inline Vector fused_less(Vector x, Vector y, Vector z) { return {_mm512_fmsub_ps(x.v, y.v, z.v)}; }     // x y - z
inline Vector rounded(Vector x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// x 2^n for whole n; 0 and the infinities where that leaves the range.
inline Vector scaled_by_power(Vector x, Vector n) { return {_mm512_scalef_ps(x.v, n.v)}; }
inline Vector less_multiple_of_log_2(Vector x, Vector n) { return fused_negated(n, broadcast(0.693147182f), x); }
inline bool any_below(Vector x, float limit) {  // or NaN
  return _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_NGE_UQ) != 0;
}
inline bool any_outside(Vector x, float low, float high) {  // or NaN
  const __mmask16 above = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(low), _CMP_GE_OQ);
  return _mm512_mask_cmp_ps_mask(above, x.v, _mm512_set1_ps(high), _CMP_LE_OQ) != 0xFFFF;
}

inline Words words_of_upper(Halves halves) { return (Words)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)halves), 16); }
inline Halves upper_halves(Words words) {
  alignas(64) static constexpr uint16_t upper[32] = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
  return (Halves)_mm512_castsi512_si256(_mm512_permutexvar_epi16(_mm512_load_si512(upper), (__m512i)words));
}
inline Vector load(const Float16* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline Halves narrowed(Vector x, Float16) {
  return (Halves)_mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline void stream_bits(void* p, Floats bits) { _mm512_stream_ps(static_cast<float*>(p), bits); }
inline void stream_bits(void* p, Halves bits) { _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)bits); }
inline void finish_streaming() { _mm_sfence(); }

}  // namespace
