// Philox4x32-10 (Salmon et al., SC 2011): 128 random bits as a pure function of a 128-bit counter and a 64-bit key.
// Python twin: megatron_alum/reference/noise.py. Known-answer test: tests/ops/test_noise.py.
#pragma once

#include "common/portability.h"

struct PhiloxKey {
  uint32_t low;   // seed of the run
  uint32_t high;  // iteration
};

struct PhiloxBlock {
  uint32_t word[4];
};

MA_FUNCTION void philox_round(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, PhiloxKey key) {
  const uint64_t p0 = static_cast<uint64_t>(c0) * 0xD2511F53u;
  const uint64_t p1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
  c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key.low;
  c1 = static_cast<uint32_t>(p1);
  c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key.high;
  c3 = static_cast<uint32_t>(p0);
}

MA_FUNCTION PhiloxKey next_round(PhiloxKey key) { return PhiloxKey{key.low + 0x9E3779B9u, key.high + 0xBB67AE85u}; }

constexpr int kPhiloxRounds = 10;

MA_FUNCTION PhiloxBlock philox(PhiloxBlock counter, PhiloxKey key) {
  uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  for (int round = 0; round < kPhiloxRounds; ++round) {
    philox_round(c0, c1, c2, c3, key);
    key = next_round(key);
  }
  return PhiloxBlock{{c0, c1, c2, c3}};
}
