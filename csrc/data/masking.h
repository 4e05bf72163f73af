// Which tokens of a sample are masked, and what replaces them.
//
// Python twin: megatron_alum/data/sampling/masking.py, which gives the rules and their sources; the random words are
// taken in the same order.
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
};

struct Vocabulary {
  int64_t cls, sep, mask, pad;
  int pair_separators;              // separators between A and B
  int64_t second_type;              // token type of B
  std::vector<int32_t> regular;     // ids that may replace a masked token
  std::vector<uint8_t> word_start;  // [V] bit 0: the token begins a word; bit 1: the token after it does
};

using MaskWords = WordStream<8>;

// Where the text of a sample lies among its tokens: [begin, begin + length).
struct TextRange {
  int begin, length;
};

// Memory of one thread, reused from sample to sample.
struct MaskScratch {
  std::vector<int> order, sizes, begins;
  std::vector<uint8_t> taken, text_first;
  std::vector<uint64_t> bits;  // one bit per position of the sample
};

// Where the masked positions of a sample are written: ascending, counted from `first`; each has room for the whole
// sample.
struct MaskedOut {
  int64_t first;
  int64_t *positions, *labels;
};

// Masked tokens of a sample of `length` tokens, special ones included. Whole words may come to a few more or less.
int num_to_mask(int64_t length, int64_t num_candidates, int64_t sample_index, const MaskSettings& settings);

// Masks one sample in place; its ids lie in the vocabulary. `length` counts special tokens too; `texts` are the ranges
// that may be masked. Writes positions and original ids, and returns how many.
int mask_sample(int64_t* tokens, int length, const std::vector<TextRange>& texts, int64_t sample_index,
                const MaskSettings& settings, const Vocabulary& vocabulary, MaskScratch& scratch, const MaskedOut& out);

}  // namespace megatron_alum::data
