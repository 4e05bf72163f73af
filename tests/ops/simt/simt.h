// CUDA as far as csrc/ops/cuda uses it, on a CPU: the real .cu files are compiled against this header, unmodified.
//
// A thread of a block is a fiber, a block of a cluster a thread of the system, __shared__ memory its thread-local memory, a
// cluster's distributed shared memory the same place in another thread's. Barriers and shuffles wait as they do on a
// device; a barrier that some thread never reaches is reported as a deadlock. A schedule (see executor.cpp) reverses
// which warps run and which blocks start first, so that data read before its barrier is read before it is written. Not
// covered: code generation, the memory model, speed.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <barrier>
#include <functional>
#include <vector>

#define __CUDACC__ 1
#define __CUDA_ARCH__ SIMT_ARCH
#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ thread_local

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct float2 {
  float x, y;
};

namespace simt {

struct Cluster {
  explicit Cluster(int blocks) : barrier(blocks), anchors(blocks) {}
  std::barrier<> barrier;
  std::vector<char*> anchors;  // a place in the thread-local memory of every block
};

const dim3& thread_index();
const dim3& block_index();
const dim3& grid_size();
void sync_block();
void sync_cluster();
float shuffle(float value, int source_lane);
Cluster& current_cluster();
int rank_in_cluster();
int run_grid(dim3 grid, dim3 block, int cluster, const std::function<void()>& kernel);
void note_launch(const void* kernel);
int intermediate_code();
constexpr bool equal(const char* x, const char* y) { return *x == *y && (*x == 0 || equal(x + 1, y + 1)); }
float approximate_exp2(float x);  // wrong by up to two units in the last place, 0 for subnormal results

template <typename To, typename From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace simt

#define threadIdx (simt::thread_index())
#define blockIdx (simt::block_index())
// An object, not a macro: cudaLaunchConfig_t has a field of this name.
static const struct {
  struct {
    operator unsigned() const { return simt::grid_size().x; }
  } x;
} gridDim;
// The one instruction that the sources write by hand; another one is refused here, or by the host's assembler if it is
// volatile. Empty ones are for compilers alone, and the host's takes them as they are.
#define asm(...)                                                                                                \
  static_assert(simt::equal(#__VA_ARGS__, R"("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x))"),                \
                "the executor does not know this instruction");                                                 \
  y = simt::approximate_exp2(x)

inline void __syncthreads() { simt::sync_block(); }
inline float __shfl_xor_sync(unsigned, float x, int step) { return simt::shuffle(x, static_cast<int>(threadIdx.x % 32) ^ step); }

namespace cooperative_groups {
struct cluster_group {
  void sync() const { simt::sync_cluster(); }
  template <typename T>
  T* map_shared_rank(T* mine, int block) const {
    const auto& anchors = simt::current_cluster().anchors;
    return reinterpret_cast<T*>(anchors[block] + (reinterpret_cast<char*>(mine) - anchors[simt::rank_in_cluster()]));
  }
};
inline cluster_group this_cluster() { return {}; }
}  // namespace cooperative_groups

// ---- numbers ----

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  _Float16 value;
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
struct __half2 {
  __half x, y;
};
inline float __uint_as_float(uint32_t x) { return simt::bits_as<float>(x); }
inline uint32_t __float_as_uint(float x) { return simt::bits_as<uint32_t>(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
inline float __half2float(__half x) { return static_cast<float>(x.value); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  const uint32_t bits = __float_as_uint(x);
  return {static_cast<uint16_t>(x != x ? 0x7FFF : (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)};
}
inline __half __float2half_rn(float x) { return {static_cast<_Float16>(x)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline float2 __half22float2(__half2 both) { return {__half2float(both.x), __half2float(both.y)}; }
inline __nv_bfloat162 __hmax2(__nv_bfloat162 a, __nv_bfloat162 b) {
  return __floats2bfloat162_rn(fmaxf(__bfloat162float(a.x), __bfloat162float(b.x)),
                               fmaxf(__bfloat162float(a.y), __bfloat162float(b.y)));
}
inline __half2 __hmax2(__half2 a, __half2 b) {
  return __floats2half2_rn(fmaxf(__half2float(a.x), __half2float(b.x)), fmaxf(__half2float(a.y), __half2float(b.y)));
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fdividef(float a, float b) { return a / b; }

// ---- the runtime's calls ----

using cudaError_t = int;
using cudaStream_t = void*;
enum { cudaSuccess = 0 };
enum { cudaLaunchAttributeClusterDimension };
struct cudaFuncAttributes {
  int ptxVersion;
};
struct cudaLaunchAttribute {
  int id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  attributes->ptxVersion = simt::intermediate_code();
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "the executor has stopped the kernel"; }
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  const int cluster = config->numAttrs != 0 ? static_cast<int>(config->attrs[0].val.clusterDim.x) : 1;
  simt::note_launch(reinterpret_cast<const void*>(kernel));
  return simt::run_grid(config->gridDim, config->blockDim, cluster, [&] { kernel(arguments...); });
}
