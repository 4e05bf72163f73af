// Whole batches of pre-training samples from memory-mapped shards: index row -> text -> special tokens -> mask.
//
// Python twin: megatron_alum/data/sampling/dataset.py with sample.py. Nothing here depends on Python: module.cpp binds it.
#pragma once

#include <cstdint>
#include <shared_mutex>
#include <utility>
#include <vector>

#include "masking.h"
#include "random.h"
#include "rows.h"

namespace megatron_alum::data {

// One pass over a shard; `rows` is a mapped file.
struct Epoch {
  const Row* rows;
  int64_t first_sample, end_sample;  // samples of this shard before it, and up to its end
  Permutation order;
};

struct Shard {
  const uint8_t* tokens;  // mapped .bin file, uint16 or int32 by sentences.token_shift
  int64_t num_tokens;
  Sentences sentences;
  std::vector<Epoch> epochs;
};

// The repeating block of blend.py.
struct Blend {
  std::vector<int16_t> shard;
  std::vector<int32_t> rank;
  std::vector<int64_t> counts;
};

// Where a batch is written: its B samples one after another, then the tail. Meanings: megatron_alum/data/sampling/batch.py.
struct BatchBuffers {
  int64_t *tokens, *token_types, *position, *sequence;  // room for B * S, rounded up to the multiple
  int32_t* cu_seqlens;                                  // [B + 1]
  int64_t *masked_positions, *masked_labels;            // room for B * S
  int64_t *masked_counts, *nsp_labels;                  // [B]
};

// How much of the buffers is filled.
struct BatchExtent {
  int64_t num_tokens;  // T, tail included
  int64_t num_masked;  // N
};

struct SamplerSettings {
  Objective objective;
  int seq_length;
  MaskSettings mask;
  Vocabulary vocabulary;
  Blend blend;
};

// Safe to use from many threads at once: a batch is the work of one thread, and several threads prepare several batches.
// (Dividing the 70 microseconds of one batch among threads would spend a tenth of them on synchronisation.)
class Sampler {
 public:
  explicit Sampler(SamplerSettings settings) : settings_(std::move(settings)) {}

  void add_shard(const Shard& shard) { shards_.push_back(shard); }  // before the first batch
  void add_epoch(int shard, const Epoch& epoch);

  // The first shard whose opened epochs do not reach one of these samples, or -1.
  int shard_to_extend(const int64_t* sample_indices, int num_samples) const;

  // Writes the batch, T being a multiple of `multiple`. Throws std::runtime_error for a row that points outside its
  // shard and std::out_of_range for a token id outside the vocabulary.
  BatchExtent fill(const int64_t* sample_indices, int num_samples, int64_t multiple, const BatchBuffers& out) const;

  // Tokens and masked tokens of each sample as `fill` would write it; throws as it does. Text is read only where the
  // number of masked tokens depends on it: words are masked whole.
  void measure(const int64_t* sample_indices, int num_samples, int64_t* lengths, int64_t* masked_counts) const;

 private:
  struct Place {
    const Shard* shard;
    const Row* row;
  };
  struct Scratch {  // memory of one thread
    MaskScratch mask;
    std::vector<TextRange> texts;
    std::vector<int64_t> tokens, positions, labels;  // [S] of a sample that is measured
  };

  bool paired() const { return settings_.objective != Objective::kNone; }
  int64_t index_in_shard(int64_t sample_index, int* shard) const;
  Place locate(int64_t sample_index) const;
  bool row_is_sound(const Place& place) const;
  int64_t length_of(const Row& row) const;
  void locate_group(const int64_t* sample_indices, int num_samples, bool reads_text, Place* places) const;
  int write_text(const Place& place, int64_t* tokens, std::vector<TextRange>& texts) const;

  SamplerSettings settings_;
  std::vector<Shard> shards_;
  mutable std::shared_mutex epochs_mutex_;  // shared by batches, exclusive to add_epoch
};

}  // namespace megatron_alum::data
