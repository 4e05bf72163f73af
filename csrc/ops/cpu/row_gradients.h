// Gradients of the row role on the CPU, for one instruction set; included after row_kernels.h.
//     to clean   kl_weight (p - q [+ p (u - E_P[u])]) + mlm_weight (p - one at the label)
//     to adv     kl_weight (q - p [- q (u - E_Q[u])])                              [..] without detached targets
// One-sided: to clean 0, or p (h - KL) = p (u - E_P[u]) without detached targets. A row of weight 0 is set to 0. With e
// and f the clean weight and the difference of a column, Z their clean mass and T = sum f / Z
// (common/row_statistics.h):
//     p = e / Z          q - p = (f - T e) / (Z (1 + T))
#pragma once

#include "ops/cpu/row_kernels.h"

namespace {

enum class Form { kMlm, kDetached, kFull, kOneSidedDetached, kOneSidedFull };

// What one row needs besides its weights.
struct GradientRow {
  Scale scale;
  Vector from_difference, from_clean;  // factors of f and e in kl_weight (q - p)
  Vector kl_of_clean, mlm_of_clean;    // the weights of the losses, divided by the clean mass
  Vector mean, adv_mean;
};

struct GradientPair { Vector clean, adv; };

// The record around lse(a) - lse(b), up to rounding, if merging parts has left its level far away: the adversarial
// weights e^(b - n) would overflow.
inline RowRecord near_centre(RowRecord record) {
  if (record.log_ratio < 20.0f && record.log_ratio > -20.0f) return record;
  const float level = record.level + record.log_ratio;
  const float rest = (record.level - level) + record.log_ratio;
  record.mean += record.log_ratio - rest;
  record.level = level;
  record.log_ratio = rest;
  return record;
}

inline GradientRow gradient_row(const RowRecord& record, float kl_weight, float mlm_weight) {
  const float factor = kl_weight * (MA_MATH(expf)(-record.log_ratio) / record.mass);
  GradientRow row;
  row.scale = scale_of(record.maximum, record.level);
  row.from_difference = broadcast(factor);
  row.from_clean = broadcast(-factor * MA_MATH(expm1f)(record.log_ratio));
  row.kl_of_clean = broadcast(kl_weight / record.mass);
  row.mlm_of_clean = broadcast(mlm_weight / record.mass);
  row.mean = broadcast(record.mean);
  row.adv_mean = broadcast(record.mean - record.divergence);
  return row;
}

template <Form kForm>
[[gnu::always_inline]] inline GradientPair gradients_of(const Weights& w, const GradientRow& row) {
  if (kForm == Form::kMlm) return GradientPair{row.mlm_of_clean * w.clean, broadcast(0.0f)};
  const Vector adv = fused(row.from_difference, w.difference, row.from_clean * w.clean);  // kl_weight (q - p)
  if (kForm == Form::kDetached) return GradientPair{fused_less(row.mlm_of_clean, w.clean, adv), adv};
  if (kForm == Form::kOneSidedDetached) return GradientPair{row.mlm_of_clean * w.clean, adv};
  const Vector p = row.kl_of_clean * w.clean;  // kl_weight p
  const Distances u = distances_of(w);
  if (kForm == Form::kOneSidedFull) return GradientPair{fused(p, u.clean - row.mean, row.mlm_of_clean * w.clean), adv};
  return GradientPair{fused(p, u.clean - row.mean, fused_less(row.mlm_of_clean, w.clean, adv)),
                      fused_negated(p + adv, u.adv - row.adv_mean, adv)};
}

template <typename Element>
inline int64_t misaligned_elements(const Element* p) {
  constexpr uintptr_t bytes = Vector::width * sizeof(Element);
  return static_cast<int64_t>((bytes - reinterpret_cast<uintptr_t>(p) % bytes) % bytes / sizeof(Element));
}

// Where the weights of columns i .. i + count - 1 come from: computed again from the logits, or kept by the statistics
// of the same call.
template <Form kForm, bool kExact, typename Element>
struct FromLogits {
  const Element *a, *b;
  Scale scale;
  [[gnu::always_inline]] Weights operator()(int64_t i, int64_t count) const {
    const Vector clean = load_up_to(a + i, count, 0.0f);
    if (kForm != Form::kMlm) return weights_of<kExact, true>(clean, load_up_to(b + i, count, 0.0f), scale);
    const Vector none = broadcast(0.0f);
    return Weights{exponential<true>(clean - scale.clean), none, none, none};
  }
};

template <Form kForm, typename Element>
struct FromKept {
  const Element *a, *b;
  Scale scale;
  KeptWeights kept;
  [[gnu::always_inline]] Weights operator()(int64_t i, int64_t count) const {
    const Vector none = broadcast(0.0f), clean = load(kept.clean + i);
    if (kForm == Form::kMlm) return Weights{clean, none, none, none};
    const Vector difference = load(kept.difference + i);
    if (kForm == Form::kDetached || kForm == Form::kOneSidedDetached) return Weights{clean, difference, none, none};
    const Vector u = centred_difference<true>(load_up_to(a + i, count, 0.0f), load_up_to(b + i, count, 0.0f), scale);
    return Weights{clean, difference, zero_where_nan(u), none};
  }
};

// Writes a row's gradients. New tensors are written past the caches (nothing reads them soon), where aligned.
template <Form kForm, typename Element, typename Source>
void write_row(const RowPointers<Element> at, int64_t columns, const GradientRow row, const Source source) {
  const Element* leader = at.clean_grad != nullptr ? at.clean_grad : at.adv_grad;
  const bool in_place = leader == at.clean || leader == at.adv;
  const int64_t head = misaligned_elements(leader);
  const bool together = at.clean_grad == nullptr || at.adv_grad == nullptr || misaligned_elements(at.adv_grad) == head;
  const auto some = [&](int64_t i, int64_t count) {
    const GradientPair pair = gradients_of<kForm>(source(i, count), row);
    if (at.clean_grad != nullptr) store_some(at.clean_grad + i, pair.clean, count);
    if (at.adv_grad != nullptr) store_some(at.adv_grad + i, pair.adv, count);
  };
  int64_t i = 0;
  const auto whole_vectors = [&](auto write) {
    for (; i + Vector::width <= columns; i += Vector::width) {
      const GradientPair pair = gradients_of<kForm>(source(i, Vector::width), row);
      if (at.clean_grad != nullptr) write(at.clean_grad + i, pair.clean);
      if (at.adv_grad != nullptr) write(at.adv_grad + i, pair.adv);
    }
  };
  if (!in_place && together && head < columns) {
    if (head > 0) some(0, head);
    i = head;
    whole_vectors([](Element* to, Vector x) { stream(to, x); });
  } else {
    whole_vectors([](Element* to, Vector x) { store(to, x); });
  }
  if (i < columns) some(i, columns - i);
}

template <typename Element>
void clear(Element* row, int64_t begin, int64_t end) {
  if (row != nullptr) __builtin_memset(row + begin, 0, static_cast<size_t>(end - begin) * sizeof(Element));
}

// The label's gradient before rounding to the element type is p - 1: its column is computed once more, from its logits
// before they were overwritten.
struct Label {
  int64_t column;  // -1 = none here
  float clean, adv, weight;
};

template <typename Element>
Label label_of(const RowTask& task, int64_t index, const RowPointers<Element>& at, float mlm_weight) {
  const int64_t column = mlm_weight == 0.0f || at.clean_grad == nullptr ? -1 : label_column(task, index);
  if (column < 0) return Label{-1, 0.0f, 0.0f, 0.0f};
  return Label{column, sum_of(load_some(at.clean + column, 1, 0.0f)), sum_of(load_some(at.adv + column, 1, 0.0f)), mlm_weight};
}

template <Form kForm, typename Element>
void gradients_of_form(const RowPointers<Element>& at, int64_t columns, const RowRecord& record, const GradientRow& row,
                       const Label& label, const KeptWeights& kept) {
  // The square root of the divergence is the size of u where it matters.
  const bool exact =
      !small_shift(first_of(row.scale.center), __builtin_sqrtf(record.divergence)) || first_of(row.scale.center_rest) != 0.0f;
  if (kept.clean != nullptr) {
    write_row<kForm>(at, columns, row, FromKept<kForm, Element>{at.clean, at.adv, row.scale, kept});
  } else if (exact && kForm != Form::kMlm) {
    write_row<kForm>(at, columns, row, FromLogits<kForm, true, Element>{at.clean, at.adv, row.scale});
  } else {
    write_row<kForm>(at, columns, row, FromLogits<kForm, false, Element>{at.clean, at.adv, row.scale});
  }
  if (label.column < 0) return;
  const FromLogits<kForm, true, float> alone{&label.clean, &label.adv, row.scale};
  store_some(at.clean_grad + label.column, gradients_of<kForm>(alone(0, 1), row).clean - broadcast(label.weight), 1);
}

// `kept`: the weights that the statistics of this row have left, or null.
template <typename Element>
void gradient_of_row(const RowTask& task, int64_t index, const RowRecord& merged, const KeptWeights& kept) {
  const RowRecord record = near_centre(merged);
  const RowPointers<Element> at = row_pointers<Element>(task, index);
  const bool ignored = task.labels != nullptr && task.labels[index] == kIgnoredLabel;
  const float kl_weight = ignored || compares_with_itself(task) ? 0.0f : task.kl_weight[index];
  const float mlm_weight = ignored || task.mlm_weight == nullptr ? 0.0f : task.mlm_weight[index];
  const int64_t columns = kl_weight == 0.0f && mlm_weight == 0.0f ? 0 : task.valid_columns;
  clear(at.clean_grad, columns, task.columns);
  clear(at.adv_grad, columns, task.columns);
  if (columns == 0) return;
  const GradientRow row = gradient_row(record, kl_weight, mlm_weight);
  const Label label = label_of(task, index, at, mlm_weight);
  const bool detached = task.detach_targets || (task.one_sided && at.clean_grad == nullptr);
  if (kl_weight == 0.0f) return gradients_of_form<Form::kMlm>(at, columns, record, row, label, kept);
  if (task.one_sided && detached) return gradients_of_form<Form::kOneSidedDetached>(at, columns, record, row, label, kept);
  if (task.one_sided) return gradients_of_form<Form::kOneSidedFull>(at, columns, record, row, label, kept);
  if (detached) return gradients_of_form<Form::kDetached>(at, columns, record, row, label, kept);
  gradients_of_form<Form::kFull>(at, columns, record, row, label, kept);
}

template <typename Element>
void rows_of(const RowTask& task, RowPhase phase, int64_t begin, int64_t end, float* scratch) {
  const bool keeps = scratch != nullptr;
  const KeptWeights kept{scratch, keeps ? scratch + row_scratch_floats(task.valid_columns) / 2 : nullptr};
  for (int64_t row = begin; row < end; ++row) {
    RowRecord record;
    if (phase == kGradients) __builtin_memcpy(&record, task.records + row * task.record_width, sizeof(record));
    else record = record_of_row<Element>(task, row, kept);
    if (phase != kStatistics) gradient_of_row<Element>(task, row, record, kept);
  }
  finish_streaming();
}

}  // namespace
