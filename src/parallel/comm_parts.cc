// Checks of collectives' tensors, and the ranges of their ranks.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/comm_parts.h"

#include <algorithm>

#include "core/check.h"
#include "core/dtype.h"

namespace hadal::comm_parts {
namespace {

int64_t size_of(const Tensor& t) { return static_cast<int64_t>(dtype_size(t.dtype())); }

int64_t row_bytes(const Tensor& t, std::span<const int64_t> counts, int G) {
  HADAL_CHECK(static_cast<int>(counts.size()) == G, "all_to_all among ", G, " ranks has ",
              counts.size(), " counts");
  int64_t rows = 0, width = 1;
  for (const int64_t count : counts) rows += count;
  HADAL_CHECK(t.rank() >= 1 && rows <= t.dim(0), "all_to_all: ", t.str(), " has no ", rows,
              " rows");
  for (int d = 1; d < t.rank(); ++d) width *= t.dim(d);
  return width * size_of(t);
}

}  // namespace

std::byte* bytes_at(const Tensor& t, int64_t element) {
  return static_cast<std::byte*>(t.raw()) + element * size_of(t);
}

void check_dense(const Tensor& t) {
  HADAL_CHECK(t.num_elements() == 0 || t.is_dense(), "collectives take dense tensors, not ",
              t.str());
}

std::vector<int64_t> bounds_of(const Tensor& all, const Tensor& part,
                               std::span<const int64_t> counts, int rank, int G) {
  HADAL_CHECK(static_cast<int>(counts.size()) == G, "rows of ", G, " ranks have ", counts.size(),
              " counts");
  int64_t width = 1;
  for (int d = 1; d < all.rank(); ++d) width *= all.dim(d);
  std::vector<int64_t> bounds = {0};
  for (const int64_t count : counts) bounds.push_back(bounds.back() + count * width);
  HADAL_CHECK(all.dtype() == part.dtype() && all.num_elements() == bounds.back() &&
                  part.num_elements() == counts[static_cast<size_t>(rank)] * width,
              part.str(), " is not what rank ", rank, " of ", G, " has of ", all.str());
  return bounds;
}

void check_message(const Message& message, int rank, int G) {
  HADAL_CHECK(message.peer >= 0 && message.peer < G && message.peer != rank, "rank ", rank, " of ",
              G, " cannot exchange messages with rank ", message.peer);
  check_dense(message.data);
}

int64_t check_all_to_all(const Tensor& x, std::span<const int64_t> send, const Tensor& y,
                         std::span<const int64_t> recv, int rank, int G) {
  const int64_t row = row_bytes(x, send, G);
  HADAL_CHECK(x.dtype() == y.dtype() && row == row_bytes(y, recv, G), "all_to_all of ", x.str(),
              " and ", y.str(), ": their rows differ");
  const auto me = static_cast<size_t>(rank);
  HADAL_CHECK(send[me] * row == recv[me] * row, "all_to_all: rank ", rank, " sends itself ",
              send[me], " rows and expects ", recv[me]);
  return row;
}

std::vector<int64_t> even_bounds(int64_t n, int G) {
  std::vector<int64_t> bounds;
  for (int64_t r = 0; r <= G; ++r) bounds.push_back(r * n / G);
  return bounds;
}

}  // namespace hadal::comm_parts
