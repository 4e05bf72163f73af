// Whole batches of pre-training samples from memory-mapped shards: index row -> text -> special tokens -> mask.
//
// Python twin: megatron_alum/data/dataset.py with sample.py. Nothing here depends on Python: module.cpp binds it.
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

// Where a batch is written: B rows of S, and N masked positions one after another (room for B * S).
struct BatchBuffers {
  int64_t* tokens;
  int64_t* token_types;
  uint8_t* padding_mask;
  int64_t* masked_positions;
  int64_t* masked_labels;
  int64_t* nsp_labels;
};

struct SamplerSettings {
  Objective objective;
  int seq_length;
  MaskSettings mask;
  Vocabulary vocabulary;
  Blend blend;
};

// Safe to use from many threads at once: a batch is the work of one thread, and several threads prepare several batches.
// (Sharing out the 70 microseconds of one batch would spend a tenth of them on the rendezvous.)
class Sampler {
 public:
  explicit Sampler(SamplerSettings settings) : settings_(std::move(settings)) {}

  void add_shard(const Shard& shard) { shards_.push_back(shard); }  // before the first batch
  void add_epoch(int shard, const Epoch& epoch);

  // The first shard whose opened epochs do not reach one of these samples, or -1.
  int shard_to_extend(const int64_t* sample_indices, int num_samples) const;

  // Writes the batch and returns N. Throws std::runtime_error for a row that points outside its shard.
  int64_t fill(const int64_t* sample_indices, int num_samples, const BatchBuffers& out) const;

 private:
  struct Place {
    const Shard* shard;
    const Row* row;
  };
  struct Scratch {  // memory of one thread
    MaskScratch mask;
    std::vector<TextRange> texts;
    std::vector<uint16_t> positions;  // [S] masked positions of one row
    std::vector<int32_t> labels;      // [S]
  };

  int64_t index_in_shard(int64_t sample_index, int* shard) const;
  Place locate(int64_t sample_index) const;
  bool row_is_sound(const Place& place) const;
  int write_sample(const Place& place, int64_t sample_index, int b, const BatchBuffers& out, Scratch& scratch) const;
  int write_text(const Place& place, int64_t* tokens, std::vector<TextRange>& texts) const;

  SamplerSettings settings_;
  std::vector<Shard> shards_;
  mutable std::shared_mutex epochs_mutex_;  // shared by batches, exclusive to add_epoch
};

}  // namespace megatron_alum::data
