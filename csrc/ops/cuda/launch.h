// The CUDA side without torch: kernel.cu implements it with the CUDA runtime alone, so that nvcc by itself can compile it.
#pragma once

#include "ops/rows.h"
#include "ops/tokens.h"

// Queues one launch that carries both work lists, either of which may be empty, on `stream` (a cudaStream_t). Returns the
// cudaError_t of the launch; no host synchronisation.
int launch_roles(const RowTask& rows, int phase, const TokenTask& tokens, void* stream);
// records [shards, rows, width] -> merged [rows, width].
int launch_merge(const float* records, float* merged, int64_t shards, int64_t rows, int width, bool one_sided, void* stream);
const char* launch_error_text(int error);
