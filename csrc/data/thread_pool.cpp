// See thread_pool.h.
#include "thread_pool.h"

#include <chrono>

namespace megatron_alum::data {
namespace {

constexpr std::chrono::microseconds kSpinTime{100};

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  for (int thread = 1; thread < num_threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int num_tasks, const std::function<void(int, int)>& task) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    num_tasks_ = num_tasks;
    task_ = &task;
    next_task_ = 0;
    busy_workers_ = static_cast<int>(workers_.size());
    ++generation_;  // publishes the lines above to spinning workers
  }
  wake_.notify_all();
  take_tasks(0);
  // At most one task a worker is still running, or a worker has yet to wake up and find nothing left.
  while (busy_workers_.load(std::memory_order_acquire) > 0) std::this_thread::yield();
}

void ThreadPool::take_tasks(int thread) {
  for (int i; (i = next_task_.fetch_add(1, std::memory_order_relaxed)) < num_tasks_;) (*task_)(i, thread);
}

// Returns false when the pool is being destroyed.
bool ThreadPool::wait_for(uint64_t generation) {
  const auto ready = [&] { return stopping_ || generation_ >= generation; };
  const auto sleep_at = std::chrono::steady_clock::now() + kSpinTime;
  while (!ready() && std::chrono::steady_clock::now() < sleep_at) std::this_thread::yield();
  if (!ready()) {
    std::unique_lock<std::mutex> lock(mutex_);
    wake_.wait(lock, ready);
  }
  return !stopping_;
}

void ThreadPool::work(int thread) {
  for (uint64_t generation = 1; wait_for(generation); ++generation) {
    take_tasks(thread);
    busy_workers_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace megatron_alum::data
