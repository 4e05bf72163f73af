// Gathers the functions of one instruction set into its table; included last by each kernels_*.cpp.
#pragma once

#include "ops/cpu/dropout_kernel.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/row_gradients.h"
#include "ops/cpu/token_kernels.h"

namespace {

// Calls the instance for the task's element type.
#define MA_BY_ELEMENT(function)                                                                                     \
  [](const RowTask& task, int64_t begin, int64_t end, float* scratch) {                                             \
    by_element(task.element, [&](auto number) { function<decltype(number)>(task, begin, end, scratch); });          \
  }

const CpuKernels kTable{kInstructionSet, MA_BY_ELEMENT(row_statistics_of), MA_BY_ELEMENT(row_gradients_of),
                        MA_BY_ELEMENT(row_fused_of), perturb_tokens, drop_blocks};

}  // namespace
