// The CPU kernels for the instruction set "portable". Only compiler intrinsics and headers of this project: see common/portability.h.

#include "ops/cpu/vector_portable.h"

#include "ops/cpu/kernel_table.h"

const CpuKernels& portable_kernels() { return kTable; }
