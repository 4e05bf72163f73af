// Token, whole-word and n-gram masking with 80/10/10 replacement; see masking.h.
#include "masking.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace megatron_alum::data {
namespace {

inline void set_bit(std::vector<uint64_t>& bits, int i) { bits[i >> 6] |= uint64_t{1} << (i & 63); }
inline bool has_bit(const std::vector<uint64_t>& bits, int i) { return bits[i >> 6] >> (i & 63) & 1; }

// Candidate number -> position: candidates are numbered through the texts in order.
inline int position_of(const std::vector<TextRange>& texts, int candidate) {
  for (const TextRange& text : texts) {
    if (candidate < text.length) return text.begin + candidate;
    candidate -= text.length;
  }
  __builtin_unreachable();
}

// Floyd's method: a uniform subset of `num` candidates, one word per element. Bits are set at positions.
void select_tokens(MaskWords& words, int num, int num_candidates, const std::vector<TextRange>& texts,
                   std::vector<uint64_t>& bits) {
  for (int j = num_candidates - num; j < num_candidates; ++j) {
    int position = position_of(texts, static_cast<int>(words.below(j + 1)));
    if (has_bit(bits, position)) position = position_of(texts, j);
    set_bit(bits, position);
  }
}

// Words of the sample: where each begins, how many tokens it has, whether it begins a text.
void find_words(const int64_t* tokens, const std::vector<TextRange>& texts, const Vocabulary& vocabulary,
                MaskScratch& scratch) {
  scratch.begins.clear(), scratch.sizes.clear(), scratch.text_first.clear();
  for (const TextRange& text : texts) {
    for (int i = 0; i < text.length; ++i) {
      const int64_t* token = tokens + text.begin + i;
      if (i > 0 && !(vocabulary.word_start[token[0]] & 1) && !(vocabulary.word_start[token[-1]] & 2)) {
        ++scratch.sizes.back();
        continue;
      }
      scratch.begins.push_back(text.begin + i);
      scratch.sizes.push_back(1);
      scratch.text_first.push_back(i == 0);
    }
  }
}

int run_length(MaskWords& words, const std::vector<uint64_t>& thresholds) {
  if (thresholds.empty()) return 1;
  const uint32_t word = words.word();
  int run = 1;
  for (uint64_t bound : thresholds) run += bound <= word;
  return run;
}

// Words in random order, each with its run, taken while they fit; see `_select_runs` in masking.py.
void select_runs(MaskWords& words, int num, const std::vector<uint64_t>& thresholds, MaskScratch& scratch) {
  const int num_words = static_cast<int>(scratch.sizes.size());
  scratch.order.resize(num_words);
  std::iota(scratch.order.begin(), scratch.order.end(), 0);
  scratch.taken.assign(num_words, 0);
  const auto take = [&scratch](int w) {
    scratch.taken[w] = 1;
    for (int t = 0; t < scratch.sizes[w]; ++t) set_bit(scratch.bits, scratch.begins[w] + t);
  };
  int budget = num;
  for (int i = 0; i < num_words && budget > 0; ++i) {
    const int j = i + static_cast<int>(words.below(num_words - i));
    std::swap(scratch.order[i], scratch.order[j]);
    const int first = scratch.order[i];
    if (scratch.taken[first]) continue;
    const int end = std::min(first + run_length(words, thresholds), num_words);
    for (int w = first; w < end; ++w) {
      if ((w > first && scratch.text_first[w]) || scratch.taken[w] || scratch.sizes[w] > budget) break;
      take(w);
      budget -= scratch.sizes[w];
    }
  }
  if (budget == num) take(scratch.order[0]);
}

inline int64_t replacement(int64_t token, uint32_t word, const MaskSettings& settings, const Vocabulary& vocabulary) {
  if (word < settings.masked_below) return vocabulary.mask;
  if (word < settings.kept_below) return token;
  const uint64_t range = (uint64_t{1} << 32) - settings.kept_below;
  return vocabulary.regular[uint64_t{word - settings.kept_below} * vocabulary.regular.size() / range];
}

}  // namespace

int num_to_mask(int64_t length, int64_t num_candidates, int64_t sample_index, const MaskSettings& settings) {
  const int64_t steps = static_cast<int64_t>(settings.rates.size());
  const double rate = settings.rates[std::min(sample_index * steps / settings.train_samples, steps - 1)];
  // nearbyint rounds halves to even, as Python's round does.
  const int64_t wanted = static_cast<int64_t>(std::nearbyint(length * rate));
  return static_cast<int>(std::min(std::max<int64_t>(1, wanted), num_candidates));
}

int mask_sample(int64_t* tokens, int length, const std::vector<TextRange>& texts, int64_t sample_index,
                const MaskSettings& settings, const Vocabulary& vocabulary, MaskScratch& scratch,
                const MaskedOut& out) {
  int num_candidates = 0;
  for (const TextRange& text : texts) num_candidates += text.length;
  const int num = num_to_mask(length, num_candidates, sample_index, settings);
  MaskWords words(settings.seed, domain_word(Stream::kMask, settings.split, 0, 0),
                  static_cast<uint32_t>(sample_index), static_cast<uint32_t>(sample_index >> 32));
  scratch.bits.assign((length + 63) / 64, 0);
  if (settings.masking == Masking::kToken) {
    select_tokens(words, num, num_candidates, texts, scratch.bits);
  } else {
    find_words(tokens, texts, vocabulary, scratch);
    select_runs(words, num, settings.ngram_thresholds, scratch);
  }
  int count = 0;
  for (size_t block = 0; block < scratch.bits.size(); ++block) {
    for (uint64_t rest = scratch.bits[block]; rest; rest &= rest - 1) {
      const int position = static_cast<int>(block) * 64 + __builtin_ctzll(rest);
      out.positions[count] = out.first + position;
      out.labels[count++] = tokens[position];
      tokens[position] = replacement(tokens[position], words.word(), settings, vocabulary);
    }
  }
  return count;
}

}  // namespace megatron_alum::data
