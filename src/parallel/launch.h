// Launch: a process per rank on this host, or this process as a rank among others; and one sentence
// about the first that fails.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

#include "parallel/world.h"

namespace hadal {

// Forks world.size() processes, runs body(rank) in each and waits for all of them. Throws an Error
// with the sentence of the first rank that failed, naming rank, step and collective; the others
// stop by themselves, and those that do not are killed after `grace_seconds`.
//
// While it waits, SIGTERM, SIGINT and SIGUSR1 go on to the ranks, but for the ctrl-c of a terminal,
// which they get from it. Ranks end with this process.
// REQUIRES: this process has one thread (fork copies no other), and nothing else waits for its
// children.
struct LaunchOptions {
  double grace_seconds = 10.0;
  // Whose own errors are said as they are, as those of a program that is alone: the rank that does
  // what was asked for, while the others help. -1: none.
  int leader = -1;
};
void launch(World& world, const std::function<void(int rank)>& body,
            const LaunchOptions& options = {});

// This process as one rank of a world that something else started: enters, runs body(rank), and
// leaves with word to the others. What is thrown names the rank that failed.
void take_part(World& world, const std::function<void(int rank)>& body);

}  // namespace hadal
