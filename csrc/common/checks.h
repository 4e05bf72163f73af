// Checks of tensors handed to the ops from Python, in the project's sentence: what must be, what is instead.
#pragma once

#include <ATen/ATen.h>

#include "ops/rows.h"

inline int element_of(const at::Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return kFloat32;
    case at::kBFloat16: return kBFloat16;
    case at::kHalf: return kFloat16;
    default:
      TORCH_CHECK_VALUE(false, "`", name, "` must be float32, bfloat16 or float16, but is ", tensor.scalar_type(),
                        " instead.");
  }
}

inline void check_like(const at::Tensor& tensor, const at::Tensor& model, const char* name) {
  TORCH_CHECK_VALUE(tensor.sizes() == model.sizes() && tensor.device() == model.device(), "`", name, "` must be ",
                    model.sizes(), " on ", model.device(), ", but is ", tensor.sizes(), " on ", tensor.device(),
                    " instead.");
}

// One number a row or token: dtype, length and device.
inline void check_vector(const at::Tensor& tensor, at::ScalarType type, int64_t length, const at::Device& device,
                         const char* name) {
  TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.size(0) == length && tensor.scalar_type() == type &&
                        tensor.device() == device,
                    "`", name, "` must be ", type, " [", length, "] on ", device, ", but is ", tensor.scalar_type(), " ",
                    tensor.sizes(), " on ", tensor.device(), " instead.");
}

// Records of all shards, as they come out of the all-gather.
inline void check_shards(const at::Tensor& records) {
  TORCH_CHECK_VALUE(records.dim() == 3 && records.scalar_type() == at::kFloat && records.size(0) > 0 &&
                        (records.size(2) == kRecordFloats || records.size(2) == kRecordFloats + 1),
                    "`records` must be float32 [R, N, 6 or 7] with R > 0, but is ", records.scalar_type(), " ",
                    records.sizes(), " instead.");
}
