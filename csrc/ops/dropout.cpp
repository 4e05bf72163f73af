// Torch glue of dropout: checks the tensor, builds the DropoutTask, returns the result. CPU only.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "common/checks.h"
#include "common/large_pages.h"
#include "ops/dropout.h"

namespace {

using at::Tensor;

Tensor dropout(const Tensor& x_any, const Tensor& seed, int64_t threshold) {
  TORCH_CHECK_VALUE(0 <= threshold && threshold < kDropoutLevels, "`threshold` must be in [0, ", kDropoutLevels,
                    "), but is ", threshold, " instead.");
  TORCH_CHECK_VALUE(seed.dim() == 0 && seed.scalar_type() == at::kLong && seed.is_cpu(),
                    "`seed` must be one int64 on the CPU, but is ", seed.scalar_type(), " ", seed.sizes(), " on ",
                    seed.device(), " instead.");
  const Tensor x = x_any.contiguous();
  const Tensor out = prefer_large_pages(at::empty(x.sizes(), x.options()));
  DropoutTask task{};
  task.x = x.const_data_ptr();
  task.out = out.mutable_data_ptr();
  task.elements = x.numel();
  task.seed = static_cast<uint64_t>(seed.item<int64_t>());
  task.threshold = static_cast<uint32_t>(threshold);
  task.scale = static_cast<float>(static_cast<double>(kDropoutLevels) / static_cast<double>(kDropoutLevels - threshold));
  task.element = element_of(x, "x");
  run_dropout_cpu(task);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(megatron_alum, CPU, m) { m.impl("dropout", dropout); }
