// World: the CPU ranks of one host, processes that share a block of memory made before they fork.
//
//   N ranks
//
// Between every two ranks there is a ring of bytes in each direction; a rank that has nothing to do
// sleeps on its doorbell. Every rank writes down where it is (step, collective) and beats twice a
// second, so that whoever waits in vain can say for whom, since when, and where that one was.
//
// A rank is given up when its process is gone (the launcher says so), when it has not beaten for
// `heartbeat_seconds`, or when it beats but does not get on for `timeout_seconds`. Time counts only
// while the waiting rank itself runs: stopping and continuing all of them is no failure.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "core/check.h"

namespace hadal {

struct WorldOptions {
  int num_ranks = 1;
  double heartbeat_seconds = 20.0;  // of silence until a rank counts as hung
  double timeout_seconds = 600.0;   // without progress
};

// Thrown by ranks that stop because another one failed; the launcher reports the other one.
class PeerFailure : public Error {
 public:
  using Error::Error;
};

enum class RankState : uint32_t {
  kStarting,
  kRunning,
  kDone,
  kFailed,   // threw an Error of its own
  kStopped,  // because of another rank
  kDead,     // its process is gone
};

// One end of a message: `bytes` at `data` to or from a rank. `tag` has to be the same at both ends.
struct Parcel {
  bool send = false;
  int peer = 0;
  void* data = nullptr;
  size_t bytes = 0;
  uint32_t tag = 0;
};

class World {
 public:
  explicit World(const WorldOptions& options);
  World(const World&) = delete;
  World& operator=(const World&) = delete;
  ~World();

  const WorldOptions& options() const { return options_; }
  int size() const { return options_.num_ranks; }

  // In a rank's process: who it is; begins to beat.
  void enter(int rank);
  int rank() const { return rank_; }

  // Where this rank is, for the others' messages. NOTE: string literals alone: the others read them
  // at the same address.
  void at_step(int64_t step);
  void at(const char* what, const char* group);
  // Sends and receives that progress together. Throws PeerFailure as soon as a rank of the world
  // fails.
  void exchange(std::span<Parcel> parcels);

  // Ends of a rank, written by itself or by the launcher.
  void leave(RankState state, const std::string& error);
  void mark_dead(int rank, const std::string& how);
  // The planted faults "die_...": ends this process with SIGKILL if it is rank 1 at step 4; `step`
  // is that of what it does, where it is not the last that began.
  void maybe_die(const char* fault) const;
  void maybe_die(const char* fault, int64_t step) const;
  RankState state_of(int rank) const;
  std::string error_of(int rank) const;
  // "step 12, in all_reduce (world)"
  std::string place_of(int rank) const;

 private:
  struct Status;
  struct Link;
  struct Progress;
  struct Seen {
    uint64_t beat = 0, progress = 0;
    double silent = 0.0, idle = 0.0;  // seconds
    bool ended = false;
  };

  Status& status(int rank) const;
  Link& link(int from, int to) const;
  void ring(int rank) const;
  bool push(Link& link, const Parcel& parcel, Progress& progress) const;
  bool pull(Link& link, const Parcel& parcel, Progress& progress) const;
  void check_peers(std::span<const Parcel> parcels, const std::vector<bool>& done, double seconds);
  void beat();

  WorldOptions options_;
  void* memory_ = nullptr;
  size_t bytes_ = 0;
  int rank_ = -1;
  bool may_spin_ = false;
  std::string fault_;
  std::vector<Seen> seen_;
  std::thread heart_;
  std::atomic<bool> stop_beating_{false};
};

}  // namespace hadal
