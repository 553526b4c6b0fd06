// Comm: the collectives that model and train code may call; a world of one is comm_self.
//
//   G ranks of the group   n elements or rows of one rank
//
// Calls are collective: every rank of the group makes the same calls in the same order. Tensors are
// dense. Reductions add in rank order, so they are deterministic: f32 and bf16 in f32, f64 in f64,
// i64 exactly.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>

#include "core/context.h"

namespace hadal {

namespace ops {
struct PeerSums;
}

// One of several messages that are under way together.
struct Message {
  bool send = false;
  int peer = 0;  // rank in the group
  Tensor data;   // what is sent, or where it goes
};

class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual void all_reduce(Context& ctx, Acc x) = 0;  // x = sum over ranks
  // Rank r has counts[r] rows, none or more, behind those of the ranks before it; all ranks know
  // all counts. x [sum of counts, W] -> y [counts[rank()], W]; y may be this rank's part of x. The
  // rest of x is left as it was.
  virtual void reduce_scatter_v(Context& ctx, In x, std::span<const int64_t> counts, Out y) = 0;
  // x [counts[rank()], W] -> y [sum of counts, W]; x may be this rank's part of y.
  virtual void all_gather_v(Context& ctx, In x, std::span<const int64_t> counts, Out y) = 0;
  // x [sum of send, W]: the first send[0] rows go to rank 0, the next send[1] to rank 1, ...
  // y [sum of recv, W]: likewise by source.
  virtual void all_to_all_v(Context& ctx, In x, std::span<const int64_t> send, Out y,
                            std::span<const int64_t> recv) = 0;
  // Point to point: all messages of the call progress together. Between two ranks, sends and
  // receives are in the same order.
  virtual void transfer(Context& ctx, std::span<const Message> messages) = 0;
  virtual void barrier() = 0;
  // By which kernels add up small tensors over this group themselves (ops/peer.h); null where they
  // cannot.
  virtual const ops::PeerSums* peer_sums() const { return nullptr; }

  void reduce_scatter(Context& ctx, In x, Out y);  // [G * n] -> [n]
  void all_gather(Context& ctx, In x, Out y);      // [n] -> [G * n]
  void all_to_all(Context& ctx, In x, Out y);      // [G, ...] -> [G, ...]
  void send(Context& ctx, In x, int to);
  void recv(Context& ctx, Out x, int from);
};

// The group of this process alone; transfers are errors.
std::unique_ptr<Comm> make_comm_self();

}  // namespace hadal
