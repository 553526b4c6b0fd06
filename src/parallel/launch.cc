// Launch: fork, wait, tell the others, report.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/launch.h"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "core/check.h"
#include "core/env.h"
#include "core/process_end.h"

namespace hadal {
namespace {

constexpr int kMaxRanks = 512;
constexpr auto kPoll = std::chrono::milliseconds(20);
constexpr int kPassedOn[] = {SIGTERM, SIGINT, SIGUSR1};

// What the handler may read: the ranks that live.
std::atomic<pid_t> rank_pids[kMaxRanks];

void kill_ranks(int signal) {
  const int saved = errno;
  for (const std::atomic<pid_t>& pid : rank_pids)
    if (pid.load() > 0) kill(pid.load(), signal);
  errno = saved;
}

void pass_on(int signal, siginfo_t* info, void*) {
  if (info->si_code != SI_KERNEL) kill_ranks(signal);
}

// Signals go to the ranks while this lives.
class PassOn {
 public:
  PassOn() {
    for (size_t i = 0; i < std::size(kPassedOn); ++i) {
      struct sigaction action {};
      action.sa_sigaction = pass_on;
      action.sa_flags = SA_SIGINFO;
      sigaction(kPassedOn[i], &action, &before_[i]);
    }
  }
  PassOn(const PassOn&) = delete;
  PassOn& operator=(const PassOn&) = delete;
  ~PassOn() {
    for (size_t i = 0; i < std::size(kPassedOn); ++i) sigaction(kPassedOn[i], &before_[i], nullptr);
    for (std::atomic<pid_t>& pid : rank_pids) pid.store(0);
  }
  const struct sigaction& before(size_t i) const { return before_[i]; }

 private:
  struct sigaction before_[std::size(kPassedOn)];
};

// Why this rank is to stop, if another one has failed, whether it has noticed or not; else nothing.
std::string reason_to_stop(const World& world, int rank) {
  if (world.state_of(rank) == RankState::kStopped) return world.error_of(rank);
  return world.failure();
}

// The life of a rank; what ended it goes to the others and on.
void live(World& world, int rank, const std::function<void(int)>& body) {
  try {
    world.enter(rank);
    try {
      body(rank);
    } catch (const PeerFailure&) {
      throw;
    } catch (const Error&) {
      // NOTE: once a rank has failed the others may run into anything: into what they did when they
      // were stopped, or into what one that stopped before them took away, such as a directory.
      const std::string why = reason_to_stop(world, rank);
      if (why.empty()) throw;
      throw PeerFailure(why, __FILE__, __LINE__, nullptr);
    }
    if (world.state_of(rank) == RankState::kStopped)
      throw PeerFailure(world.error_of(rank), __FILE__, __LINE__, nullptr);
    world.leave(RankState::kDone, "");
  } catch (const PeerFailure& e) {
    world.leave(RankState::kStopped, e.what());
    throw;
  } catch (const Error& e) {
    world.leave(RankState::kFailed,
                env::trace() ? concat(e.what(), " (", e.where(), ")") : std::string(e.what()));
    throw;
  } catch (const std::exception& e) {
    world.leave(RankState::kFailed, e.what());
    throw;
  }
}

// The same, to the end of its process; never returns.
[[noreturn]] void run_rank(World& world, int rank, const std::function<void(int)>& body) {
  int status = 1;
  try {
    live(world, rank, body);
    run_process_end();
    status = 0;
  } catch (const std::exception&) {  // the world knows
  }
  std::fflush(nullptr);
  _exit(status);
}

std::string how_it_ended(int status) {
  if (WIFSIGNALED(status))
    return concat("it was killed by signal ", WTERMSIG(status), " (", strsignal(WTERMSIG(status)),
                  ")");
  return concat("it ended with status ", WEXITSTATUS(status), " without saying why");
}

bool ended_well(RankState state) {
  return state == RankState::kDone || state == RankState::kFailed || state == RankState::kStopped;
}

// The sentence for a world in which not every rank is done.
std::string verdict(const World& world, const std::vector<int>& order, int leader) {
  const auto first = [&](auto is) {
    for (const int rank : order)
      if (is(world.state_of(rank))) return rank;
    return -1;
  };
  if (const int r = first([](RankState s) { return s == RankState::kFailed; }); r >= 0)
    return world.size() == 1 || r == leader
               ? world.error_of(r)
               : concat("rank ", r, " at ", world.place_of(r), ": ", world.error_of(r));
  const auto stopped = first([](RankState s) { return s == RankState::kStopped; });
  const auto dead = first([](RankState s) { return s == RankState::kDead; });
  // A hung rank is killed by us: what the others say about it comes first.
  if (stopped >= 0 && (dead < 0 || order.front() == stopped)) return world.error_of(stopped);
  return world.failure_of(dead);
}

}  // namespace

void launch(World& world, const std::function<void(int rank)>& body, const LaunchOptions& options) {
  const int N = world.size();
  std::fflush(nullptr);
  const PassOn signals;
  const pid_t parent = getpid();
  for (int rank = 0; rank < N; ++rank) {
    const pid_t pid = fork();
    if (pid < 0) {
      const std::string why = std::strerror(errno);
      kill_ranks(SIGKILL);
      while (waitpid(-1, nullptr, 0) > 0) {
      }
      HADAL_FAIL("cannot start rank ", rank, " of ", N, ": ", why);
    }
    if (pid == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (size_t i = 0; i < std::size(kPassedOn); ++i)
        sigaction(kPassedOn[i], &signals.before(i), nullptr);
      if (getppid() != parent) _exit(1);
      run_rank(world, rank, body);
    }
    rank_pids[rank].store(pid);
  }

  std::vector<int> order;  // ranks that did not end well, first one first
  int left = N;
  double waited = 0.0;  // since the first of them
  while (left > 0) {
    bool any = false;
    for (int rank = 0; rank < N; ++rank) {
      const pid_t pid = rank_pids[rank].load();
      int status = 0;
      if (pid <= 0 || waitpid(pid, &status, WNOHANG) != pid) continue;
      rank_pids[rank].store(0);
      any = true;
      --left;
      if (WIFEXITED(status) && WEXITSTATUS(status) == 0) continue;
      if (!ended_well(world.state_of(rank))) world.mark_dead(rank, how_it_ended(status));
      order.push_back(rank);
    }
    if (any) continue;
    std::this_thread::sleep_for(kPoll);
    if (order.empty()) continue;
    waited += std::chrono::duration<double>(kPoll).count();
    if (waited > options.grace_seconds) kill_ranks(SIGKILL);
  }
  if (!order.empty()) HADAL_FAIL(verdict(world, order, options.leader));
}

void take_part(World& world, const std::function<void(int rank)>& body) {
  const int rank = world.rank();
  try {
    live(world, rank, body);
  } catch (const PeerFailure&) {
    throw;
  } catch (const std::exception& e) {
    HADAL_FAIL("rank ", rank, " at ", world.place_of(rank), ": ", e.what());
  }
}

}  // namespace hadal
