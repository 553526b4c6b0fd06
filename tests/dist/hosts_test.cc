// Ranks of several hosts, which are names here: collectives have the bits of shared memory; a rank
// that dies, fails, hangs or stops in the middle of a message is named on the other host; who does
// not belong to the run is refused.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstring>
#include <fstream>
#include <functional>
#include <thread>

#include "core/transfer.h"
#include "parallel/comm_host.h"
#include "parallel/launch.h"
#include "tests/dist/machine.h"
#include "tests/unit/expect_error.h"

namespace hadal {
namespace {

using hadal::testing::Machine;
using hadal::testing::TempDir;

using Body = std::function<void(Context& ctx, Comm& comm, World& world)>;

class Hosts : public ::testing::Test {
 protected:
  static constexpr size_t kTextBytes = 1024;

  RendezvousOptions options(int rank, int num_ranks, int per_host) const {
    return {.rank = rank,
            .num_ranks = num_ranks,
            .host = concat("host ", rank / per_host),
            .file = dir_ / "ranks",
            .build = 1,
            .config = 2,
            .seconds = 20.0};
  }

  // A process that does fn; what it throws is its error.
  class Process {
   public:
    explicit Process(const std::function<void()>& fn)
        : text_(static_cast<char*>(mmap(nullptr, kTextBytes, PROT_READ | PROT_WRITE,
                                        MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {
      pid_ = fork();
      if (pid_ != 0) return;
      int status = 0;
      try {
        fn();
      } catch (const std::exception& e) {
        std::strncpy(text_, e.what(), kTextBytes - 1);
        status = 1;
      }
      _exit(status);
    }
    Process(const Process&) = delete;
    Process& operator=(const Process&) = delete;
    ~Process() {
      kill();
      munmap(text_, kTextBytes);
    }
    void kill() {
      if (pid_ <= 0) return;
      ::kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
      pid_ = -1;
    }
    // Once it has ended: its error, "" if there was none.
    std::string error() {
      int status = 0;
      waitpid(pid_, &status, 0);
      pid_ = -1;
      if (WIFSIGNALED(status)) return concat("signal ", WTERMSIG(status));
      return text_;
    }

   private:
    char* text_;
    pid_t pid_ = -1;
  };

  std::unique_ptr<Process> start(const RendezvousOptions& o, const Body& body,
                                 WorldOptions world_options = {}) const {
    return std::make_unique<Process>([=]() mutable {
      world_options.num_ranks = o.num_ranks;
      World world(world_options, meet(o));
      take_part(world, [&](int) {
        Machine machine;
        const auto comm = make_comm_host(world, world.all_ranks(), "world");
        body(machine.ctx, *comm, world);
      });
    });
  }
  // The error of each of N ranks.
  std::vector<std::string> on_hosts(int N, int per_host, const Body& body,
                                    const WorldOptions& world_options = {}) const {
    std::vector<std::unique_ptr<Process>> ranks;
    for (int r = 0; r < N; ++r)
      ranks.push_back(start(options(r, N, per_host), body, world_options));
    std::vector<std::string> errors;
    for (const auto& rank : ranks) errors.push_back(rank->error());
    return errors;
  }
  // What rank 0 wrote down for the others.
  struct Found {
    uint64_t token[2] = {0, 0};
    uint16_t port = 0;
  };
  Found find() const {
    for (int i = 0; i < 2000; ++i) {
      std::ifstream file(dir_ / "ranks");
      std::string word;
      Found f;
      if (file >> word >> f.token[0] >> f.token[1] >> f.port) return f;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    ADD_FAILURE() << "rank 0 wrote no file";
    return {};
  }

  const TempDir dir_;
};

float value_of(int rank, int64_t i) {
  return static_cast<float>(std::sin(static_cast<double>(rank * 1000 + i)));
}

Tensor filled(Context& ctx, int rank, int64_t n, std::vector<Block>& keep) {
  Tensor t;
  keep.push_back(ctx.memory.take_tensor(DType::kF32, {n}, &t));
  for (int64_t i = 0; i < n; ++i) t.data<float>()[i] = value_of(rank, i);
  return t;
}

void reduce(Context& ctx, Comm& comm, int64_t n = 8) {
  std::vector<Block> keep;
  Tensor x = filled(ctx, comm.rank(), n, keep);
  comm.all_reduce(ctx, x);
  for (int64_t i = 0; i < n; ++i) {
    float sum = value_of(0, i);
    for (int r = 1; r < comm.size(); ++r) sum += value_of(r, i);
    HADAL_CHECK(x.data<float>()[i] == sum, "all_reduce on rank ", comm.rank(), ", element ", i,
                ": ", x.data<float>()[i], ", not ", sum);
  }
}

using Errors = std::vector<std::string>;

TEST_F(Hosts, CollectivesHaveTheBitsOfSharedMemory) {
  const auto body = [](Context& ctx, Comm& comm, World& world) {
    HADAL_CHECK(world.hosts().size() == static_cast<size_t>(comm.size() / world.num_local()),
                "there are ", world.hosts().size(), " hosts");
    world.at_step(1);
    for (const int64_t n : {1, 7, 300000})
      reduce(ctx, comm, n);  // more than a ring or socket holds
    // Both ways at once between every two ranks, twice.
    std::vector<Block> keep;
    std::vector<Message> messages;
    std::vector<Tensor> got;
    constexpr int64_t kMany = 1000000;
    for (int r = 0; r < comm.size(); ++r)
      for (int twice = 0; r != comm.rank() && twice < 2; ++twice) {
        messages.push_back(
            {.send = true, .peer = r, .data = filled(ctx, 2 * comm.rank() + twice, kMany, keep)});
        got.push_back(filled(ctx, 99, kMany, keep));
        messages.push_back({.send = false, .peer = r, .data = got.back()});
      }
    comm.transfer(ctx, messages);
    size_t at = 0;
    for (int r = 0; r < comm.size(); ++r)
      for (int twice = 0; r != comm.rank() && twice < 2; ++twice, ++at)
        for (int64_t i = 0; i < kMany; i += 97)
          HADAL_CHECK(got[at].data<float>()[i] == value_of(2 * r + twice, i), "transfer from ", r,
                      ", element ", i);
    for (int i = 0; i < 200; ++i) comm.barrier();
  };
  EXPECT_EQ(on_hosts(4, 2, body), Errors(4));
  EXPECT_EQ(on_hosts(3, 1, body), Errors(3));
  EXPECT_EQ(on_hosts(2, 2, body), Errors(2));  // started apart, on one host
  EXPECT_FALSE(std::ifstream(dir_ / "ranks").good()) << "the file is left";
}

TEST_F(Hosts, AKilledRankIsNamedOnEveryHost) {
  const Errors errors = on_hosts(4, 2, [](Context& ctx, Comm& comm, World& world) {
    for (int64_t step = 1; step < 1000; ++step) {
      world.at_step(step);
      if (comm.rank() == 1 && step == 4) kill(getpid(), SIGKILL);
      reduce(ctx, comm);
    }
  });
  EXPECT_EQ(errors[0], "rank 1 failed at step 4, in all_reduce (world): its process is gone");
  EXPECT_EQ(errors[1], "signal 9");
  for (const int other_host : {2, 3})
    EXPECT_EQ(errors[static_cast<size_t>(other_host)],
              "rank 1 failed at step 4, in all_reduce (world): its connection was closed: its "
              "process or its host is gone");
}

TEST_F(Hosts, AFailingRankIsQuotedOnEveryHost) {
  const Errors errors = on_hosts(4, 2, [](Context& ctx, Comm& comm, World& world) {
    world.at_step(7);
    if (comm.rank() == 2) HADAL_FAIL("the disk is full");
    reduce(ctx, comm);
  });
  EXPECT_EQ(errors[2], "rank 2 at step 7: the disk is full");
  for (const size_t other : {0, 1, 3})
    EXPECT_EQ(errors[other], "rank 2 failed at step 7: the disk is full");
}

TEST_F(Hosts, AStoppedRankCountsAsHung) {
  std::vector<std::unique_ptr<Process>> ranks;
  for (int r = 0; r < 2; ++r)
    ranks.push_back(start(options(r, 2, 1),
                          [](Context& ctx, Comm& comm, World& world) {
                            world.at_step(5);
                            reduce(ctx, comm);
                            if (comm.rank() == 1) kill(getpid(), SIGSTOP);
                            reduce(ctx, comm);
                          },
                          {.heartbeat_seconds = 1.5}));
  EXPECT_TRUE(ranks[0]->error().starts_with(
      "rank 1 has not beaten for 1.5 s and counts as hung; it was at step 5"));
}

// Rank 1 greets, sends the beginning of a message and then nothing, or hangs up.
TEST_F(Hosts, HalfAMessageDoesNotHang) {
  for (const bool hangs_up : {false, true}) {
    const auto waiting = start(options(0, 2, 1),
                               [](Context& ctx, Comm& comm, World& world) {
                                 std::vector<Block> keep;
                                 world.at_step(3);
                                 comm.recv(ctx, filled(ctx, 0, 1000, keep), 1);
                               },
                               {.heartbeat_seconds = hangs_up ? 20.0 : 1.0});
    Process half([&] {
      Meeting m = meet(options(1, 2, 1));
      const struct {
        uint64_t bytes = 4000;
        uint32_t tag = 4, magic = 0x6861646c;
        char data[2000] = {};
      } message;
      HADAL_CHECK(m.data[0].send_all(&message, sizeof(message), 5.0).empty(), "nothing went out");
      if (hangs_up) m.data[0] = Socket();
      sleep(60);
    });
    const std::string error = waiting->error();
    const std::string want = hangs_up
                                 ? "the connection to rank 1 broke, which was at the start; rank 0 "
                                   "waited for it at step 3, in transfer (world)"
                                 : "rank 1 has not beaten for 1 s and counts as hung; it was at "
                                   "the start; rank 0 waited for it at step 3, in transfer (world)";
    EXPECT_EQ(error, want);
  }
}

TEST_F(Hosts, StrangersAreRefusedAndChangeNothing) {
  const Body body = [](Context& ctx, Comm& comm, World&) { reduce(ctx, comm); };
  const auto zero = start(options(0, 2, 1), body);
  const Found found = find();
  const auto answer_to = [&](const void* data, size_t bytes) {
    const Socket s = connect_to({"127.0.0.1"}, found.port, 5.0);
    Answer answer;
    answer.welcome = 7;
    EXPECT_EQ(s.send_all(data, bytes, 5.0), "");
    EXPECT_EQ(s.receive_all(&answer, sizeof(answer), 10.0), "");
    EXPECT_EQ(answer.welcome, 0u);
    return std::string(answer.why_not);
  };
  const std::string web = "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n";
  EXPECT_EQ(answer_to(web.data(), web.size()), "it does not speak hadal's protocol");
  EXPECT_EQ(answer_to("hadal", 5), "nothing came for 2 s");  // and not the rest
  Hello guess;
  guess.greeting.rank = 1;
  EXPECT_EQ(answer_to(&guess, sizeof(guess)), "the secret of this run is another one");
  const auto one = start(options(1, 2, 1), body);
  EXPECT_EQ(zero->error(), "");
  EXPECT_EQ(one->error(), "");
}

TEST_F(Hosts, ARankThatDoesNotFitEndsTheStart) {
  const Body nothing = [](Context&, Comm&, World&) {};
  const auto refused = [&](const std::function<void(RendezvousOptions&)>& change,
                           const std::string& message) {
    RendezvousOptions o = options(1, 3, 1);
    change(o);
    const auto zero = start(options(0, 3, 1), nothing), one = start(o, nothing);
    EXPECT_EQ(zero->error(), message);
    EXPECT_EQ(one->error(), message);
  };
  refused([](auto& o) { o.build = 9; },
          "rank 1 (host host 1) runs another build of hadal than rank 0 (host host 0); install the "
          "same one everywhere");
  refused([](auto& o) { o.config = 9; },
          "rank 1 (host host 1) has another config than rank 0 (host host 0); start all ranks with "
          "the same one");
  refused([](auto& o) { o.num_ranks = 4; },
          "rank 1 (host host 1) is one of 4 ranks, rank 0 one of 3");

  const auto zero = start(options(0, 2, 1), nothing);
  const Found found = find();
  Hello next;
  next.greeting.rank = 1;
  next.greeting.protocol = 2;
  std::memcpy(next.greeting.token, found.token, sizeof(found.token));
  const Socket s = connect_to({"127.0.0.1"}, found.port, 5.0);
  EXPECT_EQ(s.send_all(&next, sizeof(next), 5.0), "");
  EXPECT_EQ(
      zero->error(),
      "rank 1 (127.0.0.1) speaks version 2 of hadal's protocol, rank 0 version 1; install the "
      "same build everywhere");

  RendezvousOptions hasty = options(0, 3, 1);
  hasty.seconds = 1.0;
  const auto lonely = start(hasty, nothing), present = start(options(1, 3, 1), nothing);
  const std::string message = "ranks that have not come to rank 0 (host host 0) within 1 s: 2";
  EXPECT_EQ(lonely->error(), message);
  EXPECT_EQ(present->error(), message);

  RendezvousOptions lost = options(1, 2, 1);
  lost.seconds = 0.3;
  EXPECT_EQ(start(lost, nothing)->error(),
            concat("rank 1 (host host 1) has not found the others within 0.3 s: there is no file ",
                   dir_ / "ranks",
                   " from rank 0; is its folder on all hosts? HADAL_RENDEZVOUS names another"));
}

}  // namespace
}  // namespace hadal
