// Functions of a vector of floats that the row kernels need. Included after one of the vector_*.h headers.
#pragma once

#include "common/portability.h"

namespace {

// Polynomials below: least greatest relative error on |r| <= log(2) / 2 (Lawson's reweighted least squares at 2000 Chebyshev
// points), rounded to float32.

// sum_{n >= 2} r^(n-2) / n!, so that expm1(r) = r + r^2 times it; relative error of expm1 1.3e-8.
inline Vector expm1_tail(Vector r) {
  Vector p = broadcast(0.00138825143f);
  p = fused(p, r, broadcast(0.00836654752f));
  p = fused(p, r, broadcast(0.0416672006f));
  p = fused(p, r, broadcast(0.166665435f));
  return fused(p, r, broadcast(0.49999997f));
}

// e^x for x <= 80, 0 where that is below the smallest number; relative error 1.5e-7. NaN for x = -inf unless kBounded.
template <bool kBounded>
inline Vector exponential(Vector x) {
  const Vector bounded = kBounded ? maximum(broadcast(-126.0f), x) : x;  // in this order: NaN stays
  const Vector n = rounded(bounded * broadcast(kLog2E));
  const Vector r = less_multiple_of_log_2(bounded, n);
  Vector p = broadcast(0.00829027034f);
  p = fused(p, r, broadcast(0.0418981612f));
  p = fused(p, r, broadcast(0.166676387f));
  p = fused(p, r, broadcast(0.499991477f));
  p = fused(p, r, broadcast(0.999999702f));
  return scaled_by_power(fused(p, r, broadcast(1.0f)), n);
}

// e^x and e^x - 1 for x <= 80, the latter with all digits near 0; `remainder` is e^x - 1 - x where |x| < log(2) / 2, with all
// digits too.
struct Growth {
  Vector factor, minus_one, remainder;
};
template <bool kBounded>  // else NaN for x below -1e18
inline Growth growth(Vector x) {
  const Vector bounded = kBounded ? maximum(broadcast(-126.0f), x) : x;  // in this order: NaN stays
  const Vector n = rounded(bounded * broadcast(kLog2E));
  const Vector r = less_multiple_of_log_2(bounded, n);
  const Vector remainder = (r * r) * expm1_tail(r);
  const Vector moved = r + remainder;
  const Vector power = scaled_by_power(broadcast(1.0f), n);
  return Growth{fused(power, moved, power), fused(power, moved, power - broadcast(1.0f)), remainder};
}

inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

inline float sum_of(Vector x) {
  float total = 0.0f;
  for (int i = 0; i < Vector::width; ++i) total += x.v[i];
  return total;
}

inline float first_of(Vector x) { return x.v[0]; }

inline float greatest_of(Vector x) {
  float greatest = -MA_INFINITY;
  for (int i = 0; i < Vector::width; ++i) greatest = x.v[i] > greatest ? x.v[i] : greatest;
  return greatest;
}

template <typename Element>
inline void store(Element* p, Vector x) {
  const auto bits = narrowed(x, Element{});
  __builtin_memcpy(p, &bits, sizeof(bits));
}
template <typename Element>
inline void stream(Element* p, Vector x) {  // past the caches; p aligned to what is written
  stream_bits(p, narrowed(x, Element{}));
}

// `count` elements, the rest of the vector filled with `fill`.
template <typename Element>
inline Vector load_some(const Element* p, int64_t count, float fill) {
  Element element[Vector::width] = {};
  __builtin_memcpy(element, p, static_cast<size_t>(count) * sizeof(Element));
  Vector x = load(element);
  for (int64_t i = count; i < Vector::width; ++i) x.v[i] = fill;
  return x;
}

template <typename Element>
inline void store_some(Element* p, Vector x, int64_t count) {
  Element element[Vector::width];
  store(element, x);
  __builtin_memcpy(p, element, static_cast<size_t>(count) * sizeof(Element));
}

}  // namespace
