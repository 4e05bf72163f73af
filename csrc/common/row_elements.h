// One column of a row: the arithmetic of the row role for a processor that handles one number at a time (the CUDA kernel; the
// CPU kernels have its vector twin in ops/cpu/row_kernels.h). Formulas and letters: common/row_statistics.h.
//
// kExact is for float32 logits: differences are rounded once and e^-v - 1 is accurate to float32. bfloat16 and float16 logits
// differ by 2^-11 of themselves at least, and their gradients are rounded to as much: shorter series, fewer instructions.
#pragma once

#include "common/portability.h"

// Clean weights are e^(a - clean), adversarial ones e^(b - adv - adv_rest).
struct RowScale {
  float clean, adv, adv_rest, center;
};

struct ColumnWeights {
  float u;           // a - b - c
  float clean;       // clean weight
  float adv;         // adversarial weight
  float difference;  // adversarial - clean weight, with all digits
  float one_sided;   // clean weight times (expm1(-u) + u)
};

MA_FUNCTION float power_of_2(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return __builtin_exp2f(x);
#endif
}

MA_FUNCTION float larger_of(float x, float y) { return x > y || x != x ? x : y; }  // NaN in x stays

MA_FUNCTION float two_difference_of(float a, float b, float* rest) {
  const float difference = MA_ADD(a, -b);
  const float back = MA_ADD(difference, -a);
  *rest = MA_ADD(MA_ADD(a, -MA_ADD(difference, -back)), -MA_ADD(b, back));
  return difference;
}

MA_FUNCTION RowScale row_scale(float scale, float center) {
  float rest;
  const float adv = two_difference_of(scale, center, &rest);
  return RowScale{scale, adv, rest, center};
}

// e^-v - 1 for v >= 0. Near 0 the series, elsewhere the difference: 2^-22 / v is its relative error.
template <bool kExact>
MA_FUNCTION float decay_minus_one(float v, float factor) {
  const float limit = kExact ? 0.3f : 0.015625f;
  float s = kExact ? -1.98412698e-4f : 0.16666667f;
  if (kExact) {
    s = 1.38888889e-3f + v * s;
    s = -8.33333333e-3f + v * s;
    s = 4.16666667e-2f + v * s;
    s = -0.16666667f + v * s;
    s = 0.5f + v * s;
    s = v * (v * s) - v;
  } else {
    s = -(v - v * v * (0.5f - v * s));
  }
  return v < limit ? s : factor - 1.0f;
}

// h + e^-h - 1 times the clean weight, given v = |h| and the larger weight: never negative, no cancellation.
MA_FUNCTION float one_sided_column(float h, float v, float larger, float minus_one) {
  float s = 1.0f / 5040.0f;
  s = 1.0f / 720.0f - v * s;
  s = 1.0f / 120.0f - v * s;
  s = 1.0f / 24.0f - v * s;
  s = 1.0f / 6.0f - v * s;
  s = 0.5f - v * s;
  const bool is_small = v < 0.3f;
  const float ahead = is_small ? v * v * s : minus_one + v;
  if (h >= 0.0f) return larger * ahead;
  return larger * (is_small ? v * v - ahead * (1.0f + v) : -minus_one - v * (1.0f + minus_one));
}

// The weights of a column whose log ratio (clean over adversarial, on the given scales) is h.
template <bool kExact>
MA_FUNCTION ColumnWeights weights_of(float a, float b, float u, float h, const RowScale& scale, bool one_sided) {
  const float log_2_e = 1.44269504f;
  float adv_exponent = b - scale.adv;
  if (kExact) adv_exponent -= scale.adv_rest;
  const float larger = power_of_2(larger_of(a - scale.clean, adv_exponent) * log_2_e);
  const float v = h < 0.0f ? -h : h;
  const float factor = power_of_2(-v * log_2_e);
  const float minus_one = decay_minus_one<kExact>(v, factor);
  const float smaller = larger * factor, moved = larger * minus_one;
  ColumnWeights weights;
  weights.u = u;
  weights.clean = h < 0.0f ? smaller : larger;
  weights.adv = h < 0.0f ? larger : smaller;
  weights.difference = h < 0.0f ? -moved : moved;
  weights.one_sided = one_sided ? one_sided_column(h, v, larger, minus_one) : 0.0f;
  return weights;
}

// u, with columns that are -inf on both sides at 0 (their weights are 0).
template <bool kExact>
MA_FUNCTION float centred(float a, float b, float center) {
  if (a == -MA_INFINITY && b == -MA_INFINITY) return 0.0f;
  if (!kExact) return (a - b) - center;
  float rest;
  const float difference = two_difference_of(a, b, &rest);
  return MA_ADD(MA_ADD(difference, -center), rest);
}

struct RowGradient {
  float clean, adv;
};

// Gradients of kl_weight * divergence + mlm_weight * MLM loss to the column's logits, without the label's own -mlm_weight.
template <bool kExact>
MA_FUNCTION RowGradient gradient_of_column(float a, float b, const RowScale& scale, float inverse_mass, float log_ratio,
                                           float mean, float divergence, float kl_weight, float mlm_weight,
                                           bool one_sided, bool detach_targets) {
  const float u = centred<kExact>(a, b, scale.center), h = u + log_ratio;
  const ColumnWeights w = weights_of<kExact>(a, b, u, h, scale, false);
  const float p = w.clean * inverse_mass, to_adv = w.difference * inverse_mass;
  RowGradient gradient{one_sided ? 0.0f : -to_adv, to_adv};
  if (!detach_targets) {
    if (one_sided) {
      gradient.clean = p * (h - divergence);
    } else {
      gradient.clean += p * (u - mean);
      gradient.adv -= w.adv * inverse_mass * (u - (mean - divergence));
    }
  }
  gradient.clean = kl_weight * gradient.clean + mlm_weight * p;
  gradient.adv *= kl_weight;
  return gradient;
}
