// Collectives among processes: every result is the one that the definition gives, in every group
// size; a rank that dies, hangs or fails is named.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <numeric>

#include "core/transfer.h"
#include "parallel/comm_host.h"
#include "parallel/launch.h"
#include "tests/dist/machine.h"

namespace hadal {
namespace {

using hadal::testing::Machine;

// Runs body(ctx, comm, world) on N processes.
template <class Body>
void on_ranks(int N, const Body& body, WorldOptions options = {}) {
  options.num_ranks = N;
  World world(options);
  launch(world,
         [&](int) {
           Machine machine;
           const auto comm = make_comm_host(world, world.all_ranks(), "world");
           body(machine.ctx, *comm, world);
         },
         {.grace_seconds = 1.0});
}

double value_of(int rank, int64_t i) { return std::sin(static_cast<double>(rank * 1000 + i)); }

Tensor filled(Context& ctx, int rank, int64_t n, DType dtype, std::vector<Block>& keep) {
  Tensor t;
  keep.push_back(ctx.memory.take_tensor(dtype, {n}, &t));
  for (int64_t i = 0; i < n; ++i) store_element(t.raw(), dtype, i, value_of(rank, i));
  return t;
}

// Sum over ranks in rank order, in the type that sums.
double sum_of(int N, int64_t i, DType dtype) {
  double f64 = 0.0;
  float f32 = 0.0f;
  for (int r = 0; r < N; ++r) {
    double element = 0.0;
    store_element(&element, dtype, 0, value_of(r, i));
    const double v = load_element(&element, dtype, 0);
    f64 = r == 0 ? v : f64 + v;
    f32 = r == 0 ? static_cast<float>(v) : f32 + static_cast<float>(v);
  }
  if (dtype == DType::kF64) return f64;
  double rounded = 0.0;
  store_element(&rounded, dtype, 0, f32);
  return load_element(&rounded, dtype, 0);
}

void expect_equal(double got, double want, const char* what, int rank, int64_t i) {
  HADAL_CHECK(got == want, what, " on rank ", rank, ", element ", i, ": ", got, ", not ", want);
}

TEST(Comm, ReductionsAddInRankOrder) {
  for (const int N : {1, 2, 3, 5})
    for (const DType dtype : {DType::kF32, DType::kF64, DType::kBF16})
      // The largest does not fit a ring.
      for (const int64_t n : {int64_t{1}, int64_t{7}, int64_t{200000}})
        ASSERT_NO_THROW(on_ranks(N, [&](Context& ctx, Comm& comm, World&) {
          const int me = comm.rank();
          std::vector<Block> keep;
          Tensor x = filled(ctx, me, n, dtype, keep);
          comm.all_reduce(ctx, x);
          for (int64_t i = 0; i < n; ++i)
            expect_equal(load_element(x.raw(), dtype, i), sum_of(N, i, dtype), "all_reduce", me, i);
          const Tensor full = filled(ctx, me, n * N, dtype, keep);
          Tensor part = full.rows(me * n, n);
          comm.reduce_scatter(ctx, full, part);
          for (int64_t i = 0; i < n; ++i)
            expect_equal(load_element(part.raw(), dtype, i), sum_of(N, me * n + i, dtype),
                         "reduce_scatter", me, i);
          comm.all_gather(ctx, part, Tensor(full));
          for (int64_t i = 0; i < n * N; ++i)
            expect_equal(load_element(full.raw(), dtype, i), sum_of(N, i, dtype), "all_gather", me,
                         i);
        }));
}

TEST(Comm, PartsOfAReductionMayHaveAnySizes) {
  for (const int N : {1, 2, 3, 5})
    ASSERT_NO_THROW(on_ranks(N, [&](Context& ctx, Comm& comm, World&) {
      const auto me = static_cast<size_t>(comm.rank());
      // The first rank gets one element, those between it and the last one none.
      std::vector<int64_t> counts(static_cast<size_t>(N), 0);
      counts.front() = 1;
      counts.back() += 299;
      const int64_t first =
          std::accumulate(counts.begin(), counts.begin() + comm.rank(), int64_t{0});
      std::vector<Block> keep;
      const Tensor x = filled(ctx, comm.rank(), 300, DType::kF32, keep);
      Tensor part = x.rows(first, counts[me]);
      comm.reduce_scatter_v(ctx, x, counts, part);
      for (int64_t i = 0; i < part.num_elements(); ++i)
        expect_equal(load_element(part.raw(), DType::kF32, i), sum_of(N, first + i, DType::kF32),
                     "reduce_scatter_v", comm.rank(), i);
      Tensor all;
      keep.push_back(ctx.memory.take_tensor(DType::kF32, {300}, &all));
      comm.all_gather_v(ctx, part, counts, all);
      for (int64_t i = 0; i < 300; ++i)
        expect_equal(load_element(all.raw(), DType::kF32, i), sum_of(N, i, DType::kF32),
                     "all_gather_v", comm.rank(), i);
      if (N == 1) return;
      counts.back() -= 1;
      std::string what;
      try {
        comm.reduce_scatter_v(ctx, x, counts, part);
      } catch (const Error& e) {
        what = e.what();
      }
      HADAL_CHECK(
          what == concat(part.str(), " is not what rank ", me, " of ", N, " has of ", x.str()),
          "parts that are not all of it: ", what);
    }));
}

TEST(Comm, RanksHaveRowsOfAnyCount) {
  constexpr int64_t kWidth = 3;
  for (const int N : {1, 2, 4})
    for (const int64_t scale : {1, 20000})
      ASSERT_NO_THROW(on_ranks(N, [&](Context& ctx, Comm& comm, World&) {
        const int me = comm.rank();
        // The second rank has none.
        std::vector<int64_t> counts;
        for (int r = 0; r < N; ++r) counts.push_back((r * 3 + 4) % 7 * scale);
        const int64_t all = std::accumulate(counts.begin(), counts.end(), int64_t{0}) * kWidth;
        const int64_t first =
            std::accumulate(counts.begin(), counts.begin() + me, int64_t{0}) * kWidth;
        const int64_t n = counts[static_cast<size_t>(me)];
        std::vector<Block> keep;
        const Tensor x = filled(ctx, me, all, DType::kF32, keep).view({all / kWidth, kWidth});
        Tensor sums, gathered;
        keep.push_back(ctx.memory.take_tensor(DType::kF32, {n, kWidth}, &sums));
        keep.push_back(ctx.memory.take_tensor(DType::kF32, x.shape(), &gathered));
        comm.reduce_scatter_v(ctx, x, counts, sums);
        for (int64_t i = 0; i < n * kWidth; ++i)
          expect_equal(sums.data<float>()[i], sum_of(N, first + i, DType::kF32), "reduce_scatter_v",
                       me, i);
        comm.all_gather_v(ctx, sums, counts, gathered);
        for (int64_t i = 0; i < all; ++i)
          expect_equal(gathered.data<float>()[i], sum_of(N, i, DType::kF32), "all_gather_v", me, i);
      }));
}

TEST(Comm, AllToAllMovesRowsOfAnyCount) {
  for (const int N : {1, 2, 4})
    ASSERT_NO_THROW(on_ranks(N, [&](Context& ctx, Comm& comm, World&) {
      const int me = comm.rank();
      // Rank s sends rank d (s * 3 + d * 5) % 7 rows.
      const auto rows = [](int s, int d) { return int64_t{(s * 3 + d * 5) % 7}; };
      std::vector<int64_t> send, recv;
      for (int r = 0; r < N; ++r) {
        send.push_back(rows(me, r));
        recv.push_back(rows(r, me));
      }
      const int64_t out = std::accumulate(send.begin(), send.end(), int64_t{0});
      const int64_t in = std::accumulate(recv.begin(), recv.end(), int64_t{0});
      Tensor x, y;
      const Block x_memory = ctx.memory.take_tensor(DType::kI32, {out, 3}, &x);
      const Block y_memory = ctx.memory.take_tensor(DType::kI32, {in, 3}, &y);
      int64_t at = 0;
      for (int d = 0; d < N; ++d)
        for (int64_t i = 0; i < 3 * rows(me, d); ++i)
          x.data<int32_t>()[at++] = me * 10000 + d * 100 + static_cast<int32_t>(i);
      comm.all_to_all_v(ctx, x, send, y, recv);
      at = 0;
      for (int s = 0; s < N; ++s)
        for (int64_t i = 0; i < 3 * rows(s, me); ++i, ++at)
          expect_equal(y.data<int32_t>()[at], s * 10000 + me * 100 + static_cast<int32_t>(i),
                       "all_to_all_v", me, at);
    }));
}

TEST(Comm, MessagesOfAGroupCrossWithoutWaitingForEachOther) {
  ASSERT_NO_THROW(on_ranks(3, [&](Context& ctx, Comm& comm, World& world) {
    // More than a ring holds, both ways at once between every two ranks; two in a row.
    constexpr int64_t kMany = 300000;
    const int me = comm.rank();
    std::vector<Block> keep;
    std::vector<Message> messages;
    std::vector<Tensor> got;
    for (int r = 0; r < 3; ++r)
      for (int twice = 0; r != me && twice < 2; ++twice) {
        messages.push_back({.send = true,
                            .peer = r,
                            .data = filled(ctx, me * 2 + twice, kMany, DType::kF64, keep)});
        got.push_back(filled(ctx, 99, kMany, DType::kF64, keep));
        messages.push_back({.send = false, .peer = r, .data = got.back()});
      }
    world.at_step(1);
    comm.transfer(ctx, messages);
    size_t at = 0;
    for (int r = 0; r < 3; ++r)
      for (int twice = 0; r != me && twice < 2; ++twice, ++at)
        for (int64_t i = 0; i < kMany; ++i)
          expect_equal(got[at].data<double>()[i], value_of(r * 2 + twice, i), "transfer", me, i);
    for (int i = 0; i < 100; ++i) comm.barrier();
  }));
}

// The sentence that launch() throws.
template <class Body>
std::string failure(int N, const Body& body, WorldOptions options = {}) {
  try {
    on_ranks(N, body, options);
  } catch (const Error& e) {
    return e.what();
  }
  return "nothing failed";
}

void reduce(Context& ctx, Comm& comm) {
  std::vector<Block> keep;
  Tensor x = filled(ctx, comm.rank(), 8, DType::kF32, keep);
  comm.all_reduce(ctx, x);
}

TEST(Comm, AKilledRankIsNamedWithStepAndCollective) {
  EXPECT_EQ(failure(3,
                    [](Context& ctx, Comm& comm, World& world) {
                      for (int64_t step = 1; step < 1000; ++step) {
                        world.at_step(step);
                        if (comm.rank() == 1 && step == 4) kill(getpid(), SIGKILL);
                        reduce(ctx, comm);
                      }
                    }),
            "rank 1 failed at step 4, in all_reduce (world): it was killed by signal 9 (Killed)");
}

TEST(Comm, AFailingRankStopsTheOthersAndIsQuoted) {
  EXPECT_EQ(failure(3,
                    [](Context& ctx, Comm& comm, World& world) {
                      world.at_step(7);
                      if (comm.rank() == 2) HADAL_FAIL("the disk is full");
                      reduce(ctx, comm);
                    }),
            "rank 2 at step 7: the disk is full");
}

// Rank 0 stops and takes something away that rank 2 then misses, before it has noticed the death.
TEST(Comm, WhatGoesWrongBehindADeathIsNotTheReason) {
  EXPECT_EQ(failure(3,
                    [](Context&, Comm& comm, World& world) {
                      world.at_step(4);
                      if (comm.rank() == 1) kill(getpid(), SIGKILL);
                      while (!world.failed_rank()) usleep(1000);
                      HADAL_FAIL("rank ", comm.rank(), " misses a directory");
                    }),
            "rank 1 failed at step 4: it was killed by signal 9 (Killed)");
}

TEST(Comm, AStoppedRankCountsAsHung) {
  EXPECT_EQ(failure(2,
                    [](Context& ctx, Comm& comm, World& world) {
                      world.at_step(5);
                      reduce(ctx, comm);
                      if (comm.rank() == 1) kill(getpid(), SIGSTOP);
                      reduce(ctx, comm);
                    },
                    {.heartbeat_seconds = 1.5, .timeout_seconds = 600.0}),
            "rank 1 has not beaten for 1.5 s and counts as hung; it was at step 5, in all_reduce "
            "(world); rank 0 waited for it at step 5, in all_reduce (world)");
}

TEST(Comm, ARankThatDoesNotGetOnCountsAsHung) {
  EXPECT_EQ(failure(2,
                    [](Context& ctx, Comm& comm, World& world) {
                      world.at_step(5);
                      if (comm.rank() == 1) sleep(60);
                      reduce(ctx, comm);
                    },
                    {.heartbeat_seconds = 20.0, .timeout_seconds = 1.0}),
            "rank 1 has not got on for 1 s and counts as hung; it was at step 5; rank 0 waited for "
            "it at step 5, in all_reduce (world)");
}

TEST(Comm, DifferentCallsAreNoticed) {
  const std::string what = failure(2, [](Context& ctx, Comm& comm, World&) {
    if (comm.rank() == 0)
      reduce(ctx, comm);
    else
      comm.barrier();
  });
  EXPECT_NE(what.find("they do not make the same calls"), std::string::npos) << what;
}

}  // namespace
}  // namespace hadal
