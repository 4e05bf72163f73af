// Names that let one header serve the host compiler and nvcc. No std header may be included here or below: these functions
// are also compiled for wider instruction sets than the machine may have, where an inline std function emitted as a weak
// symbol could be picked by the linker for everybody.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#define MA_FUNCTION __host__ __device__ static inline
#define MA_MATH(name) name
#define MA_UNROLL _Pragma("unroll")
#else
#define MA_FUNCTION [[maybe_unused]] static inline
#define MA_MATH(name) __builtin_##name
#define MA_UNROLL _Pragma("GCC unroll 16")
#endif

#ifdef __CUDA_ARCH__
// Each rounded once and never fused: the noise and the perturbation must have the bits of the CPU and of torch.
#define MA_ADD(x, y) __fadd_rn(x, y)
#define MA_MUL(x, y) __fmul_rn(x, y)
#define MA_DIV(x, y) __fdiv_rn(x, y)
#define MA_SQRT(x) __fsqrt_rn(x)
#else  // the build switches contraction off
#define MA_ADD(x, y) ((x) + (y))
#define MA_MUL(x, y) ((x) * (y))
#define MA_DIV(x, y) ((x) / (y))
#define MA_SQRT(x) __builtin_sqrtf(x)
#endif

#define MA_INFINITY __builtin_huge_valf()

constexpr float kLog2E = 1.44269504f;

// The bits of a number as another type of its size.
template <typename To, typename From>
MA_FUNCTION To bits_as(From from) {
  To to;
  static_assert(sizeof(to) == sizeof(from), "");
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}
