// Row role on the GPU: a row of clean and of adversarial logits by a cluster of blocks (sm_90 on) or by one large block, each
// thread keeping its columns of both in registers. Read top-down:
//
//     load       16 bytes at a time, all in flight                                  global memory is read here only
//     scale      greatest logits of a warp; its weights' sums around them            -> Partial, in shared memory
//     merge      one warp of each block over the partials of all warps of the row    after barrier 1
//     sum        the divergence from weights normalised by the whole row; with detached targets the gradients in the same turn
//     report     the sums of all warps to the first block, which writes the record   after barrier 2
//     write      gradients that need the divergence itself, or whose record was given
//
// Rows that are not aligned to 16 bytes, or too wide for the registers of a cluster, take the same passes column by column
// from memory (`Streamed`). The MLM loss alone is a role of its own: one tensor, one exponential per column and pass.
#include <type_traits>

#include "ops/cuda/row_columns.cuh"
#include "ops/cuda/row_team.cuh"

namespace {

struct Label {
  int column;        // -1 = not in this shard of the vocabulary
  float clean, adv;  // its logits, read before anything is written over them
};

template <typename Element, RowPhase kPhase, bool kPair, bool kOneSided, bool kDetach, int kThreads, bool kHeld>
struct RowRole {
  using Task = RowTask;
  using Mine = Part<Element>;
  using Columns = std::conditional_t<kHeld, Held<Element, kThreads, kPair>, Streamed<Element, kThreads, kPair>>;
  static constexpr int threads = kThreads;
  static constexpr int blocks = kThreads == kLargeBlock ? 1 : kPair ? 2 : 4;  // allows 168 registers a thread, 128, 64
  static constexpr bool kWrites = kPhase != kStatistics;

  MA_DEVICE Label label_of(const Task& task, const Mine& part, int64_t row) {
    const int64_t column = label_column(task, row);
    Label label{column < 0 ? -1 : static_cast<int>(column), 0.0f, 0.0f};
    if (column < 0) return label;
    label.clean = widen(part.clean[label.column]);
    if (kPair) label.adv = widen(part.adv[label.column]);
    return label;
  }
  // Around its own greatest logits; a side without a finite one has weight 0.
  MA_DEVICE Partial partial_of(const Columns& columns, const Mine& part) {
    Partial mine{0.0f, 0.0f, 0.0f, 0.0f};
    columns.greatest(&mine.clean_top, &mine.adv_top);
    mine.clean_top = warp_greatest(mine.clean_top);
    mine.adv_top = kPair ? warp_greatest(mine.adv_top) : mine.clean_top;
    const float clean_scale = mine.clean_top == -MA_INFINITY ? 0.0f : mine.clean_top;
    const RowScale scale = row_scale(clean_scale, mine.adv_top == -MA_INFINITY ? 0.0f : mine.adv_top, 0.0f, 0.0f);
    columns.template each<false>(part, [&](float a, float b) {
      if (kPair) {
        const Column column = column_of<Element>(a, b, scale);
        mine.mass += column.clean, mine.excess += column.difference;
      } else {
        mine.mass += power_of_2((a - clean_scale) * kLog2E);
      }
      return Gradients{0.0f, 0.0f};
    });
    mine.mass = warp_sum(mine.mass), mine.excess = warp_sum(mine.excess);
    return mine;
  }
  MA_DEVICE RowFactors factors_of(const Task& task, int64_t row, float inverse_mass, const DivergenceSums& sums) {
    const bool ignored = task.labels != nullptr && task.labels[row] == kIgnoredLabel;
    const float kl = !kPair || ignored ? 0.0f : task.kl_weight[row];
    const float mlm = ignored || task.mlm_weight == nullptr ? 0.0f : task.mlm_weight[row];
    // A NaN row leaves nothing behind if its weight is 0.
    return RowFactors{kl == 0.0f ? 0.0f : kl * inverse_mass, mlm == 0.0f ? 0.0f : mlm * inverse_mass, kl != 0.0f, mlm != 0.0f,
                      sums.one_way * inverse_mass, sums.divergence * inverse_mass};
  }
  // Of one column, and in `sums` what it adds to the divergence.
  template <bool kSums>
  MA_DEVICE Gradients visit(float a, float b, const RowScale& scale, const RowFactors& factors, DivergenceSums* sums) {
    if (!kPair) {
      const float weight = factors.has_mlm ? power_of_2(fmaf(a - scale.clean, kLog2E, scale.exponent)) : 0.0f;
      return Gradients{factors.mlm * weight, 0.0f};
    }
    const Column column = column_of<Element>(a, b, scale);
    if (kSums) add_divergence<Element, kOneSided>(column, sums);
    return gradients_of<kOneSided, kDetach || kSums>(column, factors);
  }
  MA_DEVICE void write_label(const Task& task, const Mine& part, int64_t row, const Label& label, Gradients gradients) {
    if (part.clean_grad == nullptr || task.mlm_weight == nullptr || task.mlm_weight[row] == 0.0f) return;
    narrow(&part.clean_grad[label.column], gradients.clean - task.mlm_weight[row]);
  }
  MA_DEVICE void clear_padding(const Task& task, Element* grad) {
    if (grad == nullptr) return;
    const int columns = static_cast<int>(task.columns);
    for (int i = static_cast<int>(task.valid_columns + threadIdx.x); i < columns; i += kThreads) narrow(&grad[i], 0.0f);
  }
  // Another thread's loads never meet these writes: each writes only what it has read itself, and the label's logits
  // were read before.
  template <bool kSums>
  MA_DEVICE void pass(const Task& task, const Columns& columns, const Mine& part, int64_t row, const Label& label,
                      const RowScale& scale, const RowFactors& factors, DivergenceSums* sums) {
    constexpr bool writes = kWrites && (!kSums || kDetach);
    columns.template each<writes>(part, [&](float a, float b) { return visit<kSums>(a, b, scale, factors, sums); });
    if (!writes) return;
    if (label.column >= 0 && Columns::owns(part, label.column)) {
      DivergenceSums unused{0.0f, 0.0f};
      write_label(task, part, row, label, visit<kSums>(label.clean, label.adv, scale, factors, &unused));
    }
    if (!part.last) return;
    clear_padding(task, part.clean_grad);
    if (kPair) clear_padding(task, part.adv_grad);
  }
  MA_DEVICE void store(const Task& task, int64_t row, const Label& label, const Level& level, const DivergenceSums& sums) {
    float* to = task.records + row * task.record_width;
    const RowScale& scale = level.scale;
    const bool empty = scale.clean == -MA_INFINITY && scale.adv == -MA_INFINITY;
    const float one_way = (kOneSided ? sums.divergence : sums.one_way) * level.inverse_mass;
    const RowRecord record{scale.clean,     level.mass,                  scale.adv,
                           scale.log_ratio, one_way - scale.log_ratio, reported(sums.divergence * level.inverse_mass)};
    *reinterpret_cast<RowRecord*>(to) = empty ? empty_record() : record;
    if (task.record_width > kRecordFloats) to[kRecordFloats] = label.clean;
  }
  MA_DEVICE void run(const Task& task, int parts) {
    __shared__ Shared shared;
    const int block_of_row = static_cast<int>(blockIdx.x) % parts;
    const int64_t row = blockIdx.x / parts;
    const Mine part = part_of<Element>(task, row, block_of_row, parts);
    const Team<kThreads> team{block_of_row, parts, &shared};
    const Columns columns(part);
    const Label label = label_of(task, part, row);
    if (kPhase == kGradients) return from_record(task, columns, part, row, label);
    const Level level = team.merged(partial_of(columns, part));
    DivergenceSums sums{0.0f, 0.0f};
    if (kPair) {
      pass<true>(task, columns, part, row, label, level.scale, factors_of(task, row, level.inverse_mass, sums), &sums);
      sums = team.total(sums, kWrites && !kDetach);
      if (kOneSided) sums.one_way = sums.divergence;
    } else {
      sums.divergence = level.mass - level.mass;  // 0, or NaN like the row
      sums.one_way = sums.divergence;
    }
    if (threadIdx.x == 0 && block_of_row == 0) store(task, row, label, level, sums);
    if (kWrites && (!kPair || !kDetach)) {
      // The level is read again from shared memory: else the compiler keeps what the previous pass computed, and spills
      // it.
      const Level again = shared.level;
      pass<false>(task, columns, part, row, label, again.scale, factors_of(task, row, again.inverse_mass, sums), &sums);
    }
  }
  MA_DEVICE void from_record(const Task& task, const Columns& columns, const Mine& part, int64_t row, const Label& label) {
    const float* record = task.records + row * task.record_width;
    const Level level = level_of(record[0], record[1], record[2], record[3]);
    const float scale = __fdividef(1.0f, level.inverse_mass);
    DivergenceSums sums{record[5] * scale, (record[4] + record[3]) * scale};
    pass<false>(task, columns, part, row, label, level.scale, factors_of(task, row, level.inverse_mass, sums), &sums);
  }
};

// ---- launches ----

struct Plan {
  int parts, threads;
  bool held;
};

// As few blocks per row as hold it in registers: of 256 threads, or large ones with more columns per thread, if that is
// not enough (sm_80, whose blocks form no clusters; very large vocabularies). In the gradient phase the parts are
// independent.
Plan plan_of(const RowTask& task, RowPhase phase, bool has_clusters) {
  const int64_t size = task.element == kFloat32 ? 4 : 2, packs = task.valid_columns * size / 16;
  const auto aligned = [&](const void* pointer, int64_t stride) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride * size % 16 == 0;
  };
  const auto blocks_of = [&](int threads) {
    const int64_t held = threads * held_packs(threads);
    return packs > 0 ? (packs + held - 1) / held : 1;
  };
  if (!aligned(task.clean, task.clean_stride) || !aligned(task.adv, task.adv_stride) ||
      !aligned(task.clean_grad, task.clean_grad_stride) || !aligned(task.adv_grad, task.adv_grad_stride)) {
    return Plan{1, kBlock, false};
  }
  if (phase == kGradients) return Plan{static_cast<int>(blocks_of(kBlock)), kBlock, true};
  for (const int threads : {kBlock, kLargeBlock}) {
    for (int parts = 1; parts <= (has_clusters ? kMostParts : 1); parts *= 2) {
      if (blocks_of(threads) <= parts) return Plan{parts, threads, true};
    }
  }
  return Plan{1, kBlock, false};
}

template <typename Element, RowPhase kPhase, bool kPair, bool kOneSided, bool kDetach>
cudaError_t launch_form(const RowTask& task, const Plan& plan, void* stream) {
  const auto launch = [&](auto threads, auto held) {
    using Role = RowRole<Element, kPhase, kPair, kOneSided, kDetach, decltype(threads)::value, decltype(held)::value>;
    return launch_role<Role>(task, plan.parts, task.rows * plan.parts, kPhase == kGradients ? 1 : plan.parts, stream);
  };
  if (!plan.held) return launch(std::integral_constant<int, kBlock>{}, std::false_type{});
  if constexpr (kPhase != kGradients) {
    if (plan.threads == kLargeBlock) return launch(std::integral_constant<int, kLargeBlock>{}, std::true_type{});
  }
  return launch(std::integral_constant<int, kBlock>{}, std::true_type{});
}

template <typename Element, RowPhase kPhase>
cudaError_t launch_phase(const RowTask& task, bool detach, const Plan& plan, void* stream) {
  if (compares_with_itself(task)) return launch_form<Element, kPhase, false, false, true>(task, plan, stream);
  if constexpr (kPhase != kStatistics) {
    if (!detach && task.one_sided) return launch_form<Element, kPhase, true, true, false>(task, plan, stream);
    if (!detach) return launch_form<Element, kPhase, true, false, false>(task, plan, stream);
  }
  if (task.one_sided) return launch_form<Element, kPhase, true, true, true>(task, plan, stream);
  return launch_form<Element, kPhase, true, false, true>(task, plan, stream);
}

template <typename Element>
cudaError_t launch_element(const RowTask& task, RowPhase phase, void* stream) {
  cudaFuncAttributes code{};  // of the code this device runs: older intermediate code has no clusters on a newer device
  const cudaError_t error = cudaFuncGetAttributes(
      &code, alum_kernel<RowRole<Element, kStatistics, false, false, true, kBlock, false>>);
  if (error != cudaSuccess) return error;
  // Without a gradient to the clean logits the one-sided form is the detached one.
  const bool detach = phase == kStatistics || task.detach_targets || (task.one_sided && task.clean_grad == nullptr);
  const Plan plan = plan_of(task, phase, code.ptxVersion >= 90);
  if (phase == kStatistics) return launch_phase<Element, kStatistics>(task, detach, plan, stream);
  if (phase == kGradients) return launch_phase<Element, kGradients>(task, detach, plan, stream);
  return launch_phase<Element, kFused>(task, detach, plan, stream);
}

// ---- two small roles beside it ----

struct MergeTask {
  const float* records;  // [shards, rows, width]
  float* merged;         // [rows, width]
  int64_t shards, rows;
  int width;
  bool one_sided;
};

struct MergeRole {
  using Task = MergeTask;
  static constexpr int threads = 128, blocks = 1;
  MA_DEVICE void run(const Task& task, int) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
    if (row >= task.rows) return;
    const int64_t offset = row * task.width;
    merge_shards(task.records + offset, task.shards, task.rows * task.width, task.width, task.one_sided, task.merged + offset);
  }
};

struct ScaleTask {
  void* values;         // [count], multiplied in place
  const float* factor;  // 0-dim; 1 = nothing to do
  int64_t count;
  int element;
};

template <typename Element>
struct ScaleRole {
  using Task = ScaleTask;
  static constexpr int threads = 256, blocks = 4;
  MA_DEVICE void run(const Task& task, int) {
    const float factor = *task.factor;
    if (factor == 1.0f) return;
    Element* values = static_cast<Element*>(task.values);
    const int64_t step = static_cast<int64_t>(gridDim.x) * threads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; i < task.count; i += step) {
      narrow(&values[i], widen(values[i]) * factor);
    }
  }
};

}  // namespace

int launch_rows(const RowTask& task, RowPhase phase, void* stream) {
  if (task.rows == 0) return cudaSuccess;
  if (task.element == kBFloat16) return launch_element<BFloat16>(task, phase, stream);
  if (task.element == kFloat16) return launch_element<Float16>(task, phase, stream);
  return launch_element<float>(task, phase, stream);
}

int launch_merge(const float* records, float* merged, int64_t shards, int64_t rows, int width, bool one_sided, void* stream) {
  if (rows == 0) return cudaSuccess;
  const MergeTask task{records, merged, shards, rows, width, one_sided};
  return launch_role<MergeRole>(task, 1, (rows + MergeRole::threads - 1) / MergeRole::threads, 1, stream);
}

int launch_scale(void* values, int element, int64_t count, const float* factor, void* stream) {
  if (count == 0) return cudaSuccess;
  const ScaleTask task{values, factor, count, element};
  const int64_t blocks = looping_blocks((count + 1023) / 1024);
  if (element == kBFloat16) return launch_role<ScaleRole<BFloat16>>(task, 1, blocks, 1, stream);
  if (element == kFloat16) return launch_role<ScaleRole<Float16>>(task, 1, blocks, 1, stream);
  return launch_role<ScaleRole<float>>(task, 1, blocks, 1, stream);
}
