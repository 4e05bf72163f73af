// Which tokens of a sample are masked, and what stands in their place.
//
// Python twin: megatron_alum/data/masking.py, where the rules and their sources stand; the random words are taken in the
// same order.
#pragma once

#include <cstdint>
#include <vector>

#include "random.h"

namespace megatron_alum::data {

enum class Masking { kToken, kWholeWord, kNgram };

struct MaskSettings {
  Masking masking;
  std::vector<uint64_t> ngram_thresholds;  // bounds of the run length, empty unless kNgram
  std::vector<double> rates;               // mask rate of each equal step of the run
  int64_t train_samples;                   // length of the run
  uint64_t seed;
  uint32_t split;
  uint32_t masked_below, kept_below;       // word -> mask token | unchanged | random token

  double rate(int64_t sample_index) const;
};

struct Vocabulary {
  int64_t cls, sep, mask, pad;
  int pair_separators;              // separators between A and B
  int64_t second_type;              // token type of B
  std::vector<int32_t> regular;     // ids that may replace a masked token
  std::vector<uint8_t> word_start;  // [V] bit 0: the token begins a word; bit 1: the token after it does
};

using MaskWords = WordStream<8>;

// Where the text of a sample lies among its tokens: [begin, begin + length) of one row.
struct TextRange {
  int begin, length;
};

// Memory of one thread, reused from sample to sample.
struct MaskScratch {
  std::vector<int> order, sizes, begins;
  std::vector<uint8_t> taken, text_first;
  std::vector<uint64_t> bits;  // one bit a position of the row
};

// Masks one row of tokens in place. `length` counts special tokens too; `texts` are the ranges that may be masked.
// Writes ascending positions and original ids, and returns how many; both buffers hold the whole row.
int mask_row(int64_t* tokens, int length, const std::vector<TextRange>& texts, int64_t sample_index,
             const MaskSettings& settings, const Vocabulary& vocabulary, MaskScratch& scratch, uint16_t* positions,
             int32_t* labels);

}  // namespace megatron_alum::data
