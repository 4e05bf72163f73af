// The CPU kernels for the instruction set "avx512". Only compiler intrinsics and headers of this project: see common/portability.h.
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")

#include "ops/cpu/vector_avx512.h"

#include "ops/cpu/kernel_table.h"

const CpuKernels& avx512_kernels() { return kTable; }

#endif
