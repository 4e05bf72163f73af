// Dropout on the CPU, for one instruction set: included after a vector_*.h header, compiled once for each of them. Plain loops
// over a block that stays in the first-level cache; the compiler turns them into vectors.
#pragma once

#include "ops/cpu/element_rows.h"
#include "ops/cpu/kernels.h"
#include "ops/dropout.h"

namespace {

// Scales or drops the elements of blocks [begin, end).
inline void drop_blocks(const DropoutTask& task, int64_t begin, int64_t end) {
  constexpr int64_t words = kDropoutBlock / 4;
  const uint32_t threshold = task.threshold;  // copies: read through `task` they would prevent vectorisation
  const float scale = task.scale;
  uint64_t drawn[words];
  uint16_t fields[kDropoutBlock];
  float values[kDropoutBlock];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kDropoutBlock;
    const int64_t left = task.elements - first, count = left < kDropoutBlock ? left : kDropoutBlock;
#pragma omp simd
    for (int64_t i = 0; i < words; ++i) drawn[i] = splitmix64(task.seed, static_cast<uint64_t>(first / 4 + i));
    __builtin_memcpy(fields, drawn, sizeof(fields));
    void* to = const_cast<void*>(element_at(task.out, task.element, first));
    const float* x = as_float(element_at(task.x, task.element, first), task.element, count, values);
    float* scaled = task.element == kFloat32 ? static_cast<float*>(to) : values;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const float factor = fields[i] >= threshold ? scale : 0.0f;
      scaled[i] = x[i] * factor;  // not a selection: what is not a number stays visible, as in torch
    }
    if (scaled != values) continue;
    by_element(task.element, [&](auto number) { convert_row(values, count, static_cast<decltype(number)*>(to)); });
  }
}

}  // namespace
