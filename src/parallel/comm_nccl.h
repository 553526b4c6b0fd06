// NcclWorld: the GPUs of a World's ranks, and Comm over them.
//
// Calls put work into the context's stream and return; nothing waits on the host. What they put
// there can be recorded (device::begin_recording).
//
// All groups send over one communicator of all ranks: every transfer is a batch of sends and
// receives (ncclSend, ncclRecv), so groups cost nothing to make. What a communicator does it does
// in the order of the calls: sums beside the work go over a second one, and messages that may wait
// for nothing else have a line, a communicator of two ranks for one direction.
//
// Failures: the World's heart watches the others while this lives, as a rank that waits for its
// GPU cannot. When one of them fails, the communicators are aborted: kernels that wait for it end,
// the host comes back from its wait, and the next call throws PeerFailure with the World's
// sentence, which has the place that this rank's host had come to. A process that does not come
// back from its wait is ended by the World.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "core/comm.h"
#include "core/side_stream.h"
#include "parallel/nccl_api.h"
#include "parallel/world.h"

namespace hadal {

// A GPU of this host for each of its ranks, in their order; an Error that names both numbers where
// there are fewer.
Device gpu_of_rank(const World& world);

struct NcclOptions {
  int64_t stage_bytes = int64_t{64} << 20;  // of others' parts that wait to be added
  int64_t gather_bytes = int64_t{1} << 19;  // from all ranks: up to this, each adds all of a tensor
  int64_t window_bytes = int64_t{1} << 20;  // up to this, through windows, where there are some
  // SMs of a line's messages, which hold them while they wait for their other end: with one a link
  // carries some 20 GB/s, and what goes over lines has work to hide behind.
  int line_ctas = 1;
  int beside_ctas = 8;  // SMs of the second communicator's calls
};

class NcclWorld {
 public:
  // Collective over the world: finds the others and connects every two ranks. `ctx`: that of all
  // calls. REQUIRES: world and ctx outlive it; graphs that hold its work are destroyed before it.
  NcclWorld(World& world, Context& ctx, const NcclOptions& options = {});
  NcclWorld(const NcclWorld&) = delete;
  NcclWorld& operator=(const NcclWorld&) = delete;
  ~NcclWorld();

  // As make_comm_host(). REQUIRES: this outlives it.
  std::unique_ptr<Comm> make_comm(std::vector<int> ranks, const char* name);
  // The same over the second communicator. Collective over the world, each rank with its group.
  std::unique_ptr<Comm> make_comm_beside(std::vector<int> ranks, const char* name);
  // Of ranks that share a model: where they are on one host and not too many, sums of up to
  // window_bytes are made by kernels of our own, through windows in each other's memory. Collective
  // over the ranks. REQUIRES: graphs that hold its work are destroyed before it.
  std::unique_ptr<Comm> make_comm_with_sums(std::vector<int> ranks, const char* name);

  World& world() const { return world_; }
  Device device() const { return ctx_.device; }
  // Throws PeerFailure after a rank has failed.
  void check_alive() const;
  // Not 0 once a rank has failed: kernels that wait for others look at it.
  const int* stop_flag() const { return stop_flag_; }
  // For transfers beside the work of ctx.
  SideStream& side() { return side_; }
  SideStream& sums_side() { return sums_side_; }  // for sums beside both
  const NcclApi& api() const { return api_; }
  const NcclOptions& options() const { return options_; }

  // One end of a message; `peer` is a rank of the world.
  struct Piece {
    bool send = false;
    int peer = 0;
    void* data = nullptr;
    int64_t bytes = 0;
  };
  // All of them progress together, in the order of the stream. Between two ranks, sends and
  // receives are in the same order. Throws PeerFailure after a rank failed.
  enum class Channel : uint8_t { kWork, kBeside };
  void exchange(Stream stream, std::span<const Piece> pieces, Channel channel);

  // Messages of one direction between this rank and another, beside all others.
  struct Line {
    int peer = 0;
    bool send = false;
    int number = 0;
    ncclComm* comm = nullptr;
    Stream stream;
  };
  // Collective over the two, which make all that they share in the same order; what was made with
  // these arguments before is given again.
  const Line& line(int peer, bool send, int number);
  // The next message of the line, in the order of its stream. Throws as exchange() does.
  void move(const Line& line, void* data, int64_t bytes);

 private:
  class Calling;
  struct Ends {
    int from = 0, to = 0;  // ranks of the world
  };
  NcclId tell_id(const std::optional<Ends>& two);
  void connect(const std::vector<int>& ranks, Channel channel);
  void put(ncclComm* const& comm, Stream stream, std::span<const Piece> pieces);
  bool is_idle();
  void abort();
  void end_watch();

  World& world_;
  Context& ctx_;
  NcclOptions options_;
  SideStream side_, sums_side_;
  const NcclApi& api_;
  ncclComm *comm_ = nullptr, *beside_ = nullptr;
  std::mutex making_;       // of lines_, which the heart's thread looks at
  std::deque<Line> lines_;  // where they were made they stay
  // NCCL's calls of the two threads, this rank's and the one that aborts.
  std::timed_mutex calls_;
  std::atomic<bool> in_call_{false};  // of the first
  int* stop_flag_;                    // in memory that the GPU reads by itself
  std::atomic<bool> stopped_{false}, is_aborted_{false};
  std::thread aborter_;
};

}  // namespace hadal
