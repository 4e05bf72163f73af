// The row ops: checks the tensors, builds the RowTask, hands it to the device's kernel, returns tensors. The kernels are found
// through ops/cpu/kernels.h and in ops/cuda/row_kernel.cu.
#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <tuple>

#include "common/checks.h"
#include "common/large_pages.h"
#include "common/row_statistics.h"
#include "ops/rows.h"
#ifdef MEGATRON_ALUM_CUDA
#include <c10/cuda/CUDAStream.h>
#endif

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
    if (!labels_any.has_value()) return;
    check_vector(*labels_any, at::kLong, task.rows, clean.device(), "labels");
    labels = labels_any->contiguous();
    task.labels = labels.const_data_ptr<int64_t>();
  }

  void weigh(const OptionalTensor& mlm, const Tensor& kl) {
    check_vector(kl, at::kFloat, task.rows, clean.device(), "kl_weight");
    kl_weight = kl.contiguous();
    task.kl_weight = kl_weight.const_data_ptr<float>();
    if (!mlm.has_value() || task.labels == nullptr) return;
    check_vector(*mlm, at::kFloat, task.rows, clean.device(), "mlm_weight");
    mlm_weight = mlm->contiguous();
    task.mlm_weight = mlm_weight.const_data_ptr<float>();
  }

  // Records to be written; returns them.
  Tensor new_records() {
    records = at::empty({task.rows, task.record_width}, clean.options().dtype(at::kFloat));
    task.records = records.mutable_data_ptr<float>();
    return records;
  }

  // Given ones, which are final, or new ones: what is left to do to have the gradients.
  RowPhase records_of(const OptionalTensor& given) {
    if (!given.has_value()) return new_records(), kFused;
    TORCH_CHECK_VALUE(given->dim() == 2 && given->size(0) == task.rows && given->size(1) == task.record_width &&
                          given->scalar_type() == at::kFloat && given->is_contiguous() && given->device() == clean.device(),
                      "`records` must be contiguous float32 [", task.rows, ", ", task.record_width, "] on ", clean.device(),
                      ", but is ", given->scalar_type(), " ", given->sizes(), " on ", given->device(), " instead.");
    task.records = const_cast<float*>(given->const_data_ptr<float>());
    return kGradients;
  }

  void run(RowPhase phase) const {
    if (task.rows == 0) return;
#ifdef MEGATRON_ALUM_CUDA
    const c10::OptionalDeviceGuard guard(clean.device());
    if (clean.is_cuda()) return check_launch(launch_rows(task, phase, c10::cuda::getCurrentCUDAStream().stream()));
#endif
    TORCH_CHECK_VALUE(clean.is_cpu(), "the logits must be on a device with a kernel, but are on ", clean.device(), ".");
    run_rows_cpu(task, phase);
  }
#ifdef MEGATRON_ALUM_CUDA
  static void check_launch(int error) {
    TORCH_CHECK(error == 0, "the CUDA kernel could not be launched: ", launch_error_text(error));
  }
#endif
};

Tensor row_statistics(const Tensor& clean, const OptionalTensor& adv, const OptionalTensor& labels, int64_t first_column,
                      int64_t valid_columns, bool one_sided) {
  Rows rows(clean, adv, labels, {first_column, valid_columns, one_sided, true});
  const Tensor records = rows.new_records();
  rows.run(kStatistics);
  return records;
}

std::tuple<Tensor, Tensor, Tensor> row_gradients(const Tensor& clean, const OptionalTensor& adv,
                                                 const OptionalTensor& records, const OptionalTensor& labels,
                                                 const OptionalTensor& mlm_weight, const Tensor& kl_weight,
                                                 int64_t first_column, int64_t valid_columns, bool one_sided,
                                                 bool detach_targets, bool need_clean, bool need_adv) {
  Rows rows(clean, adv, labels, {first_column, valid_columns, one_sided, detach_targets});
  rows.weigh(mlm_weight, kl_weight);
  const RowPhase phase = rows.records_of(records);
  const auto gradient = [&](bool wanted, void** pointer, int64_t* stride) {
    Tensor grad = wanted ? at::empty(rows.clean.sizes(), rows.clean.options()) : at::empty({0}, rows.clean.options());
    if (!wanted) return grad;
    prefer_large_pages(grad);
    *pointer = grad.mutable_data_ptr();
    *stride = rows.task.columns;
    return grad;
  };
  Tensor to_clean = gradient(need_clean, &rows.task.clean_grad, &rows.task.clean_grad_stride);
  Tensor to_adv = gradient(need_adv && adv.has_value(), &rows.task.adv_grad, &rows.task.adv_grad_stride);
  if (phase == kFused || need_clean || need_adv) rows.run(phase);
  return {phase == kFused ? rows.records : at::empty({0}, rows.clean.options().dtype(at::kFloat)), to_clean, to_adv};
}

Tensor row_gradients_(const Tensor& clean, const OptionalTensor& adv, const OptionalTensor& records,
                      const OptionalTensor& labels, const OptionalTensor& mlm_weight, const Tensor& kl_weight,
                      int64_t first_column, int64_t valid_columns, bool one_sided, bool detach_targets, bool need_clean,
                      bool need_adv) {
  Rows rows(clean, adv, labels, {first_column, valid_columns, one_sided, detach_targets});
  rows.weigh(mlm_weight, kl_weight);
  const RowPhase phase = rows.records_of(records);
  need_adv = need_adv && adv.has_value();
  TORCH_CHECK_VALUE(!(need_clean && need_adv) || clean.const_data_ptr() != adv->const_data_ptr() || clean.numel() == 0,
                    "logits to be overwritten must be two tensors, but are one.");
  const auto place = [](bool wanted, const Tensor& logits, void** pointer, int64_t* stride) {
    if (!wanted) return;
    TORCH_CHECK_VALUE(logits.is_contiguous(), "logits to be overwritten must be contiguous.");
    *pointer = logits.mutable_data_ptr();
    *stride = logits.stride(0);
  };
  place(need_clean, clean, &rows.task.clean_grad, &rows.task.clean_grad_stride);
  if (need_adv) place(true, *adv, &rows.task.adv_grad, &rows.task.adv_grad_stride);
  if (phase == kFused || need_clean || need_adv) rows.run(phase);
  return phase == kFused ? rows.records : at::empty({0}, rows.clean.options().dtype(at::kFloat));
}

// Small tensors: composed of torch's own ops, on any device.
std::tuple<Tensor, Tensor> row_losses(const Tensor&, const OptionalTensor&, const Tensor& records,
                                      const OptionalTensor& labels, int64_t, int64_t, bool, bool, bool) {
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
#ifdef MEGATRON_ALUM_CUDA
  const c10::OptionalDeviceGuard guard(all.device());
  if (all.is_cuda()) {
    void* stream = c10::cuda::getCurrentCUDAStream().stream();
    return Rows::check_launch(launch_merge(from, to, shards, rows, static_cast<int>(width), one_sided, stream)), merged;
  }
#endif
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

// The CPU looks at the factor; a GPU's kernel does, so that nobody waits for it.
void scale_(const Tensor& values, const Tensor& factor) {
  TORCH_CHECK_VALUE(values.is_contiguous() && factor.dim() == 0 && factor.scalar_type() == at::kFloat &&
                        factor.device() == values.device(),
                    "`values` must be contiguous and `factor` one float32 number beside them, but they are ",
                    values.sizes(), " and ", factor.scalar_type(), " ", factor.sizes(), " instead.");
#ifdef MEGATRON_ALUM_CUDA
  const c10::OptionalDeviceGuard guard(values.device());
  if (values.is_cuda()) {
    void* stream = c10::cuda::getCurrentCUDAStream().stream();
    return Rows::check_launch(launch_scale(values.mutable_data_ptr(), element_of(values, "values"), values.numel(),
                                           factor.const_data_ptr<float>(), stream));
  }
#endif
  if (factor.item<float>() != 1.0f) Tensor(values).mul_(factor);
}

void register_all(torch::Library& m) {
  m.impl("row_statistics", row_statistics);
  m.impl("row_gradients", row_gradients);
  m.impl("row_gradients_", row_gradients_);
  m.impl("row_losses", row_losses);
  m.impl("merge_statistics", merge_statistics);
  m.impl("scale_", scale_);
}

}  // namespace

TORCH_LIBRARY_IMPL(megatron_alum, CPU, m) { register_all(m); }
#ifdef MEGATRON_ALUM_CUDA
TORCH_LIBRARY_IMPL(megatron_alum, CUDA, m) { register_all(m); }
#endif
