// Eight floats: AVX2, FMA, F16C. Same interface as vector_avx512.h and vector_portable.h.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Vector {
  static constexpr int width = 8;
  static constexpr const char* name = "avx2";
  __m256 v;
};

inline Vector broadcast(float x) { return {_mm256_set1_ps(x)}; }
inline Vector operator+(Vector x, Vector y) { return {_mm256_add_ps(x.v, y.v)}; }
inline Vector operator-(Vector x, Vector y) { return {_mm256_sub_ps(x.v, y.v)}; }
inline Vector operator*(Vector x, Vector y) { return {_mm256_mul_ps(x.v, y.v)}; }
inline Vector operator/(Vector x, Vector y) { return {_mm256_div_ps(x.v, y.v)}; }
inline Vector fused(Vector x, Vector y, Vector z) { return {_mm256_fmadd_ps(x.v, y.v, z.v)}; }          // x y + z
inline Vector fused_negated(Vector x, Vector y, Vector z) { return {_mm256_fnmadd_ps(x.v, y.v, z.v)}; }  // z - x y
// If either is NaN both return y.
inline Vector minimum(Vector x, Vector y) { return {_mm256_min_ps(x.v, y.v)}; }
inline Vector maximum(Vector x, Vector y) { return {_mm256_max_ps(x.v, y.v)}; }
inline Vector negated_absolute(Vector x) { return {_mm256_or_ps(x.v, _mm256_set1_ps(-0.0f))}; }
inline Vector rounded(Vector x) { return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// x 2^n for whole n in [-126, 127]; below that 0 (callers clamp above).
inline Vector scaled_by_power(Vector x, Vector n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  const __m256i exponent = _mm256_max_epi32(biased, _mm256_setzero_si256());
  return {_mm256_mul_ps(x.v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)))};
}
inline Vector less_multiple_of_log_2(Vector x, Vector n) { return {_mm256_fnmadd_ps(n.v, _mm256_set1_ps(0.693147182f), x.v)}; }
inline Vector with_sign_flipped_where_negative(Vector x, Vector s) {
  return {_mm256_xor_ps(x.v, _mm256_and_ps(s.v, _mm256_set1_ps(-0.0f)))};
}
// By the sign bit of s: x y where it is set, x elsewhere; and the other way round.
inline Vector times_where_negative(Vector x, Vector y, Vector s) {
  return {_mm256_blendv_ps(x.v, _mm256_mul_ps(x.v, y.v), s.v)};
}
inline Vector times_where_positive(Vector x, Vector y, Vector s) {
  return {_mm256_blendv_ps(_mm256_mul_ps(x.v, y.v), x.v, s.v)};
}
inline Vector where_greater(Vector x, Vector y, Vector yes, Vector no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(x.v, y.v, _CMP_GT_OQ))};
}
inline bool any_below(Vector x, float limit) {  // or NaN
  return _mm256_movemask_ps(_mm256_cmp_ps(x.v, _mm256_set1_ps(limit), _CMP_NGE_UQ)) != 0;
}
inline Vector zero_where_nan(Vector x) { return {_mm256_and_ps(_mm256_cmp_ps(x.v, x.v, _CMP_ORD_Q), x.v)}; }
inline Vector zero_where_both(Vector a, Vector b, Vector limit, Vector value) {  // a == limit and b == limit
  const __m256 both =
      _mm256_and_ps(_mm256_cmp_ps(a.v, limit.v, _CMP_EQ_OQ), _mm256_cmp_ps(b.v, limit.v, _CMP_EQ_OQ));
  return {_mm256_andnot_ps(both, value.v)};
}

inline Vector load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void store(float* p, Vector x) { _mm256_storeu_ps(p, x.v); }
inline void stream(float* p, Vector x) { _mm256_stream_ps(p, x.v); }  // p aligned to the vector

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
inline Vector load(const BFloat16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
inline Vector load(const Float16* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
inline __m128i bfloat16_of(Vector x) {  // nearest, ties to even; NaN stays NaN
  const __m256i bits = _mm256_castps_si256(x.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i upper = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7FFF)), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  upper = _mm256_blendv_epi8(upper, _mm256_set1_epi32(0x7FC0), nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
}
inline __m128i float16_of(Vector x) { return _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline void store(BFloat16* p, Vector x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bfloat16_of(x)); }
inline void store(Float16* p, Vector x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), float16_of(x)); }
inline void stream(BFloat16* p, Vector x) { _mm_stream_si128(reinterpret_cast<__m128i*>(p), bfloat16_of(x)); }
inline void stream(Float16* p, Vector x) { _mm_stream_si128(reinterpret_cast<__m128i*>(p), float16_of(x)); }
inline void finish_streaming() { _mm_sfence(); }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace
