// Gradients of the row role on the CPU, for one instruction set; included after row_kernels.h.
//     to clean   kl_weight (p - q [+ p (u - E_P[u])]) + mlm_weight (p - one at the label)
//     to adv     kl_weight (q - p [- q (u - E_Q[u])])                              [..] without detached targets
// One-sided: to clean 0, or p (h - KL) without detached targets. A row of weight 0 is never multiplied but written as 0.
#pragma once

#include "ops/cpu/row_kernels.h"

namespace {

// What one row needs besides its logits.
struct GradientRow {
  Scale scale;
  Vector inverse_mass, log_ratio, mean, adv_mean, divergence, kl_weight, mlm_weight;
};

struct GradientPair {
  Vector clean, adv;
};

inline GradientRow gradient_row(const RowRecord& record, float kl_weight, float mlm_weight) {
  GradientRow row;
  row.scale = scale_of(record.maximum, record.center);
  row.scale.adv_rest = row.scale.adv_rest + broadcast(record.log_ratio);  // e^(b - adv - adv_rest) is now q / p's mass
  row.inverse_mass = broadcast(1.0f / record.mass);
  row.log_ratio = broadcast(record.log_ratio);
  row.mean = broadcast(record.mean);
  row.adv_mean = broadcast(record.mean - record.divergence);
  row.divergence = broadcast(record.divergence);
  row.kl_weight = broadcast(kl_weight);
  row.mlm_weight = broadcast(mlm_weight);
  return row;
}

template <bool kOneSided, bool kDetach, bool kMlm, bool kExact>
inline GradientPair gradients_of(Vector a, Vector b, const GradientRow& row) {
  const Vector zero = broadcast(0.0f);
  const Vector u = zero_where_nan(centred_difference<kExact>(a, b, row.scale.center));  // NaN: -inf on both sides, weight 0
  const Vector h = u + row.log_ratio;
  const Vector exponent = maximum((b - row.scale.adv) - row.scale.adv_rest, a - row.scale.clean);
  const Vector larger = exponential(exponent) * row.inverse_mass;  // max(p, q)
  const Decay behind = decay(negated_absolute(h));
  const Vector to_adv = with_sign_flipped_where_negative(larger * behind.minus_one, h);  // q - p
  const Vector p = times_where_negative(larger, behind.factor, h);
  GradientPair pair{zero, row.kl_weight * to_adv};
  if (kOneSided) {
    if (!kDetach) pair.clean = row.kl_weight * (p * (h - row.divergence));
  } else if (kDetach) {
    pair.clean = zero - pair.adv;
  } else {
    const Vector q = times_where_positive(larger, behind.factor, h);
    pair.clean = row.kl_weight * (p * (u - row.mean) - to_adv);
    pair.adv = row.kl_weight * (to_adv - q * (u - row.adv_mean));
  }
  if (kMlm) pair.clean = fused(row.mlm_weight, p, pair.clean);
  return pair;
}

// The MLM loss alone: adversarial logits are not looked at, they may be anything.
inline GradientPair mlm_gradients_of(Vector a, const GradientRow& row) {
  const Vector p = exponential(a - row.scale.clean) * row.inverse_mass;
  return GradientPair{row.mlm_weight * p, broadcast(0.0f)};
}

template <typename Element>
struct RowPointers {
  const Element* a;
  const Element* b;
  Element* clean_grad;  // null = not wanted
  Element* adv_grad;
};

template <typename Element>
inline int64_t misaligned_elements(const Element* p) {
  constexpr uintptr_t bytes = Vector::width * sizeof(Element);
  return static_cast<int64_t>((bytes - reinterpret_cast<uintptr_t>(p) % bytes) % bytes / sizeof(Element));
}

template <typename Element, typename Function>
void some_columns(const RowPointers<Element>& at, int64_t begin, int64_t count, const Function& function) {
  const Vector a = load_some(at.a + begin, count, 0.0f), b = load_some(at.b + begin, count, 0.0f);
  const GradientPair pair = function(a, b);
  if (at.clean_grad != nullptr) store_some(at.clean_grad + begin, pair.clean, count);
  if (at.adv_grad != nullptr) store_some(at.adv_grad + begin, pair.adv, count);
}

// Applies `function` to the row. New tensors are written past the caches (nothing reads them soon), where aligned.
template <typename Element, typename Function>
void each_column(const RowPointers<Element>& at, int64_t columns, const Function& function) {
  const Element* leader = at.clean_grad != nullptr ? at.clean_grad : at.adv_grad;
  const bool in_place = leader == at.a || leader == at.b;
  const int64_t head = misaligned_elements(leader);
  const bool together = at.clean_grad == nullptr || at.adv_grad == nullptr || misaligned_elements(at.adv_grad) == head;
  int64_t i = 0;
  if (!in_place && together && head < columns) {
    if (head > 0) some_columns(at, 0, head, function);
    for (i = head; i + Vector::width <= columns; i += Vector::width) {
      const GradientPair pair = function(load(at.a + i), load(at.b + i));
      if (at.clean_grad != nullptr) stream(at.clean_grad + i, pair.clean);
      if (at.adv_grad != nullptr) stream(at.adv_grad + i, pair.adv);
    }
  } else {
    for (; i + Vector::width <= columns; i += Vector::width) {
      const GradientPair pair = function(load(at.a + i), load(at.b + i));
      if (at.clean_grad != nullptr) store(at.clean_grad + i, pair.clean);
      if (at.adv_grad != nullptr) store(at.adv_grad + i, pair.adv);
    }
  }
  if (i < columns) some_columns(at, i, columns - i, function);
}

template <typename Element>
void clear(Element* to, int64_t count) {
  if (to != nullptr) __builtin_memset(to, 0, static_cast<size_t>(count) * sizeof(Element));
}

// The label's column once more, alone: its gradient before rounding to the element type is p - 1.
template <typename Element, typename Function>
void label_column(const RowPointers<Element>& at, const float logits[2], int64_t column, float mlm_weight,
                  const Function& function) {
  const Vector clean = function(broadcast(logits[0]), broadcast(logits[1])).clean - broadcast(mlm_weight);
  store_some(at.clean_grad + column, clean, 1);
}

template <typename Element>
void gradient_of_row(const RowTask& task, int64_t index, const RowRecord& record) {
  const int64_t columns = task.valid_columns, label = task.labels != nullptr ? task.labels[index] : 0;
  RowPointers<Element> at{static_cast<const Element*>(task.clean) + index * task.clean_stride,
                          static_cast<const Element*>(task.adv) + index * task.adv_stride, nullptr, nullptr};
  if (task.clean_grad != nullptr) at.clean_grad = static_cast<Element*>(task.clean_grad) + index * task.clean_grad_stride;
  if (task.adv_grad != nullptr) at.adv_grad = static_cast<Element*>(task.adv_grad) + index * task.adv_grad_stride;
  const bool ignored = task.labels != nullptr && label == kIgnoredLabel;
  const float kl_weight = ignored ? 0.0f : task.kl_weight[index];
  const float mlm_weight = ignored || task.mlm_weight == nullptr ? 0.0f : task.mlm_weight[index];
  if (at.clean_grad != nullptr) clear(at.clean_grad + columns, task.columns - columns);
  if (at.adv_grad != nullptr) clear(at.adv_grad + columns, task.columns - columns);
  if (columns == 0) return;
  if (kl_weight == 0.0f && mlm_weight == 0.0f) {
    clear(at.clean_grad, columns);
    clear(at.adv_grad, columns);
    return;
  }
  const GradientRow row = gradient_row(record, kl_weight, mlm_weight);
  const int64_t column = label - task.first_column;
  const bool has_label = mlm_weight != 0.0f && at.clean_grad != nullptr && column >= 0 && column < columns;
  float logits[2] = {0.0f, 0.0f};  // read before they may be overwritten
  if (has_label) {
    logits[0] = sum_of(load_some(at.a + column, 1, 0.0f));
    logits[1] = sum_of(load_some(at.b + column, 1, 0.0f));
  }
  const auto finish = [&](auto function) {
    each_column(at, columns, function);
    if (has_label) label_column(at, logits, column, mlm_weight, function);
  };
  if (kl_weight == 0.0f) return finish([&](Vector a, Vector) { return mlm_gradients_of(a, row); });
  // The square root of the divergence is the size of u where it matters.
  const bool exact = !small_shift(record.center, __builtin_sqrtf(record.divergence));
  if (task.one_sided) {
    if (task.detach_targets) finish([&](Vector a, Vector b) { return gradients_of<true, true, true, true>(a, b, row); });
    else finish([&](Vector a, Vector b) { return gradients_of<true, false, true, true>(a, b, row); });
  } else if (!task.detach_targets) {
    finish([&](Vector a, Vector b) { return gradients_of<false, false, true, true>(a, b, row); });
  } else if (exact) {
    finish([&](Vector a, Vector b) { return gradients_of<false, true, true, true>(a, b, row); });
  } else if (mlm_weight == 0.0f) {
    finish([&](Vector a, Vector b) { return gradients_of<false, true, false, false>(a, b, row); });
  } else {
    finish([&](Vector a, Vector b) { return gradients_of<false, true, true, false>(a, b, row); });
  }
}

template <typename Element>
void row_gradients_of(const RowTask& task, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    RowRecord record;
    __builtin_memcpy(&record, task.records + row * task.record_width, sizeof(record));
    gradient_of_row<Element>(task, row, record);
  }
  finish_streaming();
}

template <typename Element>
void row_fused_of(const RowTask& task, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) gradient_of_row<Element>(task, row, record_of_row<Element>(task, row));
  finish_streaming();
}

}  // namespace
