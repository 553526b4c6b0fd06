// ThreadPool: a generation counter wakes the workers, an atomic counter hands out tasks.
// SPDX-License-Identifier: Apache-2.0
#include "core/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <chrono>

#include "core/check.h"

namespace hadal {
namespace {

constexpr auto kSpin = std::chrono::microseconds(100);
constexpr int kPollsToYield = 256;  // about 15 us: longer than threads of a free core are apart

std::vector<int> allowed_cpus() {
  cpu_set_t set;
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof(set), &set) == 0)
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  if (cpus.empty()) cpus.push_back(0);
  return cpus;
}

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  HADAL_CHECK(num_threads >= 0 && num_threads <= 1024,
              "threads must be 0 (all cores) to 1024, got ", num_threads);
  const std::vector<int> cpus = allowed_cpus();
  num_threads_ = num_threads > 0 ? num_threads : static_cast<int>(cpus.size());
  for (int t = 1; t < num_threads_; ++t) {
    threads_.emplace_back([this, t] { loop(t); });
    if (num_threads_ <= static_cast<int>(cpus.size())) {
      cpu_set_t set;
      CPU_ZERO(&set);
      CPU_SET(cpus[static_cast<size_t>(t)], &set);
      pthread_setaffinity_np(threads_.back().native_handle(), sizeof(set), &set);
    }
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_.store(true);
    generation_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run(int64_t num_tasks, Call call, const void* fn) {
  if (num_tasks <= 0) return;
  if (num_tasks == 1 || threads_.empty()) {
    for (int64_t task = 0; task < num_tasks; ++task) call(fn, task, 0);
    return;
  }
  call_ = call;
  fn_ = fn;
  num_tasks_ = num_tasks;
  error_ = nullptr;
  next_.store(0, std::memory_order_relaxed);
  running_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
  {
    const std::lock_guard lock(mutex_);
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  work(0);
  // Where other programs run, a worker may be waiting for this very core.
  for (int polls = 1; running_.load(std::memory_order_acquire) != 0; ++polls)
    if (polls % kPollsToYield == 0)
      sched_yield();
    else
      pause_cpu();
  if (error_) std::rethrow_exception(error_);
}

void ThreadPool::work(int thread) {
  for (;;) {
    const int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
    if (task >= num_tasks_) return;
    try {
      call_(fn_, task, thread);
    } catch (...) {
      const std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }
}

void ThreadPool::loop(int thread) {
  uint64_t seen = 0;
  for (;;) {
    const auto start = std::chrono::steady_clock::now();
    int polls = 0;
    while (generation_.load(std::memory_order_acquire) == seen) {
      pause_cpu();
      if (++polls % 64 != 0 || std::chrono::steady_clock::now() - start < kSpin) continue;
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load() != seen; });
    }
    ++seen;
    if (stop_.load()) return;
    work(thread);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace hadal
