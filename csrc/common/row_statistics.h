// The record of a row (or of a part of its columns) and the exact merge of two: shared by the column blocks of a CPU row, the
// blocks of a CUDA row and the tensor-parallel shards. Formulas: megatron_alum/reference/rows.py.
//
// Every field is already normalised over the part, so a record means the same whichever way it was computed and no
// later step has to know which branch a part took.
#pragma once

#include "common/portability.h"

struct RowRecord {
  float maximum;     // m  = max a
  float mass;        // Z  = sum exp(a - m); 0 for a part without columns
  float center;      // c, the d = a - b of some column near the top of P
  float log_ratio;   // t  = log E_P[exp(-u)], u = d - c
  float mean;        // E_P[u]
  float divergence;  // KL(P||Q) + KL(Q||P), or KL(P||Q) alone, of the part's own two distributions
};

MA_FUNCTION RowRecord empty_record() { return RowRecord{-MA_INFINITY, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f}; }

// sum_{n >= 2} (-h)^n / n! = h + exp(-h) - 1, whose mean under P is KL(P||Q).
MA_FUNCTION float one_sided_term(float h) {
  if (!(h < 0.25f && h > -0.25f)) return h + MA_MATH(expm1f)(-h);
  float s = 1.0f / 40320.0f;
  s = 1.0f / 5040.0f - h * s;
  s = 1.0f / 720.0f - h * s;
  s = 1.0f / 120.0f - h * s;
  s = 1.0f / 24.0f - h * s;
  s = 1.0f / 6.0f - h * s;
  s = 0.5f - h * s;
  return h * h * s;
}

// p - q from p, its logarithm and h = log(p / q) without overflow: the larger of the two times 1 - exp(-|h|). Where the other part
// of a row holds all clean mass, p is 0 and its logarithm alone still knows q.
MA_FUNCTION float probability_difference(float p, float log_p, float h) {
  if (h >= 0.0f) return -p * MA_MATH(expm1f)(-h);
  return MA_MATH(expf)(log_p - h) * MA_MATH(expm1f)(h);
}

// p h + q - p, what a part adds to KL(P||Q) besides its own divergence.
MA_FUNCTION float one_sided_share(float p, float log_p, float h) {
  if (h < 0.25f && h > -0.25f) return p * one_sided_term(h);
  return p * h - probability_difference(p, log_p, h);
}

MA_FUNCTION RowRecord merge(const RowRecord& x, const RowRecord& y, bool one_sided) {
  if (x.mass == 0.0f) return y;
  if (y.mass == 0.0f) return x;
  const bool x_leads = !(y.maximum > x.maximum);
  const float top = x_leads ? x.maximum : y.maximum;
  const float center = x_leads ? x.center : y.center;
  const float scaled_x = x.mass * MA_MATH(expf)(x.maximum - top), scaled_y = y.mass * MA_MATH(expf)(y.maximum - top);
  const float total = scaled_x + scaled_y;
  const float share_x = scaled_x / total, share_y = scaled_y / total;
  const float log_total = MA_MATH(logf)(total);
  const float log_share_x = (x.maximum - top) + (MA_MATH(logf)(x.mass) - log_total);
  const float log_share_y = (y.maximum - top) + (MA_MATH(logf)(y.mass) - log_total);
  const float shift_x = x.center - center, shift_y = y.center - center;
  // Twins of u and t one level up: u_i is the log of the part's clean over its adversarial mass.
  const float u_x = shift_x - x.log_ratio, u_y = shift_y - y.log_ratio;
  const float low = u_x < u_y ? u_x : u_y, high = u_x < u_y ? u_y : u_x;
  float ratio;
  if (low > -1.0f && high < 1.0f) {
    ratio = MA_MATH(log1pf)(share_x * MA_MATH(expm1f)(-u_x) + share_y * MA_MATH(expm1f)(-u_y));
  } else {
    const float log_x = log_share_x - u_x, log_y = log_share_y - u_y;
    const float larger = log_x < log_y ? log_y : log_x;
    ratio = larger + MA_MATH(logf)(MA_MATH(expf)(log_x - larger) + MA_MATH(expf)(log_y - larger));
  }
  const float h_x = u_x + ratio, h_y = u_y + ratio;
  const float offset_x = shift_x + x.mean, offset_y = shift_y + y.mean;
  float divergence;
  if (one_sided) {
    divergence = (share_x * x.divergence + one_sided_share(share_x, log_share_x, h_x)) +
                 (share_y * y.divergence + one_sided_share(share_y, log_share_y, h_y));
  } else {
    const float moved_x = probability_difference(share_x, log_share_x, h_x);
    const float moved_y = probability_difference(share_y, log_share_y, h_y);
    divergence = moved_x * (offset_x + ratio) + moved_y * (offset_y + ratio) +
                 ((share_x - moved_x) * x.divergence + (share_y - moved_y) * y.divergence);
  }
  return RowRecord{top, total, center, ratio, share_x * offset_x + share_y * offset_y, divergence};
}

// From the four sums of a part, relative to `scale` and to center: A = sum e^(a - scale), D = sum e^(b + c - scale) - A,
// U = sum e^(a - scale) u, X = sum (e^(b + c - scale) - e^(a - scale)) u; one-sided X = sum e^(a - scale) (expm1(-u) + u).
MA_FUNCTION RowRecord record_of_sums(float maximum, float scale, float center, const float sums[4], bool one_sided) {
  const float mass = sums[0], excess = sums[1] / mass, mean = sums[2] / mass, last = sums[3] / mass;
  const float ratio = MA_MATH(log1pf)(excess);
  // log1p(x) - x = -one_sided_term(log1p(x)) with the sign of its argument turned: exp(r) - 1 - r at r = log1p(x).
  const float divergence = one_sided ? last - one_sided_term(-ratio) : (mean * excess - last) / (1.0f + excess);
  return RowRecord{maximum, mass * MA_MATH(expf)(scale - maximum), center, ratio, mean, divergence};
}

// Whether the centre was near enough to E_P[d] for the sums to keep their digits: the divergence is what is left of terms of the
// size of E_P[u]^2, and 1 + excess of terms of size 1. False for NaN.
MA_FUNCTION bool well_centred(const RowRecord& record, const float sums[4]) {
  return sums[1] > -0.75f * sums[0] && sums[1] < 50.0f * sums[0] &&
         record.mean * record.mean <= 8.0f * record.divergence;
}
