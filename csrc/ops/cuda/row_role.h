// Row role of the CUDA kernel: one row of logits by one team of threads. Passes of a row, each thread keeping to its own packs:
//   copy     16-byte asynchronous copies into shared memory, all in flight at once          (global memory is read here only)
//   survey   greatest logits, d at the clean one
//   sum      four sums around it -> the record of this part -> merged over the parts of the row (a cluster of blocks)
//   write    gradients, 16 bytes at a time                                                   (fused and gradient phases)
// A part that does not fit into shared memory is read from global memory (the second-level cache) instead of copied.
//
// `Team` provides rank, size (threads), part, parts (blocks of the row), and block-wide sum, greatest, greatest_with, merged,
// copy, wait, sync_row. tests/ops/emulation.cpp runs this header on the CPU, with threads and barriers for blocks and clusters.
#pragma once

#include "common/row_elements.h"
#include "common/row_statistics.h"
#include "ops/rows.h"

#ifdef __CUDACC__
#define MA_ROLE __device__ inline
#else
#define MA_ROLE inline
#endif

// 16 bytes of logits. Storage is float, or a 16-bit pattern with `widen` and `narrow` from the includer.
template <typename Element>
struct alignas(16) Pack {
  static constexpr int count = 16 / sizeof(Element);
  Element element[count];
};

template <typename Element>
struct Elements {  // what the role must know about an element type
  static constexpr bool exact = sizeof(Element) == 4;
};

// The columns of a row that one team handles, as packs; the last may be short.
template <typename Element>
struct RowPart {
  const Element* clean;
  const Element* adv;
  Pack<Element>* cache;  // clean packs, then adversarial ones; null = not copied
  int64_t columns;       // valid ones of this part
  int packs;
  bool aligned;
};

template <typename Element>
MA_ROLE Pack<Element> read_pack(const Element* row, int index, int64_t columns, bool aligned) {
  const int64_t first = static_cast<int64_t>(index) * Pack<Element>::count;
  if (aligned && first + Pack<Element>::count <= columns) return reinterpret_cast<const Pack<Element>*>(row)[index];
  Pack<Element> pack;
  for (int i = 0; i < Pack<Element>::count; ++i) {
    narrow(&pack.element[i], -MA_INFINITY);  // beyond the end: weight 0
    if (first + i < columns) pack.element[i] = row[first + i];
  }
  return pack;
}

template <typename Element>
MA_ROLE void write_pack(Element* row, int index, const Pack<Element>& pack, int64_t columns, bool aligned) {
  const int64_t first = static_cast<int64_t>(index) * Pack<Element>::count;
  if (aligned && first + Pack<Element>::count <= columns) {
    reinterpret_cast<Pack<Element>*>(row)[index] = pack;
    return;
  }
  for (int i = 0; i < Pack<Element>::count; ++i) {
    if (first + i < columns) row[first + i] = pack.element[i];
  }
}

// Pack `index` of both rows, from shared memory where the part lies there.
template <typename Element>
MA_ROLE void read_pair(const RowPart<Element>& part, int index, Pack<Element>* a, Pack<Element>* b) {
  if (part.cache != nullptr) {
    *a = part.cache[index];
    *b = part.cache[part.packs + index];
  } else {
    *a = read_pack(part.clean, index, part.columns, part.aligned);
    *b = read_pack(part.adv, index, part.columns, part.aligned);
  }
}

// Applies `function(a, b)` to every column of this thread.
template <typename Element, typename Team, typename Function>
MA_ROLE void each_column(const RowPart<Element>& part, const Team& team, const Function& function) {
  for (int index = team.rank; index < part.packs; index += team.size) {
    Pack<Element> a, b;
    read_pair(part, index, &a, &b);
#pragma unroll
    for (int i = 0; i < Pack<Element>::count; ++i) function(widen(a.element[i]), widen(b.element[i]));
  }
}

template <typename Element, typename Team>
MA_ROLE void copy_part(const RowPart<Element>& part, Team& team) {
  for (int index = team.rank; index < part.packs; index += team.size) {
    const bool whole = static_cast<int64_t>(index + 1) * Pack<Element>::count <= part.columns;
    Pack<Element>*a = part.cache + index, *b = part.cache + part.packs + index;
    if (part.aligned && whole) {
      team.copy(a, reinterpret_cast<const Pack<Element>*>(part.clean) + index);
      team.copy(b, reinterpret_cast<const Pack<Element>*>(part.adv) + index);
    } else {
      *a = read_pack(part.clean, index, part.columns, false);
      *b = read_pack(part.adv, index, part.columns, false);
    }
  }
  team.wait();  // each thread reads back its own packs only: no barrier
}

template <typename Element, typename Team>
MA_ROLE void sum_part(const RowPart<Element>& part, Team& team, const RowScale& scale, bool one_sided, float sums[4]) {
  constexpr bool exact = Elements<Element>::exact;
  float mass = 0.0f, excess = 0.0f, mean = 0.0f, last = 0.0f;
  each_column(part, team, [&](float a, float b) {
    const float u = centred<exact>(a, b, scale.center);
    const ColumnWeights w = weights_of<exact>(a, b, u, u, scale, one_sided);
    mass += w.clean;
    excess += w.difference;
    mean += w.clean * u;
    last += one_sided ? w.one_sided : w.difference * u;
  });
  sums[0] = team.sum(mass);
  sums[1] = team.sum(excess);
  sums[2] = team.sum(mean);
  sums[3] = team.sum(last);
}

// lse(a) - lse(b), each side on its own scale. Also the mass of the clean logits by themselves.
template <typename Element, typename Team>
MA_ROLE float difference_of_levels(const RowPart<Element>& part, Team& team, float clean_top, float adv_top, float* mass) {
  const float log_2_e = 1.44269504f;
  float clean_mass = 0.0f, adv_mass = 0.0f;
  each_column(part, team, [&](float a, float b) {
    clean_mass += power_of_2((a - clean_top) * log_2_e);
    adv_mass += power_of_2((b - adv_top) * log_2_e);
  });
  *mass = team.sum(clean_mass);
  return (clean_top - adv_top) + MA_MATH(logf)(*mass / team.sum(adv_mass));
}

// As record_of_block in ops/cpu/row_kernels.h. Columns that are -inf on both sides count nothing.
template <typename Element, typename Team>
MA_ROLE RowRecord record_of_part(const RowPart<Element>& part, Team& team, bool one_sided) {
  float clean_top = -MA_INFINITY, adv_top = -MA_INFINITY, at_top = 0.0f, unmasked = 0.0f;
  each_column(part, team, [&](float a, float b) {
    if (a > clean_top) {
      clean_top = a;
      at_top = a - b;
    }
    adv_top = b > adv_top ? b : adv_top;
    if (!(a == -MA_INFINITY && b == -MA_INFINITY)) unmasked = 1.0f;
  });
  float center = team.greatest_with(clean_top, at_top);
  clean_top = team.greatest(clean_top);
  adv_top = team.greatest(adv_top);
  if (team.greatest(unmasked) == 0.0f) return empty_record();
  float sums[4], mass = -1.0f, scale = larger_of(clean_top, adv_top + center);
  RowRecord record = empty_record();
  for (int attempt = scale - clean_top <= 20.0f ? 0 : 1; attempt < 2; ++attempt) {
    if (attempt == 1) {  // the centre lies far from the bulk: again around the difference of the log-sum-exps
      center = difference_of_levels(part, team, clean_top, adv_top, &mass);
      scale = larger_of(clean_top, adv_top + center);
    }
    sum_part(part, team, row_scale(scale, center), one_sided, sums);
    record = record_of_sums(clean_top, scale, center, sums, one_sided);
    if (well_centred(record, sums)) break;
  }
  if (mass >= 0.0f) record.mass = mass;  // the MLM loss survives adversarial logits that are not numbers
  if (!(record.divergence < MA_INFINITY)) record.divergence -= record.divergence;  // infinite counts as not a number, too
  return record;
}

struct RowWeights {
  float kl, mlm;
};

MA_ROLE RowWeights row_weights(const RowTask& task, int64_t row) {
  if (task.labels != nullptr && task.labels[row] == kIgnoredLabel) return RowWeights{0.0f, 0.0f};
  return RowWeights{task.kl_weight[row], task.mlm_weight == nullptr ? 0.0f : task.mlm_weight[row]};
}

// Gradients of the part's columns; `label` is the label's column within the part, or outside of it. A row of weight 0 is
// not looked at: 0 * NaN would be NaN.
template <typename Element, typename Team>
MA_ROLE void write_part(const RowTask& task, const RowPart<Element>& part, const Team& team, const RowRecord& record,
                        const RowWeights& weights, int64_t label, Element* clean_grad, Element* adv_grad) {
  constexpr bool exact = Elements<Element>::exact;
  constexpr int count = Pack<Element>::count;
  RowScale scale = row_scale(record.maximum, record.center);
  scale.adv_rest += record.log_ratio;
  if (!exact) scale.adv += scale.adv_rest;  // one subtraction less an element
  const float inverse_mass = 1.0f / record.mass;
  for (int index = team.rank; index < part.packs; index += team.size) {
    Pack<Element> a, b;
    read_pair(part, index, &a, &b);
    const int64_t first = static_cast<int64_t>(index) * count;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      RowGradient gradient{0.0f, 0.0f};
      const float clean = widen(a.element[i]);
      if (weights.kl != 0.0f) {
        gradient = gradient_of_column<exact>(clean, widen(b.element[i]), scale, inverse_mass, record.log_ratio, record.mean,
                                             record.divergence, weights.kl, weights.mlm, task.one_sided,
                                             task.detach_targets);
      } else if (weights.mlm != 0.0f) {
        gradient.clean = weights.mlm * inverse_mass * power_of_2((clean - record.maximum) * 1.44269504f);
      }
      if (first + i == label) gradient.clean -= weights.mlm;
      narrow(&a.element[i], gradient.clean);
      narrow(&b.element[i], gradient.adv);
    }
    if (clean_grad != nullptr) write_pack(clean_grad, index, a, part.columns, part.aligned);
    if (adv_grad != nullptr) write_pack(adv_grad, index, b, part.columns, part.aligned);
  }
}

template <typename Element, typename Team>
MA_ROLE void clear_padding(Element* grad, int64_t valid, int64_t columns, const Team& team) {
  if (grad == nullptr || team.part + 1 != team.parts) return;
  for (int64_t i = valid + team.rank; i < columns; i += team.size) narrow(&grad[i], 0.0f);
}

MA_FUNCTION bool aligned_16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// One row, all phases. `cache` has room for `cache_packs` packs of each side, or is null.
template <typename Element, typename Team>
MA_ROLE void row_role(const RowTask& task, int phase, int64_t row, Team& team, Pack<Element>* cache, int cache_packs) {
  constexpr int count = Pack<Element>::count;
  const int64_t packs = (task.valid_columns + count - 1) / count;
  const int64_t packs_a_part = (packs + team.parts - 1) / team.parts;
  const int64_t first_pack = packs_a_part * team.part < packs ? packs_a_part * team.part : packs;
  const int64_t last_pack = first_pack + packs_a_part < packs ? first_pack + packs_a_part : packs;
  const int64_t first = first_pack * count;
  const int64_t last = last_pack * count < task.valid_columns ? last_pack * count : task.valid_columns;
  RowPart<Element> part;
  part.clean = static_cast<const Element*>(task.clean) + row * task.clean_stride + first;
  part.adv = static_cast<const Element*>(task.adv) + row * task.adv_stride + first;
  part.columns = last > first ? last - first : 0;
  part.packs = static_cast<int>(last_pack - first_pack);
  part.cache = cache != nullptr && phase != 1 && part.packs <= cache_packs ? cache : nullptr;
  Element* clean_grad = static_cast<Element*>(task.clean_grad);
  Element* adv_grad = static_cast<Element*>(task.adv_grad);
  if (clean_grad != nullptr) clean_grad += row * task.clean_grad_stride;
  if (adv_grad != nullptr) adv_grad += row * task.adv_grad_stride;
  part.aligned = aligned_16(part.clean) && aligned_16(part.adv) && (clean_grad == nullptr || aligned_16(clean_grad + first)) &&
                 (adv_grad == nullptr || aligned_16(adv_grad + first));
  const int64_t label = task.labels != nullptr ? task.labels[row] - task.first_column : -1;
  const bool label_here = label >= 0 && label < task.valid_columns;
  float* stored = task.records + row * task.record_width;
  RowRecord record = empty_record();
  if (phase == 1) {
    record = RowRecord{stored[0], stored[1], stored[2], stored[3], stored[4], stored[5]};
  } else {
    if (part.cache != nullptr) copy_part(part, team);
    record = team.merged(record_of_part(part, team, task.one_sided), task.one_sided);
    if (team.rank == 0 && team.part == 0) {
      stored[0] = record.maximum, stored[1] = record.mass, stored[2] = record.center;
      stored[3] = record.log_ratio, stored[4] = record.mean, stored[5] = record.divergence;
      if (task.record_width > kRecordFloats) {
        const Element* row_start = static_cast<const Element*>(task.clean) + row * task.clean_stride;
        stored[kRecordFloats] = label_here ? widen(row_start[label]) : 0.0f;
      }
    }
    // In place, another part's first write may hit the label's logit: all must have read it.
    if (phase == 2) team.sync_row();
  }
  if (phase == 0) return;
  const RowWeights weights = row_weights(task, row);
  write_part(task, part, team, record, weights, label_here ? label - first : -1,
             clean_grad == nullptr ? clean_grad : clean_grad + first, adv_grad == nullptr ? adv_grad : adv_grad + first);
  clear_padding(clean_grad, task.valid_columns, task.columns, team);
  clear_padding(adv_grad, task.valid_columns, task.columns, team);
}
