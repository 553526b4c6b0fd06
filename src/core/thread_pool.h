// ThreadPool: parallel_for over independent tasks, on threads bound to cores.
//
// Every task writes its own outputs and no result depends on which thread ran it, so results are
// the same at every thread count. Threads spin for a short while between calls, then sleep. Not
// reentrant: a task must not call parallel_for.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace hadal {

class ThreadPool {
 public:
  // num_threads >= 1, the calling thread included; 0 means one per core this process may use.
  explicit ThreadPool(int num_threads);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  int num_threads() const { return num_threads_; }

  // Calls fn(task, thread) for task in [0, num_tasks); thread in [0, num_threads()) names scratch
  // memory. The first exception of a task is thrown again here after all tasks ended.
  template <class Fn>
  void parallel_for(int64_t num_tasks, const Fn& fn) {
    run(
        num_tasks,
        [](const void* f, int64_t task, int thread) { (*static_cast<const Fn*>(f))(task, thread); },
        &fn);
  }

 private:
  using Call = void (*)(const void* fn, int64_t task, int thread);
  void run(int64_t num_tasks, Call call, const void* fn);
  void work(int thread);
  void loop(int thread);

  int num_threads_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> running_{0};
  std::atomic<bool> stop_{false};

  // The current call; written before generation_ grows, read after.
  Call call_ = nullptr;
  const void* fn_ = nullptr;
  int64_t num_tasks_ = 0;
  std::atomic<int64_t> next_{0};
  std::exception_ptr error_;
  std::mutex error_mutex_;
};

}  // namespace hadal
