// Functions of a vector of floats that the row kernels need. Included after one of the vector_*.h headers.
#pragma once

namespace {

// Polynomials below: least squares for the relative error at Chebyshev points of |r| <= log(2) / 2, rounded to float32; that
// of `exponential` errs by 4e-9.
constexpr float kLog2E = 1.44269504f;

// sum_{n >= 2} r^(n-2) / n!, so that expm1(r) = r + r^2 times it; relative error of expm1 below 1e-7.
inline Vector expm1_tail(Vector r) {
  Vector p = broadcast(0.001394075f);
  p = fused(p, r, broadcast(0.008366691f));
  p = fused(p, r, broadcast(0.04166636f));
  p = fused(p, r, broadcast(0.16666542f));
  return fused(p, r, broadcast(0.5f));
}

// e^x for x <= 80, 0 where that is below the smallest number; relative error 1e-7.
inline Vector exponential(Vector x) {
  const Vector bounded = maximum(broadcast(-126.0f), x);  // in this order: NaN stays
  const Vector n = rounded(bounded * broadcast(kLog2E));
  const Vector r = less_multiple_of_log_2(bounded, n);
  Vector p = broadcast(0.001375115f);
  p = fused(p, r, broadcast(0.008368988f));
  p = fused(p, r, broadcast(0.041669544f));
  p = fused(p, r, broadcast(0.16666518f));
  p = fused(p, r, broadcast(0.49999988f));
  p = fused(p, r, broadcast(1.0f));
  return scaled_by_power(fused(p, r, broadcast(1.0f)), n);
}

// e^x and e^x - 1 for x <= 0, the latter with all digits near 0.
struct Decay {
  Vector factor, minus_one;
};
inline Decay decay(Vector x) {
  const Vector n = rounded(x * broadcast(kLog2E));
  const Vector r = less_multiple_of_log_2(x, n);
  const Vector moved = fused(r * r, expm1_tail(r), r);
  const Vector power = scaled_by_power(broadcast(1.0f), n);
  return Decay{fused(power, moved, power), fused(power, moved, power - broadcast(1.0f))};
}

inline float sum_of(Vector x) {
  float lane[Vector::width];
  store(lane, x);
  float total = 0.0f;
  for (float value : lane) total += value;
  return total;
}

// `count` elements, the rest of the vector filled with `fill`.
template <typename Element>
inline Vector load_some(const Element* p, int64_t count, float fill) {
  float lane[Vector::width];
  Element element[Vector::width] = {};
  __builtin_memcpy(element, p, static_cast<size_t>(count) * sizeof(Element));
  store(lane, load(element));
  for (int64_t i = count; i < Vector::width; ++i) lane[i] = fill;
  return load(lane);
}

template <typename Element>
inline void store_some(Element* p, Vector x, int64_t count) {
  Element element[Vector::width];
  store(element, x);
  __builtin_memcpy(p, element, static_cast<size_t>(count) * sizeof(Element));
}

}  // namespace
