// A library with NCCL's functions for processes without GPUs: messages go through named pipes, and
// ncclGroupEnd() waits for them. For tests of what calls NCCL, over host memory.
// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

constexpr int kSuccess = 0, kSystemError = 2, kInvalidUsage = 5;

struct Id {
  char bytes[128];
};

// A message begins with its size.
struct Op {
  bool send = false;
  int peer = 0;
  char* data = nullptr;
  uint64_t bytes = 0, header = 0;
  size_t header_done = 0, done = 0;
  bool is_done() const { return header_done == sizeof(header) && done == bytes; }
};

}  // namespace

struct ncclComm {
  std::string folder;
  int rank = 0;
  std::vector<int> to, from;  // pipes by peer
  std::vector<Op> group;
  std::atomic<bool> aborted{false};
  bool has_names = true;  // the pipes, in the folder
};

namespace {

ncclComm* current = nullptr;  // of the group that is open

std::string pipe_of(const ncclComm& c, int from, int to) {
  return c.folder + "/" + std::to_string(from) + "-" + std::to_string(to);
}

// What went through, or -1.
ssize_t move(Op& op, int fd) {
  const bool in_header = op.header_done < sizeof(op.header);
  char* at = in_header ? reinterpret_cast<char*>(&op.header) + op.header_done : op.data + op.done;
  const size_t left = in_header ? sizeof(op.header) - op.header_done : op.bytes - op.done;
  const ssize_t n = op.send ? write(fd, at, left) : read(fd, at, left);
  if (n < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
  (in_header ? op.header_done : op.done) += static_cast<size_t>(n);
  return n;
}

// After a first message from everybody all have opened what comes here; the last one's folder is
// empty.
void drop_names(ncclComm& c) {
  for (size_t r = 0; r < c.to.size(); ++r)
    if (static_cast<int>(r) != c.rank) unlink(pipe_of(c, static_cast<int>(r), c.rank).c_str());
  rmdir(c.folder.c_str());
  c.has_names = false;
}

int run_group(ncclComm& c) {
  std::vector<Op> ops = std::exchange(c.group, {});
  for (Op& op : ops)
    if (op.send) op.header = op.bytes;
  for (bool all = false; !all && !c.aborted.load();) {
    all = true;
    bool moved = false;
    std::vector<std::pair<int, bool>> busy;  // links whose first unfinished message was tried
    for (Op& op : ops) {
      const std::pair<int, bool> link(op.peer, op.send);
      if (op.is_done() || std::find(busy.begin(), busy.end(), link) != busy.end()) continue;
      const auto peer = static_cast<size_t>(op.peer);
      const ssize_t n = move(op, op.send ? c.to[peer] : c.from[peer]);
      if (n < 0) return kSystemError;
      if (!op.send && op.header_done == sizeof(op.header) && op.header != op.bytes)
        return kInvalidUsage;
      moved = moved || n > 0;
      if (op.is_done()) continue;
      all = false;
      busy.push_back(link);
    }
    if (!all && !moved) std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  if (c.has_names) drop_names(c);
  return kSuccess;
}

int enqueue(bool send, void* data, size_t count, int type, int peer, ncclComm* c) {
  if (type != 1 || peer == c->rank || peer < 0 || static_cast<size_t>(peer) >= c->to.size())
    return kInvalidUsage;
  c->group.push_back(
      {.send = send, .peer = peer, .data = static_cast<char*>(data), .bytes = count});
  current = c;
  return kSuccess;
}

void close_all(ncclComm* c) {
  for (size_t r = 0; r < c->to.size(); ++r) {
    if (static_cast<int>(r) == c->rank) continue;
    close(c->to[r]);
    close(c->from[r]);
  }
}

}  // namespace

extern "C" {

int ncclGetVersion(int* version) {
  *version = 22809;
  return kSuccess;
}

int ncclGetUniqueId(Id* id) {
  *id = {};
  std::strcpy(id->bytes, "/tmp/fake_nccl_XXXXXX");
  return mkdtemp(id->bytes) != nullptr ? kSuccess : kSystemError;
}

int ncclCommInitRank(ncclComm** comm, int num_ranks, Id id, int rank) {
  auto* c = new ncclComm;
  c->folder = id.bytes;
  c->rank = rank;
  c->to.resize(static_cast<size_t>(num_ranks), -1);
  c->from = c->to;
  for (int r = 0; r < num_ranks; ++r) {
    if (r == rank) continue;
    const auto open_pipe = [&](const std::string& path) {
      mkfifo(path.c_str(), 0600);
      return open(path.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC);
    };
    c->to[static_cast<size_t>(r)] = open_pipe(pipe_of(*c, rank, r));
    c->from[static_cast<size_t>(r)] = open_pipe(pipe_of(*c, r, rank));
  }
  *comm = c;
  return kSuccess;
}

int ncclCommDestroy(ncclComm* c) {
  close_all(c);
  delete c;
  return kSuccess;
}

// NOTE: what is aborted is not freed: its group may still run.
int ncclCommAbort(ncclComm* c) {
  c->aborted.store(true);
  close_all(c);
  return kSuccess;
}

int ncclGroupStart() { return kSuccess; }
int ncclGroupEnd() { return run_group(*current); }
int ncclSend(const void* data, size_t count, int type, int peer, ncclComm* c, void*) {
  return enqueue(true, const_cast<void*>(data), count, type, peer, c);
}
int ncclRecv(void* data, size_t count, int type, int peer, ncclComm* c, void*) {
  return enqueue(false, data, count, type, peer, c);
}
const char* ncclGetErrorString(int) { return "the fake library's error"; }
const char* ncclGetLastError(ncclComm*) { return "the ranks do not make the same calls"; }
}
