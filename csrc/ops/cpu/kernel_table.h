// Gathers the functions of one instruction set into its table; included last by each kernels_*.cpp.
#pragma once

#include "ops/cpu/dropout_kernel.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/row_gradients.h"
#include "ops/cpu/token_kernels.h"

namespace {

void any_rows(const RowTask& task, RowPhase phase, int64_t begin, int64_t end, float* scratch) {
  by_element(task.element, [&](auto number) { rows_of<decltype(number)>(task, phase, begin, end, scratch); });
}

const CpuKernels kTable{kInstructionSet, any_rows, perturb_tokens, drop_blocks};

}  // namespace
