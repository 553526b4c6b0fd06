// Comm: the collectives that model and train code may call; a world of one is comm_self.
//
// Calls are collective: every rank of the group makes the same calls in the same order.
// Reductions add in rank order, so they are deterministic.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "core/context.h"

namespace hadal {

class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual void all_reduce(Context& ctx, Acc x) = 0;            // x = sum over ranks
  virtual void reduce_scatter(Context& ctx, In x, Out y) = 0;  // [size * n] -> [n]
  virtual void all_gather(Context& ctx, In x, Out y) = 0;      // [n] -> [size * n]
  virtual void all_to_all(Context& ctx, In x, Out y) = 0;      // [size, n] -> [size, n]
  virtual void send(Context& ctx, In x, int to) = 0;
  virtual void recv(Context& ctx, Out x, int from) = 0;
  virtual void barrier() = 0;
};

// The group of this process alone; send and recv are errors.
std::unique_ptr<Comm> make_comm_self();

}  // namespace hadal
