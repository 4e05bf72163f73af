// A random word turned into a standard Gaussian number: the inverse distribution function from correctly rounded +, -, *, /
// and sqrt in a fixed order, so that every device gives the same bits. Definition, sources and error of the polynomials:
// megatron_alum/reference/noise.py.
#pragma once

#include "common/philox.h"

// Coefficients from the highest power down; every product and every sum is rounded.
template <int kCount>
MA_FUNCTION float polynomial(const float (&coefficient)[kCount], float x) {
  float total = coefficient[0];
  MA_UNROLL
  for (int i = 1; i < kCount; ++i) total = MA_ADD(MA_MUL(total, x), coefficient[i]);
  return total;
}

// log y for positive, normal y.
MA_FUNCTION float ordered_log(float y) {
  constexpr float kLog[] = {0.08808367f, -0.14351936f, 0.1491018f,   -0.16563112f,
                            0.1996212f,  -0.25002128f, 0.33333957f, -0.49999985f};
  const int32_t sqrt_half = 0x3F3504F3;
  const int32_t bits = bits_as<int32_t>(y) - sqrt_half;
  const float exponent = static_cast<float>(bits >> 23);
  const float f = MA_ADD(bits_as<float>((bits & 0x7FFFFF) + sqrt_half), -1.0f);
  return MA_ADD(MA_ADD(f, MA_MUL(MA_MUL(f, f), polynomial(kLog, f))), MA_MUL(exponent, 0.693147182f));
}

MA_FUNCTION float gaussian_of_word(uint32_t word) {
  // erfinv(x) / x, of w - 2.5 where w < 5 and of sqrt(w) - 3 elsewhere.
  constexpr float kCentral[] = {2.81022636e-08f, 3.43273939e-07f,  -3.5233877e-06f, -4.39150654e-06f, 0.00021858087f,
                                -0.00125372503f, -0.00417768164f, 0.246640727f,    1.50140941f};
  constexpr float kTail[] = {-0.000200214257f, 0.000100950558f, 0.00134934322f, -0.00367342844f, 0.00573950773f,
                             -0.0076224613f,   0.00943887047f,  1.00167406f,    2.83297682f};
  const float bits = static_cast<float>(static_cast<int32_t>(word & 0x7FFFFFFFu));
  const float v = MA_MUL(MA_ADD(bits, 0.5f), 2.3283064365386963e-10f);  // 2^-32
  const float x = MA_ADD(1.0f, -MA_MUL(2.0f, v));
  const float w = -ordered_log(MA_MUL(MA_MUL(4.0f, v), MA_ADD(1.0f, -v)));
  const float central = polynomial(kCentral, MA_ADD(w, -2.5f));
  const float tail = polynomial(kTail, MA_ADD(MA_SQRT(w), -3.0f));
  const float z = MA_MUL(MA_MUL(w < 5.0f ? central : tail, x), 1.41421354f);
  return (word >> 31) != 0 ? -z : z;
}

// What the noise of one token depends on, besides the channel.
struct NoiseToken {
  PhiloxKey key;
  uint32_t position;
  uint64_t sample;  // global sample index
};

// Channels 4 * block .. 4 * block + 3 of one token, standard deviation 1, come from the words of this counter.
MA_FUNCTION PhiloxBlock noise_counter(const NoiseToken& token, uint32_t block) {
  return PhiloxBlock{
      {block, token.position, static_cast<uint32_t>(token.sample), static_cast<uint32_t>(token.sample >> 32)}};
}
