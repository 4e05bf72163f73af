// The CPU kernels for the instruction set "avx2". Only compiler intrinsics and headers of this project: see common/portability.h.
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")

#include "ops/cpu/vector_avx2.h"

#include "ops/cpu/kernel_table.h"

const CpuKernels& avx2_kernels() { return kTable; }

#endif
