// Rendezvous: ranks that something else started (mpirun, srun), on one host or many, find each
// other.
//
//   N ranks
//
// Rank 0 listens and leaves a file, in a folder that all hosts see, with its addresses and a
// secret. The others connect and say who they are; once all have come, each gets the list of all,
// and every two ranks of different hosts connect to each other twice: for what they send, and for
// where they are (remote.h). Ranks of the same host share memory.
//
// Who does not know the secret is sent away and changes nothing. A rank of another build or config,
// of another world size, or that is there twice ends the start, with a sentence on both sides; so
// do ranks that have not come after `seconds`.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/socket.h"

namespace hadal {

struct RendezvousOptions {
  int rank = 0, num_ranks = 1;
  std::string host;        // ranks with the same one share memory
  std::string file;        // that rank 0 writes and all read
  uint64_t build = 0;      // has to be the same everywhere
  uint64_t config = 0;     // likewise
  double seconds = 120.0;  // until all have come
};

// The start of what a connection says first: the same in every version.
struct Greeting {
  char magic[8] = {'h', 'a', 'd', 'a', 'l', 'T', 'C', 'P'};
  uint32_t protocol = 1, rank = 0;
  uint64_t token[2] = {0, 0};
};
// All of it.
struct Hello {
  Greeting greeting;
  uint64_t build = 0, config = 0;
  uint32_t num_ranks = 0, channel = 0;
  int32_t pid = 0, memory = -1;  // the process, and its descriptor of the host's memory
  uint32_t port = 0;
  char host[124] = {};
  char addresses[256] = {};  // separated by spaces
};
enum class Channel : uint32_t { kMeeting, kData, kStatus };
struct Answer {
  uint32_t welcome = 0;
  char why_not[508] = {};
};

// A file descriptor that is closed at the end.
using Descriptor = Socket;

struct Member {
  std::string host;
  int pid = 0;
};
struct Meeting {
  int rank = 0;
  std::vector<Member> members;       // [N]
  std::vector<int> local;            // ranks of this host, ascending
  std::vector<Socket> data, status;  // [N]   open for ranks of other hosts
  Descriptor memory;                 // of this host's ranks, zero at first; see size_memory
  double seconds = 0.0;              // left
};

// Returns when all are connected.
Meeting meet(const RendezvousOptions& options);
// Called by every rank of a host: the memory has `bytes` from here on.
void size_memory(int memory, size_t bytes);

}  // namespace hadal
