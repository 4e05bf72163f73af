// Asks the kernel for 2 MB pages under a large new CPU tensor. Beyond 32 MB malloc requests new memory from the system
// for every call; touching 125 MB for the first time in 4 KB pages takes several times as long as filling it (measured:
// 120 ms against 20). Below, malloc returns memory that was used before, for which the request would only make the
// kernel move pages.
#pragma once

#include <ATen/ATen.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

// Returns the tensor.
inline at::Tensor prefer_large_pages(at::Tensor tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 4096, always_fresh = 32 * 1024 * 1024;
  if (!tensor.is_cpu() || tensor.nbytes() <= always_fresh) return tensor;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(tensor.data_ptr()) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(tensor.data_ptr()) + tensor.nbytes()) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // only a hint: failing changes nothing
#endif
  return tensor;
}
