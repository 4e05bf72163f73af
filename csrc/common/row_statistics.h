// The record of a row (or of a part of its columns) and the exact merge of two: shared by the column blocks of a CPU row and
// the tensor-parallel shards of both devices. Formulas: megatron_alum/reference/rows.py.
//
// Every field is already normalised over the part, so a record means the same whichever way it was computed and no
// later step has to know which branch a part took.
#pragma once

#include "common/portability.h"

struct RowRecord {
  float maximum;     // m  = max a
  float mass;        // Z  = sum exp(a - m); 0 for a part without columns
  float level;       // n, a number near log-sum-exp of b less log Z; c = m - n, taken exactly, is near the d = a - b of the row
  float log_ratio;   // t  = log E_P[exp(-u)], u = d - c; so that log-sum-exp of b = n + t + log Z
  float mean;        // E_P[u]
  float divergence;  // KL(P||Q) + KL(Q||P), or KL(P||Q) alone, of the part's own two distributions
};

MA_FUNCTION RowRecord empty_record() { return RowRecord{-MA_INFINITY, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f}; }

// a - b rounded, and what rounding has lost (Knuth's TwoSum). An infinite difference, which has no rounding error,
// stays infinite.
MA_FUNCTION float two_difference(float a, float b, float* rest) {
  const float difference = MA_ADD(a, -b);
  const float back = MA_ADD(difference, -a);
  const float lost = MA_ADD(MA_ADD(a, -MA_ADD(difference, -back)), -MA_ADD(b, back));
  *rest = MA_MATH(fmaxf)(lost, -3.4028234e38f);  // not a number: the other argument
  return difference;
}

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

// A part's shares of the clean and the adversarial mass of the row, p and q, and h = log(p / q).
struct PartShare {
  float log_clean, log_adv, shift, u;
};

MA_FUNCTION PartShare share_of(const RowRecord& part, float top, float level, float center, float rest, float log_total) {
  float own_rest;
  const float own_center = two_difference(part.maximum, part.level, &own_rest);
  const float log_mass = MA_MATH(logf)(part.mass) - log_total;
  PartShare share;
  share.log_clean = (part.maximum - top) + log_mass;
  share.log_adv = (part.level - level) + (part.log_ratio + log_mass);
  share.shift = (own_center - center) + (own_rest - rest);
  share.u = share.shift - part.log_ratio;
  return share;
}

// What a part adds to the divergence of the row: its own divergence, and that of its share.
MA_FUNCTION float divergence_of_part(const RowRecord& part, const PartShare& share, float ratio, bool one_sided) {
  const float h = share.u + ratio, p = MA_MATH(expf)(share.log_clean), q = MA_MATH(expf)(share.log_adv - ratio);
  const float moved = h >= 0.0f ? -p * MA_MATH(expm1f)(-h) : q * MA_MATH(expm1f)(h);  // p - q, without overflow
  if (p == 0.0f && q == 0.0f) return 0.0f;
  if (one_sided) {
    const float of_share = h < 0.25f && h > -0.25f ? p * one_sided_term(h) : (p == 0.0f ? 0.0f : p * h) - moved;
    return p == 0.0f ? of_share : p * part.divergence + of_share;
  }
  const float of_share = moved == 0.0f ? 0.0f : moved * (share.shift + part.mean + ratio);
  return q == 0.0f ? of_share : of_share + (p - moved) * part.divergence;
}

MA_FUNCTION RowRecord merge(const RowRecord& x, const RowRecord& y, bool one_sided) {
  if (x.mass == 0.0f) return y;
  if (y.mass == 0.0f) return x;
  const bool x_leads = !(y.maximum > x.maximum);
  // If one part has all adversarial mass, its level is used: else the ratio would be as large as the logits and lose
  // its digits.
  const float adv_x = x.level + (x.log_ratio + MA_MATH(logf)(x.mass)), adv_y = y.level + (y.log_ratio + MA_MATH(logf)(y.mass));
  const bool level_of_x = adv_x > adv_y + 20.0f || (x_leads && !(adv_y > adv_x + 20.0f));
  const float top = x_leads ? x.maximum : y.maximum, level = level_of_x ? x.level : y.level;
  float rest;
  const float center = two_difference(top, level, &rest);
  const float total =
      x.mass * MA_MATH(expf)(x.maximum - top) + y.mass * MA_MATH(expf)(y.maximum - top);
  const float log_total = MA_MATH(logf)(total);
  const PartShare of_x = share_of(x, top, level, center, rest, log_total);
  const PartShare of_y = share_of(y, top, level, center, rest, log_total);
  const float p_x = MA_MATH(expf)(of_x.log_clean), p_y = MA_MATH(expf)(of_y.log_clean);
  const float low = of_x.u < of_y.u ? of_x.u : of_y.u, high = of_x.u < of_y.u ? of_y.u : of_x.u;
  float ratio;
  if (low > -1.0f && high < 1.0f) {
    ratio = MA_MATH(log1pf)(p_x * MA_MATH(expm1f)(-of_x.u) + p_y * MA_MATH(expm1f)(-of_y.u));
  } else {
    const float larger = of_x.log_adv < of_y.log_adv ? of_y.log_adv : of_x.log_adv;
    ratio = larger + MA_MATH(logf)(MA_MATH(expf)(of_x.log_adv - larger) + MA_MATH(expf)(of_y.log_adv - larger));
  }
  const float mean = (p_x == 0.0f ? 0.0f : p_x * (of_x.shift + x.mean)) + (p_y == 0.0f ? 0.0f : p_y * (of_y.shift + y.mean));
  const float divergence =
      divergence_of_part(x, of_x, ratio, one_sided) + divergence_of_part(y, of_y, ratio, one_sided);
  return RowRecord{top, total, level, ratio, mean, divergence};
}

// The records of all shards of a row, `step` floats apart, as one. Of 7 floats the last is the label's logit, 0 in all shards but one.
MA_FUNCTION void merge_shards(const float* parts, int64_t shards, int64_t step, int width, bool one_sided, float* to) {
  constexpr int fields = sizeof(RowRecord) / sizeof(float);
  RowRecord total = empty_record(), part;
  float label = 0.0f;
  for (int64_t shard = 0; shard < shards; ++shard, parts += step) {
    __builtin_memcpy(&part, parts, sizeof(part));
    total = merge(total, part, one_sided);
    if (width > fields) label += parts[fields];
  }
  __builtin_memcpy(to, &total, sizeof(total));
  if (width > fields) to[fields] = label;
}

// A divergence that is not a finite float32, even if it is exactly infinite, is reported as NaN.
MA_FUNCTION float reported(float divergence) { return divergence - divergence == 0.0f ? divergence : divergence - divergence; }

// From the four sums of a part, relative to m and n: A = sum e^(a - m), D = sum e^(b - n) - A, U = sum e^(a - m) u,
// X = sum (e^(b - n) - e^(a - m)) u; one-sided X = sum e^(a - m) (expm1(-u) + u).
MA_FUNCTION RowRecord record_of_sums(float maximum, float level, const float sums[4], bool one_sided) {
  const float mass = sums[0], excess = sums[1] / mass, mean = sums[2] / mass, last = sums[3] / mass;
  const float ratio = MA_MATH(log1pf)(excess);
  // log1p(x) - x = -one_sided_term(log1p(x)) with the sign of its argument turned: exp(r) - 1 - r at r = log1p(x).
  const float divergence = one_sided ? last - one_sided_term(-ratio) : (mean * excess - last) / (1.0f + excess);
  return RowRecord{maximum, mass, level, ratio, mean, reported(divergence)};
}

// Whether the centre was near enough to E_P[d] for the sums to keep their digits: the divergence is what is left of terms of the
// size of E_P[u]^2, and 1 + excess of terms of size 1. False for NaN.
MA_FUNCTION bool well_centred(const RowRecord& record, const float sums[4]) {
  return sums[1] > -0.75f * sums[0] && sums[1] < 50.0f * sums[0] &&
         record.mean * record.mean <= 8.0f * record.divergence;
}
