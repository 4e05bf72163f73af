// The fused kernel: one __global__ template for both jobs, rows of logits and tokens of the perturbation. A `Role` is
// one of them with its element type and its phase fixed, so that an instantiation has only the registers and branches
// that its launch needs:
//
//     Role::Task                      the plain struct of ops/rows.h or ops/tokens.h
//     Role::threads, Role::blocks     threads of a block, blocks on a processor
//     Role::run(task, parts)          the work of one block; `parts` neighbouring blocks share a row
//
// One launch per phase is the minimum: between the gradient with respect to delta and the divergence that follows lies
// a pass through the whole network. Read next: row_kernel.cu, token_kernel.cu.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "common/portability.h"

#define MA_DEVICE __device__ static __forceinline__

using BFloat16 = __nv_bfloat16;
using Float16 = __half;

MA_DEVICE float widen(float x) { return x; }
MA_DEVICE float widen(BFloat16 x) { return __bfloat162float(x); }
MA_DEVICE float widen(Float16 x) { return __half2float(x); }
MA_DEVICE void narrow(float* to, float x) { *to = x; }
MA_DEVICE void narrow(BFloat16* to, float x) { *to = __float2bfloat16_rn(x); }
MA_DEVICE void narrow(Float16* to, float x) { *to = __float2half_rn(x); }

MA_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, step);
  return x;
}

// NaN only if every lane holds one.
MA_DEVICE float warp_greatest(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, step));
  return x;
}

template <typename Role>
__global__ void __launch_bounds__(Role::threads, Role::blocks) alum_kernel(const typename Role::Task task, const int parts) {
  Role::run(task, parts);
}

// Blocks of a launch whose blocks loop over the rest: enough to fill any number of processors.
inline int64_t looping_blocks(int64_t needed) { return needed < 148 * 16 ? needed : 148 * 16; }

// Queues a launch of `blocks` blocks, every `cluster` of which run together and share their shared memory.
template <typename Role>
cudaError_t launch_role(const typename Role::Task& task, int parts, int64_t blocks, int cluster, void* stream) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(Role::threads);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, alum_kernel<Role>, task, parts);
  if (error != cudaSuccess) cudaGetLastError();  // reported here; torch's next check must not find it again
  return error;
}
