// Chooses the instruction set at run time and spreads rows and tokens over torch's threads.
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "ops/cpu/kernels.h"

namespace {

constexpr int64_t kElementsPerTask = 32768;  // below this a thread is not worth waking

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

// Calls `work(begin, end, scratch)` for parts of [0, count) on torch's threads, each with its own `floats` floats.
template <typename Work>
void spread(int64_t count, int64_t elements_each, int64_t floats, const Work& work) {
  const int64_t each = std::max<int64_t>(elements_each, 1), grain = (kElementsPerTask + each - 1) / each;
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> scratch(floats > 0 ? new float[static_cast<size_t>(floats)] : nullptr);
    work(begin, end, scratch.get());
  });
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = choose();
  return chosen;
}

void run_rows_cpu(const RowTask& task, RowPhase phase) {
  spread(task.rows, task.columns, phase == kFused ? row_scratch_floats(task.valid_columns) : 0,
         [&](int64_t begin, int64_t end, float* scratch) { cpu_kernels().rows(task, phase, begin, end, scratch); });
}

void run_tokens_cpu(const TokenTask& task) {
  spread(task.tokens, task.channels, token_scratch_floats(task.channels),
         [&](int64_t begin, int64_t end, float* scratch) { cpu_kernels().perturb(task, begin, end, scratch); });
}

void run_dropout_cpu(const DropoutTask& task) {
  spread((task.elements + kDropoutBlock - 1) / kDropoutBlock, kDropoutBlock, 0,
         [&](int64_t begin, int64_t end, float*) { cpu_kernels().dropout(task, begin, end); });
}
