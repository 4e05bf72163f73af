// A few threads that share out the tasks of one call; the caller works too.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace megatron_alum::data {

// Tasks are handed out one by one, so a late thread costs one task and not its whole share. A worker that finds no work
// spins for some microseconds before it sleeps: batches usually follow one another within that time, and waking a
// sleeper takes a tenth of a batch. Calls of `run` must not overlap. Threads do not survive a fork.
class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // task(i, thread) for i in [0, num_tasks), thread in [0, num_threads); returns when all are done. Must not throw.
  void run(int num_tasks, const std::function<void(int, int)>& task);

 private:
  void work(int thread);
  void take_tasks(int thread);
  bool wait_for(uint64_t generation);

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};  // counts calls of run; a worker takes part in each exactly once
  std::atomic<int> next_task_{0}, busy_workers_{0};
  std::atomic<bool> stopping_{false};
  int num_tasks_ = 0;
  const std::function<void(int, int)>* task_ = nullptr;
};

}  // namespace megatron_alum::data
