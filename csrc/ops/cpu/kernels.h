// The CPU kernels of one instruction set, as a table of functions; each instruction set compiles the same code
// (row_kernels.h, token_kernels.h, dropout_kernel.h) in its own translation unit. Each function handles rows, tokens or
// blocks [begin, end).
#pragma once

#include "ops/dropout.h"
#include "ops/rows.h"
#include "ops/tokens.h"

struct CpuKernels {
  const char* name;
  // `scratch` belongs to the caller's thread; only kFused uses it, to keep a row's weights; may be null.
  void (*rows)(const RowTask& task, RowPhase phase, int64_t begin, int64_t end, float* scratch);
  void (*perturb)(const TokenTask& task, int64_t begin, int64_t end, float* scratch);
  void (*dropout)(const DropoutTask& task, int64_t begin, int64_t end);  // blocks of kDropoutBlock elements
};

constexpr int64_t kBlockColumns = 65536;  // columns of a row that get a record of their own

// Floats of scratch for a row's weights; 0 = a row of several blocks, whose weights are formed twice.
inline int64_t row_scratch_floats(int64_t columns) {
  return columns <= kBlockColumns ? 2 * ((columns + 127) / 64 * 64) : 0;
}
constexpr int64_t kDropoutBlock = 512;
constexpr int64_t kScratchRows = 3;  // of a token
inline int64_t token_scratch_floats(int64_t channels) { return kScratchRows * ((channels + 63) / 64 * 64); }

const CpuKernels& portable_kernels();
#if defined(__x86_64__)
const CpuKernels& avx2_kernels();
const CpuKernels& avx512_kernels();
#endif

// The widest set this processor has; MEGATRON_ALUM_INSTRUCTION_SET=portable|avx2|avx512 chooses a narrower one.
const CpuKernels& cpu_kernels();
