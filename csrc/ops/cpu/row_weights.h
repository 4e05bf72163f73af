// The weights of a vector of columns, for one instruction set: included after vector_math.h, used by both statistics
// and gradients, so that they see the same bits. Letters and formulas: common/row_statistics.h.
//
// One exponential and one expm1 per element: e^(a - m), times e^-u - 1 for the difference. Where u lies far below 0 the
// second would overflow and the first be lost: for a vector with such a column the larger weight is computed first.
#pragma once

#include "common/row_statistics.h"
#include "ops/cpu/vector_math.h"

namespace {

constexpr float kLowestU = -40.0f, kGreatestU = 1e6f;

// Clean weights are e^(a - clean), adversarial ones e^(b - adv); clean - adv = center + center_rest exactly.
struct Scale {
  Vector clean, adv, center, center_rest;
};

struct Weights {
  Vector clean;
  Vector difference;  // adversarial - clean, with all digits
  Vector u;           // a - b - center - center_rest
  Vector remainder;   // e^-u - 1 + u where |u| < log(2) / 2
};

// The u by which the weights of a column are multiplied in its gradients: 0 where the weight is 0 and u may be infinite.
struct Distances { Vector clean, adv; };

inline Scale scale_of(float clean, float adv) {
  float rest;
  const float center = two_difference(clean, adv, &rest);
  return Scale{broadcast(clean), broadcast(adv), broadcast(center), broadcast(rest)};
}

// kExact rounds once (Knuth's TwoSum): otherwise a large common shift would leave only its own rounding error. The rest
// of an infinite difference is NaN and counts as 0.
template <bool kExact>
inline Vector centred_difference(Vector a, Vector b, const Scale& scale) {
  const Vector difference = a - b;
  if (!kExact) return difference - scale.center;
  const Vector back = difference - a;
  const Vector rest = zero_where_nan((a - (difference - back)) - (b + back));
  return (difference - scale.center) + (rest - scale.center_rest);
}

// Rounding a - b costs at most 2^-24 (|c| + |u|): negligible against |u| as long as c is not much larger.
inline bool small_shift(float center, float spread) { return __builtin_fabsf(center) <= 4.0f * spread; }

// For any logits. Columns that are -inf on both sides have weight 0. Around a bad centre a weight may exceed every
// float: it is then e^80, from which the sums recognise the bad centre just as well.
[[gnu::always_inline]] inline Weights weights_of_outliers(Vector a, Vector b, const Scale& scale) {
  const Vector lowest = broadcast(-MA_INFINITY), zero = broadcast(0.0f);
  const Vector u = zero_where_both(a, b, lowest, centred_difference<true>(a, b, scale));
  const Vector larger = exponential<true>(minimum(broadcast(80.0f), maximum(b - scale.adv, a - scale.clean)));
  const Growth behind = growth<true>(negated_absolute(u));
  return Weights{times_where_negative(larger, behind.factor, u),
                 with_sign_flipped_where_negative(larger * behind.minus_one, u), u, (u * u) * expm1_tail(zero - u)};
}

// Without kBounded large logits give NaN instead, which the caller notices; this saves two operations.
template <bool kExact, bool kBounded>
[[gnu::always_inline]] inline Weights weights_of(Vector a, Vector b, const Scale& scale) {
  const Vector u = centred_difference<kExact>(a, b, scale);
  const bool outliers = kBounded ? any_outside(u, kLowestU, kGreatestU) : any_below(u, kLowestU);
  if (__builtin_expect(outliers, false)) return weights_of_outliers(a, b, scale);
  const Vector clean = exponential<kBounded>(a - scale.clean);
  const Growth behind = growth<false>(broadcast(0.0f) - u);
  return Weights{clean, clean * behind.minus_one, u, behind.remainder};
}

inline Vector zero_where_zero(Vector weight, Vector value) { return {weight.v != 0.0f ? value.v : Floats{}}; }

inline Distances distances_of(const Weights& w) {
  if (__builtin_expect(!any_outside(w.u, -kGreatestU, kGreatestU), true)) return Distances{w.u, w.u};
  return Distances{zero_where_zero(w.clean, w.u), zero_where_zero(w.clean + w.difference, w.u)};
}

// weight * u, where a weight of 0 gives 0 however far away the column is.
inline Vector weighed(Vector weight, Vector u) {
  return weight * zero_where_zero(weight, u);
}

}  // namespace
