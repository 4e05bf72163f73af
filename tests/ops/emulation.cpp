// Runs the roles of the CUDA kernel (csrc/ops/cuda/row_role.h, token_role.h) on the CPU: a row by a cluster of `parts` blocks of
// `threads` real threads each, which meet at barriers where the kernel's do. So a barrier that is missing, a block that leaves
// the others waiting, or a write over logits that others still read shows here, too. Called through ctypes by
// test_cuda_roles.py, which compiles it with g++.
#include "ops/cpu/vector_portable.h"

#include <barrier>
#include <memory>
#include <thread>
#include <vector>

#include "ops/cuda/row_role.h"
#include "ops/cuda/token_role.h"

namespace {

struct Shared {
  explicit Shared(int threads) : value(threads), payload(threads), barrier(threads) {}
  std::vector<float> value, payload;
  RowRecord record;
  std::barrier<> barrier;
};

struct Cluster {
  Cluster(int parts, int threads) : barrier(parts * threads) {
    for (int part = 0; part < parts; ++part) blocks.push_back(std::make_unique<Shared>(threads));
  }
  std::vector<std::unique_ptr<Shared>> blocks;
  std::barrier<> barrier;
};

// As Block in kernel.cu, with the same barriers.
struct Team {
  int rank, size, part, parts;
  Cluster* cluster;
  Shared* shared;

  void sync() const { shared->barrier.arrive_and_wait(); }
  float sum(float x) const {
    sync();
    shared->value[rank] = x;
    sync();
    float total = 0.0f;
    for (float value : shared->value) total += value;
    return total;
  }
  float greatest(float x) const { return greatest_with(x, x); }
  float greatest_with(float x, float payload) const {
    sync();
    shared->value[rank] = x, shared->payload[rank] = payload;
    sync();
    int best = 0;
    for (int other = 1; other < size; ++other) best = shared->value[other] > shared->value[best] ? other : best;
    return shared->payload[best];
  }
  template <typename T>
  void copy(T* to, const T* from) const { *to = *from; }
  void wait() const {}
  void sync_row() const { parts > 1 ? cluster->barrier.arrive_and_wait() : sync(); }
  RowRecord merged(const RowRecord& mine, bool one_sided) const {
    if (parts == 1) return mine;
    cluster->barrier.arrive_and_wait();
    if (rank == 0) shared->record = mine;
    cluster->barrier.arrive_and_wait();
    RowRecord total = empty_record();
    for (const auto& block : cluster->blocks) total = merge(total, block->record, one_sided);
    cluster->barrier.arrive_and_wait();
    return total;
  }
};

template <typename Element>
void run_rows(const RowTask& task, int phase, int parts, int threads, bool cached) {
  const int64_t count = Pack<Element>::count, packs = (task.valid_columns + count - 1) / count;
  const int packs_a_part = static_cast<int>((packs + parts - 1) / parts);
  Cluster cluster(parts, threads);
  std::vector<std::vector<Pack<Element>>> caches(parts);
  for (auto& cache : caches) cache.resize(cached ? 2 * packs_a_part : 0);
  std::vector<std::thread> workers;
  for (int worker = 0; worker < parts * threads; ++worker) {
    workers.emplace_back([&, worker] {
      const int part = worker / threads;
      Team team{worker % threads, threads, part, parts, &cluster, cluster.blocks[part].get()};
      for (int64_t row = 0; row < task.rows; ++row) {
        row_role<Element>(task, phase, row, team, cached ? caches[part].data() : nullptr, packs_a_part);
      }
    });
  }
  for (auto& worker : workers) worker.join();
}

}  // namespace

extern "C" void emulate_rows(const RowTask* task, int phase, int parts, int threads, bool cached) {
  if (task->element == kFloat32) run_rows<float>(*task, phase, parts, threads, cached);
  else if (task->element == kBFloat16) run_rows<BFloat16>(*task, phase, parts, threads, cached);
  else run_rows<Float16>(*task, phase, parts, threads, cached);
}

struct Lane {
  int rank = 0, size = 1;
  float sum(float x) const { return x; }
  float greatest(float x) const { return x; }
};

extern "C" void emulate_tokens(const TokenTask* task) {
  for (int64_t token = 0; token < task->tokens; ++token) token_role(*task, token, Lane{});
}
