// CountedExchange: an Exchange among ranks that counts what it sends.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "model/exchange.h"

namespace hadal {

// Of this rank, since the last reset.
struct ExchangeCounters {
  int64_t tokens = 0;       // dispatched, once for each MoE layer
  int64_t rank_visits = 0;  // ranks that tokens went on to from here for one of their experts
  int64_t node_visits = 0;  // nodes, likewise
  int64_t most_nodes = 0;   // of one token
  int64_t node_bytes = 0;   // sent to other ranks of this rank's node, backward included
  int64_t link_bytes = 0;   // sent to other nodes
};

class CountedExchange : public Exchange {
 public:
  virtual ExchangeCounters counters(Context& ctx) = 0;
  virtual void reset_counters(Context& ctx) = 0;
};

}  // namespace hadal
