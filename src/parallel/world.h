// World: CPU ranks. Those of one host share a block of memory, those of other hosts are behind TCP
// connections (remote.h).
//
//   N ranks   n of them on this host
//
// Between every two ranks of a host there is a ring of bytes in each direction; a rank that has
// nothing to do sleeps on its doorbell. Every rank writes down where it is (step, collective) and
// beats twice a second, so that whoever waits in vain can say for whom, since when, and where that
// one was.
//
// A rank is given up when its process is gone (the launcher, the host or its closed connection says
// so), when it has not beaten for `heartbeat_seconds`, or when it beats but does not get on for
// `timeout_seconds`. Time counts only while the waiting rank itself runs: stopping and continuing
// all of them is no failure. A rank that waits for its device looks at the others by its heart
// (watch()).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "core/check.h"
#include "parallel/rank_status.h"
#include "parallel/remote.h"

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

// One end of a message: `bytes` at `data` to or from a rank. `tag` has to be the same at both ends.
struct Parcel {
  bool send = false;
  int peer = 0;
  void* data = nullptr;
  size_t bytes = 0;
  uint32_t tag = 0;
};

// Whether a rank that does not get on is given up while one waits for it; a dead one always is.
enum class Patience : uint8_t { kTimeout, kForever };

class World {
 public:
  // All ranks on this host, in processes that are forked after this.
  explicit World(const WorldOptions& options);
  // This process as one rank among those that it met; options.num_ranks is their number.
  World(const WorldOptions& options, Meeting meeting);
  World(const World&) = delete;
  World& operator=(const World&) = delete;
  ~World();

  const WorldOptions& options() const { return options_; }
  int size() const { return options_.num_ranks; }
  std::vector<int> all_ranks() const;
  int num_local() const { return static_cast<int>(local_.size()); }  // ranks of this host
  // Which host a rank is on; hosts are numbered by their first ranks.
  int host_of(int rank) const { return host_of_[static_cast<size_t>(rank)]; }
  const std::vector<std::string>& hosts() const { return hosts_; }

  // In a rank's process: who it is; begins to beat.
  void enter(int rank);
  int rank() const { return rank_; }

  // Where this rank is, for the others' messages; names of a few words.
  void at_step(int64_t step);
  void at(const char* what, const char* group);
  // Sends and receives that progress together. Throws PeerFailure as soon as a rank of the world
  // fails.
  void exchange(std::span<Parcel> parcels, Patience patience = Patience::kTimeout);
  // The rank that has failed, if one has; for those who wait for none.
  std::optional<int> failed_rank() const;
  // "rank 2 failed at step 4, in all_to_all: ...", of a rank that has.
  std::string failure_of(int rank) const;
  // The same of failed_rank(); "" where none has.
  std::string failure() const;

  // From now on the heart looks at the others too. When one of them fails, this rank counts as
  // stopped because of it (error_of says why), and on_failure runs on the heart's thread; a process
  // that then does not end within some seconds is ended. A rank that was never waited for, because
  // is_waiting() is false, may be as slow as it likes.
  struct Watch {
    std::function<bool()> is_waiting;  // for work that others may have a part in
    std::function<void()> on_failure;
  };
  void watch(Watch watch);
  void stop_watching();

  // Ends of a rank, written by itself or by the launcher; the first one stays.
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
  struct Link;
  struct Progress;
  struct Seen {
    uint64_t beat = 0, progress = 0;
    double silent = 0.0, idle = 0.0, broken = 0.0;  // seconds
    bool ended = false;
  };

  void map_memory(int fd);
  void meet_local_ranks(double seconds);
  bool is_local(int rank) const { return local_index_[static_cast<size_t>(rank)] >= 0; }
  RankStatus& status(int rank) const;
  Link& link(int from, int to) const;
  void ring(int rank) const;
  void ring_all() const;
  template <class Put>
  void send_part(const Parcel& parcel, Progress& progress, const Put& put) const;
  template <class Get>
  void receive_part(const Parcel& parcel, Progress& progress, const Get& get) const;
  bool push(const Parcel& parcel, Progress& progress) const;
  bool pull(const Parcel& parcel, Progress& progress) const;
  std::string trouble_with(int peer, Seen& seen, double seconds, Patience patience) const;
  void check_peers(std::span<const Parcel> parcels, const std::vector<bool>& done, double seconds,
                   Patience patience);
  void beat();
  void look(double seconds);
  std::string trouble_of_any(double seconds);

  WorldOptions options_;
  void* memory_ = nullptr;
  Descriptor shared_;  // of the memory; other ranks of the host open it by its number
  size_t bytes_ = 0;
  int rank_ = -1;
  bool may_spin_ = false;
  std::string fault_;
  std::vector<Seen> seen_;
  std::vector<int> local_;        // ranks of this host, ascending
  std::vector<int> local_index_;  // [N]   place in local_; -1: another host
  std::vector<int> host_of_;      // [N]
  std::vector<std::string> hosts_;
  std::mutex leaving_;
  std::mutex watching_;  // of the three below
  std::optional<Watch> watch_;
  std::vector<Seen> watched_;
  double stopped_seconds_ = 0.0;  // since this rank was stopped by its heart
  std::thread heart_;
  std::atomic<bool> stop_beating_{false};
  std::unique_ptr<Remote> remote_;  // none: all ranks were forked here
};

}  // namespace hadal
