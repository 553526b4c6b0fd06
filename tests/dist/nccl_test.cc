// Comm over NCCL against Comm over CPU ranks, bit for bit: on GPUs where there are two, and
// anywhere with a library that has NCCL's functions over pipes (fake_nccl.cc) and host memory. And
// what the others say of a rank that dies or hangs.
//
// NOTE: this process never looks at a GPU itself: processes are forked from it.
// SPDX-License-Identifier: Apache-2.0
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <numeric>

#include "core/rng.h"
#include "core/transfer.h"
#include "parallel/comm_host.h"
#include "parallel/comm_nccl.h"
#include "parallel/launch.h"
#include "parallel/links_nccl.h"
#include "tests/dist/machine.h"

namespace hadal {
namespace {

using hadal::testing::Machine;

enum class Where : uint8_t { kPipes, kGpus };

// Asked in a process of its own.
int num_gpus() {
  static const int count = [] {
    const pid_t pid = fork();
    if (pid == 0) _exit(device::num_devices(DeviceKind::kCuda));
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 0;
  }();
  return count;
}

// A rank: its context, Comm over NCCL, and Comm over host memory.
struct Rank {
  Context& ctx;
  Comm& comm;
  World& world;
  Context& host_ctx;
  Comm& host;
};

template <class Body>
void on_ranks(Where where, int N, const Body& body, WorldOptions options = {},
              NcclOptions nccl_options = {}) {
  options.num_ranks = N;
  World world(options);
  launch(world,
         [&](int) {
           if (where == Where::kPipes) setenv("HADAL_NCCL", FAKE_NCCL, 1);
           Machine machine(where == Where::kGpus ? gpu_of_rank(world) : Device{});
           Machine host_machine;
           NcclWorld gpus(world, machine.ctx, nccl_options);
           const std::vector<int> all = world.all_ranks();
           const auto comm = gpus.make_comm(all, "world");
           const auto host = make_comm_host(world, all, "reference");
           body(Rank{machine.ctx, *comm, world, host_machine.ctx, *host});
         },
         {.grace_seconds = 8.0});
}

// Tensors of one context, some with values that are a function of their name and rank alone.
class Tensors {
 public:
  explicit Tensors(Context& ctx) : ctx_(ctx) {}
  Tensor random(const std::string& name, int rank, DType dtype, Shape shape) {
    Tensor t;
    blocks_.push_back(ctx_.memory.take_tensor(dtype, shape, &t));
    const Rng rng(7, stream_id(concat(name, " of ", rank)));
    HostWrite host(ctx_, t);
    for (int64_t i = 0; i < t.num_elements(); ++i)
      store_element(host.tensor().raw(), dtype, i,
                    is_float(dtype)
                        ? rng.normal(static_cast<uint64_t>(i))
                        : static_cast<double>(rng.u64(static_cast<uint64_t>(i)) % 9999));
    host.finish();
    return t;
  }
  std::vector<std::byte> bytes(const Tensor& t) {
    std::vector<std::byte> copy(static_cast<size_t>(t.num_bytes()));
    if (!copy.empty()) download(ctx_, t, copy.data());
    return copy;
  }

 private:
  Context& ctx_;
  std::vector<Block> blocks_;
};

// Every call of Comm once, over tensors made before.
class EveryCall {
 public:
  EveryCall(Context& ctx, Comm& comm, DType dtype, int64_t n) : ctx_(ctx), comm_(comm), made_(ctx) {
    const int me = comm.rank(), N = comm.size();
    reduced_ = made_.random("reduced", me, dtype, {n});
    whole_ = made_.random("whole", me, dtype, {N * n});
    part_ = made_.random("part", me, dtype, {n});
    in_place_ = made_.random("in place", me, dtype, {N * n});
    gathered_ = made_.random("gathered", me, dtype, {N * n});
    filled_ = made_.random("filled", me, dtype, {N * n});
    // Rank s sends rank d (s * 3 + d * 5) % 7 rows, of them none to some.
    const auto rows = [&](int s, int d) { return int64_t{(s * 3 + d * 5) % 7} * (n > 0 ? 1 : 0); };
    int64_t out = 0, in = 0;
    for (int r = 0; r < N; ++r) {
      send_.push_back(rows(me, r));
      recv_.push_back(rows(r, me));
      out += send_.back();
      in += recv_.back();
    }
    // The last rank has no rows.
    for (int r = 0; r < N; ++r) counts_.push_back((r + 1) % N * n);
    const int64_t all = std::accumulate(counts_.begin(), counts_.end(), int64_t{0});
    whole_v_ = made_.random("whole v", me, dtype, {all});
    uneven_ = made_.random("uneven", me, dtype, {all});
    part_v_ = made_.random("part v", me, dtype, {counts_[static_cast<size_t>(me)]});
    gathered_v_ = made_.random("gathered v", me, dtype, {all});
    const int64_t width = n % 100 + 1;
    rows_out_ = made_.random("rows out", me, dtype, {out, width});
    rows_in_ = made_.random("rows in", me, dtype, {in, width});
    for (int r = 0; r < N; ++r)
      for (int twice = 0; r != me && twice < 2; ++twice) {
        messages_.push_back({.send = true,
                             .peer = r,
                             .data = made_.random(concat("to ", r), me, dtype, {n + twice})});
        messages_.push_back(
            {.send = false, .peer = r, .data = made_.random("got", me, dtype, {n + twice})});
      }
  }

  void run() {
    const int64_t n = part_.num_elements();
    comm_.all_reduce(ctx_, Acc(reduced_));
    comm_.reduce_scatter(ctx_, whole_, Out(part_));
    Tensor own = in_place_.rows(comm_.rank() * n, n);
    comm_.reduce_scatter(ctx_, in_place_, own);
    comm_.all_gather(ctx_, part_, Out(gathered_));
    Tensor mine = filled_.rows(comm_.rank() * n, n);
    comm_.all_gather(ctx_, mine, Out(filled_));
    comm_.reduce_scatter_v(ctx_, whole_v_, counts_, Out(part_v_));
    const auto before = counts_.begin() + comm_.rank();
    Tensor range = uneven_.rows(std::accumulate(counts_.begin(), before, int64_t{0}), *before);
    comm_.reduce_scatter_v(ctx_, uneven_, counts_, range);
    comm_.all_gather_v(ctx_, part_v_, counts_, Out(gathered_v_));
    comm_.all_to_all_v(ctx_, rows_out_, send_, Out(rows_in_), recv_);
    comm_.transfer(ctx_, messages_);
  }

  struct Result {
    const char* what;
    std::vector<std::byte> bytes;
  };
  std::vector<Result> results() {
    std::vector<Result> all = {{"all_reduce", made_.bytes(reduced_)},
                               {"reduce_scatter", made_.bytes(part_)},
                               {"what reduce_scatter read", made_.bytes(whole_)},
                               {"reduce_scatter in place", made_.bytes(in_place_)},
                               {"all_gather", made_.bytes(gathered_)},
                               {"all_gather in place", made_.bytes(filled_)},
                               {"reduce_scatter_v", made_.bytes(part_v_)},
                               {"reduce_scatter_v in place", made_.bytes(uneven_)},
                               {"all_gather_v", made_.bytes(gathered_v_)},
                               {"all_to_all_v", made_.bytes(rows_in_)}};
    for (const Message& m : messages_)
      if (!m.send) all.push_back({"transfer", made_.bytes(m.data)});
    return all;
  }

 private:
  Context& ctx_;
  Comm& comm_;
  Tensors made_;
  Tensor reduced_, whole_, part_, in_place_, gathered_, filled_, rows_out_, rows_in_;
  Tensor whole_v_, uneven_, part_v_, gathered_v_;
  std::vector<int64_t> send_, recv_, counts_;  // [G] each
  std::vector<Message> messages_;
};

void expect_equal(EveryCall& got, EveryCall& want, const std::string& where) {
  const auto a = got.results(), b = want.results();
  for (size_t i = 0; i < a.size(); ++i) {
    HADAL_CHECK(a[i].bytes.size() == b[i].bytes.size(), where, ": sizes of ", a[i].what);
    for (size_t j = 0; j < a[i].bytes.size(); ++j)
      HADAL_CHECK(a[i].bytes[j] == b[i].bytes[j], where, ": byte ", j, " of ", a[i].bytes.size(),
                  " of ", a[i].what, " is not that of CPU ranks");
  }
}

constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF64, DType::kI64};

class CommNccl : public ::testing::TestWithParam<Where> {
 protected:
  void SetUp() override {
    if (GetParam() == Where::kGpus && num_gpus() < 2)
      GTEST_SKIP() << "it takes two GPUs, and there are " << num_gpus();
    if (GetParam() == Where::kPipes && access(FAKE_NCCL, R_OK) != 0)
      GTEST_SKIP() << "there is no " << FAKE_NCCL;
  }
  std::vector<int> worlds() const {
    if (GetParam() == Where::kPipes) return {2, 3};
    return num_gpus() > 2 ? std::vector<int>{2, num_gpus()} : std::vector<int>{2};
  }
};

TEST_P(CommNccl, EveryCallHasTheBitsOfCpuRanks) {
  // Sizes past what each rank adds by itself, and in slices; where ranks are slow, smaller ones.
  const bool slow = GetParam() == Where::kPipes;
  const std::vector<int64_t> sizes = slow ? std::vector<int64_t>{0, 1, 7, 1024, 5003}
                                          : std::vector<int64_t>{0, 1, 7, 4096, 100003, 1 << 20};
  const NcclOptions options = slow ? NcclOptions{.stage_bytes = 3000, .gather_bytes = 4096}
                                   : NcclOptions{.stage_bytes = 300000};
  for (const int N : worlds())
    ASSERT_NO_THROW(on_ranks(
        GetParam(), N,
        [&](const Rank& rank) {
          for (const DType dtype : kTypes)
            for (const int64_t n : sizes) {
              EveryCall got(rank.ctx, rank.comm, dtype, n),
                  want(rank.host_ctx, rank.host, dtype, n);
              got.run();
              want.run();
              expect_equal(got, want, concat(dtype_name(dtype), " ", n));
              rank.comm.barrier();
            }
        },
        {}, options));
}

TEST_P(CommNccl, RecordedCallsHaveTheSameBits) {
  if (GetParam() == Where::kPipes) GTEST_SKIP() << "the CPU records nothing";
  for (const int N : worlds())
    ASSERT_NO_THROW(on_ranks(GetParam(), N, [&](const Rank& rank) {
      Context& ctx = rank.ctx;
      if (!device::can_record(ctx.device)) return;
      for (const DType dtype : kTypes)
        for (const int64_t n : {int64_t{7}, int64_t{300000}}) {
          EveryCall got(ctx, rank.comm, dtype, n), want(rank.host_ctx, rank.host, dtype, n);
          GraphMemory temporaries(ctx.memory);
          Graph graph;
          {
            const GraphMemory::Scope scope(temporaries);
            device::begin_recording(ctx.device, ctx.stream);
            got.run();
            graph = device::end_recording(ctx.device, ctx.stream);
          }
          // Twice, each on what the one before left.
          for (int i = 0; i < 2; ++i) {
            device::launch(ctx.device, ctx.stream, graph);
            want.run();
          }
          expect_equal(got, want, concat("recorded, ", dtype_name(dtype), " ", n));
          device::destroy(ctx.device, graph);
        }
    }));
}

TEST_P(CommNccl, GroupsOfAWorldShareItsConnections) {
  const int N = GetParam() == Where::kPipes ? 4 : num_gpus();
  if (N < 4) GTEST_SKIP() << "it takes four ranks";
  World world({.num_ranks = 4});
  ASSERT_NO_THROW(launch(world, [&](int r) {
    if (GetParam() == Where::kPipes) setenv("HADAL_NCCL", FAKE_NCCL, 1);
    Machine machine(GetParam() == Where::kGpus ? gpu_of_rank(world) : Device{});
    NcclWorld gpus(world, machine.ctx);
    const auto pair = gpus.make_comm({r / 2 * 2, r / 2 * 2 + 1}, "pair");
    const auto across = gpus.make_comm({r % 2, r % 2 + 2}, "across");
    const auto alone = gpus.make_comm({r}, "alone");
    Tensors made(machine.ctx);
    Tensor x = made.random("x", 0, DType::kI64, {1}), y = made.random("y", 0, DType::kI64, {1});
    upload(machine.ctx, std::vector<int64_t>{int64_t{1} << (8 * r)}, x);
    pair->all_reduce(machine.ctx, x);
    alone->all_reduce(machine.ctx, x);
    across->all_reduce(machine.ctx, x);
    alone->all_gather(machine.ctx, x, y);
    HADAL_CHECK(download<int64_t>(machine.ctx, y)[0] == 0x01010101, "the sum of all four is ",
                download<int64_t>(machine.ctx, y)[0]);
  }));
}

// ---- links ----

// Links between every two ranks, in each direction.
std::vector<Link> all_links(int N) {
  std::vector<Link> links;
  for (int from = 0; from < N; ++from)
    for (int to = 0; to < N; ++to)
      if (from != to) links.push_back({.from = from, .to = to});
  return links;
}

template <class Body>
void on_linked_ranks(Where where, int N, const Body& body, WorldOptions options = {}) {
  options.num_ranks = N;
  World world(options);
  launch(world,
         [&](int) {
           if (where == Where::kPipes) setenv("HADAL_NCCL", FAKE_NCCL, 1);
           Machine machine(where == Where::kGpus ? gpu_of_rank(world) : Device{});
           NcclWorld gpus(world, machine.ctx);
           const std::vector<int> all = world.all_ranks();
           const auto links = make_links_nccl(gpus, all, all_links(N), "pipeline");
           // Asked for again: the same lines.
           const auto again = make_links_nccl(gpus, all, all_links(N), "pipeline");
           HADAL_CHECK(links->num_sms() == 2 * (N - 1), "SMs of ", N, " ranks: ", links->num_sms());
           body(machine.ctx, world, *links);
         },
         {.grace_seconds = 8.0});
}

// Every rank sends to all, two messages on each link, before it receives from any: on GPUs too
// large to leave before the other end is there. Then it receives in an order of its own.
TEST_P(CommNccl, LinksCarryTheirBytesWhateverTheOthersWaitFor) {
  const int64_t n = GetParam() == Where::kPipes ? 1000 : 1 << 22;
  for (const int N : worlds())
    ASSERT_NO_THROW(
        on_linked_ranks(GetParam(), N, [&](Context& ctx, World& world, PipelineLinks& links) {
          const int me = world.rank();
          Tensors made(ctx);
          const auto named = [&](int from, int to, int i) {
            return made.random(concat("to ", to, ", ", i), from, DType::kBF16, {n + i});
          };
          std::vector<Event> sent;
          std::vector<std::pair<Tensor, Tensor>> got_and_want;
          for (int r = 0; r < N; ++r)
            for (int i = 0; r != me && i < 2; ++i)
              sent.push_back(links.send(ctx, {me, r}, named(me, r, i)));
          for (int k = 1; k < N; ++k)
            for (int i = 0; i < 2; ++i) {
              const int from = (me + k) % N;
              Tensor got = made.random("got", me, DType::kBF16, {n + i});
              Event comes = links.receive(ctx, {from, me}, got);
              links.await(ctx, comes);
              HADAL_CHECK(comes.handle == nullptr, "an event was not used up");
              got_and_want.emplace_back(got, named(from, me, i));
            }
          for (Event& event : sent) links.await(ctx, event);
          for (const auto& [got, want] : got_and_want)
            HADAL_CHECK(made.bytes(got) == made.bytes(want), "the bytes differ");
        }));
}

TEST_P(CommNccl, AKilledRankIsNamedByWhoAwaitsItsMessage) {
  const auto begin = std::chrono::steady_clock::now();
  std::string what = "nothing failed";
  try {
    on_linked_ranks(GetParam(), 2, [](Context& ctx, World& world, PipelineLinks& links) {
      Tensors made(ctx);
      const int me = world.rank();
      for (int64_t step = 1; step < 1000; ++step) {
        world.at_step(step);
        if (me == 1 && step == 4) {
          world.at("transfer", "pipeline");
          kill(getpid(), SIGKILL);
        }
        Tensor x = made.random("x", me, DType::kF32, {1000});
        Tensor y = made.random("y", me, DType::kF32, {1000});
        Event goes = links.send(ctx, {me, 1 - me}, x);
        Event comes = links.receive(ctx, {1 - me, me}, y);
        links.await(ctx, comes);
        links.await(ctx, goes);
        made.bytes(y);
      }
    });
  } catch (const Error& e) {
    what = e.what();
  }
  EXPECT_EQ(what,
            "rank 1 failed at step 4, in transfer (pipeline): it was killed by signal 9 (Killed)");
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), 30.0);
}

TEST_P(CommNccl, AStoppedRankIsNamedByWhoAwaitsItsMessage) {
  std::string what = "nothing failed";
  try {
    on_linked_ranks(GetParam(), 2,
                    [](Context& ctx, World& world, PipelineLinks& links) {
                      Tensors made(ctx);
                      world.at_step(5);
                      if (world.rank() == 1) {
                        world.at("transfer", "pipeline");
                        kill(getpid(), SIGSTOP);
                      }
                      Tensor y = made.random("y", 0, DType::kF32, {1000});
                      Event comes = links.receive(ctx, {1, 0}, y);
                      links.await(ctx, comes);
                      made.bytes(y);
                    },
                    {.heartbeat_seconds = 1.5});
  } catch (const Error& e) {
    what = e.what();
  }
  EXPECT_EQ(what,
            "rank 1 has not beaten for 1.5 s and counts as hung; it was at step 5, in transfer "
            "(pipeline); rank 0 waited for it at step 5, in transfer (pipeline)");
}

// ---- failures ----------------------------------------------------------------------------------

// What launch() says, and how long that took.
template <class Body>
std::string failure(Where where, const Body& body, double* seconds, WorldOptions options = {}) {
  const auto begin = std::chrono::steady_clock::now();
  std::string what = "nothing failed";
  try {
    on_ranks(where, 2, body, options);
  } catch (const Error& e) {
    what = e.what();
  }
  *seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return what;
}

// A step that ends with a wait for the device.
void reduce(const Rank& rank) {
  Tensors made(rank.ctx);
  Tensor x = made.random("x", rank.comm.rank(), DType::kF32, {300000});
  rank.comm.all_reduce(rank.ctx, x);
  made.bytes(x);
}

TEST_P(CommNccl, AKilledRankIsNamedWithStepAndCollective) {
  auto* came_back =
      static_cast<std::atomic<int>*>(mmap(nullptr, sizeof(std::atomic<int>), PROT_READ | PROT_WRITE,
                                          MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  double seconds = 0.0;
  const std::string what = failure(
      GetParam(),
      [&](const Rank& rank) {
        try {
          for (int64_t step = 1; step < 1000; ++step) {
            rank.world.at_step(step);
            if (rank.comm.rank() == 1 && step == 4) {
              rank.world.at("all_reduce", "world");
              kill(getpid(), SIGKILL);
            }
            reduce(rank);
          }
        } catch (const PeerFailure&) {
          came_back->store(1);
          throw;
        }
      },
      &seconds);
  EXPECT_EQ(what,
            "rank 1 failed at step 4, in all_reduce (world): it was killed by signal 9 (Killed)");
  EXPECT_LT(seconds, 30.0);
  // A GPU's kernels are aborted; over pipes the host itself waits, and its process is ended.
  if (GetParam() == Where::kGpus) {
    EXPECT_EQ(came_back->load(), 1) << "the wait was not aborted";
  }
  std::printf("noticed and ended within %.1f s\n", seconds);
  munmap(came_back, sizeof(std::atomic<int>));
}

TEST_P(CommNccl, AStoppedRankCountsAsHung) {
  double seconds = 0.0;
  const std::string what = failure(GetParam(),
                                   [](const Rank& rank) {
                                     rank.world.at_step(5);
                                     reduce(rank);
                                     if (rank.comm.rank() == 1) kill(getpid(), SIGSTOP);
                                     reduce(rank);
                                   },
                                   &seconds, {.heartbeat_seconds = 1.5});
  EXPECT_EQ(what,
            "rank 1 has not beaten for 1.5 s and counts as hung; it was at step 5, in all_reduce "
            "(world); rank 0 waited for it at step 5, in all_reduce (world)");
  EXPECT_LT(seconds, 40.0);
}

// One rank's last call of NCCL takes longer than the others live.
TEST_P(CommNccl, ARankThatEndsFirstHasNotFailed) {
  EXPECT_NO_THROW(on_ranks(GetParam(), 2, [](const Rank& rank) {
    reduce(rank);
    if (GetParam() == Where::kGpus || rank.comm.rank() != 0) return;
    void* const library = dlopen(FAKE_NCCL, RTLD_NOW);
    HADAL_CHECK(library != nullptr, dlerror());
    *static_cast<int*>(dlsym(library, "fake_nccl_end_ms")) = 1500;
  }));
}

TEST_P(CommNccl, AFailingRankIsQuoted) {
  double seconds = 0.0;
  const std::string what = failure(
      GetParam(),
      [](const Rank& rank) {
        rank.world.at_step(7);
        reduce(rank);
        if (rank.comm.rank() == 1) HADAL_FAIL("the disk is full");
        reduce(rank);
      },
      &seconds);
  EXPECT_EQ(what, "rank 1 at step 7, in all_reduce (world): the disk is full");
}

INSTANTIATE_TEST_SUITE_P(Pipes, CommNccl, ::testing::Values(Where::kPipes));
INSTANTIATE_TEST_SUITE_P(Gpus, CommNccl, ::testing::Values(Where::kGpus));

TEST(NcclLibrary, WhatIsMissingIsNamed) {
  setenv("HADAL_NCCL", "/nowhere/libnccl.so.2", 1);
  try {
    nccl();
    FAIL() << "there is no such file";
  } catch (const Error& e) {
    const std::string what = e.what();
    EXPECT_EQ(what.find("ranks on GPUs need NCCL, and /nowhere/libnccl.so.2 could not be loaded ("),
              0u)
        << what;
    EXPECT_NE(what.find("set HADAL_NCCL to the path of NCCL's libnccl.so.2"), std::string::npos);
  }
  unsetenv("HADAL_NCCL");
}

TEST(NcclLibrary, FewerGpusThanRanksAreNamed) {
  const int gpus = num_gpus(), ranks = gpus + 2;
  World world({.num_ranks = ranks});
  try {
    launch(world, [&](int) { gpu_of_rank(world); });
    FAIL() << "there are not so many GPUs";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find(concat(ranks, " ranks of this host need a GPU each")),
              std::string::npos)
        << e.what();
  }
}

}  // namespace
}  // namespace hadal
