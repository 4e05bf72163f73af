// Sixteen floats: AVX-512 F, BW, DQ, VL. Same interface as vector_avx2.h and vector_portable.h.
#pragma once

#include <immintrin.h>
#include <stdint.h>

// GCC 12 reports its own headers' deliberately undefined vectors.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace {

struct Vector {
  static constexpr int width = 16;
  static constexpr const char* name = "avx512";
  __m512 v;
};

inline Vector broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Vector operator+(Vector x, Vector y) { return {_mm512_add_ps(x.v, y.v)}; }
inline Vector operator-(Vector x, Vector y) { return {_mm512_sub_ps(x.v, y.v)}; }
inline Vector operator*(Vector x, Vector y) { return {_mm512_mul_ps(x.v, y.v)}; }
inline Vector operator/(Vector x, Vector y) { return {_mm512_div_ps(x.v, y.v)}; }
inline Vector fused(Vector x, Vector y, Vector z) { return {_mm512_fmadd_ps(x.v, y.v, z.v)}; }          // x y + z
inline Vector fused_negated(Vector x, Vector y, Vector z) { return {_mm512_fnmadd_ps(x.v, y.v, z.v)}; }  // z - x y
// If either is NaN both return y.
inline Vector minimum(Vector x, Vector y) { return {_mm512_min_ps(x.v, y.v)}; }
inline Vector maximum(Vector x, Vector y) { return {_mm512_max_ps(x.v, y.v)}; }
inline Vector negated_absolute(Vector x) { return {_mm512_or_ps(x.v, _mm512_set1_ps(-0.0f))}; }
inline Vector rounded(Vector x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// x 2^n for whole n; 0 and the infinities where that leaves the range.
inline Vector scaled_by_power(Vector x, Vector n) { return {_mm512_scalef_ps(x.v, n.v)}; }
inline Vector less_multiple_of_log_2(Vector x, Vector n) { return {_mm512_fnmadd_ps(n.v, _mm512_set1_ps(0.693147182f), x.v)}; }
inline Vector with_sign_flipped_where_negative(Vector x, Vector s) {
  const __m512i flipped = _mm512_ternarylogic_epi32(_mm512_castps_si512(x.v), _mm512_castps_si512(s.v),
                                                    _mm512_set1_epi32(INT32_MIN), 0x78);  // x ^ (s & sign bit)
  return {_mm512_castsi512_ps(flipped)};
}
// By the sign bit of s: x y where it is set, x elsewhere; and the other way round.
inline Vector times_where_negative(Vector x, Vector y, Vector s) {
  return {_mm512_mask_mul_ps(x.v, _mm512_movepi32_mask(_mm512_castps_si512(s.v)), x.v, y.v)};
}
inline Vector times_where_positive(Vector x, Vector y, Vector s) {
  const __mmask16 negative = _mm512_movepi32_mask(_mm512_castps_si512(s.v));
  return {_mm512_mask_mul_ps(x.v, static_cast<__mmask16>(~negative), x.v, y.v)};
}
inline Vector where_greater(Vector x, Vector y, Vector yes, Vector no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, y.v, _CMP_GT_OQ), no.v, yes.v)};
}
inline bool any_below(Vector x, float limit) {  // or NaN
  return _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_NGE_UQ) != 0;
}
inline Vector zero_where_nan(Vector x) { return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, x.v, _CMP_ORD_Q), x.v)}; }
inline Vector zero_where_both(Vector a, Vector b, Vector limit, Vector value) {  // a == limit and b == limit
  const __mmask16 both = _mm512_cmp_ps_mask(a.v, limit.v, _CMP_EQ_OQ) & _mm512_cmp_ps_mask(b.v, limit.v, _CMP_EQ_OQ);
  return {_mm512_maskz_mov_ps(static_cast<__mmask16>(~both), value.v)};
}

inline Vector load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Vector x) { _mm512_storeu_ps(p, x.v); }
inline void stream(float* p, Vector x) { _mm512_stream_ps(p, x.v); }  // p aligned to the vector

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
inline Vector load(const BFloat16* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline Vector load(const Float16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// Numbers of the upper 16 bits of each lane.
alignas(64) constexpr uint16_t kUpperHalves[32] = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
inline __m256i bfloat16_of(Vector x) {  // nearest, ties to even; NaN stays NaN
  const __m512i bits = _mm512_castps_si512(x.v);
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  __m512i sum = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF));
  sum = _mm512_mask_add_epi32(sum, odd, sum, _mm512_set1_epi32(1));
  sum = _mm512_mask_mov_epi32(sum, _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7FC00000));
  return _mm512_castsi512_si256(_mm512_permutexvar_epi16(_mm512_load_si512(kUpperHalves), sum));
}
inline __m256i float16_of(Vector x) { return _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline void store(BFloat16* p, Vector x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bfloat16_of(x)); }
inline void store(Float16* p, Vector x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), float16_of(x)); }
inline void stream(BFloat16* p, Vector x) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bfloat16_of(x)); }
inline void stream(Float16* p, Vector x) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), float16_of(x)); }
inline void finish_streaming() { _mm_sfence(); }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace
