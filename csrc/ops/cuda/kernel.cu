// The fused kernel: one __global__ with two work lists, rows of logits and tokens of the perturbation (ops/rows.h and
// ops/tokens.h list the pointers). A launch carries either list or both; blocks below `row_blocks` take rows, the rest tokens.
//
// Why one launch a phase is the minimum: between the gradient with respect to delta and the divergence that follows lies a
// forward pass of the whole network, so the ascent step of iteration m can share a launch with the divergence of another
// branch, never with its own.
//
// A row is spread over a cluster of blocks (sm_90 on) sized so that several parts fit into the shared memory of a processor:
// while one part waits for its copies, others compute. Bytes moved: each logit is read once and each gradient written once in the
// fused phase; the statistics phase reads once, the gradient phase reads and writes once.
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include "ops/cuda/launch.h"

using BFloat16 = __nv_bfloat16;
using Float16 = __half;

namespace {

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(BFloat16 x) { return __bfloat162float(x); }
__device__ inline float widen(Float16 x) { return __half2float(x); }
__device__ inline void narrow(float* to, float x) { *to = x; }
__device__ inline void narrow(BFloat16* to, float x) { *to = __float2bfloat16_rn(x); }
__device__ inline void narrow(Float16* to, float x) { *to = __float2half_rn(x); }

}  // namespace

#include "ops/cuda/row_role.h"
#include "ops/cuda/token_role.h"

namespace {

namespace cg = cooperative_groups;

constexpr int kThreads = 128;
constexpr int kBlocksAProcessor = 5;            // allows 96 registers a thread: no spills
constexpr int kWarps = kThreads / 32;
constexpr int kMostParts = 8;                   // the portable limit of a cluster
constexpr int64_t kPartBytes = 40 * 1024;       // of both sides: five parts share a processor of sm_90
constexpr size_t kSharedUnasked = 48 * 1024;    // what a block of any kernel may have without asking
constexpr int64_t kTokenBlocks = 148 * 16;      // of the token list: enough to fill any processor count; each loops

struct Lanes {
  int rank;
  static constexpr int size = 32;
  __device__ float sum(float x) const {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, step);
    return x;
  }
  __device__ float greatest(float x) const {
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, step));
    return x;
  }
};

struct Shared {
  float value[kWarps];
  float payload[kWarps];
  RowRecord record;
};

// The threads of a block, and the blocks of a row.
struct Block {
  int rank, part, parts;
  static constexpr int size = kThreads;
  Shared* shared;

  __device__ float sum(float x) {
    x = Lanes{rank % 32}.sum(x);
    __syncthreads();  // the values of the reduction before this one have been read
    if (rank % 32 == 0) shared->value[rank / 32] = x;
    __syncthreads();
    float total = 0.0f;
    for (int warp = 0; warp < kWarps; ++warp) total += shared->value[warp];
    return total;
  }
  __device__ float greatest(float x) { return greatest_with(x, x); }
  // The payload that came with the greatest x; ties go to the lower thread, so that all agree.
  __device__ float greatest_with(float x, float payload) {
    for (int step = 16; step > 0; step /= 2) {
      const float other = __shfl_down_sync(0xFFFFFFFFu, x, step), others = __shfl_down_sync(0xFFFFFFFFu, payload, step);
      if (other > x) x = other, payload = others;
    }
    __syncthreads();
    if (rank % 32 == 0) shared->value[rank / 32] = x, shared->payload[rank / 32] = payload;
    __syncthreads();
    int best = 0;
    for (int warp = 1; warp < kWarps; ++warp) best = shared->value[warp] > shared->value[best] ? warp : best;
    return shared->payload[best];
  }
  template <typename T>
  __device__ void copy(T* to, const T* from) const {
    __pipeline_memcpy_async(to, from, sizeof(T));
  }
  __device__ void wait() const {
    __pipeline_commit();
    __pipeline_wait_prior(0);
  }
  __device__ void sync_row() const {
#if __CUDA_ARCH__ >= 900
    if (parts > 1) return cg::this_cluster().sync();
#endif
    __syncthreads();
  }
  // The record of the row from those of its parts, in the order of the parts: all blocks get the same bits.
  __device__ RowRecord merged(const RowRecord& mine, bool one_sided) {
#if __CUDA_ARCH__ >= 900
    if (parts > 1) {
      cg::cluster_group cluster = cg::this_cluster();
      cluster.sync();  // peers have read the record of the row before this one
      if (rank == 0) shared->record = mine;
      cluster.sync();
      RowRecord total = empty_record();
      for (int peer = 0; peer < parts; ++peer) {
        total = merge(total, *cluster.map_shared_rank(&shared->record, peer), one_sided);
      }
      cluster.sync();  // nobody leaves while its record may still be read
      return total;
    }
#endif
    return mine;
  }
};

template <typename Element>
__global__ void __launch_bounds__(kThreads, kBlocksAProcessor)
    alum_roles(const RowTask rows, const int phase, const TokenTask list, const int row_blocks, const int parts,
               const int cache_packs) {
  extern __shared__ __align__(16) unsigned char cache[];
  __shared__ Shared shared;
  if (static_cast<int>(blockIdx.x) < row_blocks) {
    const int part = static_cast<int>(blockIdx.x) % parts;
    Block block{static_cast<int>(threadIdx.x), part, parts, &shared};
    Pack<Element>* room = cache_packs > 0 ? reinterpret_cast<Pack<Element>*>(cache) : nullptr;
    for (int64_t row = blockIdx.x / parts; row < rows.rows; row += row_blocks / parts) {
      row_role<Element>(rows, phase, row, block, room, cache_packs);
    }
    return;
  }
  const int64_t warps = static_cast<int64_t>(gridDim.x - row_blocks) * kWarps;
  const int64_t first = static_cast<int64_t>(blockIdx.x - row_blocks) * kWarps + threadIdx.x / 32;
  const Lanes lanes{static_cast<int>(threadIdx.x % 32)};
  for (int64_t token = first; token < list.tokens; token += warps) token_role(list, token, lanes);
}

__global__ void merge_records(const float* records, float* merged, int64_t shards, int64_t rows, int width,
                              bool one_sided) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  RowRecord total = empty_record();
  float label = 0.0f;
  for (int64_t shard = 0; shard < shards; ++shard) {
    const float* part = records + (shard * rows + row) * width;
    total = merge(total, RowRecord{part[0], part[1], part[2], part[3], part[4], part[5]}, one_sided);
    if (width > kRecordFloats) label += part[kRecordFloats];
  }
  float* to = merged + row * width;
  to[0] = total.maximum, to[1] = total.mass, to[2] = total.center;
  to[3] = total.log_ratio, to[4] = total.mean, to[5] = total.divergence;
  if (width > kRecordFloats) to[kRecordFloats] = label;
}

struct Plan {
  int parts, row_blocks, blocks, cache_packs;
  size_t cache_bytes;
};

// Splits rows so that a part of both sides fits kPartBytes, where there are clusters, and in the gradient phase (1), whose parts
// need nothing of each other; else one block a row, whose part is copied when it fits what a block may have, and read through the
// second-level cache when not.
Plan plan_of(const RowTask& rows, int phase, const TokenTask& list, size_t element_bytes, bool has_clusters, int most_shared) {
  Plan plan{1, 0, 0, 0, 0};
  const int64_t count = 16 / static_cast<int64_t>(element_bytes), packs = (rows.valid_columns + count - 1) / count;
  if (rows.rows > 0) {
    if (has_clusters || phase == 1) {
      while (plan.parts < kMostParts && packs * 32 / plan.parts > kPartBytes) plan.parts *= 2;
    }
    const int64_t packs_a_part = (packs + plan.parts - 1) / plan.parts;
    const int64_t bytes = packs_a_part * 32;
    if (phase != 1 && bytes + 1024 <= most_shared) {
      plan.cache_packs = static_cast<int>(packs_a_part);
      plan.cache_bytes = static_cast<size_t>(bytes);
    }
    const int64_t most_rows = (1 << 20) / plan.parts;
    plan.row_blocks = static_cast<int>((rows.rows < most_rows ? rows.rows : most_rows) * plan.parts);
  }
  const int64_t token_blocks = (list.tokens + kWarps - 1) / kWarps;
  // A whole number of clusters: the spare blocks find no token.
  const int64_t wanted = token_blocks < kTokenBlocks ? token_blocks : kTokenBlocks;
  plan.blocks = plan.row_blocks + static_cast<int>((wanted + plan.parts - 1) / plan.parts * plan.parts);
  return plan;
}

template <typename Element>
cudaError_t try_launch(const RowTask& rows, int phase, const TokenTask& list, cudaStream_t stream) {
  int device = 0, most_shared = 0;
  cudaFuncAttributes code{};  // of the code this device runs: older intermediate code knows no clusters on a newer device
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&code, alum_roles<Element>);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error != cudaSuccess) return error;
  const Plan plan = plan_of(rows, phase, list, sizeof(Element), code.ptxVersion >= 90, most_shared);
  if (plan.blocks == 0) return cudaSuccess;
  if (plan.cache_bytes + code.sharedSizeBytes > kSharedUnasked) {
    // To the most there is, whatever this launch needs: launches from other host threads share the function's limit.
    const int most_dynamic = most_shared - static_cast<int>(code.sharedSizeBytes);
    error = cudaFuncSetAttribute(alum_roles<Element>, cudaFuncAttributeMaxDynamicSharedMemorySize, most_dynamic);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(plan.parts);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(plan.blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = plan.cache_bytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = plan.parts > 1 && phase != 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, alum_roles<Element>, rows, phase, list, plan.row_blocks, plan.parts,
                            plan.cache_packs);
}

template <typename Element>
cudaError_t launch(const RowTask& rows, int phase, const TokenTask& list, cudaStream_t stream) {
  const cudaError_t error = try_launch<Element>(rows, phase, list, stream);
  if (error != cudaSuccess) cudaGetLastError();  // said here; torch's next check must not find it again
  return error;
}

}  // namespace

int launch_roles(const RowTask& rows, int phase, const TokenTask& list, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  if (rows.element == kBFloat16) return launch<BFloat16>(rows, phase, list, queue);
  if (rows.element == kFloat16) return launch<Float16>(rows, phase, list, queue);
  return launch<float>(rows, phase, list, queue);
}

int launch_merge(const float* records, float* merged, int64_t shards, int64_t rows, int width, bool one_sided,
                 void* stream) {
  if (rows == 0) return cudaSuccess;
  const unsigned blocks = static_cast<unsigned>((rows + kThreads - 1) / kThreads);
  merge_records<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(records, merged, shards, rows, width, one_sided);
  return cudaGetLastError();
}

const char* launch_error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
