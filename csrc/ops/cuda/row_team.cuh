// The row role's plumbing: which columns a thread has and where it keeps them, and what the threads of a row exchange.
#pragma once

#include <cooperative_groups.h>

#include "ops/cuda/row_columns.cuh"

namespace {

namespace cg = cooperative_groups;

constexpr int kBlock = 256, kLargeBlock = 384;  // threads
constexpr int kMostParts = 8;   // the portable limit of a cluster
constexpr int kMostWarps = kLargeBlock / 32;

// Packs of 16 bytes per side in a thread's registers; in the large block, alone on its processor, a thread has up to
// 168 registers.
constexpr int held_packs(int threads) { return threads == kLargeBlock ? 11 : 4; }

// ---- where a thread's columns are ----

// The part of a row that a block has: whole packs, and single columns after the last whole pack of the row.
template <typename Element>
struct Part : RowPointers<Element> {
  int first_pack, packs, first_single, singles;
  bool last;
};

template <typename Element>
MA_DEVICE Part<Element> part_of(const RowTask& task, int64_t row, int part, int parts) {
  constexpr int count = 16 / sizeof(Element);
  const int columns = static_cast<int>(task.valid_columns), packs = columns / count, each = (packs + parts - 1) / parts;
  Part<Element> mine{row_pointers<Element>(task, row), 0, 0, 0, 0, false};
  mine.first_pack = each * part < packs ? each * part : packs;
  mine.packs = (mine.first_pack + each < packs ? mine.first_pack + each : packs) - mine.first_pack;
  mine.first_single = packs * count;
  mine.last = part + 1 == parts;
  mine.singles = mine.last ? columns - mine.first_single : 0;
  return mine;
}

// A thread's columns in registers: packs rank, rank + threads, ... of the part, and at most one single column.
template <typename Element, int kThreads, bool kPair>
struct Held {
  static constexpr int count = 16 / sizeof(Element), in_word = count / 4, packs = held_packs(kThreads);
  using Pack = Packing<Element>;
  Words clean[packs], adv[kPair ? packs : 1];
  float clean_single, adv_single;

  MA_DEVICE Words load_pack(const Element* row, int pack, bool inside) {
    Words words{{Pack::kMasked, Pack::kMasked, Pack::kMasked, Pack::kMasked}};
    if (inside) words = reinterpret_cast<const Words*>(row)[pack];
    return words;
  }
  __device__ __forceinline__ explicit Held(const Part<Element>& part) {
    const int rank = threadIdx.x;
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const int pack = rank + k * kThreads;
      clean[k] = load_pack(part.clean, part.first_pack + pack, pack < part.packs);
      if (kPair) adv[k] = load_pack(part.adv, part.first_pack + pack, pack < part.packs);
    }
    clean_single = adv_single = -MA_INFINITY;
    if (rank < part.singles) {
      clean_single = widen(part.clean[part.first_single + rank]);
      if (kPair) adv_single = widen(part.adv[part.first_single + rank]);
    }
  }
  __device__ __forceinline__ void greatest(float* of_clean, float* of_adv) const {
    *of_clean = side_greatest(clean, clean_single);
    if constexpr (kPair) *of_adv = side_greatest(adv, adv_single);
  }
  MA_DEVICE float side_greatest(const Words (&held)[packs], float single) {
    uint32_t best = Pack::kMasked;
#pragma unroll
    for (int k = 0; k < packs; ++k) {
#pragma unroll
      for (int w = 0; w < 4; ++w) best = Pack::greatest(best, held[k].word[w]);
    }
    float values[in_word];
    Pack::unpack(best, values);
    for (int i = 0; i < in_word; ++i) single = fmaxf(single, values[i]);
    return single;
  }
  // Calls `function(a, b)` for every column; with kWrite its two results are written as gradients.
  template <bool kWrite, typename Function>
  __device__ __forceinline__ void each(const Part<Element>& part, const Function& function) const {
    // Empty instructions, here and below, hide what the passes share: the compiler would keep it, and spill it.
    int rank = threadIdx.x;
    asm volatile("" : "+r"(rank));
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      Words to_clean, to_adv;
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        float a[in_word], b[in_word] = {}, grad_a[in_word], grad_b[in_word];
        uint32_t words[2] = {clean[k].word[w], kPair ? adv[k].word[w] : 0};
        asm volatile("" : "+r"(words[0]), "+r"(words[1]));
        Pack::unpack(words[0], a);
        if (kPair) Pack::unpack(words[1], b);
#pragma unroll
        for (int i = 0; i < in_word; ++i) {
          const Gradients gradients = function(a[i], b[i]);
          grad_a[i] = gradients.clean, grad_b[i] = gradients.adv;
        }
        if (kWrite) to_clean.word[w] = Pack::pack(grad_a), to_adv.word[w] = Pack::pack(grad_b);
      }
      const int pack = rank + k * kThreads;
      if (!kWrite || pack >= part.packs) continue;
      if (part.clean_grad != nullptr) reinterpret_cast<Words*>(part.clean_grad)[part.first_pack + pack] = to_clean;
      if (kPair && part.adv_grad != nullptr) reinterpret_cast<Words*>(part.adv_grad)[part.first_pack + pack] = to_adv;
    }
    const Gradients gradients = function(clean_single, adv_single);
    if (!kWrite || rank >= part.singles) return;
    if (part.clean_grad != nullptr) narrow(&part.clean_grad[part.first_single + rank], gradients.clean);
    if (kPair && part.adv_grad != nullptr) narrow(&part.adv_grad[part.first_single + rank], gradients.adv);
  }
  MA_DEVICE bool owns(const Part<Element>& part, int column) {
    const int single = column - part.first_single, pack = column / count - part.first_pack, rank = threadIdx.x;
    if (single >= 0) return single < part.singles && single == rank;
    return pack >= 0 && pack < part.packs && pack % kThreads == rank;
  }
};

// The same from memory, column by column.
template <typename Element, int kThreads, bool kPair>
struct Streamed {
  static constexpr int count = 16 / sizeof(Element);
  int begin, end;
  const Part<Element>& from;

  __device__ __forceinline__ explicit Streamed(const Part<Element>& part)
      : begin(part.first_pack * count + static_cast<int>(threadIdx.x)),
        end((part.first_pack + part.packs) * count + part.singles),
        from(part) {}
  __device__ __forceinline__ void greatest(float* of_clean, float* of_adv) const {
    *of_clean = *of_adv = -MA_INFINITY;
    for (int i = begin; i < end; i += kThreads) {
      *of_clean = fmaxf(*of_clean, widen(from.clean[i]));
      if (kPair) *of_adv = fmaxf(*of_adv, widen(from.adv[i]));
    }
  }
  template <bool kWrite, typename Function>
  __device__ __forceinline__ void each(const Part<Element>& part, const Function& function) const {
    for (int i = begin; i < end; i += kThreads) {
      const Gradients gradients = function(widen(part.clean[i]), kPair ? widen(part.adv[i]) : 0.0f);
      if (kWrite && part.clean_grad != nullptr) narrow(&part.clean_grad[i], gradients.clean);
      if (kWrite && kPair && part.adv_grad != nullptr) narrow(&part.adv_grad[i], gradients.adv);
    }
  }
  MA_DEVICE bool owns(const Part<Element>& part, int column) {
    const int place = column - part.first_pack * count, rank = threadIdx.x;
    return place >= 0 && column < (part.first_pack + part.packs) * count + part.singles && place % kThreads == rank;
  }
};

// ---- what the threads of a row exchange ----

struct Partial {
  float clean_top, adv_top;  // greatest logits of a warp: the scale of its sums
  float mass, excess;        // sum e^(a - clean_top), and sum e^(b - adv_top) less that
};

// `excess` over the same two tops for all parts: e^(b - n) - e^(a - m) for b and a whose weights were computed with
// other tops.
MA_DEVICE void add_partial(const Partial& part, float clean_top, float adv_top, float* mass, float* excess) {
  const float to_clean = part.clean_top - clean_top, to_adv = part.adv_top - adv_top;
  const float of_clean = expf(to_clean), of_adv = expf(to_adv);  // -infinity: 0
  float rest, own_rest;
  const float own = two_difference(part.clean_top, part.adv_top, &own_rest);
  const float all = two_difference(clean_top, adv_top, &rest);
  const float shift = (own - all) + (own_rest - rest);
  const float moved = shift < 0.0f ? -of_adv * expm1f(shift) : of_clean * expm1f(-shift);  // of_adv - of_clean
  const float clean = part.mass == 0.0f ? 0.0f : of_clean * part.mass;  // of no mass, it may be infinitely far away
  *mass += clean;
  if (of_adv == 0.0f) *excess -= clean;
  else *excess += of_adv * part.excess + (part.mass == 0.0f ? 0.0f : part.mass * moved);
}

struct Shared {
  Partial partial[kMostWarps];
  DivergenceSums sums[kMostParts * kMostWarps];  // filled by all blocks of the row
  Level level;
};

template <int kThreads>
struct Team {
  int part, parts;
  Shared* shared;
  static constexpr int warps = kThreads / 32;

  __device__ __forceinline__ void sync_row() const {
#if __CUDA_ARCH__ >= 900
    if (parts > 1) return cg::this_cluster().sync();
#endif
    __syncthreads();
  }
  template <typename T>
  __device__ __forceinline__ T* of_block(T* mine, int block) const {
#if __CUDA_ARCH__ >= 900
    if (parts > 1) return cg::this_cluster().map_shared_rank(mine, block);
#endif
    return mine;
  }
  // One warp merges the partials of all warps of the row, in a fixed order, and passes the result to its block.
  __device__ __forceinline__ Level merged(const Partial& mine) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) shared->partial[warp] = mine;
    sync_row();
    if (warp == 0) {
      float clean_top = -MA_INFINITY, adv_top = -MA_INFINITY, mass = 0.0f, excess = 0.0f;
      for (int i = lane; i < parts * warps; i += 32) {
        const Partial partial = *of_block(&shared->partial[i % warps], i / warps);
        clean_top = fmaxf(clean_top, partial.clean_top);
        adv_top = fmaxf(adv_top, partial.adv_top);
      }
      clean_top = warp_greatest(clean_top), adv_top = warp_greatest(adv_top);
      for (int i = lane; i < parts * warps; i += 32) {
        add_partial(*of_block(&shared->partial[i % warps], i / warps), clean_top, adv_top, &mass, &excess);
      }
      mass = warp_sum(mass), excess = warp_sum(excess);
      if (lane == 0) shared->level = level_of(clean_top, mass, adv_top, log1pf(excess / mass));
    }
    __syncthreads();
    return shared->level;
  }
  // The sums of all threads of the row: in the first block only, or in every block.
  __device__ __forceinline__ DivergenceSums total(const DivergenceSums& mine, bool everywhere) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const DivergenceSums of_warp{warp_sum(mine.divergence), warp_sum(mine.one_way)};
    if (lane < (everywhere ? parts : 1)) *of_block(&shared->sums[part * warps + warp], lane) = of_warp;
    sync_row();
    DivergenceSums total{0.0f, 0.0f};
    if (part != 0 && !everywhere) return total;
    for (int i = lane; i < parts * warps; i += 32) {
      total.divergence += shared->sums[i].divergence;
      total.one_way += shared->sums[i].one_way;
    }
    return DivergenceSums{warp_sum(total.divergence), warp_sum(total.one_way)};
  }
};

}  // namespace
