// The thread pool: each task once, thread numbers that name scratch, and exceptions.
// SPDX-License-Identifier: Apache-2.0
#include "core/thread_pool.h"

#include <gtest/gtest.h>

#include <chrono>
#include <stdexcept>

#include "tests/unit/expect_error.h"

namespace hadal {
namespace {

TEST(ThreadPool, EveryTaskOnce) {
  for (int num_threads : {1, 2, 3, 7}) {
    ThreadPool pool(num_threads);
    EXPECT_EQ(pool.num_threads(), num_threads);
    for (int64_t num_tasks : {int64_t{0}, int64_t{1}, int64_t{2}, int64_t{3}, int64_t{1000}}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(num_tasks));
      pool.parallel_for(num_tasks, [&](int64_t task, int) { ++runs[static_cast<size_t>(task)]; });
      for (const auto& count : runs) ASSERT_EQ(count.load(), 1);
    }
    pool.parallel_for(-1, [](int64_t, int) { FAIL(); });
  }
}

// A thread number is held by one thread at a time: plain, unguarded sums add up.
TEST(ThreadPool, ThreadNumbersNameScratch) {
  ThreadPool pool(3);
  struct alignas(64) Cell {
    int64_t sum = 0;
  };
  std::vector<Cell> cells(3);
  for (int round = 0; round < 200; ++round)
    pool.parallel_for(50, [&](int64_t task, int thread) {
      ASSERT_GE(thread, 0);
      ASSERT_LT(thread, 3);
      cells[static_cast<size_t>(thread)].sum += task;
    });
  EXPECT_EQ(cells[0].sum + cells[1].sum + cells[2].sum, 200 * 49 * 50 / 2);
}

// What tasks wrote is seen by the caller, and by the tasks of the next call.
TEST(ThreadPool, CallsFollowEachOther) {
  ThreadPool pool(3);
  std::vector<int64_t> values(64, 0);
  for (int64_t round = 1; round <= 500; ++round) {
    pool.parallel_for(64, [&](int64_t task, int) {
      const auto i = static_cast<size_t>(task);
      ASSERT_EQ(values[i], round - 1);
      values[i] = round;
    });
  }
}

TEST(ThreadPool, WorksAfterItsThreadsFellAsleep) {
  ThreadPool pool(2);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // longer than they spin
    std::atomic<int64_t> sum{0};
    pool.parallel_for(10, [&](int64_t task, int) { sum += task; });
    EXPECT_EQ(sum.load(), 45);
  }
}

TEST(ThreadPool, AnExceptionReachesTheCaller) {
  for (int num_threads : {1, 2, 3}) {
    ThreadPool pool(num_threads);
    for (int64_t num_tasks : {1, 40}) {
      const auto throw_last = [&] {
        pool.parallel_for(num_tasks, [&](int64_t task, int) {
          if (task == num_tasks - 1) throw std::runtime_error("task failed");
        });
      };
      EXPECT_THROW(throw_last(), std::runtime_error);
      EXPECT_THROW(throw_last(), std::runtime_error);
      std::atomic<int> runs{0};
      pool.parallel_for(num_tasks, [&](int64_t, int) { ++runs; });  // and the pool goes on
      EXPECT_EQ(runs.load(), num_tasks);
    }
  }
}

TEST(ThreadPool, AllTasksThrow) {
  ThreadPool pool(3);
  EXPECT_THROW(pool.parallel_for(100, [](int64_t, int) { throw std::runtime_error("x"); }),
               std::runtime_error);
}

TEST(ThreadPool, ZeroMeansOnePerCore) {
  EXPECT_GE(ThreadPool(0).num_threads(), 1);
  EXPECT_ERROR(ThreadPool(-1), "threads must be 0 (all cores) to 1024, got -1");
  EXPECT_ERROR(ThreadPool(1025), "threads must be 0 (all cores) to 1024, got 1025");
}

}  // namespace
}  // namespace hadal
