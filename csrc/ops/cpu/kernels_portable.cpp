// The CPU kernels for the instruction set "portable", that of the rest of the program: it may include other headers.

#include "ops/cpu/vector_portable.h"

#include "ops/cpu/kernel_table.h"

const CpuKernels& portable_kernels() { return kTable; }
