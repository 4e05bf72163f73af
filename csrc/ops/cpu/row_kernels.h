// Statistics of the row role on the CPU, for one instruction set: included after a vector_*.h header, compiled once for each
// of them. Letters and formulas: common/row_statistics.h and megatron_alum/reference/rows.py.
//
// A row of clean and of adversarial logits stays in the second-level cache (2 x 122 KB in float32 at V = 30592) while it is
//   surveyed   maximum of the clean logits and d near it: the scale m and the centre c, hence the level n = m - c
//   summed     four sums, one exp and one expm1 per element -> the record; meanwhile the next row is prefetched. The gradients
//              of the same call (kFused) reuse these weights instead of computing them again.
// The centre of the survey serves almost always; where it lies far from the bulk of the row, both log-sum-exps are
// formed and the row is summed again around their difference, which is always a good centre. The same happens when
// logits beyond 1e18 or infinite ones made the sums NaN: the second time they count as in float64.
//
// Adversarial logits that are the clean ones (same rows) request the MLM loss alone: half the reads, one exp per
// element.
#pragma once

#include "common/row_statistics.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/row_weights.h"
#include "ops/rows.h"

namespace {

constexpr int64_t kRunColumns = 1024;     // summed separately first: limits the rounding of long sums

struct Survey {
  float maximum, center;
  float spread;  // mean |d - center| over the columns the centre was taken from
};

struct Sums {
  Vector mass = broadcast(0.0f), excess = mass, mean = mass, last = mass;
  void operator+=(const Sums& part) {
    mass += part.mass;
    excess += part.excess;
    mean += part.mean;
    last += part.last;
  }
};

// Where the weights of a row are left for its gradients; null if they are not needed.
struct KeptWeights {
  float *clean, *difference;
};

// The centre: the mean of d over the lanes' own clean maxima, weighted by them; written as an offset from the greatest,
// so that a common shift leaves no rounding error. It is nearer to E_P[d] than any single column.
inline Survey survey_of_lanes(const Vector top[2], const Vector at_top[2]) {
  constexpr int lanes = 2 * Vector::width;
  float clean[lanes], center[lanes];
  for (int half = 0; half < 2; ++half) {
    store(clean + half * Vector::width, top[half]);
    store(center + half * Vector::width, at_top[half]);
  }
  Survey found{-MA_INFINITY, 0.0f, 0.0f};
  for (int j = 0; j < lanes; ++j) {
    if (clean[j] > found.maximum) found.maximum = clean[j], found.center = center[j];
  }
  float weight = 0.0f, moved = 0.0f, spread = 0.0f;
  for (int half = 0; half < 2; ++half) {
    const Vector share = exponential<true>(top[half] - broadcast(found.maximum));
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

// Calls `look(i, count, lane)` for every vector of columns, lanes 0 and 1 in turn: their accumulations are independent.
template <typename Look>
void each_vector(int64_t columns, const Look& look) {
  constexpr int64_t width = Vector::width;
  int64_t i = 0;
  for (; i + 2 * width <= columns; i += 2 * width) look(i, width, 0), look(i + width, width, 1);
  for (; i < columns; i += width) look(i, columns - i < width ? columns - i : width, 0);
}

template <typename Element>
inline Vector load_up_to(const Element* p, int64_t count, float fill) {
  return count == Vector::width ? load(p) : load_some(p, count, fill);
}

template <typename Element>
Survey survey(const Element* a, const Element* b, int64_t columns) {
  const Vector lowest = broadcast(-MA_INFINITY);
  Vector top[2] = {lowest, lowest}, at_top[2] = {broadcast(0.0f), broadcast(0.0f)};
  each_vector(columns, [&](int64_t i, int64_t count, int lane) {
    const Vector clean = load_up_to(a + i, count, -MA_INFINITY), adv = load_up_to(b + i, count, -MA_INFINITY);
    at_top[lane] = where_greater(clean, top[lane], clean - adv, at_top[lane]);
    top[lane] = maximum(clean, top[lane]);
  });
  return survey_of_lanes(top, at_top);
}

// clean weight times (expm1(-u) + u), never negative; `moved` is clean weight times u.
inline Vector one_sided_terms(const Weights& w, Vector moved) {
  const Vector magnitude = broadcast(0.0f) - negated_absolute(w.u);
  return where_greater(magnitude, broadcast(0.34f), moved + w.difference, w.clean * w.remainder);
}

// kAny: for logits of any size; without it they make the sums not a number. Its weights are multiplied by `factor`.
template <bool kOneSided, bool kExact, bool kAny>
inline Weights accumulate(Sums& sums, Vector a, Vector b, const Scale& scale, Vector factor) {
  Weights w = weights_of<kExact, kAny>(a, b, scale);
  if (kAny) w.clean = w.clean * factor, w.difference = w.difference * factor;
  sums.mass += w.clean;
  sums.excess += w.difference;
  if (kAny) {
    const Vector moved = weighed(w.clean, w.u);
    sums.mean = sums.mean + moved;
    sums.last = sums.last + (kOneSided ? one_sided_terms(w, moved) : weighed(w.difference, w.u));
    return w;
  }
  sums.mean = fused(w.clean, w.u, sums.mean);
  sums.last = kOneSided ? sums.last + one_sided_terms(w, w.clean * w.u) : fused(w.difference, w.u, sums.last);
  return w;
}

// Calls `add(total, i, count)` for every vector of columns (count < width only for the last one): runs are summed
// separately, then added up.
template <typename Total, typename Add>
Total summed(int64_t columns, const Add& add) {
  Total total{};
  int64_t i = 0;
  while (i + Vector::width <= columns) {
    const int64_t end = i + kRunColumns < columns ? i + kRunColumns : columns;
    Total part{};
    for (; i + Vector::width <= end; i += Vector::width) add(part, i, Vector::width);
    total += part;
  }
  if (i < columns) add(total, i, columns - i);
  return total;
}

template <bool kOneSided, bool kExact, bool kAny, typename Element>
void sum_row(const Element* a, const Element* b, int64_t columns, const Scale& scale, const KeptWeights& kept,
             int64_t ahead_a, int64_t ahead_b, float totals[4], float factor = 1.0f) {
  // Columns after the last weigh nothing, with a u about 0. Of scales from which 200 is nothing to take away they are masked.
  const bool takes = __builtin_fabsf(first_of(scale.clean)) < 1e6f && __builtin_fabsf(first_of(scale.adv)) < 1e6f;
  const float beyond_a = takes ? first_of(scale.clean) - 200.0f : -MA_INFINITY;
  const float beyond_b = takes ? first_of(scale.adv) - 200.0f : -MA_INFINITY;
  const Sums total = summed<Sums>(columns, [&](Sums& sums, int64_t i, int64_t count) {
    prefetch(a + i + ahead_a);
    prefetch(b + i + ahead_b);
    const Vector clean = load_up_to(a + i, count, beyond_a), adv = load_up_to(b + i, count, beyond_b);
    const Weights w = accumulate<kOneSided, kExact, kAny>(sums, clean, adv, scale, broadcast(factor));
    if (kept.clean == nullptr) return;
    store(kept.clean + i, w.clean);
    store(kept.difference + i, w.difference);
  });
  totals[0] = sum_of(total.mass);
  totals[1] = sum_of(total.excess);
  totals[2] = sum_of(total.mean);
  totals[3] = sum_of(total.last);
}

template <typename Element>
float maximum_of(const Element* a, int64_t columns) {
  Vector top[2] = {broadcast(-MA_INFINITY), broadcast(-MA_INFINITY)};
  each_vector(columns, [&](int64_t i, int64_t count, int lane) {
    top[lane] = maximum(load_up_to(a + i, count, -MA_INFINITY), top[lane]);
  });
  return greatest_of(maximum(top[0], top[1]));
}

// log-sum-exp of b less that of a on its own scale: the best possible level. Two exponentials per element. Also the
// mass of the clean logits alone.
template <typename Element>
float level_of(const Element* a, const Element* b, int64_t columns, float maximum_of_a, float* mass) {
  const float maximum_of_b = maximum_of(b, columns);
  const auto mass_of = [&](const Element* row, float top) {
    return sum_of(summed<Vector>(columns, [&](Vector& part, int64_t i, int64_t count) {
      part += exponential<true>(load_up_to(row + i, count, -MA_INFINITY) - broadcast(top));
    }));
  };
  *mass = mass_of(a, maximum_of_a);
  return maximum_of_b + __builtin_logf(mass_of(b, maximum_of_b) / *mass);
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
RowRecord record_of_block(const Element* a, const Element* b, int64_t columns, const KeptWeights& kept, int64_t ahead_a,
                          int64_t ahead_b) {
  const Survey found = survey(a, b, columns);
  if (found.maximum == -MA_INFINITY && all_masked(a, b, columns)) return empty_record();
  float sums[4], mass;
  float level = found.maximum - found.center;
  const Scale scale = scale_of(found.maximum, level);
  if (small_shift(found.center, found.spread) && first_of(scale.center_rest) == 0.0f) {
    sum_row<kOneSided, false, false>(a, b, columns, scale, kept, ahead_a, ahead_b, sums);
  } else {
    sum_row<kOneSided, true, false>(a, b, columns, scale, kept, ahead_a, ahead_b, sums);
  }
  RowRecord record = record_of_sums(found.maximum, level, sums, kOneSided);
  if (well_centred(record, sums)) return record;
  level = level_of(a, b, columns, found.maximum, &mass);
  const Scale best = scale_of(found.maximum, level);
  sum_row<kOneSided, true, true>(a, b, columns, best, kept, 0, 0, sums);
  record = record_of_sums(found.maximum, level, sums, kOneSided);
  record.mass = mass;  // the MLM loss survives adversarial logits that are not numbers
  if (record.divergence - record.divergence == 0.0f) return record;
  // The sums may have left the range of float32 where the divergence does not: once more with weights that sum to 1.
  sum_row<kOneSided, true, true>(a, b, columns, best, KeptWeights{nullptr, nullptr}, 0, 0, sums, 1.0f / mass);
  const RowRecord of_normal = record_of_sums(found.maximum, level, sums, kOneSided);
  record.mean = of_normal.mean, record.divergence = of_normal.divergence;
  return record;
}

// For a row that is compared with itself: the clean weights alone.
template <typename Element>
RowRecord record_of_clean(const Element* a, int64_t columns, const KeptWeights& kept, int64_t ahead) {
  RowRecord record = empty_record();
  const float top = maximum_of(a, columns);
  if (top == -MA_INFINITY && all_masked(a, a, columns)) return record;
  const Vector mass = summed<Vector>(columns, [&](Vector& total, int64_t i, int64_t count) {
    prefetch(a + i + ahead);
    const Vector weight = exponential<true>(load_up_to(a + i, count, -MA_INFINITY) - broadcast(top));
    if (kept.clean != nullptr) store(kept.clean + i, weight);
    total += weight;
  });
  record.maximum = record.level = top;
  record.mass = sum_of(mass);
  record.divergence = record.mass - record.mass;  // 0, or NaN like the row
  return record;
}

// The record of one row, also written to the task's. `kept` must hold the row; it is filled when the row is one block.
// Not inlined: beside the caller's variables the loops would have too few registers.
template <typename Element>
[[gnu::noinline]] RowRecord record_of_row(const RowTask& task, int64_t row, const KeptWeights& kept) {
  const RowPointers<Element> at = row_pointers<Element>(task, row);
  const bool last = row + 1 >= task.rows;
  const int64_t ahead_a = last ? 0 : task.clean_stride, ahead_b = last ? 0 : task.adv_stride;
  RowRecord record = empty_record();
  for (int64_t begin = 0; begin < task.valid_columns; begin += kBlockColumns) {
    const int64_t left = task.valid_columns - begin, columns = left < kBlockColumns ? left : kBlockColumns;
    const RowRecord block =
        compares_with_itself(task) ? record_of_clean(at.clean + begin, columns, kept, ahead_a)
        : task.one_sided ? record_of_block<true>(at.clean + begin, at.adv + begin, columns, kept, ahead_a, ahead_b)
                         : record_of_block<false>(at.clean + begin, at.adv + begin, columns, kept, ahead_a, ahead_b);
    record = merge(record, block, task.one_sided);
  }
  float* out = task.records + row * task.record_width;
  __builtin_memcpy(out, &record, sizeof(record));
  if (task.record_width > kRecordFloats) {
    const int64_t column = label_column(task, row);
    out[kRecordFloats] = column >= 0 ? sum_of(load_some(at.clean + column, 1, 0.0f)) : 0.0f;
  }
  return record;
}

}  // namespace
