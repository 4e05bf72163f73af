// Rows of any element type as float32 and back, for one instruction set: included after a vector_*.h header.
#pragma once

#include "ops/cpu/vector_math.h"
#include "ops/rows.h"

namespace {

inline const void* element_at(const void* base, int element, int64_t index) {
  return static_cast<const char*>(base) + index * (element == kFloat32 ? 4 : 2);
}

template <typename From, typename To>
void convert_row(const From* from, int64_t count, To* to) {
  int64_t i = 0;
  for (; i + Vector::width <= count; i += Vector::width) store(to + i, load(from + i));
  if (i < count) store_some(to + i, load_some(from + i, count - i, 0.0f), count - i);
}

// Calls `function` with a number of the element type.
template <typename Function>
auto by_element(int element, const Function& function) {
  if (element == kFloat32) return function(float{});
  if (element == kBFloat16) return function(BFloat16{});
  return function(Float16{});
}

// The row as float32: itself, or converted into `scratch`.
inline const float* as_float(const void* row, int element, int64_t count, float* scratch) {
  if (element == kFloat32) return static_cast<const float*>(row);
  by_element(element, [&](auto number) { convert_row(static_cast<const decltype(number)*>(row), count, scratch); });
  return scratch;
}

}  // namespace
