// Counter-based random words of the sampler: Philox4x32-10 keyed by the run's seed, and a permutation without storage.
//
// Python twin: megatron_alum/data/sampling/rng.py, which says what each stream decides. Both give the same words; a change here
// must be made there, and tests/data/sampling/test_native.py compares them bit for bit.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/philox.h"

namespace megatron_alum::data {

enum class Stream : uint32_t { kDocument = 0, kPair = 1, kTruncation = 2, kPermutation = 3, kMask = 4 };

inline uint32_t domain_word(Stream stream, uint32_t split, uint32_t dataset, uint32_t epoch) {
  return static_cast<uint32_t>(stream) << 29 | split << 27 | dataset << 15 | epoch;
}

// The words of one (seed, domain, low, high) in order. Blocks of four words are computed kBlocks at a time: the rounds of
// one block depend on each other, those of different blocks overlap. Short streams take 1, long ones 8.
template <int kBlocks>
class WordStream {
 public:
  WordStream(uint64_t seed, uint32_t domain, uint32_t low, uint32_t high)
      : seed_(seed), domain_(domain), low_(low), high_(high) {}

  uint32_t word() {
    if (taken_ == 4 * kBlocks) refill();
    return words_[taken_++];
  }

  // A whole number in [0, n).
  uint32_t below(uint32_t n) { return static_cast<uint32_t>((static_cast<uint64_t>(word()) * n) >> 32); }

  // How many of the next `num_bits` fair coins show one: whole words first, then the low bits of one more.
  uint32_t ones(uint32_t num_bits) {
    uint32_t count = 0;
    for (; num_bits >= 32; num_bits -= 32) count += __builtin_popcount(word());
    if (num_bits) count += __builtin_popcount(word() & ((1u << num_bits) - 1));
    return count;
  }

 private:
  void refill() {
    const PhiloxKey key{static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)};
    for (int i = 0; i < kBlocks; ++i) {
      const PhiloxBlock block = philox(PhiloxBlock{{block_ + i, low_, high_, domain_}}, key);
      std::memcpy(words_ + 4 * i, block.word, sizeof(block.word));
    }
    block_ += kBlocks;
    taken_ = 0;
  }

  uint64_t seed_;
  uint32_t domain_, low_, high_;
  uint32_t block_ = 0;
  int taken_ = 4 * kBlocks;
  uint32_t words_[4 * kBlocks];
};

// A fixed random order of 0 .. size-1: an eight-round Feistel network that walks past values >= size.
class Permutation {
 public:
  Permutation(uint64_t size, uint64_t seed, uint32_t domain) : size_(size) {
    int bits = 0;
    while (bits < 63 && (uint64_t{1} << bits) < size) ++bits;
    left_bits_ = bits / 2;
    right_bits_ = bits - left_bits_;
    WordStream<2> words(seed, domain, 0, 0);
    for (uint32_t& key : keys_) key = words.word();
  }

  uint64_t operator[](uint64_t position) const {
    do position = encrypt(position);
    while (position >= size_);
    return position;
  }

 private:
  static uint32_t mix(uint32_t x) {  // constants of the xxHash finaliser
    x = (x ^ (x >> 15)) * 0x85EBCA77u;
    x = (x ^ (x >> 13)) * 0xC2B2AE3Du;
    return x ^ (x >> 16);
  }

  uint64_t encrypt(uint64_t value) const {
    const uint32_t left_mask = (1u << left_bits_) - 1, right_mask = (1u << right_bits_) - 1;
    uint32_t left = static_cast<uint32_t>(value >> right_bits_), right = static_cast<uint32_t>(value) & right_mask;
    for (int i = 0; i < 8; i += 2) {
      left ^= mix(right ^ keys_[i]) & left_mask;
      right ^= mix(left ^ keys_[i + 1]) & right_mask;
    }
    return uint64_t{left} << right_bits_ | right;
  }

  uint64_t size_;
  int left_bits_, right_bits_;
  uint32_t keys_[8];
};

}  // namespace megatron_alum::data
