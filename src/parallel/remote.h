// Remote: ranks of other hosts over TCP: bytes to and from them, and where they are.
//
// What is sent and received goes straight between the caller's tensors and the sockets; a thread of
// its own waits for sockets that have become ready and tells the rank, which sleeps on its doorbell
// as it does for ranks of its host. The same thread reads what the others say about themselves: a
// frame at every step and every beat, and one at the end.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "parallel/rank_status.h"
#include "parallel/rendezvous.h"

namespace hadal {

class Remote {
 public:
  // ring: wakes this rank. on_death: a process of this host is gone. Both are called by the thread
  // of this Remote, which begins here.
  Remote(Meeting meeting, std::function<void()> ring, std::function<void(int rank)> on_death);
  Remote(const Remote&) = delete;
  Remote& operator=(const Remote&) = delete;
  ~Remote();

  RankStatus& status(int rank) const { return *peers_[static_cast<size_t>(rank)]->status; }
  // Bytes that went or came now; 0 where the socket takes or has none.
  size_t send(int rank, const void* data, size_t bytes, bool more_follows);
  size_t receive(int rank, void* data, size_t bytes);
  // Nothing more comes or goes.
  bool is_broken(int rank) const { return peers_[static_cast<size_t>(rank)]->broken.load(); }
  // To all, without waiting; whoever does not read misses this one.
  void tell(const RankStatus& mine);
  // The last one; waits for those that read slowly, a little.
  void tell_the_end(const RankStatus& mine);

 private:
  struct Frame {
    uint64_t beat = 0, progress = 0;
    int64_t steps_begun = 0;
    uint32_t state = 0, reserved = 0;
    char what[48] = {}, group[48] = {};
    char error[kErrorBytes] = {};
  };
  struct Peer {
    Socket data, words;
    std::unique_ptr<RankStatus> status = std::make_unique<RankStatus>();
    std::atomic<bool> broken{false};
    Frame in, out;
    size_t in_bytes = 0, out_bytes = sizeof(Frame);  // of the frames; out: all sent
  };
  static Frame frame_of(const RankStatus& mine);
  bool flush(Peer& peer);
  void listen_to(Peer& peer);
  void watch();
  void add(int fd, uint32_t events, uint64_t what);

  std::vector<std::unique_ptr<Peer>> peers_;  // [N]
  std::vector<Descriptor> processes_;         // [N]   of this host
  std::function<void()> ring_;
  std::function<void(int)> on_death_;
  std::mutex telling_;
  Descriptor events_, wake_;
  std::thread watcher_;
};

}  // namespace hadal
