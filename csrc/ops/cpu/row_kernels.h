// Row role on the CPU, for one instruction set: included after a vector_*.h header, compiled once for each of them.
// Letters and formulas: common/row_statistics.h and megatron_alum/ops/reference/rows.py.
//
// A row of clean and of adversarial logits stays in the second-level cache (2 x 122 KB in float32 at V = 30592) while it is
//   surveyed   maxima of both, and d at the clean one: the centre c
//   summed     four sums, one exp and one expm1 an element -> the record; meanwhile the next row is prefetched
// and is read again by the gradients, at once in row_fused, in backward otherwise.
//
// Per element the larger of the two weights e^(a - scale), e^(b + c - scale) is formed first, and the smaller as its
// product with e^-|u|: nothing can overflow, and their difference keeps its digits however small u is. The centre of the
// survey serves almost always; where it lies far from the bulk of the row, both log-sum-exps are formed and the row is summed
// again around their difference, which is always a good centre.
#pragma once

#include "common/row_statistics.h"
#include "ops/cpu/vector_math.h"
#include "ops/rows.h"

namespace {

constexpr int64_t kBlockColumns = 32768;  // columns that get a record of their own: two float32 blocks fill 256 KB
constexpr int64_t kRunColumns = 1024;     // summed on their own first: keeps the rounding of long sums down
constexpr float kScaleRange = 20.0f;      // the centre of the survey must not part the two maxima by more

struct Survey {
  float clean_maximum, adv_maximum, center;
  float spread;  // mean |d - center| over the columns the centre was taken from
};

struct Sums {
  Vector mass, excess, mean, last;
};

// Scales that make the larger weight at most 1: clean weights e^(a - clean), adversarial e^(b - adv - adv_rest).
struct Scale {
  Vector clean, adv, adv_rest, center;
};

inline float two_difference(float a, float b, float* rest) {
  const float difference = a - b, back = difference - a;
  *rest = (a - (difference - back)) - (b + back);
  return difference;
}

// a - b - c. kExact rounds once (Knuth's TwoSum): of a large common shift c only its own rounding error would be left otherwise.
template <bool kExact>
inline Vector centred_difference(Vector a, Vector b, Vector center) {
  const Vector difference = a - b;
  if (!kExact) return difference - center;
  const Vector back = difference - a;
  const Vector rest = (a - (difference - back)) - (b + back);
  return (difference - center) + rest;
}

// Rounding a - b costs at most 2^-24 (|c| + |u|): nothing beside |u| itself while c is not much larger than that.
inline bool small_shift(float center, float spread) { return __builtin_fabsf(center) <= 4.0f * spread; }

inline Scale scale_of(float scale, float center) {
  float rest;
  const float adv = two_difference(scale, center, &rest);
  return Scale{broadcast(scale), broadcast(adv), broadcast(rest), broadcast(center)};
}

// The centre: the mean of d over the lanes' own clean maxima, weighted by them; written as a move from the greatest, so that a
// common shift leaves no rounding error. Nearer to E_P[d] than any single column is.
inline Survey survey_of_lanes(const Vector top[2], const Vector at_top[2], const Vector adv_top[2]) {
  constexpr int lanes = 2 * Vector::width;
  float clean[lanes], center[lanes], adv[lanes];
  for (int half = 0; half < 2; ++half) {
    store(clean + half * Vector::width, top[half]);
    store(center + half * Vector::width, at_top[half]);
    store(adv + half * Vector::width, adv_top[half]);
  }
  Survey found{-MA_INFINITY, -MA_INFINITY, 0.0f, 0.0f};
  for (int j = 0; j < lanes; ++j) {
    if (clean[j] > found.clean_maximum) found.clean_maximum = clean[j], found.center = center[j];
    if (adv[j] > found.adv_maximum) found.adv_maximum = adv[j];
  }
  float weight = 0.0f, moved = 0.0f, spread = 0.0f;
  for (int half = 0; half < 2; ++half) {
    const Vector share = exponential(top[half] - broadcast(found.clean_maximum));
    weight += sum_of(share);
    const Vector distance = at_top[half] - broadcast(found.center);
    moved += sum_of(share * distance);
    spread -= sum_of(share * negated_absolute(distance));
  }
  found.spread = spread / weight;
  const float center_of_lanes = found.center + moved / weight;
  if (center_of_lanes - center_of_lanes == 0.0f) found.center = center_of_lanes;  // finite
  return found;
}

template <typename Element>
Survey survey(const Element* a, const Element* b, int64_t columns) {
  const Vector lowest = broadcast(-MA_INFINITY);
  Vector top[2] = {lowest, lowest}, at_top[2] = {broadcast(0.0f), broadcast(0.0f)}, adv_top[2] = {lowest, lowest};
  const auto look = [&](Vector clean, Vector adv, int lane) {
    at_top[lane] = where_greater(clean, top[lane], clean - adv, at_top[lane]);
    top[lane] = maximum(clean, top[lane]);
    adv_top[lane] = maximum(adv, adv_top[lane]);
  };
  int64_t i = 0;
  for (; i + 2 * Vector::width <= columns; i += 2 * Vector::width) {
    look(load(a + i), load(b + i), 0);
    look(load(a + i + Vector::width), load(b + i + Vector::width), 1);
  }
  for (; i < columns; i += Vector::width) {
    const int64_t left = columns - i < Vector::width ? columns - i : Vector::width;
    look(load_some(a + i, left, -MA_INFINITY), load_some(b + i, left, -MA_INFINITY), 0);
  }
  return survey_of_lanes(top, at_top, adv_top);
}

// larger (e^-v - 1 + v) for v = |u|, u >= 0, and its twin for u < 0: clean weight times (expm1(-u) + u).
inline Vector one_sided_terms(Vector larger, Vector u, Vector moved) {
  const Vector v = broadcast(0.0f) - negated_absolute(u);
  const Vector square = v * v;
  const Vector series = square * expm1_tail(broadcast(0.0f) - v);
  const Vector rest = where_greater(v, broadcast(0.34f), moved + v, series);
  const Vector behind = fused_negated(rest, v, square) - rest;
  return larger * where_greater(broadcast(0.0f), u, behind, rest);
}

// kMasked: columns that are -inf on both sides count nothing.
template <bool kOneSided, bool kExact, bool kMasked>
inline void accumulate(Sums& sums, Vector a, Vector b, const Scale& scale) {
  Vector u = centred_difference<kExact>(a, b, scale.center);
  if (kMasked) u = zero_where_both(a, b, broadcast(-MA_INFINITY), u);
  const Vector larger = exponential(maximum((b - scale.adv) - scale.adv_rest, a - scale.clean));
  const Decay behind = decay(negated_absolute(u));
  const Vector difference = with_sign_flipped_where_negative(larger * behind.minus_one, u);  // adversarial - clean
  const Vector clean = times_where_negative(larger, behind.factor, u);
  sums.mass = sums.mass + clean;
  sums.excess = sums.excess + difference;
  sums.mean = fused(clean, u, sums.mean);
  sums.last = kOneSided ? sums.last + one_sided_terms(larger, u, behind.minus_one) : fused(difference, u, sums.last);
}

template <bool kOneSided, bool kExact, bool kMasked, typename Element>
void sum_row(const Element* a, const Element* b, int64_t columns, const Scale& scale, int64_t ahead_a, int64_t ahead_b,
             float totals[4]) {
  const Vector zero = broadcast(0.0f);
  Sums total{zero, zero, zero, zero};
  const auto add = [](Sums& to, const Sums& part) {
    to.mass = to.mass + part.mass;
    to.excess = to.excess + part.excess;
    to.mean = to.mean + part.mean;
    to.last = to.last + part.last;
  };
  int64_t i = 0;
  while (i + Vector::width <= columns) {
    const int64_t run = i + kRunColumns < columns ? i + kRunColumns : columns;
    Sums part{zero, zero, zero, zero};
    for (; i + Vector::width <= run; i += Vector::width) {
      prefetch(a + i + ahead_a);
      prefetch(b + i + ahead_b);
      accumulate<kOneSided, kExact, kMasked>(part, load(a + i), load(b + i), scale);
    }
    add(total, part);
  }
  if (i < columns) {  // -1e30 on both sides: weight 0, and no NaN from a difference of infinities
    const Vector last_a = load_some(a + i, columns - i, -1e30f), last_b = load_some(b + i, columns - i, -1e30f);
    accumulate<kOneSided, kExact, kMasked>(total, last_a, last_b, scale);
  }
  totals[0] = sum_of(total.mass);
  totals[1] = sum_of(total.excess);
  totals[2] = sum_of(total.mean);
  totals[3] = sum_of(total.last);
}

// lse(a) - lse(b): two exponentials an element, each side on its own scale. Also the mass of the clean logits by themselves.
template <typename Element>
float difference_of_levels(const Element* a, const Element* b, int64_t columns, const Survey& found, float* mass) {
  Vector clean = broadcast(0.0f), adv = broadcast(0.0f);
  for (int64_t i = 0; i < columns; i += Vector::width) {
    const int64_t left = columns - i < Vector::width ? columns - i : Vector::width;
    clean = clean + exponential(load_some(a + i, left, -MA_INFINITY) - broadcast(found.clean_maximum));
    adv = adv + exponential(load_some(b + i, left, -MA_INFINITY) - broadcast(found.adv_maximum));
  }
  *mass = sum_of(clean);
  return (found.clean_maximum - found.adv_maximum) + __builtin_logf(*mass / sum_of(adv));
}

template <typename Element>
bool all_masked(const Element* a, const Element* b, int64_t columns) {
  for (int64_t i = 0; i < columns; ++i) {
    const float clean = sum_of(load_some(a + i, 1, 0.0f)), adv = sum_of(load_some(b + i, 1, 0.0f));
    if (!(clean == -MA_INFINITY && adv == -MA_INFINITY)) return false;
  }
  return true;
}

template <bool kOneSided, typename Element>
RowRecord record_of_block(const Element* a, const Element* b, int64_t columns, int64_t ahead_a, int64_t ahead_b) {
  const Survey found = survey(a, b, columns);
  if (found.clean_maximum == -MA_INFINITY && all_masked(a, b, columns)) return empty_record();
  const auto common_scale = [&](float center) {
    const float adv = found.adv_maximum + center;
    return found.clean_maximum < adv ? adv : found.clean_maximum;
  };
  float sums[4], scale = common_scale(found.center);
  if (scale - found.clean_maximum <= kScaleRange) {
    const Scale scales = scale_of(scale, found.center);
    if (small_shift(found.center, found.spread)) {
      sum_row<kOneSided, false, false>(a, b, columns, scales, ahead_a, ahead_b, sums);
    } else {
      sum_row<kOneSided, true, false>(a, b, columns, scales, ahead_a, ahead_b, sums);
    }
    const RowRecord record = record_of_sums(found.clean_maximum, scale, found.center, sums, kOneSided);
    if (well_centred(record, sums)) return record;
  }
  float mass;
  const float center = difference_of_levels(a, b, columns, found, &mass);
  scale = common_scale(center);
  sum_row<kOneSided, true, true>(a, b, columns, scale_of(scale, center), 0, 0, sums);
  RowRecord record = record_of_sums(found.clean_maximum, scale, center, sums, kOneSided);
  record.mass = mass;  // the MLM loss survives adversarial logits that are not numbers
  return record;
}

template <typename Element>
RowRecord record_of_row(const RowTask& task, int64_t row) {
  const Element* a = static_cast<const Element*>(task.clean) + row * task.clean_stride;
  const Element* b = static_cast<const Element*>(task.adv) + row * task.adv_stride;
  const bool last = row + 1 >= task.rows;
  const int64_t ahead_a = last ? 0 : task.clean_stride, ahead_b = last ? 0 : task.adv_stride;
  RowRecord record = empty_record();
  for (int64_t begin = 0; begin < task.valid_columns; begin += kBlockColumns) {
    const int64_t left = task.valid_columns - begin;
    const int64_t columns = left < kBlockColumns ? left : kBlockColumns;
    const RowRecord block = task.one_sided ? record_of_block<true>(a + begin, b + begin, columns, ahead_a, ahead_b)
                                           : record_of_block<false>(a + begin, b + begin, columns, ahead_a, ahead_b);
    record = merge(record, block, task.one_sided);
  }
  float* out = task.records + row * task.record_width;
  __builtin_memcpy(out, &record, sizeof(record));
  if (task.record_width > kRecordFloats) {
    const int64_t column = task.labels[row] - task.first_column;
    const bool here = column >= 0 && column < task.valid_columns;
    out[kRecordFloats] = here ? sum_of(load_some(a + column, 1, 0.0f)) : 0.0f;
  }
  return record;
}

template <typename Element>
void row_statistics_of(const RowTask& task, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) record_of_row<Element>(task, row);
}

}  // namespace
