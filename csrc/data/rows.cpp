// Google's NSP, ALBERT's SOP and RoBERTa's full sentences; see rows.h and megatron_alum/data/sampling/pairs.py.
#include "rows.h"

#include <algorithm>

#include "random.h"

namespace megatron_alum::data {
namespace {

using PairWords = WordStream<1>;  // a pair takes at most four words

struct Pair {  // a row before truncation: lengths may exceed 16 bits
  int64_t a_start, b_start, a_length, b_length;
  uint32_t label;
};

inline int64_t scaled(uint32_t word, int64_t n) { return (static_cast<uint64_t>(word) * static_cast<uint64_t>(n)) >> 32; }
inline bool heads(uint32_t word) { return word < 0x80000000u; }

int64_t target_length(const WalkSettings& walk, int64_t document) {
  PairWords words(walk.seed, domain_word(Stream::kDocument, 0, walk.dataset, walk.epoch),
                  static_cast<uint32_t>(document), 0);
  if (words.word() < walk.short_threshold) return 2 + words.below(static_cast<uint32_t>(walk.max_tokens - 1));
  return walk.max_tokens;
}

// Takes single tokens off the longer side (B when equal) until both fit, from front or back by a fair coin. The number
// each side loses follows from the lengths, so the coins are counted instead of tossed in turn.
Row truncated(Pair p, const WalkSettings& walk, int64_t document, uint32_t ordinal) {
  const int64_t excess = p.a_length + p.b_length - walk.max_tokens;
  if (excess > 0) {
    WordStream<1> cuts(walk.seed, domain_word(Stream::kTruncation, 0, walk.dataset, walk.epoch),
                       static_cast<uint32_t>(document), ordinal);
    int64_t a_loss = std::min(excess, std::max<int64_t>(p.a_length - p.b_length, 0));
    int64_t b_loss = std::min(excess, std::max<int64_t>(p.b_length - p.a_length, 0));
    const int64_t rest = excess - a_loss - b_loss;
    a_loss += rest / 2;
    b_loss += rest - rest / 2;
    p.a_start += cuts.ones(static_cast<uint32_t>(a_loss));
    p.b_start += cuts.ones(static_cast<uint32_t>(b_loss));
    p.a_length -= a_loss;
    p.b_length -= b_loss;
  }
  return {p.a_start, p.b_start, static_cast<uint16_t>(p.a_length), static_cast<uint16_t>(p.b_length), p.label};
}

// Sentences of another document of the split, from a uniform one on until `wanted` tokens are met (at least one).
void draw_other(const Sentences& s, PairWords& words, int64_t document, int64_t wanted, Pair& pair) {
  int64_t other = s.first + words.below(static_cast<uint32_t>(s.last - s.first - 1));
  other += other >= document;
  const int64_t end = s.bounds[other + 1];
  int64_t sentence = s.bounds[other];
  sentence += words.below(static_cast<uint32_t>(end - sentence));
  pair.b_start = s.start(sentence);
  pair.b_length = 0;
  do pair.b_length += s.length(sentence++);
  while (sentence < end && pair.b_length < wanted);
  pair.label = 1;
}

// Both makers return the sentence where the next chunk begins; `pair.label` stays kNoPair where there is no sample.
constexpr uint32_t kNoPair = 2;

int64_t next_sentence_pair(const Sentences& s, PairWords& words, int64_t document, int64_t begin, int64_t stop,
                           int64_t target, Pair& pair) {
  const uint32_t first_word = words.word(), coin = words.word();
  const int64_t a_end = begin + 1 + scaled(first_word, std::max<int64_t>(stop - begin - 1, 1));
  pair.a_start = s.start(begin);
  pair.a_length = s.num_tokens(begin, a_end);
  if (stop - begin > 1 && !heads(coin)) {
    pair.b_start = s.start(a_end);
    pair.b_length = s.num_tokens(a_end, stop);
    pair.label = 0;
    return stop;
  }
  draw_other(s, words, document, target - pair.a_length, pair);
  return a_end;
}

int64_t sentence_order_pair(const Sentences& s, PairWords& words, int64_t begin, int64_t stop, Pair& pair) {
  const int64_t start = s.start(begin), length = s.num_tokens(begin, stop);
  if (length < 2) return stop;
  const uint32_t cut_word = words.word(), coin = words.word();
  const int64_t first = stop - begin > 1 ? s.num_tokens(begin, begin + 1 + scaled(cut_word, stop - begin - 1))
                                         : 1 + scaled(cut_word, length - 1);
  if (heads(coin)) {
    pair = {start + first, start, length - first, first, 1};
  } else {
    pair = {start, start + first, first, length - first, 0};
  }
  return stop;
}

}  // namespace

void append_pairs(const Sentences& s, const WalkSettings& walk, int64_t document, std::vector<Row>& rows) {
  const int64_t target = target_length(walk, document), end = s.bounds[document + 1];
  const uint32_t domain = domain_word(Stream::kPair, 0, walk.dataset, walk.epoch);
  uint32_t ordinal = 0;
  for (int64_t begin = s.bounds[document]; begin < end; ++ordinal) {
    int64_t stop = begin, length = 0;
    while (stop < end && length < target) length += s.length(stop++);
    PairWords words(walk.seed, domain, static_cast<uint32_t>(document), ordinal);
    Pair pair{0, 0, 0, 0, kNoPair};
    begin = walk.objective == Objective::kNextSentence
                ? next_sentence_pair(s, words, document, begin, stop, target, pair)
                : sentence_order_pair(s, words, begin, stop, pair);
    if (pair.label != kNoPair) rows.push_back(truncated(pair, walk, document, ordinal));
  }
}

void append_full_sentences(const Sentences& s, int64_t max_tokens, std::vector<Row>& rows) {
  int64_t start = 0, origin = 0, length = 0, ends = 0;
  const auto flush = [&] {
    rows.push_back({start, origin, static_cast<uint16_t>(length), static_cast<uint16_t>(ends), 0});
    length = ends = 0;
  };
  for (int64_t document = s.first; document < s.last; ++document) {
    for (int64_t sentence = s.bounds[document]; sentence < s.bounds[document + 1]; ++sentence) {
      int64_t token = s.start(sentence), remaining = s.length(sentence);
      int64_t crossing = length && sentence == s.bounds[document];
      if (length && length + ends + crossing + remaining > max_tokens) flush(), crossing = 0;
      for (; remaining > max_tokens; token += max_tokens, remaining -= max_tokens) {
        rows.push_back({token, document, static_cast<uint16_t>(max_tokens), 0, 0});
      }
      if (!length) start = token, origin = document;
      length += remaining;
      ends += crossing;
    }
  }
  if (length) flush();
}

}  // namespace megatron_alum::data
