// Row role, the plain-C contract between the torch glue and the kernels of both devices: rows of clean and adversarial logits
// -> records, losses, gradients. Formulas: common/row_statistics.h; pointers:
//
// | field              | shape, type                    | in/out                                                       |
// |--------------------|--------------------------------|--------------------------------------------------------------|
// | clean, adv         | [rows, valid_columns], element | in; row strides in elements                                  |
// | labels             | [rows] int64 or null           | in; global ids, -100 = ignored row                           |
// | records            | [rows, width] float            | out of statistics, in of gradients (7th: label's clean logit)|
// | mlm_weight         | [rows] float or null           | in; not of statistics                                        |
// | kl_weight          | [rows] float                   | in; not of statistics                                        |
// | clean_grad,adv_grad| [rows, columns], element       | out; null = not wanted; may be clean and adv themselves      |
#pragma once

#include "common/portability.h"

enum Element : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// What a launch does with a row: its record; its gradients from a final record; both, if the shard is the whole row.
enum RowPhase : int { kStatistics, kGradients, kFused };

constexpr int kRecordFloats = 6;
constexpr int64_t kIgnoredLabel = -100;

struct RowTask {
  const void *clean, *adv;
  int64_t clean_stride, adv_stride;
  const int64_t* labels;
  float* records;
  const float *mlm_weight, *kl_weight;
  void *clean_grad, *adv_grad;
  int64_t clean_grad_stride, adv_grad_stride;
  int64_t rows;
  int64_t columns;        // held here, padding included
  int64_t valid_columns;  // from here on padding: ignored, gradient 0
  int64_t first_column;   // global id of column 0
  int record_width;       // 6, or 7 with labels
  int element;
  bool one_sided, detach_targets;
};

template <typename Number>
struct RowPointers {
  const Number *clean, *adv;
  Number *clean_grad, *adv_grad;  // null = not wanted
};

// Where a row begins, the elements being of type Number.
template <typename Number>
MA_FUNCTION RowPointers<Number> row_pointers(const RowTask& task, int64_t row) {
  RowPointers<Number> at{static_cast<const Number*>(task.clean) + row * task.clean_stride,
                         static_cast<const Number*>(task.adv) + row * task.adv_stride,
                         static_cast<Number*>(task.clean_grad), static_cast<Number*>(task.adv_grad)};
  if (at.clean_grad != nullptr) at.clean_grad += row * task.clean_grad_stride;
  if (at.adv_grad != nullptr) at.adv_grad += row * task.adv_grad_stride;
  return at;
}

// The column of the row's label; negative: it has none, or not in this shard.
MA_FUNCTION int64_t label_column(const RowTask& task, int64_t row) {
  const int64_t column = task.labels == nullptr ? -1 : task.labels[row] - task.first_column;
  return column < task.valid_columns ? column : -1;
}

// Adversarial logits that are the clean ones request the MLM loss alone.
MA_FUNCTION bool compares_with_itself(const RowTask& task) {
  return task.adv == task.clean && task.adv_stride == task.clean_stride;
}

void run_rows_cpu(const RowTask& task, RowPhase phase);

// The GPU's entry points queue their work on `stream` (a cudaStream_t), wait for nothing and return the cudaError_t of
// the launch.
int launch_rows(const RowTask& task, RowPhase phase, void* stream);
// records [shards, rows, width] -> merged [rows, width].
int launch_merge(const float* records, float* merged, int64_t shards, int64_t rows, int width, bool one_sided, void* stream);
// values[i] *= *factor; the device reads the factor and leaves the values alone if it is 1.
int launch_scale(void* values, int element, int64_t count, const float* factor, void* stream);
