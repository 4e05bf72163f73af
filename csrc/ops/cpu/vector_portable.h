// Eight floats in plain C++, for any processor; the compiler makes of it what the target has (SSE2 on x86-64).
// Same interface as vector_avx512.h and vector_avx2.h; multiply-adds are rounded twice here.
#pragma once

#include <stdint.h>

namespace {

struct Vector {
  static constexpr int width = 8;
  static constexpr const char* name = "portable";
  float v[width];
};

template <typename Function>
inline Vector each(Function function) {
  Vector result;
  for (int i = 0; i < Vector::width; ++i) result.v[i] = function(i);
  return result;
}
inline Vector broadcast(float x) {
  return each([=](int) { return x; });
}
inline Vector operator+(Vector x, Vector y) {
  return each([&](int i) { return x.v[i] + y.v[i]; });
}
inline Vector operator-(Vector x, Vector y) {
  return each([&](int i) { return x.v[i] - y.v[i]; });
}
inline Vector operator*(Vector x, Vector y) {
  return each([&](int i) { return x.v[i] * y.v[i]; });
}
inline Vector operator/(Vector x, Vector y) {
  return each([&](int i) { return x.v[i] / y.v[i]; });
}
inline Vector fused(Vector x, Vector y, Vector z) { return x * y + z; }
inline Vector fused_negated(Vector x, Vector y, Vector z) { return z - x * y; }
// If either is NaN both return y.
inline Vector minimum(Vector x, Vector y) {
  return each([&](int i) { return x.v[i] < y.v[i] ? x.v[i] : y.v[i]; });
}
inline Vector maximum(Vector x, Vector y) {
  return each([&](int i) { return x.v[i] > y.v[i] ? x.v[i] : y.v[i]; });
}
inline Vector negated_absolute(Vector x) {
  return each([&](int i) { return -__builtin_fabsf(x.v[i]); });
}
inline Vector rounded(Vector x) {  // adding 1.5 * 2^23 leaves no bits below the point; whole numbers beyond stay
  return each([&](int i) { return (x.v[i] + 12582912.0f) - 12582912.0f; });
}
// x 2^n for whole n in [-126, 127]; below that 0 (callers clamp above).
inline Vector scaled_by_power(Vector x, Vector n) {
  return each([&](int i) {
    const int32_t bits = static_cast<int32_t>((n.v[i] > -127.0f ? n.v[i] : -127.0f) + 127.0f) << 23;
    float power;
    __builtin_memcpy(&power, &bits, sizeof(power));
    return x.v[i] * power;
  });
}
inline Vector less_multiple_of_log_2(Vector x, Vector n) {  // log 2 in two parts, the first short: n times it is exact
  return (x - n * broadcast(0.693359375f)) + n * broadcast(2.12194440e-4f);
}
inline Vector with_sign_flipped_where_negative(Vector x, Vector s) {
  return each([&](int i) { return __builtin_signbit(s.v[i]) ? -x.v[i] : x.v[i]; });
}
// By the sign bit of s: x y where it is set, x elsewhere; and the other way round.
inline Vector times_where_negative(Vector x, Vector y, Vector s) {
  return each([&](int i) { return __builtin_signbit(s.v[i]) ? x.v[i] * y.v[i] : x.v[i]; });
}
inline Vector times_where_positive(Vector x, Vector y, Vector s) {
  return each([&](int i) { return __builtin_signbit(s.v[i]) ? x.v[i] : x.v[i] * y.v[i]; });
}
inline Vector where_greater(Vector x, Vector y, Vector yes, Vector no) {
  return each([&](int i) { return x.v[i] > y.v[i] ? yes.v[i] : no.v[i]; });
}
inline bool any_below(Vector x, float limit) {  // or NaN
  bool all = true;
  for (int i = 0; i < Vector::width; ++i) all = all & (x.v[i] >= limit);
  return !all;
}
inline Vector zero_where_nan(Vector x) {
  return each([&](int i) { return x.v[i] == x.v[i] ? x.v[i] : 0.0f; });
}
inline Vector zero_where_both(Vector a, Vector b, Vector limit, Vector value) {  // a == limit and b == limit
  return each([&](int i) { return a.v[i] == limit.v[i] && b.v[i] == limit.v[i] ? 0.0f : value.v[i]; });
}

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float widen(float x) { return x; }
inline float widen(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}
inline float widen(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7FFFu;
  if (magnitude < 0x0400u) {  // zero and subnormal: a multiple of 2^-24
    const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    return sign != 0 ? -value : value;
  }
  const uint32_t special = magnitude >= 0x7C00u ? 0x38000000u : 0u;  // infinities and NaN: exponent 255 instead of 143
  const uint32_t bits = sign | ((magnitude << 13) + 0x38000000u + special);
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

inline void narrow(float* to, float x) { *to = x; }
inline void narrow(BFloat16* to, float x) {  // nearest, ties to even; NaN stays NaN
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  to->bits = static_cast<uint16_t>(x != x ? 0x7FC0u : (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}
inline void narrow(Float16* to, float x) {  // nearest, ties to even; NaN stays NaN
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  uint32_t half;
  if (magnitude > 0x7F800000u) {
    half = 0x7E00u;
  } else if (magnitude >= 0x477FF000u) {  // 65520 and more round to infinity
    half = 0x7C00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 1/2 leaves multiples of 2^-24 in the low bits
    float value;
    __builtin_memcpy(&value, &magnitude, sizeof(value));
    value += 0.5f;
    __builtin_memcpy(&half, &value, sizeof(half));
    half -= 0x3F000000u;
  } else {
    half = (magnitude - 0x38000000u + 0x0FFFu + ((magnitude >> 13) & 1u)) >> 13;
  }
  to->bits = static_cast<uint16_t>(sign | half);
}

template <typename Element>
inline Vector load(const Element* p) {
  return each([&](int i) { return widen(p[i]); });
}
template <typename Element>
inline void store(Element* p, Vector x) {
  for (int i = 0; i < Vector::width; ++i) narrow(p + i, x.v[i]);
}
template <typename Element>
inline void stream(Element* p, Vector x) {
  store(p, x);
}
inline void finish_streaming() {}
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace
