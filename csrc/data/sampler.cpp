// See sampler.h. A few samples at a time are taken in three passes so that their cache misses overlap: find and prefetch
// the index rows, prefetch the text, then write.
#include "sampler.h"

#include <algorithm>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>

namespace megatron_alum::data {
namespace {

constexpr int kGroup = 8;
constexpr int64_t kIgnoredLabel = -100;

void prefetch_text(const Shard& shard, int64_t start, int64_t length) {
  const uint8_t* begin = shard.tokens + (start << shard.sentences.token_shift);
  // After the first lines the processor's own prefetcher takes over.
  const int64_t bytes = std::min<int64_t>(length << shard.sentences.token_shift, 256);
  for (int64_t offset = 0; offset < bytes; offset += 64) __builtin_prefetch(begin + offset);
}

// Widens the text to `out` and returns its highest id, a negative one counting as beyond all others.
template <typename T>
uint64_t copy_ids(const uint8_t* text, int64_t length, int64_t* out) {
  uint32_t highest = 0;
  for (int64_t i = 0; i < length; ++i) {
    const T id = load<T>(text, i);
    highest = std::max(highest, static_cast<uint32_t>(id));
    out[i] = id;
  }
  return highest;
}

uint64_t copy_text(const Shard& shard, int64_t start, int64_t length, int64_t* out) {
  const uint8_t* text = shard.tokens + (start << shard.sentences.token_shift);
  return shard.sentences.token_shift == 1 ? copy_ids<uint16_t>(text, length, out)
                                          : copy_ids<int32_t>(text, length, out);
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

// Tokens of a sample. Full sentences keep the number of document ends inside in b_length: one separator each.
int64_t Sampler::length_of(const Row& row) const {
  const int special = paired() ? 2 + settings_.vocabulary.pair_separators : 2;
  return int64_t{row.a_length} + row.b_length + special;
}

// A mapped index can be damaged on disk while a run reads it; what a row points at must lie in the shard and fit the
// sample. Checked by differences, since a sum with a damaged start may overflow.
bool Sampler::row_is_sound(const Place& place) const {
  const Row& row = *place.row;
  const Sentences& s = place.shard->sentences;
  const bool fits = length_of(row) <= settings_.seq_length && row.a_length > 0;
  const bool a_inside = row.a_start >= 0 && row.a_start <= place.shard->num_tokens - row.a_length;
  if (!fits || !a_inside) return false;
  if (paired()) {
    return row.b_length > 0 && row.b_start >= 0 && row.b_start <= place.shard->num_tokens - row.b_length &&
           row.label <= 1;
  }
  if (row.b_start < s.first || row.b_start >= s.last - row.b_length) return false;
  return row.b_length == 0 || (s.start(s.bounds[row.b_start + 1]) > row.a_start &&
                               s.start(s.bounds[row.b_start + row.b_length]) < row.a_start + row.a_length);
}

// [CLS] text [SEP] ...: writes the ids, collects where the text lies, returns the length of the sample. An id outside
// the vocabulary would index beyond the model's embedding table.
int Sampler::write_text(const Place& place, int64_t* tokens, std::vector<TextRange>& texts) const {
  const Vocabulary& v = settings_.vocabulary;
  const Row& row = *place.row;
  int end = 0;
  tokens[end++] = v.cls;
  const auto append = [&](int64_t start, int64_t length, int separators) {
    texts.push_back({end, static_cast<int>(length)});
    if (copy_text(*place.shard, start, length, tokens + end) >= v.word_start.size()) {
      throw std::out_of_range("a token id lies outside the vocabulary.");
    }
    end += static_cast<int>(length);
    for (int i = 0; i < separators; ++i) tokens[end++] = v.sep;
  };
  texts.clear();
  if (paired()) {
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

// Finds a group of at most kGroup samples, one pass for the rows and one for what they point at.
void Sampler::locate_group(const int64_t* sample_indices, int num_samples, bool reads_text, Place* places) const {
  for (int i = 0; i < num_samples; ++i) {
    places[i] = locate(sample_indices[i]);
    __builtin_prefetch(places[i].row);
  }
  for (int i = 0; i < num_samples; ++i) {
    const Place& place = places[i];
    if (!row_is_sound(place)) {
      throw std::runtime_error("The index row of sample " + std::to_string(sample_indices[i]) +
                               " must point into its shard, but does not. Delete the index-cache folder.");
    }
    if (!reads_text) continue;
    prefetch_text(*place.shard, place.row->a_start, place.row->a_length);
    if (paired()) prefetch_text(*place.shard, place.row->b_start, place.row->b_length);
  }
}

BatchExtent Sampler::fill(const int64_t* sample_indices, int num_samples, int64_t multiple,
                          const BatchBuffers& out) const {
  const std::shared_lock<std::shared_mutex> lock(epochs_mutex_);
  thread_local Scratch scratch;
  const Vocabulary& v = settings_.vocabulary;
  int64_t end = 0, num_masked = 0;
  Place places[kGroup];
  for (int b = 0; b < num_samples; ++b) {
    if (b % kGroup == 0) locate_group(sample_indices + b, std::min(kGroup, num_samples - b), true, places);
    const Place& place = places[b % kGroup];
    int64_t* types = out.token_types + end;
    const int length = write_text(place, out.tokens + end, scratch.texts);
    const int second = paired() ? scratch.texts[1].begin : length;
    std::fill(types, types + second, 0);
    std::fill(types + second, types + length, v.second_type);
    std::iota(out.position + end, out.position + end + length, int64_t{0});
    std::fill(out.sequence + end, out.sequence + end + length, b);
    out.cu_seqlens[b] = static_cast<int32_t>(end);
    out.nsp_labels[b] = paired() ? place.row->label : kIgnoredLabel;
    const MaskedOut masked{end, out.masked_positions + num_masked, out.masked_labels + num_masked};
    out.masked_counts[b] = mask_sample(out.tokens + end, length, scratch.texts, sample_indices[b], settings_.mask, v,
                                       scratch.mask, masked);
    num_masked += out.masked_counts[b];
    end += length;
  }
  out.cu_seqlens[num_samples] = static_cast<int32_t>(end);
  const int64_t num_tokens = (end + multiple - 1) / multiple * multiple;
  std::fill(out.tokens + end, out.tokens + num_tokens, v.pad);
  std::fill(out.token_types + end, out.token_types + num_tokens, 0);
  std::fill(out.position + end, out.position + num_tokens, 0);
  std::fill(out.sequence + end, out.sequence + num_tokens, num_samples);
  return {num_tokens, num_masked};
}

void Sampler::measure(const int64_t* sample_indices, int num_samples, int64_t* lengths, int64_t* masked_counts) const {
  const std::shared_lock<std::shared_mutex> lock(epochs_mutex_);
  thread_local Scratch scratch;
  for (auto* buffer : {&scratch.tokens, &scratch.positions, &scratch.labels}) buffer->resize(settings_.seq_length);
  const bool reads_text = settings_.mask.masking != Masking::kToken;
  Place places[kGroup];
  for (int i = 0; i < num_samples; ++i) {
    if (i % kGroup == 0) locate_group(sample_indices + i, std::min(kGroup, num_samples - i), reads_text, places);
    const Place& place = places[i % kGroup];
    const Row& row = *place.row;
    lengths[i] = length_of(row);
    if (reads_text) {
      const int length = write_text(place, scratch.tokens.data(), scratch.texts);
      masked_counts[i] = mask_sample(scratch.tokens.data(), length, scratch.texts, sample_indices[i], settings_.mask,
                                     settings_.vocabulary, scratch.mask,
                                     {0, scratch.positions.data(), scratch.labels.data()});
    } else {
      const int64_t candidates = paired() ? row.a_length + row.b_length : row.a_length;
      masked_counts[i] = num_to_mask(lengths[i], candidates, sample_indices[i], settings_.mask);
    }
  }
}

}  // namespace megatron_alum::data
