// Dropout, the plain-C contract between the torch glue and the CPU kernels: out = x * (0 or 1 / keep probability). On a
// GPU torch's own kernel is used.
//
// The mask is a pure function of the seed and of the element's position, so that backward draws it again instead of
// keeping it: element i takes the 16-bit field i % 4 (lowest first) of the word splitmix64(seed, i / 4) and stays if
// field >= threshold. Python twin: megatron_alum/reference/dropout.py.
#pragma once

#include "common/portability.h"

struct DropoutTask {
  const void* x;  // [elements]
  void* out;      // [elements], may be x itself
  int64_t elements;
  uint64_t seed;
  uint32_t threshold;  // of 2^16: the probability of dropping
  float scale;         // of what stays
  int element;         // enum Element
};

constexpr uint32_t kDropoutLevels = 65536;

// The word of number `index` in the sequence that `seed` starts (Steele, Lea, Flood, OOPSLA 2014).
MA_FUNCTION uint64_t splitmix64(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return z ^ z >> 31;
}

void run_dropout_cpu(const DropoutTask& task);
