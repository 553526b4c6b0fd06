// Checks of rows through windows, then dispatch.
// SPDX-License-Identifier: Apache-2.0
#include "ops/peer_rows.h"

#include <algorithm>

#include "ops/checks.h"

namespace hadal::ops {
namespace {

void check_rows(const PeerSums& sums, std::span<const int64_t> bounds, const Tensor& all,
                const Tensor& part, const char* op) {
  const auto G = static_cast<size_t>(sums.view.size), me = static_cast<size_t>(sums.view.place);
  HADAL_CHECK(G >= 1 && G <= kMaxSumPeers && me < G && bounds.size() == G + 1, op, ": rank ", me,
              " of ", G, " with ", bounds.size(), " bounds; at most ", kMaxSumPeers, " ranks");
  HADAL_CHECK(all.num_elements() == bounds.back() && all.dtype() == part.dtype() &&
                  part.num_elements() == bounds[me + 1] - bounds[me],
              op, ": ", part.str(), " is not the part of rank ", me, " of ", all.str());
  const int64_t lines = peer_row_lines(all, bounds);
  HADAL_CHECK(lines > 0 && lines <= sums.lines, op, ": ", all.str(), " takes ", lines,
              " lines of the ", sums.lines, " that there are");
  HADAL_CHECK(reinterpret_cast<uintptr_t>(part.raw()) % 4 == 0, op, ": ", part.str(),
              " is at an odd address");
  check_dense(all, "all");
  check_dense(part, "part");
}

}  // namespace

int64_t peer_row_lines(const Tensor& x, std::span<const int64_t> bounds) {
  if (x.dtype() != DType::kF32 && x.dtype() != DType::kBF16 && x.dtype() != DType::kI32) return 0;
  if (reinterpret_cast<uintptr_t>(x.raw()) % 4 != 0) return 0;
  const auto size = static_cast<int64_t>(dtype_size(x.dtype()));
  int64_t lines = 1;
  for (size_t g = 0; g + 1 < bounds.size(); ++g) {
    if (bounds[g + 1] * size % 4 != 0) return 0;
    lines = std::max(lines, (bounds[g + 1] - bounds[g]) * size / 4);
  }
  return lines;
}

void peer_gather(Context& ctx, const PeerSums& sums, std::span<const int64_t> bounds, In x, Out y) {
  check_rows(sums, bounds, y, x, "peer_gather");
  HADAL_DISPATCH(ctx, peer_gather, sums, bounds, x, y);
}

void peer_sum_scatter(Context& ctx, const PeerSums& sums, std::span<const int64_t> bounds, In x,
                      Out y) {
  check_rows(sums, bounds, x, y, "peer_sum_scatter");
  check_float(x, "x");
  HADAL_DISPATCH(ctx, peer_sum_scatter, sums, bounds, x, y);
}

}  // namespace hadal::ops
