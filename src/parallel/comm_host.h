// Comm over the ranks of a World: tensors in host memory, sums in rank order.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <vector>

#include "core/comm.h"
#include "parallel/world.h"

namespace hadal {

// `ranks`: the group, ascending, this rank among them; `name`: a string literal for messages. All
// members make it with the same ranks.
std::unique_ptr<Comm> make_comm_host(World& world, std::vector<int> ranks, const char* name);

}  // namespace hadal
