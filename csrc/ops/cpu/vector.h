// Vectors of floats: the code common to all instruction sets, in the compiler's own vector arithmetic. Included by the
// vector_*.h headers, which define `Floats` beforehand and add what needs their own instructions.
#pragma once

namespace {

typedef int32_t Ints __attribute__((vector_size(sizeof(Floats))));
typedef uint32_t Words __attribute__((vector_size(sizeof(Floats))));
typedef uint16_t Halves __attribute__((vector_size(sizeof(Floats) / 2)));

struct Vector {
  static constexpr int width = sizeof(Floats) / sizeof(float);
  Floats v;
};

struct BFloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

inline Vector broadcast(float x) { return {x - Floats{}}; }
inline Vector operator+(Vector x, Vector y) { return {x.v + y.v}; }
inline Vector operator-(Vector x, Vector y) { return {x.v - y.v}; }
inline Vector operator*(Vector x, Vector y) { return {x.v * y.v}; }
inline void operator+=(Vector& x, Vector y) { x.v += y.v; }
// If either is NaN both return y. By instruction set: GCC makes a comparison and a blend of it if x is a constant.
inline Vector minimum(Vector x, Vector y);
inline Vector maximum(Vector x, Vector y);
inline Vector negated_absolute(Vector x) { return {(Floats)((Ints)x.v | INT32_MIN)}; }
// By the sign bit of s: x y where it is set, x elsewhere.
inline Vector times_where_negative(Vector x, Vector y, Vector s) { return {(Ints)s.v < 0 ? x.v * y.v : x.v}; }
inline Vector with_sign_flipped_where_negative(Vector x, Vector s) {
  return {(Floats)((Ints)x.v ^ ((Ints)s.v & INT32_MIN))};
}
inline Vector where_greater(Vector x, Vector y, Vector yes, Vector no) { return {x.v > y.v ? yes.v : no.v}; }
inline Vector zero_where_nan(Vector x) { return {x.v == x.v ? x.v : Floats{}}; }
inline Vector zero_where_both(Vector a, Vector b, Vector limit, Vector value) {  // a == limit and b == limit
  return {((a.v == limit.v) & (b.v == limit.v)) != 0 ? Floats{} : value.v};
}

inline Vector load(const float* p) {
  Vector x;
  __builtin_memcpy(&x.v, p, sizeof(x.v));
  return x;
}
// Of each word the upper half, and words with such halves. By instruction set: GCC's own conversion of 16 lanes takes four
// shuffles where the load itself can widen.
inline Halves upper_halves(Words words);
inline Words words_of_upper(Halves halves);

inline Vector load(const BFloat16* p) {
  Halves upper;
  __builtin_memcpy(&upper, p, sizeof(upper));
  return {(Floats)words_of_upper(upper)};
}
// What is stored of a vector, by the element type.
inline Floats narrowed(Vector x, float) { return x.v; }
inline Halves narrowed(Vector x, BFloat16) {  // nearest, ties to even; NaN stays NaN
  const Words bits = (Words)x.v;
  const Words near = x.v == x.v ? bits + 0x7FFFu + ((bits >> 16) & 1u) : Words{} + 0x7FC00000u;
  return upper_halves(near);
}

}  // namespace
