// Runs grids of fibers: see simt.h. Called through ctypes by tests/ops/test_simt.py.
#include "simt.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <set>
#include <thread>

#include "ops/rows.h"
#include "ops/tokens.h"

namespace simt {
namespace {

constexpr size_t kStackBytes = 32 * 1024;
constexpr int kTurnsWithoutProgress = 4;  // of all fibers: then it is a deadlock

// What the last launch was; how the next one is run.
struct Settings {
  int intermediate_code = 90, schedule = 0;
  int grid = 0, block = 0, cluster = 0;
} settings;

struct Fiber {
  ucontext_t context;
  dim3 index;
  bool done = false;
  int parity = 0;
};

struct Warp {
  float slots[2][32];
  int arrived = 0, generation = 0;
};

struct Block {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  int arrived = 0, generation = 0, cluster_arrived = 0, cluster_generation = 0;
  long progress = 0;
  Cluster* cluster = nullptr;
  int rank = 0;
  dim3 index, grid;
  const std::function<void()>* kernel = nullptr;
};

thread_local Block* block = nullptr;
thread_local Fiber* fiber = nullptr;
thread_local char anchor = 0;
std::atomic<bool> stuck{false};
std::set<const void*> launched;

void yield() { swapcontext(&fiber->context, &block->scheduler); }

void enter() {
  (*block->kernel)();
  fiber->done = true;
  ++block->progress;
  yield();
}

// A schedule reverses the order of warps (bit 0) and of threads in a warp (bit 1).
size_t fiber_at(size_t turn) {
  const size_t count = block->fibers.size(), warps = count / 32, warp = turn / 32, lane = turn % 32;
  return 32 * (settings.schedule & 1 ? warps - 1 - warp : warp) + (settings.schedule & 2 ? 31 - lane : lane);
}

void run_fibers() {
  size_t left = block->fibers.size();
  for (int idle = 0; left > 0 && !stuck;) {
    const long before = block->progress;
    for (size_t turn = 0; turn < block->fibers.size(); ++turn) {
      fiber = &block->fibers[fiber_at(turn)];
      if (fiber->done) continue;
      swapcontext(&block->scheduler, &fiber->context);
      left -= fiber->done;
    }
    idle = block->progress == before ? idle + 1 : 0;
    if (idle > kTurnsWithoutProgress) stuck = true;
  }
}

void run_block(Block& mine, unsigned threads) {
  block = &mine;
  mine.cluster->anchors[mine.rank] = &anchor;
  mine.cluster->barrier.arrive_and_wait();
  // Bit 2 of a schedule lets the first block of a cluster start last, else it starts first.
  const bool late = settings.schedule & 4 ? mine.rank == 0 : mine.rank != 0;
  if (late && mine.cluster->anchors.size() > 1) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  const size_t bytes = threads * kStackBytes;
  char* stacks = static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  mine.fibers = std::vector<Fiber>(threads);
  mine.warps = std::vector<Warp>(threads / 32);
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& one = mine.fibers[i];
    one.index = dim3(i, 0, 0);
    getcontext(&one.context);
    one.context.uc_stack.ss_sp = stacks + i * kStackBytes;
    one.context.uc_stack.ss_size = kStackBytes;
    one.context.uc_link = nullptr;
    makecontext(&one.context, enter, 0);
  }
  run_fibers();
  if (stuck) mine.cluster->barrier.arrive_and_drop();
  munmap(stacks, bytes);
}

}  // namespace

const dim3& thread_index() { return fiber->index; }
const dim3& block_index() { return block->index; }
const dim3& grid_size() { return block->grid; }
Cluster& current_cluster() { return *block->cluster; }
int rank_in_cluster() { return block->rank; }
int intermediate_code() { return settings.intermediate_code; }
void note_launch(const void* kernel) { launched.insert(kernel); }

void sync_block() {
  const int generation = block->generation;
  ++block->progress;
  if (++block->arrived == static_cast<int>(block->fibers.size())) {
    block->arrived = 0, ++block->generation;
    return;
  }
  while (block->generation == generation) yield();
}

void sync_cluster() {
  const int generation = block->cluster_generation;
  ++block->progress;
  if (++block->cluster_arrived == static_cast<int>(block->fibers.size())) {
    block->cluster->barrier.arrive_and_wait();
    block->cluster_arrived = 0, ++block->cluster_generation;
    return;
  }
  while (block->cluster_generation == generation) yield();
}

float shuffle(float value, int source_lane) {
  Warp& warp = block->warps[fiber->index.x / 32];
  float(&slots)[32] = warp.slots[fiber->parity];
  fiber->parity ^= 1;
  slots[fiber->index.x % 32] = value;
  ++block->progress;
  const int generation = warp.generation;
  if (++warp.arrived == 32) {
    warp.arrived = 0, ++warp.generation;
  } else {
    while (warp.generation == generation) yield();
  }
  return slots[source_lane & 31];
}

float approximate_exp2(float x) {
  const float exact = exp2f(x);
  if (!(exact >= 1.17549435e-38f)) return exact != exact ? exact : 0.0f;
  if (x == 0.0f || exact - exact != 0.0f) return exact;
  uint32_t hash = bits_as<uint32_t>(x) * 2654435761u;
  hash ^= hash >> 15;
  return bits_as<float>(bits_as<int32_t>(exact) + static_cast<int32_t>(hash % 5) - 2);
}

int run_grid(dim3 grid, dim3 threads, int cluster_size, const std::function<void()>& kernel) {
  settings.grid = static_cast<int>(grid.x), settings.block = static_cast<int>(threads.x), settings.cluster = cluster_size;
  if (grid.x == 0 || grid.x % cluster_size != 0 || threads.x % 32 != 0 || threads.x > 1024 || cluster_size > 8) return 1;
  if (cluster_size > 1 && settings.intermediate_code < 90) return 1;
  stuck = false;
  for (unsigned first = 0; first < grid.x && !stuck; first += cluster_size) {
    Cluster cluster(cluster_size);
    std::vector<Block> blocks(cluster_size);
    std::vector<std::thread> workers;
    for (int rank = 0; rank < cluster_size; ++rank) {
      blocks[rank].cluster = &cluster, blocks[rank].rank = rank, blocks[rank].kernel = &kernel;
      blocks[rank].index = dim3(first + rank, 0, 0), blocks[rank].grid = grid;
      workers.emplace_back([&, rank] { run_block(blocks[rank], threads.x); });
    }
    for (auto& worker : workers) worker.join();
  }
  return stuck ? 1 : cudaSuccess;
}

}  // namespace simt

extern "C" {
void simt_settings(int intermediate_code, int schedule) {
  simt::settings.intermediate_code = intermediate_code, simt::settings.schedule = schedule;
}
void simt_last_launch(int* found) {
  found[0] = simt::settings.grid, found[1] = simt::settings.block, found[2] = simt::settings.cluster;
}
// Whether the kernel that is `offset` bytes behind this function has been launched.
bool simt_launched(int64_t offset) {
  return simt::launched.count(reinterpret_cast<const char*>(&simt_launched) + offset) != 0;
}
int simt_rows(const RowTask* task, int phase) { return launch_rows(*task, static_cast<RowPhase>(phase), nullptr); }
int simt_merge(const float* records, float* merged, int64_t shards, int64_t rows, int width, bool one_sided) {
  return launch_merge(records, merged, shards, rows, width, one_sided, nullptr);
}
int simt_scale(void* values, int element, int64_t count, const float* factor) {
  return launch_scale(values, element, count, factor, nullptr);
}
int simt_tokens(const TokenTask* task) { return launch_tokens(*task, nullptr); }
}
