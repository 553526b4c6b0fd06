// Comm of a single rank: reductions are the identity, exchanges are copies. And what every Comm
// makes of its basic calls.
// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cstring>
#include <vector>

#include "core/comm.h"

namespace hadal {
namespace {

void copy(const Tensor& x, const Tensor& y) {
  HADAL_CHECK(x.dtype() == y.dtype() && x.num_elements() == y.num_elements(), "cannot copy ",
              x.str(), " to ", y.str(), " in a world of one rank");
  HADAL_CHECK(x.is_dense() && y.is_dense(), "collectives take dense tensors");
  if (x.raw() != y.raw() && x.num_bytes() > 0)
    std::memmove(y.raw(), x.raw(), static_cast<size_t>(x.num_bytes()));
}

Tensor flat(const Tensor& x) {
  HADAL_CHECK(x.num_elements() == 0 || x.is_dense(), "collectives take dense tensors, not ",
              x.str());
  return {x.raw(), x.dtype(), {x.num_elements()}};
}

class CommSelf final : public Comm {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void all_reduce(Context&, Acc) override {}
  void reduce_scatter_v(Context&, In x, std::span<const int64_t>, Out y) override { copy(x, y); }
  void all_gather_v(Context&, In x, std::span<const int64_t>, Out y) override { copy(x, y); }
  void all_to_all_v(Context&, In x, std::span<const int64_t>, Out y,
                    std::span<const int64_t>) override {
    copy(x, y);
  }
  void transfer(Context&, std::span<const Message> messages) override {
    for (const Message& m : messages)
      HADAL_FAIL("a world of one rank cannot ", m.send ? "send to" : "receive from", " rank ",
                 m.peer);
  }
  void barrier() override {}
};

}  // namespace

void Comm::reduce_scatter(Context& ctx, In x, Out y) {
  HADAL_CHECK(x.num_elements() == y.num_elements() * size() && x.dtype() == y.dtype(),
              "reduce_scatter among ", size(), " ranks cannot make ", y.str(), " of ", x.str());
  reduce_scatter_v(ctx, flat(x),
                   std::vector<int64_t>(static_cast<size_t>(size()), y.num_elements()), flat(y));
}

void Comm::all_gather(Context& ctx, In x, Out y) {
  HADAL_CHECK(y.num_elements() == x.num_elements() * size() && x.dtype() == y.dtype(),
              "all_gather among ", size(), " ranks cannot make ", y.str(), " of ", x.str());
  all_gather_v(ctx, flat(x), std::vector<int64_t>(static_cast<size_t>(size()), x.num_elements()),
               flat(y));
}

void Comm::all_to_all(Context& ctx, In x, Out y) {
  HADAL_CHECK(x.rank() >= 1 && x.dim(0) % size() == 0, "all_to_all among ", size(),
              " ranks cannot split ", x.str());
  const std::vector<int64_t> counts(static_cast<size_t>(size()), x.dim(0) / size());
  all_to_all_v(ctx, x, counts, y, counts);
}

void Comm::send(Context& ctx, In x, int to) {
  const std::array<Message, 1> one{{{.send = true, .peer = to, .data = x}}};
  transfer(ctx, one);
}

void Comm::recv(Context& ctx, Out x, int from) {
  const std::array<Message, 1> one{{{.send = false, .peer = from, .data = x}}};
  transfer(ctx, one);
}

std::unique_ptr<Comm> make_comm_self() { return std::make_unique<CommSelf>(); }

}  // namespace hadal
