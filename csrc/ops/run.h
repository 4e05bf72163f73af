// Where the torch glue hands a task to a device. Each call returns with the work done (CPU) or queued on the current
// stream (CUDA).
#pragma once

#include "ops/dropout.h"
#include "ops/rows.h"
#include "ops/tokens.h"

enum RowPhase : int { kStatistics = 0, kGradients = 1, kFused = 2 };

void run_rows_cpu(const RowTask& task, RowPhase phase);
void run_tokens_cpu(const TokenTask& task);
void run_dropout_cpu(const DropoutTask& task);
#ifdef MEGATRON_ALUM_CUDA
// One kernel serves both lists; either may be empty (rows == 0, tokens == 0).
void run_cuda(const RowTask& rows, RowPhase phase, const TokenTask& tokens);
#endif
