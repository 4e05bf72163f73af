// Rows of any element type as float32 and back, for one instruction set: included after a vector_*.h header.
#pragma once

#include "ops/cpu/vector_math.h"
#include "ops/rows.h"

namespace {

inline int64_t element_size(int element) { return element == kFloat32 ? 4 : 2; }

inline const void* element_at(const void* base, int element, int64_t index) {
  return static_cast<const char*>(base) + index * element_size(element);
}

template <typename Element>
void widen_row(const Element* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + Vector::width <= count; i += Vector::width) store(to + i, load(from + i));
  if (i < count) store_some(to + i, load_some(from + i, count - i, 0.0f), count - i);
}

template <typename Element>
void narrow_row(const float* from, int64_t count, Element* to) {
  int64_t i = 0;
  for (; i + Vector::width <= count; i += Vector::width) store(to + i, load(from + i));
  if (i < count) store_some(to + i, load_some(from + i, count - i, 0.0f), count - i);
}

// The row as float32: itself, or converted into `scratch`.
inline const float* as_float(const void* row, int element, int64_t count, float* scratch) {
  if (element == kFloat32) return static_cast<const float*>(row);
  if (element == kBFloat16) widen_row(static_cast<const BFloat16*>(row), count, scratch);
  else widen_row(static_cast<const Float16*>(row), count, scratch);
  return scratch;
}

inline void narrow_to(int element, const float* from, int64_t count, void* to) {
  if (element == kFloat32) narrow_row(from, count, static_cast<float*>(to));
  else if (element == kBFloat16) narrow_row(from, count, static_cast<BFloat16*>(to));
  else narrow_row(from, count, static_cast<Float16*>(to));
}

}  // namespace
