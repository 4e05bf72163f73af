// Chooses the instruction set at run time and spreads rows and tokens over torch's threads.
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "ops/cpu/kernels.h"

namespace {

constexpr int64_t kElementsPerTask = 32768;  // below that a thread is not worth waking

// Widest first.
std::vector<const CpuKernels*> supported_kernels() {
  std::vector<const CpuKernels*> found;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(&avx512_kernels());
  }
  if (avx2) found.push_back(&avx2_kernels());
#endif
  found.push_back(&portable_kernels());
  return found;
}

const CpuKernels& choose() {
  const std::vector<const CpuKernels*> found = supported_kernels();
  const char* wish = std::getenv("MEGATRON_ALUM_INSTRUCTION_SET");
  if (wish == nullptr || *wish == '\0') return *found.front();
  for (const CpuKernels* kernels : found) {
    if (std::strcmp(kernels->name, wish) == 0) return *kernels;
  }
  TORCH_CHECK_VALUE(false, "`MEGATRON_ALUM_INSTRUCTION_SET` must be one this processor has (portable, avx2, avx512), ",
                    "but is '", wish, "' instead.");
}

int64_t grain(int64_t elements_each) {
  return elements_each >= kElementsPerTask ? 1 : (kElementsPerTask + elements_each - 1) / (elements_each > 0 ? elements_each : 1);
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = choose();
  return chosen;
}

void run_rows_cpu(const RowTask& task, RowPhase phase) {
  const CpuKernels& kernels = cpu_kernels();
  const auto function = phase == kStatistics  ? kernels.row_statistics
                        : phase == kGradients ? kernels.row_gradients
                                              : kernels.row_fused;
  const int64_t floats = phase == kFused ? row_scratch_floats(task.valid_columns) : 0;
  at::parallel_for(0, task.rows, grain(task.columns), [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> scratch(floats > 0 ? new float[static_cast<size_t>(floats)] : nullptr);
    function(task, begin, end, scratch.get());
  });
}

void run_tokens_cpu(const TokenTask& task) {
  const auto function = cpu_kernels().perturb;
  at::parallel_for(0, task.tokens, grain(task.channels), [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> scratch(new float[static_cast<size_t>(token_scratch_floats(task.channels))]);
    function(task, begin, end, scratch.get());
  });
}

void run_dropout_cpu(const DropoutTask& task) {
  const auto function = cpu_kernels().dropout;
  const int64_t blocks = (task.elements + kDropoutBlock - 1) / kDropoutBlock;
  at::parallel_for(0, blocks, grain(kDropoutBlock), [&](int64_t begin, int64_t end) { function(task, begin, end); });
}
