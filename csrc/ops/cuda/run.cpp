// Torch glue of the CUDA kernel: current device and stream, launch errors as exceptions.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "common/checks.h"
#include "ops/cuda/launch.h"
#include "ops/run.h"

namespace {

void check(int error) { TORCH_CHECK(error == 0, "the CUDA kernel could not be launched: ", launch_error_text(error)); }

}  // namespace

void run_cuda(const RowTask& rows, RowPhase phase, const TokenTask& tokens) {
  check(launch_roles(rows, phase, tokens, c10::cuda::getCurrentCUDAStream().stream()));
}

at::Tensor merge_statistics_cuda(const at::Tensor& records, bool one_sided) {
  check_shards(records);
  const c10::cuda::CUDAGuard guard(records.device());
  const at::Tensor all = records.contiguous();
  at::Tensor merged = at::empty({all.size(1), all.size(2)}, all.options());
  check(launch_merge(all.const_data_ptr<float>(), merged.mutable_data_ptr<float>(), all.size(0), all.size(1),
                     static_cast<int>(all.size(2)), one_sided, c10::cuda::getCurrentCUDAStream().stream()));
  return merged;
}
