// Others: the processes that mpirun, srun or a script started beside this one, on this host and
// others.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "core/env.h"
#include "parallel/world.h"

namespace hadal::cli {

// Tells builds of hadal apart: a hash of the binary.
uint64_t build_of_this();
// Returns when all have found each other; `config` has to be the same text everywhere.
Meeting meet_others(const env::Place& place, const std::string& config);
// "2 hosts: a (ranks 0 1), b (ranks 2 3)", a line.
std::string describe_hosts(const World& world);

}  // namespace hadal::cli
