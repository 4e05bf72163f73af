// The row ops: checks the tensors, builds the RowTask, passes it to the device's kernel, returns tensors. The kernels
// are reached through ops/cpu/kernels.h and in ops/cuda/row_kernel.cu.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <tuple>

#include "common/checks.h"
#include "common/large_pages.h"
#include "common/row_statistics.h"
#include "ops/rows.h"

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct Shard {
  int64_t first_column, valid_columns;
  bool one_sided, detach_targets;
};

// The logits as the kernels read them: rows may be strided, columns not.
Tensor readable(const Tensor& logits) { return logits.stride(1) == 1 || logits.size(1) == 1 ? logits : logits.contiguous(); }

// Tensors of a call as the kernels read them; the task points into them. Without adversarial logits `adv` is `clean`.
struct Rows {
  Tensor clean, adv, labels, mlm_weight, kl_weight, records;
  RowTask task{};

  Rows(const Tensor& clean_any, const OptionalTensor& adv_any, const OptionalTensor& labels_any, const Shard& shard) {
    TORCH_CHECK_VALUE(clean_any.dim() == 2, "`clean` must have two dimensions, but has ", clean_any.dim(), " instead.");
    clean = readable(clean_any);
    adv = adv_any.has_value() ? readable(*adv_any) : clean;
    check_like(adv, clean, "adv");
    TORCH_CHECK_VALUE(adv.scalar_type() == clean.scalar_type(), "`adv` must be ", clean.scalar_type(), ", but is ",
                      adv.scalar_type(), " instead.");
    TORCH_CHECK_VALUE(0 <= shard.valid_columns && shard.valid_columns <= clean.size(1), "`valid_columns` must be in [0, ",
                      clean.size(1), "], but is ", shard.valid_columns, " instead.");
    task.clean = clean.const_data_ptr();
    task.adv = adv.const_data_ptr();
    task.clean_stride = clean.stride(0);
    task.adv_stride = adv.stride(0);
    task.rows = clean.size(0);
    task.columns = clean.size(1);
    task.valid_columns = shard.valid_columns;
    task.first_column = shard.first_column;
    task.element = element_of(clean, "clean");
    task.record_width = kRecordFloats + (labels_any.has_value() ? 1 : 0);
    task.one_sided = shard.one_sided;
    task.detach_targets = shard.detach_targets;
    if (labels_any.has_value()) labels = dense(*labels_any, {task.rows}, clean.device(), "labels", &task.labels);
  }

  // The records that this phase writes.
  Tensor new_records(RowPhase phase) {
    records = at::empty({task.rows, task.record_width}, clean.options().dtype(at::kFloat));
    task.records = records.mutable_data_ptr<float>();
    run(phase);
    return records;
  }

  // Leaves the gradients in two tensors, an empty one if not wanted, by given records, which are final, or by new ones,
  // which it returns (else an empty tensor).
  Tensor gradients(const OptionalTensor& given, const OptionalTensor& mlm, const Tensor& kl, const Tensor& to_clean,
                   const Tensor& to_adv) {
    kl_weight = dense(kl, {task.rows}, clean.device(), "kl_weight", &task.kl_weight);
    if (mlm.has_value() && task.labels != nullptr) {
      mlm_weight = dense(*mlm, {task.rows}, clean.device(), "mlm_weight", &task.mlm_weight);
    }
    const auto place = [](const Tensor& grad, void** pointer, int64_t* stride) {
      if (grad.dim() == 2) *pointer = grad.mutable_data_ptr(), *stride = grad.stride(0);
    };
    place(to_clean, &task.clean_grad, &task.clean_grad_stride);
    place(to_adv, &task.adv_grad, &task.adv_grad_stride);
    if (!given.has_value()) return new_records(kFused);
    const float* known;  // only read in this phase
    records = dense(*given, {task.rows, task.record_width}, clean.device(), "records", &known);
    task.records = const_cast<float*>(known);
    if (to_clean.dim() == 2 || to_adv.dim() == 2) run(kGradients);
    return at::empty({0}, clean.options().dtype(at::kFloat));
  }

  void run(RowPhase phase) const {
    if (task.rows == 0) return;
    if (!launched(clean.device(), [&](auto stream) { return launch_rows(task, phase, stream); })) run_rows_cpu(task, phase);
  }
};

Tensor row_statistics(const Tensor& clean, const OptionalTensor& adv, const OptionalTensor& labels, int64_t first_column,
                      int64_t valid_columns, bool one_sided) {
  return Rows(clean, adv, labels, {first_column, valid_columns, one_sided, true}).new_records(kStatistics);
}

std::tuple<Tensor, Tensor, Tensor> row_gradients(const Tensor& clean, const OptionalTensor& adv,
                                                 const OptionalTensor& records, const OptionalTensor& labels,
                                                 const OptionalTensor& mlm_weight, const Tensor& kl_weight,
                                                 int64_t first_column, int64_t valid_columns, bool one_sided,
                                                 bool detach_targets, bool need_clean, bool need_adv) {
  Rows rows(clean, adv, labels, {first_column, valid_columns, one_sided, detach_targets});
  const auto fresh = [&](bool wanted) {
    const auto options = rows.clean.options();
    return wanted ? prefer_large_pages(at::empty(rows.clean.sizes(), options)) : at::empty({0}, options);
  };
  const Tensor to_clean = fresh(need_clean), to_adv = fresh(need_adv && adv.has_value());
  return {rows.gradients(records, mlm_weight, kl_weight, to_clean, to_adv), to_clean, to_adv};
}

Tensor row_gradients_(const Tensor& clean, const OptionalTensor& adv, const OptionalTensor& records,
                      const OptionalTensor& labels, const OptionalTensor& mlm_weight, const Tensor& kl_weight,
                      int64_t first_column, int64_t valid_columns, bool one_sided, bool detach_targets, bool need_clean,
                      bool need_adv) {
  Rows rows(clean, adv, labels, {first_column, valid_columns, one_sided, detach_targets});
  need_adv = need_adv && adv.has_value();
  TORCH_CHECK_VALUE(!(need_clean && need_adv) || clean.const_data_ptr() != adv->const_data_ptr() || clean.numel() == 0,
                    "logits to be overwritten must be two tensors, but are one.");
  TORCH_CHECK_VALUE((!need_clean || clean.is_contiguous()) && (!need_adv || adv->is_contiguous()),
                    "logits to be overwritten must be contiguous.");
  const Tensor none = at::empty({0});
  return rows.gradients(records, mlm_weight, kl_weight, need_clean ? clean : none, need_adv ? *adv : none);
}

Tensor merge_statistics(const Tensor& records, bool one_sided) {
  TORCH_CHECK_VALUE(records.dim() == 3 && records.scalar_type() == at::kFloat && records.size(0) > 0 &&
                        (records.size(2) == kRecordFloats || records.size(2) == kRecordFloats + 1),
                    "`records` must be float32 [R, N, 6 or 7] with R > 0, but is ", records.scalar_type(), " ",
                    records.sizes(), " instead.");
  const Tensor all = records.contiguous();
  const int64_t shards = all.size(0), rows = all.size(1);
  const int width = static_cast<int>(all.size(2));
  Tensor merged = at::empty({rows, width}, all.options());
  const float* from = all.const_data_ptr<float>();
  float* to = merged.mutable_data_ptr<float>();
  const auto launch = [&](auto stream) { return launch_merge(from, to, shards, rows, width, one_sided, stream); };
  if (launched(all.device(), launch)) return merged;
  for (int64_t row = 0; row < rows; ++row) {
    merge_shards(from + row * width, shards, rows * width, width, one_sided, to + row * width);
  }
  return merged;
}

// On the CPU the factor is read here; on a GPU by the kernel, so that the host need not wait for it.
void scale_(const Tensor& values, const Tensor& factor) {
  TORCH_CHECK_VALUE(values.is_contiguous() && factor.dim() == 0 && factor.scalar_type() == at::kFloat &&
                        factor.device() == values.device(),
                    "`values` must be contiguous and `factor` one float32 number beside them, but they are ",
                    values.sizes(), " and ", factor.scalar_type(), " ", factor.sizes(), " instead.");
  const auto launch = [&](auto stream) {
    return launch_scale(values.mutable_data_ptr(), element_of(values, "values"), values.numel(),
                        factor.const_data_ptr<float>(), stream);
  };
  if (launched(values.device(), launch)) return;
  if (factor.item<float>() != 1.0f) Tensor(values).mul_(factor);
}

void register_all(torch::Library& m) {
  m.impl("row_statistics", row_statistics);
  m.impl("row_gradients", row_gradients);
  m.impl("row_gradients_", row_gradients_);
  m.impl("merge_statistics", merge_statistics);
  m.impl("scale_", scale_);
}

}  // namespace

TORCH_LIBRARY_IMPL(megatron_alum, CPU, m) { register_all(m); }
#ifdef MEGATRON_ALUM_CUDA
TORCH_LIBRARY_IMPL(megatron_alum, CUDA, m) { register_all(m); }
#endif
