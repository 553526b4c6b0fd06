// Comm over a World: every collective is one round or two of messages between all pairs.
//
//   G ranks of the group
//
// all_reduce is a reduce_scatter over ranges and an all_gather of them: each element is summed
// once, by one rank, in rank order, and every rank gets the same bits.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/comm_host.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "core/check.h"
#include "core/dtype.h"
#include "ops/ranks.h"
#include "parallel/comm_parts.h"

namespace hadal {
namespace {

using namespace comm_parts;

enum class Call : uint32_t { kReduce = 1, kGather, kExchange, kTransfer, kBarrier };

class CommHost final : public Comm {
 public:
  CommHost(World& world, std::vector<int> ranks, const char* name)
      : world_(world), ranks_(std::move(ranks)), name_(name) {
    const auto at = std::find(ranks_.begin(), ranks_.end(), world.rank());
    HADAL_CHECK(at != ranks_.end(), "internal error: rank ", world.rank(), " is not in group ",
                name);
    rank_ = static_cast<int>(at - ranks_.begin());
  }
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(ranks_.size()); }

  void all_reduce(Context& ctx, Acc x) override {
    check_dense(x);
    if (size() == 1 || x.num_elements() == 0) return;
    world_.at("all_reduce", name_);
    const std::vector<int64_t> bounds = even_bounds(x.num_elements(), size());
    reduce(ctx, x, bounds, bytes_at(x, bounds[index()]));
    gather(x, bounds);
  }

  void reduce_scatter_v(Context& ctx, In x, std::span<const int64_t> counts, Out y) override {
    check_dense(x);
    check_dense(y);
    const std::vector<int64_t> bounds = bounds_of(x, y, counts, rank_, size());
    if (x.num_elements() == 0) return;
    if (size() == 1) {
      if (y.raw() != x.raw()) std::memcpy(y.raw(), x.raw(), static_cast<size_t>(x.num_bytes()));
      return;
    }
    world_.at("reduce_scatter", name_);
    reduce(ctx, x, bounds, bytes_at(y, 0));
  }

  void all_gather_v(Context&, In x, std::span<const int64_t> counts, Out y) override {
    check_dense(x);
    check_dense(y);
    const std::vector<int64_t> bounds = bounds_of(y, x, counts, rank_, size());
    if (y.num_elements() == 0) return;
    world_.at("all_gather", name_);
    std::byte* own = bytes_at(y, bounds[index()]);
    if (own != x.raw() && x.num_elements() > 0)
      std::memcpy(own, x.raw(), static_cast<size_t>(x.num_bytes()));
    gather(y, bounds);
  }

  void all_to_all_v(Context&, In x, std::span<const int64_t> send, Out y,
                    std::span<const int64_t> recv) override {
    check_dense(x);
    check_dense(y);
    world_.at("all_to_all", name_);
    const int64_t row = check_all_to_all(x, send, y, recv, rank_, size());
    std::vector<Parcel> parcels;
    std::byte *from = bytes_at(x, 0), *to = bytes_at(y, 0);
    for (size_t r = 0; r < ranks_.size(); ++r) {
      const auto out = static_cast<size_t>(send[r] * row);
      const auto in = static_cast<size_t>(recv[r] * row);
      if (static_cast<int>(r) == rank_) {
        if (out > 0) std::memcpy(to, from, out);
      } else {
        if (out > 0) parcels.push_back(parcel(true, r, from, out, Call::kExchange));
        if (in > 0) parcels.push_back(parcel(false, r, to, in, Call::kExchange));
      }
      from += out;
      to += in;
    }
    world_.exchange(parcels);
  }

  void transfer(Context&, std::span<const Message> messages) override {
    if (messages.empty()) return;
    world_.at("transfer", name_);
    std::vector<Parcel> parcels;
    for (const Message& m : messages) {
      check_message(m, rank_, size());
      parcels.push_back(parcel(m.send, static_cast<size_t>(m.peer), m.data.raw(),
                               static_cast<size_t>(m.data.num_bytes()), Call::kTransfer));
    }
    world_.exchange(parcels);
  }

  void barrier() override {
    world_.at("barrier", name_);
    std::vector<Parcel> parcels;
    for (size_t r = 0; r < ranks_.size(); ++r) {
      if (static_cast<int>(r) == rank_) continue;
      parcels.push_back(parcel(true, r, nullptr, 0, Call::kBarrier));
      parcels.push_back(parcel(false, r, nullptr, 0, Call::kBarrier));
    }
    world_.exchange(parcels);
  }

 private:
  size_t index() const { return static_cast<size_t>(rank_); }

  Parcel parcel(bool send, size_t peer, void* data, size_t bytes, Call call) const {
    return {.send = send,
            .peer = ranks_[peer],
            .data = data,
            .bytes = bytes,
            .tag = static_cast<uint32_t>(call)};
  }

  // This rank's range of x, summed over the ranks, to `out`.
  void reduce(Context& ctx, const Tensor& x, const std::vector<int64_t>& bounds, std::byte* out) {
    const int64_t count = bounds[index() + 1] - bounds[index()];
    const auto size_of = [&](size_t r) {
      return static_cast<size_t>(bounds[r + 1] - bounds[r]) * dtype_size(x.dtype());
    };
    const size_t bytes = size_of(index());
    Tensor others;
    const Block memory =
        ctx.memory.take_tensor(x.dtype(), {size() - 1, std::max<int64_t>(1, count)}, &others);
    auto* room = static_cast<std::byte*>(others.raw());
    std::vector<Parcel> parcels;
    for (size_t r = 0; r < ranks_.size(); ++r) {
      if (r == index()) continue;
      if (size_of(r) > 0)
        parcels.push_back(parcel(true, r, bytes_at(x, bounds[r]), size_of(r), Call::kReduce));
      if (bytes > 0) parcels.push_back(parcel(false, r, room, bytes, Call::kReduce));
      room += bytes;
    }
    world_.exchange(parcels);
    const Tensor own(bytes_at(x, bounds[index()]), x.dtype(), {count});
    if (count > 0) ops::sum_of_ranks(ctx, rank_, own, others, Tensor(out, x.dtype(), {count}));
  }

  // Every rank's range of y to every rank.
  void gather(const Tensor& y, const std::vector<int64_t>& bounds) {
    const auto size_of = [&](size_t r) {
      return static_cast<size_t>(bounds[r + 1] - bounds[r]) * dtype_size(y.dtype());
    };
    std::vector<Parcel> parcels;
    for (size_t r = 0; r < ranks_.size(); ++r) {
      if (r == index()) continue;
      if (size_of(index()) > 0)
        parcels.push_back(
            parcel(true, r, bytes_at(y, bounds[index()]), size_of(index()), Call::kGather));
      if (size_of(r) > 0)
        parcels.push_back(parcel(false, r, bytes_at(y, bounds[r]), size_of(r), Call::kGather));
    }
    world_.exchange(parcels);
  }

  World& world_;
  std::vector<int> ranks_;
  const char* name_;
  int rank_ = 0;
};

}  // namespace

std::unique_ptr<Comm> make_comm_host(World& world, std::vector<int> ranks, const char* name) {
  return std::make_unique<CommHost>(world, std::move(ranks), name);
}

}  // namespace hadal
