// One column of a row on the GPU: its weights, what it adds to the sums, its gradients; and packs of 16 bytes of columns.
// Formulas and letters: csrc/README.md and common/row_statistics.h. The CPU's vector counterpart is
// ops/cpu/row_weights.h.
//
// float32 keeps the centred form: differences are rounded once, and expm1 keeps all digits of q - p. 16-bit logits
// differ by 0 or by at least 2^-8 of themselves: there two plain exponentials and their difference are as good as the
// logits.
#pragma once

#include "common/row_statistics.h"
#include "ops/cuda/alum_kernel.cuh"
#include "ops/rows.h"

MA_DEVICE float power_of_2(float x) {  // two units in the last place; 0 below 2^-126
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// What all columns of a row share. Clean weights are e^(a - clean) 2^exponent, adversarial ones e^(b - adv - log_ratio)
// 2^exponent.
struct RowScale {
  float clean, adv, log_ratio, exponent;
  float center, center_rest;  // clean - adv, exactly
};

MA_DEVICE RowScale row_scale(float clean, float adv, float log_ratio, float exponent) {
  RowScale scale{clean, adv, log_ratio, exponent, 0.0f, 0.0f};
  scale.center = two_difference(clean, adv, &scale.center_rest);
  return scale;
}

// What all threads of a row know before they compute its divergence: the first fields of its record and its scale. The
// power of 2 in the mass goes into the weights, so that they sum to less than 2 and no logit is too far away to have a
// weight.
struct Level {
  float mass, inverse_mass;  // the latter of the weights that `scale` gives
  RowScale scale;
};

MA_DEVICE Level level_of(float clean_top, float mass, float adv_top, float log_ratio) {
  const int exponent = static_cast<int>(__float_as_uint(mass) >> 23) - 127;
  const float power = __uint_as_float(static_cast<uint32_t>(127 - exponent) << 23);  // 2^-exponent
  return Level{mass, __fdividef(1.0f, mass * power), row_scale(clean_top, adv_top, log_ratio, static_cast<float>(-exponent))};
}

struct Column {
  float clean;       // weight
  float difference;  // adversarial - clean weight
  float log_ratio;   // h = log(clean / adversarial weight); meaningless if both weights are 0
};

// e^-v - 1 for v >= 0: near 0 the series, elsewhere the difference; relative error 2e-7.
MA_DEVICE float decay_minus_one(float v) {
  float s = 1.38888889e-3f - v * 1.98412698e-4f;
  s = -8.33333333e-3f + v * s;
  s = 4.16666667e-2f + v * s;
  s = -0.16666667f + v * s;
  s = 0.5f + v * s;
  s = v * (v * s) - v;
  return v < 0.3f ? s : power_of_2(-v * kLog2E) - 1.0f;
}

template <typename Element>
MA_DEVICE Column column_of(float a, float b, const RowScale& scale) {
  const float clean_exponent = a - scale.clean;
  Column column;
  if (sizeof(Element) == 2) {
    const float adv_exponent = b - scale.adv;
    column.clean = power_of_2(fmaf(clean_exponent, kLog2E, scale.exponent));
    const float rest = fmaf(-kLog2E, scale.log_ratio, scale.exponent);
    column.difference = power_of_2(fmaf(adv_exponent, kLog2E, rest)) - column.clean;
    column.log_ratio = (clean_exponent - adv_exponent) + scale.log_ratio;
    return column;
  }
  // The larger weight, times e^-|h| - 1, gives the difference: no overflow, no cancellation.
  const float adv_exponent = (b - scale.adv) - scale.log_ratio;
  // Not fmaxf: NaN clean logits make the weight NaN, adversarial ones leave the MLM loss alone.
  const float greater = adv_exponent > clean_exponent ? adv_exponent : clean_exponent;
  const float larger = power_of_2(fmaf(greater, kLog2E, scale.exponent));
  float rest;
  const float difference = two_difference(a, b, &rest);
  const float h = ((difference - scale.center) + (rest - scale.center_rest)) + scale.log_ratio;
  const float moved = larger == 0.0f ? 0.0f : larger * decay_minus_one(fabsf(h));
  column.clean = h < 0.0f ? larger + moved : larger;
  column.difference = h < 0.0f ? -moved : moved;
  column.log_ratio = h;
  return column;
}

// The sums of a thread, a warp or a row for the divergence, on the scale of the weights.
struct DivergenceSums {
  float divergence, one_way;  // one_way: of KL(P||Q), whatever the divergence is
};

// A column whose weights are equal adds nothing, whatever its logits are: both may be -infinity.
template <typename Element, bool kOneSided>
MA_DEVICE void add_divergence(const Column& column, DivergenceSums* sums) {
  const float h = column.log_ratio;
  if (kOneSided) {
    float s = 1.0f / 120.0f;  // of h + e^-h - 1; for 16 bits up to here: 1e-5 of it
    if (sizeof(Element) == 4) s -= h * (1.0f / 720.0f - h * (1.0f / 5040.0f));
    s = 1.0f / 24.0f - h * s;
    s = 1.0f / 6.0f - h * s;
    s = 0.5f - h * s;
    const float direct = column.clean == 0.0f ? column.difference : column.clean * h + column.difference;
    const float term = fabsf(h) < 0.25f ? column.clean * (h * h * s) : direct;
    if (column.difference != 0.0f) sums->divergence += term;
    return;
  }
  if (column.difference != 0.0f) {
    sums->divergence -= column.difference * h;
    if (column.clean != 0.0f) sums->one_way += column.clean * h;
    sums->one_way += column.difference;
  }
}

// Factors of a row's gradients; the mass of the clean weights is divided out.
struct RowFactors {
  float kl, mlm;
  bool has_kl, has_mlm;       // a row of weight 0 is skipped: 0 * NaN would be NaN
  float one_way, divergence;  // read only without detached targets
};

struct Gradients {
  float clean, adv;
};

template <bool kOneSided, bool kDetach>
MA_DEVICE Gradients gradients_of(const Column& column, const RowFactors& factors) {
  const float difference = factors.has_kl ? column.difference : 0.0f;
  const float mlm = factors.mlm * (factors.has_mlm ? column.clean : 0.0f);
  Gradients gradients{mlm, factors.kl * difference};
  if (kDetach) {
    if (!kOneSided) gradients.clean = mlm - gradients.adv;
    return gradients;
  }
  if (!factors.has_kl) return gradients;
  const float clean_h = column.clean == 0.0f ? 0.0f : column.log_ratio, adv = column.clean + difference;
  const float adv_h = adv == 0.0f ? 0.0f : column.log_ratio;
  const float expected = kOneSided ? factors.divergence : factors.one_way;
  gradients.clean += factors.kl * (column.clean * (clean_h - expected) - (kOneSided ? 0.0f : difference));
  if (!kOneSided) gradients.adv -= factors.kl * (adv * (adv_h - (factors.one_way - factors.divergence)));
  return gradients;
}

// ---- 16 bytes of columns, as words: one float each, or two numbers of 16 bits ----

struct alignas(16) Words {
  uint32_t word[4];
};

template <typename Element>
struct Packing;  // kMasked: words of -infinity

template <>
struct Packing<float> {
  static constexpr uint32_t kMasked = 0xFF800000u;
  MA_DEVICE void unpack(uint32_t word, float* to) { to[0] = __uint_as_float(word); }
  MA_DEVICE uint32_t pack(const float* from) { return __float_as_uint(from[0]); }
  MA_DEVICE uint32_t greatest(uint32_t x, uint32_t y) {
    return __float_as_uint(fmaxf(__uint_as_float(x), __uint_as_float(y)));
  }
};

template <typename Pair>
struct PairPacking {
  MA_DEVICE uint32_t greatest(uint32_t x, uint32_t y) {
    return bits_as<uint32_t>(__hmax2(bits_as<Pair>(x), bits_as<Pair>(y)));
  }
};

template <>
struct Packing<BFloat16> : PairPacking<__nv_bfloat162> {
  static constexpr uint32_t kMasked = 0xFF80FF80u;
  MA_DEVICE void unpack(uint32_t word, float* to) {
    to[0] = __uint_as_float(word << 16);
    to[1] = __uint_as_float(word & 0xFFFF0000u);
  }
  MA_DEVICE uint32_t pack(const float* from) { return bits_as<uint32_t>(__floats2bfloat162_rn(from[0], from[1])); }
};

template <>
struct Packing<Float16> : PairPacking<__half2> {
  static constexpr uint32_t kMasked = 0xFC00FC00u;
  MA_DEVICE void unpack(uint32_t word, float* to) {
    const float2 both = __half22float2(bits_as<__half2>(word));
    to[0] = both.x, to[1] = both.y;
  }
  MA_DEVICE uint32_t pack(const float* from) { return bits_as<uint32_t>(__floats2half2_rn(from[0], from[1])); }
};
