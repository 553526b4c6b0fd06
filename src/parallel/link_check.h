// LinkCheck: messages between every two ranks: how long one takes, how many bytes a second cross,
// whether they arrive as they were sent, and which pair stands out.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/comm.h"

namespace hadal {

struct LinkCheckOptions {
  uint64_t build = 0;  // of this process's binary; has to be the same everywhere
  int64_t large_bytes = int64_t{1} << 22;  // of the messages whose rate is measured
  int rounds = 5;                          // the best one counts
  double slow_factor = 4.0;  // slower by more than the typical link of its kind is a problem
  std::vector<int> host_of_rank =
      {};  // links within a host and across are two kinds; empty: one host
};

// Between ranks a < b.
struct Link {
  int a = 0, b = 0;
  double latency_seconds = 0.0;   // of an empty message, one way
  double bytes_per_second = 0.0;  // one way
  int64_t wrong_bytes = 0;        // that arrived otherwise than they were sent
};

struct LinkReport {
  std::vector<Link> links;
  std::vector<std::string> problems;  // one sentence each; none: all is well
};

// Collective over `world`: pair after pair, so that none disturbs another. Every rank returns the
// same. A rank that does not answer ends all of them with its number (PeerFailure).
LinkReport check_links(Context& ctx, Comm& world, const LinkCheckOptions& options);

}  // namespace hadal
