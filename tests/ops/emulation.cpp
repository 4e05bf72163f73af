// Runs the roles of the CUDA kernel (csrc/ops/cuda/row_role.h, tile_role.h) on the CPU: a team of one thread, the parts of a
// row one after the other. Called through ctypes by test_cuda_roles.py, which compiles it with g++.
#include "ops/cpu/vector_portable.h"

#include <vector>

#include "ops/cuda/row_role.h"
#include "ops/cuda/tile_role.h"

namespace {

struct Team {
  int rank = 0, size = 1, part = 0, parts = 1;
  std::vector<RowRecord>* records = nullptr;  // of the parts before this one; the last part merges
  float sum(float x) const { return x; }
  float greatest(float x) const { return x; }
  float greatest_with(float, float payload) const { return payload; }
  template <typename T>
  void copy(T* to, const T* from) const { *to = *from; }
  void wait() const {}
  void sync_row() const {}
  RowRecord merged(const RowRecord& mine, bool one_sided) const {
    records->push_back(mine);
    RowRecord total = empty_record();
    for (const RowRecord& record : *records) total = merge(total, record, one_sided);
    return total;
  }
};

// Parts write their gradients only once all records are known: statistics over all parts first, then gradients.
template <typename Element>
void run_rows(RowTask task, int phase, int parts, bool cached) {
  std::vector<Pack<Element>> cache(cached ? 2 * task.columns : 0);
  for (int64_t row = 0; row < task.rows; ++row) {
    std::vector<RowRecord> records;
    for (int part = 0; part < parts; ++part) {
      Team team;
      team.part = part, team.parts = parts, team.records = &records;
      const int room = static_cast<int>(task.columns);
      // One part can go through a fused phase; of several, the record of the last is the row's.
      row_role<Element>(task, parts == 1 ? phase : (phase == 1 ? 1 : 0), row, team, cached ? cache.data() : nullptr, room);
    }
    if (parts > 1 && phase != 1) {
      RowRecord total = empty_record();
      for (const RowRecord& record : records) total = merge(total, record, task.one_sided);
      __builtin_memcpy(task.records + row * task.record_width, &total, sizeof(total));
    }
    for (int part = 0; parts > 1 && phase == 2 && part < parts; ++part) {
      Team team;
      team.part = part, team.parts = parts, team.records = &records;
      row_role<Element>(task, 1, row, team, nullptr, 0);
    }
  }
}

}  // namespace

extern "C" void emulate_rows(const RowTask* task, int phase, int parts, bool cached) {
  if (task->element == kFloat32) run_rows<float>(*task, phase, parts, cached);
  else if (task->element == kBFloat16) run_rows<BFloat16>(*task, phase, parts, cached);
  else run_rows<Float16>(*task, phase, parts, cached);
}

extern "C" void emulate_tiles(const TileTask* task) {
  for (int64_t token = 0; token < task->tokens; ++token) tile_role(*task, token, Team{});
}
