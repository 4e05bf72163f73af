// Torch glue of the row role: checks the tensors, builds the RowTask, hands it to the device, returns tensors.
#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <tuple>

#include "common/checks.h"
#include "common/large_pages.h"
#include "common/row_statistics.h"
#include "ops/run.h"

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct Shard {
  int64_t first_column, valid_columns;
  bool one_sided, detach_targets;
};

// The logits as the kernels read them: rows may be strided, columns not.
Tensor readable(const Tensor& logits) { return logits.stride(1) == 1 || logits.size(1) == 1 ? logits : logits.contiguous(); }

RowTask task_of(const Tensor& clean, const Tensor& adv, const OptionalTensor& labels, const Shard& shard) {
  TORCH_CHECK_VALUE(clean.dim() == 2, "`clean` must have two dimensions, but has ", clean.dim(), " instead.");
  check_like(adv, clean, "adv");
  TORCH_CHECK_VALUE(adv.scalar_type() == clean.scalar_type(), "`adv` must be ", clean.scalar_type(), ", but is ",
                    adv.scalar_type(), " instead.");
  TORCH_CHECK_VALUE(0 <= shard.valid_columns && shard.valid_columns <= clean.size(1), "`valid_columns` must be in [0, ",
                    clean.size(1), "], but is ", shard.valid_columns, " instead.");
  RowTask task{};
  task.clean = clean.const_data_ptr();
  task.adv = adv.const_data_ptr();
  task.clean_stride = clean.stride(0);
  task.adv_stride = adv.stride(0);
  task.rows = clean.size(0);
  task.columns = clean.size(1);
  task.valid_columns = shard.valid_columns;
  task.first_column = shard.first_column;
  task.element = element_of(clean, "clean");
  task.record_width = kRecordFloats + (labels.has_value() ? 1 : 0);
  task.one_sided = shard.one_sided;
  task.detach_targets = shard.detach_targets;
  if (labels.has_value()) {
    check_vector(*labels, at::kLong, task.rows, clean.device(), "labels");
    TORCH_CHECK_VALUE(labels->is_contiguous(), "`labels` must be contiguous.");
    task.labels = labels->const_data_ptr<int64_t>();
  }
  return task;
}

void run(const RowTask& task, RowPhase phase, const Tensor& clean) {
  if (task.rows == 0) return;
#ifdef MEGATRON_ALUM_CUDA
  const c10::OptionalDeviceGuard guard(clean.device());
  if (clean.is_cuda()) return run_cuda(task, phase, TokenTask{});
#endif
  TORCH_CHECK_VALUE(clean.is_cpu(), "the logits must be on a device with a kernel, but are on ", clean.device(), ".");
  run_rows_cpu(task, phase);
}

Tensor new_records(RowTask& task, const Tensor& clean) {
  Tensor records = at::empty({task.rows, task.record_width}, clean.options().dtype(at::kFloat));
  task.records = records.mutable_data_ptr<float>();
  return records;
}

Tensor row_statistics(const Tensor& clean_any, const Tensor& adv_any, const OptionalTensor& labels, int64_t first_column,
                      int64_t valid_columns, bool one_sided) {
  const Tensor clean = readable(clean_any), adv = readable(adv_any);
  RowTask task = task_of(clean, adv, labels, {first_column, valid_columns, one_sided, true});
  const Tensor records = new_records(task, clean);
  run(task, kStatistics, clean);
  return records;
}

// The row weights as the kernels read them; `storage` keeps them alive.
struct Weights {
  Tensor mlm, kl;
  Weights(RowTask& task, const OptionalTensor& mlm_weight, const Tensor& kl_weight, const at::Device& device) {
    check_vector(kl_weight, at::kFloat, task.rows, device, "kl_weight");
    kl = kl_weight.contiguous();
    task.kl_weight = kl.const_data_ptr<float>();
    if (mlm_weight.has_value() && task.labels != nullptr) {
      check_vector(*mlm_weight, at::kFloat, task.rows, device, "mlm_weight");
      mlm = mlm_weight->contiguous();
      task.mlm_weight = mlm.const_data_ptr<float>();
    }
  }
};

void check_records(const Tensor& records, const RowTask& task, const at::Device& device) {
  TORCH_CHECK_VALUE(records.dim() == 2 && records.size(0) == task.rows && records.size(1) == task.record_width &&
                        records.scalar_type() == at::kFloat && records.is_contiguous() && records.device() == device,
                    "`records` must be contiguous float32 [", task.rows, ", ", task.record_width, "] on ", device,
                    ", but is ", records.scalar_type(), " ", records.sizes(), " on ", records.device(), " instead.");
}

struct Needed {
  bool clean, adv;
};

void write_over_logits(RowTask& task, const Tensor& clean, const Tensor& adv, Needed needed) {
  TORCH_CHECK_VALUE(!(needed.clean && needed.adv) || clean.const_data_ptr() != adv.const_data_ptr() || clean.numel() == 0,
                    "logits to be overwritten must be two tensors, but are one.");
  const auto place = [](bool wanted, const Tensor& logits, void** pointer, int64_t* stride) {
    if (!wanted) return;
    TORCH_CHECK_VALUE(logits.is_contiguous(), "logits to be overwritten must be contiguous.");
    *pointer = logits.mutable_data_ptr();
    *stride = logits.stride(0);
  };
  place(needed.clean, clean, &task.clean_grad, &task.clean_grad_stride);
  place(needed.adv, adv, &task.adv_grad, &task.adv_grad_stride);
}

// New gradients, empty where none is needed.
std::tuple<Tensor, Tensor> new_gradients(RowTask& task, const Tensor& clean, Needed needed) {
  const auto gradient = [&](bool wanted, void** pointer, int64_t* stride) {
    if (!wanted) return at::empty({0}, clean.options());
    Tensor grad = at::empty(clean.sizes(), clean.options());
    prefer_large_pages(grad);
    *pointer = grad.mutable_data_ptr();
    *stride = task.columns;
    return grad;
  };
  Tensor clean_grad = gradient(needed.clean, &task.clean_grad, &task.clean_grad_stride);
  return {clean_grad, gradient(needed.adv, &task.adv_grad, &task.adv_grad_stride)};
}

std::tuple<Tensor, Tensor> row_gradients(const Tensor& clean_any, const Tensor& adv_any, const Tensor& records,
                                         const OptionalTensor& labels, const OptionalTensor& mlm_weight,
                                         const Tensor& kl_weight, int64_t first_column, int64_t valid_columns,
                                         bool one_sided, bool detach_targets, bool need_clean, bool need_adv) {
  const Tensor clean = readable(clean_any), adv = readable(adv_any);
  RowTask task = task_of(clean, adv, labels, {first_column, valid_columns, one_sided, detach_targets});
  check_records(records, task, clean.device());
  task.records = const_cast<float*>(records.const_data_ptr<float>());
  const Weights weights(task, mlm_weight, kl_weight, clean.device());
  const auto grads = new_gradients(task, clean, {need_clean, need_adv});
  if (need_clean || need_adv) run(task, kGradients, clean);
  return grads;
}

void row_gradients_(const Tensor& clean_any, const Tensor& adv_any, const Tensor& records, const OptionalTensor& labels,
                    const OptionalTensor& mlm_weight, const Tensor& kl_weight, int64_t first_column,
                    int64_t valid_columns, bool one_sided, bool detach_targets, bool need_clean, bool need_adv) {
  const Tensor clean = need_clean ? clean_any : readable(clean_any), adv = need_adv ? adv_any : readable(adv_any);
  RowTask task = task_of(clean, adv, labels, {first_column, valid_columns, one_sided, detach_targets});
  check_records(records, task, clean.device());
  task.records = const_cast<float*>(records.const_data_ptr<float>());
  const Weights weights(task, mlm_weight, kl_weight, clean.device());
  write_over_logits(task, clean, adv, {need_clean, need_adv});
  if (need_clean || need_adv) run(task, kGradients, clean);
}

std::tuple<Tensor, Tensor, Tensor> row_fused(const Tensor& clean_any, const Tensor& adv_any, const OptionalTensor& labels,
                                             const OptionalTensor& mlm_weight, const Tensor& kl_weight,
                                             int64_t first_column, int64_t valid_columns, bool one_sided,
                                             bool detach_targets, bool need_clean, bool need_adv) {
  const Tensor clean = readable(clean_any), adv = adv_any.is_same(clean_any) ? clean : readable(adv_any);
  RowTask task = task_of(clean, adv, labels, {first_column, valid_columns, one_sided, detach_targets});
  const Tensor records = new_records(task, clean);
  const Weights weights(task, mlm_weight, kl_weight, clean.device());
  const auto [clean_grad, adv_grad] = new_gradients(task, clean, {need_clean, need_adv});
  run(task, kFused, clean);
  return {records, clean_grad, adv_grad};
}

Tensor row_fused_(const Tensor& clean_any, const OptionalTensor& adv_any, const OptionalTensor& labels,
                  const OptionalTensor& mlm_weight, const Tensor& kl_weight, int64_t first_column, int64_t valid_columns,
                  bool one_sided, bool detach_targets, bool need_clean, bool need_adv) {
  const Tensor clean = need_clean ? clean_any : readable(clean_any);
  const Tensor adv = !adv_any.has_value() ? clean : need_adv ? *adv_any : readable(*adv_any);
  RowTask task = task_of(clean, adv, labels, {first_column, valid_columns, one_sided, detach_targets});
  const Tensor records = new_records(task, clean);
  const Weights weights(task, mlm_weight, kl_weight, clean.device());
  write_over_logits(task, clean, adv, {need_clean, need_adv});
  run(task, kFused, clean);
  return records;
}

// Small tensors: composed of torch's own ops, on any device.
std::tuple<Tensor, Tensor> row_losses(const Tensor&, const Tensor&, const Tensor& records, const OptionalTensor& labels,
                                      int64_t, int64_t, bool, bool, bool) {
  const Tensor mass = records.select(1, 1), divergence = records.select(1, 5);
  // A row without a single column that counts has no distribution.
  const Tensor kl = at::where(mass == 0, at::scalar_tensor(NAN, records.options()), divergence);
  if (!labels.has_value()) return {at::zeros_like(kl), kl};
  const Tensor kept = *labels != kIgnoredLabel, zero = at::zeros({}, records.options());
  const Tensor mlm = records.select(1, 0) + mass.log() - records.select(1, kRecordFloats);
  return {at::where(kept, mlm, zero), at::where(kept, kl, zero)};
}

Tensor merge_statistics(const Tensor& records, bool one_sided) {
  check_shards(records);
  const Tensor all = records.contiguous();
  const int64_t shards = all.size(0), rows = all.size(1), width = all.size(2);
  Tensor merged = at::empty({rows, width}, all.options());
  const float* from = all.const_data_ptr<float>();
  float* to = merged.mutable_data_ptr<float>();
  for (int64_t row = 0; row < rows; ++row) {
    RowRecord total = empty_record();
    float label = 0.0f;
    for (int64_t shard = 0; shard < shards; ++shard) {
      const float* part = from + (shard * rows + row) * width;
      RowRecord record;
      __builtin_memcpy(&record, part, sizeof(record));
      total = merge(total, record, one_sided);
      if (width > kRecordFloats) label += part[kRecordFloats];
    }
    __builtin_memcpy(to + row * width, &total, sizeof(total));
    if (width > kRecordFloats) to[row * width + kRecordFloats] = label;
  }
  return merged;
}

}  // namespace

TORCH_LIBRARY_IMPL(megatron_alum, CPU, m) {
  m.impl("row_statistics", row_statistics);
  m.impl("row_gradients", row_gradients);
  m.impl("row_gradients_", row_gradients_);
  m.impl("row_fused", row_fused);
  m.impl("row_fused_", row_fused_);
  m.impl("row_losses", row_losses);
  m.impl("merge_statistics", merge_statistics);
}

#ifdef MEGATRON_ALUM_CUDA
Tensor merge_statistics_cuda(const Tensor& records, bool one_sided);

TORCH_LIBRARY_IMPL(megatron_alum, CUDA, m) {
  m.impl("row_statistics", row_statistics);
  m.impl("row_gradients", row_gradients);
  m.impl("row_gradients_", row_gradients_);
  m.impl("row_fused", row_fused);
  m.impl("row_fused_", row_fused_);
  m.impl("row_losses", row_losses);
  m.impl("merge_statistics", merge_statistics_cuda);
}
#endif
