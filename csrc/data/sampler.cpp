// See sampler.h. A few samples at a time are taken in three passes so that their cache misses overlap: find and prefetch
// the index rows, prefetch the text, then write.
#include "sampler.h"

#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <string>

namespace megatron_alum::data {
namespace {

constexpr int kGroup = 8;
constexpr int64_t kIgnoredLabel = -100;

void prefetch_text(const Shard& shard, int64_t start, int64_t length) {
  const uint8_t* begin = shard.tokens + (start << shard.sentences.token_shift);
  // The processor's own prefetcher follows after the first lines.
  const int64_t bytes = std::min<int64_t>(length << shard.sentences.token_shift, 256);
  for (int64_t offset = 0; offset < bytes; offset += 64) __builtin_prefetch(begin + offset);
}

void copy_text(const Shard& shard, int64_t start, int64_t length, int64_t* out) {
  const uint8_t* text = shard.tokens + (start << shard.sentences.token_shift);
  if (shard.sentences.token_shift == 1) {
    for (int64_t i = 0; i < length; ++i) out[i] = load<uint16_t>(text, i);
  } else {
    for (int64_t i = 0; i < length; ++i) out[i] = load<int32_t>(text, i);
  }
}

}  // namespace

void Sampler::add_epoch(int shard, const Epoch& epoch) {
  const std::unique_lock<std::shared_mutex> lock(epochs_mutex_);
  shards_[shard].epochs.push_back(epoch);
}

int64_t Sampler::index_in_shard(int64_t sample_index, int* shard) const {
  const Blend& blend = settings_.blend;
  const int64_t size = static_cast<int64_t>(blend.shard.size());
  const int64_t block = sample_index / size, place = sample_index % size;
  *shard = blend.shard[place];
  return block * blend.counts[*shard] + blend.rank[place];
}

int Sampler::shard_to_extend(const int64_t* sample_indices, int num_samples) const {
  const std::shared_lock<std::shared_mutex> lock(epochs_mutex_);
  for (int b = 0; b < num_samples; ++b) {
    int shard;
    const int64_t sample = index_in_shard(sample_indices[b], &shard);
    const std::vector<Epoch>& epochs = shards_[shard].epochs;
    if (epochs.empty() || sample >= epochs.back().end_sample) return shard;
  }
  return -1;
}

Sampler::Place Sampler::locate(int64_t sample_index) const {
  int number;
  const int64_t sample = index_in_shard(sample_index, &number);
  const Shard& shard = shards_[number];
  auto epoch = shard.epochs.rbegin();  // nearly always the newest
  while (sample < epoch->first_sample) ++epoch;
  return {&shard, epoch->rows + epoch->order[static_cast<uint64_t>(sample - epoch->first_sample)]};
}

// A cached index can be damaged on disk; what it points at must lie in the shard and fit the sample.
bool Sampler::row_is_sound(const Place& place) const {
  const Row& row = *place.row;
  const bool paired = settings_.objective != Objective::kNone;
  const Sentences& s = place.shard->sentences;
  const int64_t special = paired ? 2 + settings_.vocabulary.pair_separators : 2;
  const bool fits = row.a_length + row.b_length + special <= settings_.seq_length && row.a_length > 0;
  const bool a_inside = row.a_start >= 0 && row.a_start + row.a_length <= place.shard->num_tokens;
  if (!fits || !a_inside) return false;
  if (paired) {
    return row.b_length > 0 && row.b_start >= 0 && row.b_start + row.b_length <= place.shard->num_tokens &&
           row.label <= 1;
  }
  if (row.b_start < s.first || row.b_start + row.b_length >= s.last) return false;
  return row.b_length == 0 || (s.start(s.bounds[row.b_start + 1]) > row.a_start &&
                               s.start(s.bounds[row.b_start + row.b_length]) < row.a_start + row.a_length);
}

// [CLS] text [SEP] ...: writes the ids, collects where the text lies, returns the length of the sample.
int Sampler::write_text(const Place& place, int64_t* tokens, std::vector<TextRange>& texts) const {
  const Vocabulary& v = settings_.vocabulary;
  const Row& row = *place.row;
  int end = 0;
  tokens[end++] = v.cls;
  const auto append = [&](int64_t start, int64_t length, int separators) {
    texts.push_back({end, static_cast<int>(length)});
    copy_text(*place.shard, start, length, tokens + end);
    end += static_cast<int>(length);
    for (int i = 0; i < separators; ++i) tokens[end++] = v.sep;
  };
  texts.clear();
  if (settings_.objective != Objective::kNone) {
    append(row.a_start, row.a_length, v.pair_separators);
    append(row.b_start, row.b_length, 1);
    return end;
  }
  const Sentences& s = place.shard->sentences;
  int64_t start = row.a_start;
  for (int64_t document = row.b_start; document < row.b_start + row.b_length; ++document) {
    const int64_t document_end = s.start(s.bounds[document + 1]);
    append(start, document_end - start, 1);
    start = document_end;
  }
  append(start, row.a_start + row.a_length - start, 1);
  return end;
}

// Everything of row b but the joined lists of masked positions; returns how many there are.
int Sampler::write_sample(const Place& place, int64_t sample_index, int b, const BatchBuffers& out,
                          Scratch& scratch) const {
  const Vocabulary& v = settings_.vocabulary;
  const int64_t row_begin = int64_t{b} * settings_.seq_length;
  int64_t *tokens = out.tokens + row_begin, *types = out.token_types + row_begin;
  uint8_t* real = out.padding_mask + row_begin;
  const bool paired = settings_.objective != Objective::kNone;

  const int length = write_text(place, tokens, scratch.texts);
  const int second = paired ? scratch.texts[1].begin : length;
  std::fill(tokens + length, tokens + settings_.seq_length, v.pad);
  std::fill(types, types + second, 0);
  std::fill(types + second, types + length, v.second_type);
  std::fill(types + length, types + settings_.seq_length, 0);
  std::fill(real, real + length, 1);
  std::fill(real + length, real + settings_.seq_length, 0);
  out.nsp_labels[b] = paired ? place.row->label : kIgnoredLabel;
  return mask_row(tokens, length, scratch.texts, sample_index, settings_.mask, v, scratch.mask,
                  scratch.positions.data(), scratch.labels.data());
}

int64_t Sampler::fill(const int64_t* sample_indices, int num_samples, const BatchBuffers& out) const {
  const std::shared_lock<std::shared_mutex> lock(epochs_mutex_);
  thread_local Scratch scratch;
  scratch.positions.resize(settings_.seq_length);
  scratch.labels.resize(settings_.seq_length);
  const bool paired = settings_.objective != Objective::kNone;
  int64_t num_masked = 0;
  Place places[kGroup];
  for (int begin = 0; begin < num_samples; begin += kGroup) {
    const int end = std::min(begin + kGroup, num_samples);
    for (int b = begin; b < end; ++b) {
      places[b - begin] = locate(sample_indices[b]);
      __builtin_prefetch(places[b - begin].row);
    }
    for (int b = begin; b < end; ++b) {
      const Place& place = places[b - begin];
      if (!row_is_sound(place)) {
        throw std::runtime_error("The index row of sample " + std::to_string(sample_indices[b]) +
                                 " must point into its shard, but does not. Delete the index-cache folder.");
      }
      prefetch_text(*place.shard, place.row->a_start, place.row->a_length);
      if (paired) prefetch_text(*place.shard, place.row->b_start, place.row->b_length);
    }
    for (int b = begin; b < end; ++b) {
      const int count = write_sample(places[b - begin], sample_indices[b], b, out, scratch);
      for (int i = 0; i < count; ++i, ++num_masked) {
        out.masked_positions[num_masked] = int64_t{b} * settings_.seq_length + scratch.positions[i];
        out.masked_labels[num_masked] = scratch.labels[i];
      }
    }
  }
  return num_masked;
}

}  // namespace megatron_alum::data
