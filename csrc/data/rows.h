// The rows of an epoch: which two stretches of text make each sample, and its sentence-pair label.
//
// Python twin: megatron_alum/data/sampling/pairs.py, which gives the rules and their sources.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace megatron_alum::data {

// One sample; the layout of `ROW` in pairs.py. Starts count tokens from the beginning of the .bin file.
struct Row {
  int64_t a_start;
  int64_t b_start;
  uint16_t a_length;
  uint16_t b_length;
  uint32_t label;
};
static_assert(sizeof(Row) == 24, "the cached index is an array of 24-byte rows");

// Element of a memory-mapped array that need not be aligned: the arrays of an .idx file begin at byte 34.
template <typename T>
inline T load(const uint8_t* array, int64_t i) {
  T value;
  std::memcpy(&value, array + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// The documents [first, last) of a shard. Pointers into the mapped .idx file; `bounds` is an array of ours.
struct Sentences {
  const uint8_t* lengths;   // int32 [sentences] tokens, all >= 1
  const uint8_t* offsets;   // int64 [sentences] bytes into the .bin file
  const int64_t* bounds;    // [documents + 1] first sentence of each document, and the end
  int64_t first, last;
  int token_shift;          // log2 of the bytes of a token: 1 or 2

  int64_t length(int64_t sentence) const { return load<int32_t>(lengths, sentence); }
  int64_t start(int64_t sentence) const { return load<int64_t>(offsets, sentence) >> token_shift; }
  int64_t num_tokens(int64_t begin, int64_t end) const { return start(end - 1) + length(end - 1) - start(begin); }
};

enum class Objective { kNextSentence, kSentenceOrder, kNone };

struct WalkSettings {
  Objective objective;
  int64_t max_tokens;        // text tokens a sample may hold
  uint64_t short_threshold;  // a word below this gives a document a short target length
  uint64_t seed;
  uint32_t dataset, epoch;
};

// Rows of one document for a sentence-pair objective, appended to `rows`.
void append_pairs(const Sentences& sentences, const WalkSettings& walk, int64_t document, std::vector<Row>& rows);

// Rows of full sentences over all documents of the split, appended to `rows`.
void append_full_sentences(const Sentences& sentences, int64_t max_tokens, std::vector<Row>& rows);

}  // namespace megatron_alum::data
