// A library with NCCL's functions whose messages go through named pipes: for tests of what calls
// NCCL, over host memory, where ncclGroupEnd() waits for them, and over that of one GPU that ranks
// share, where they are work of the stream and can be recorded, as NCCL's are. Each communicator
// has a thread for what is in streams, so that they do not wait for each other.
// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/dist/fake_nccl_gpu.h"

namespace {

constexpr int kSuccess = 0, kSystemError = 2, kInvalidUsage = 5;

struct Id {
  char bytes[128];
};

// A message begins with its size.
struct Op {
  bool send = false;
  int peer = 0;
  char* data = nullptr;  // of the host
  char* gpu = nullptr;   // where that is copied from or to
  uint64_t bytes = 0, header = 0;
  size_t header_done = 0, done = 0;
  bool is_done() const { return header_done == sizeof(header) && done == bytes; }
};

}  // namespace

struct StreamGroup;

struct ncclComm {
  std::string folder;
  int rank = 0;
  std::vector<int> to, from;  // pipes by peer
  std::vector<Op> group;
  void* stream = nullptr;  // of the group
  std::atomic<bool> aborted{false};
  bool has_names = true;  // the pipes, in the folder

  // Groups in streams: how many were put there, an event behind the last one, those whose turn has
  // come, and how many are through.
  uint32_t num_groups = 0;
  void* order = nullptr;
  std::mutex mutex;
  std::condition_variable came;
  std::deque<StreamGroup*> turns;
  uint32_t* num_through = nullptr;  // in memory that the GPU reads
  bool ends = false;
  std::thread worker;
};

// Copies to the host, the messages, copies back.
struct StreamGroup {
  ncclComm* comm = nullptr;
  std::vector<Op> ops;
  char* memory = nullptr;
  size_t bytes = 0;
  uint32_t* is_through = nullptr;  // of a recorded one: each launch sets it, and takes it back
};

namespace {

ncclComm* current = nullptr;  // of the group that is open
GpuStage stage;

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

int run(ncclComm& c, std::vector<Op> ops) {
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
    if (!all && !moved) std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  if (c.has_names) drop_names(c);
  return kSuccess;
}

// NOTE: a GPU's kernel cannot return an error either: what was not sent the caller finds out by the
// heart of its ranks.
void run_group(void* group) {
  auto& g = *static_cast<StreamGroup*>(group);
  if (const int error = run(*g.comm, g.ops); error != kSuccess && !g.comm->aborted.load()) {
    std::fprintf(stderr, "fake_nccl: a group in a stream failed with %d\n", error);
    std::abort();
  }
}
void give_back(void* group) {
  const auto* g = static_cast<StreamGroup*>(group);
  stage.give_back(g->memory, g->bytes);
  delete g;
}

// NOTE: calls of the host in streams wait for each other, even those of other streams: they hand a
// group on, and the stream waits for a number in memory.
void hand_over(void* group) {
  auto* g = static_cast<StreamGroup*>(group);
  const std::lock_guard<std::mutex> lock(g->comm->mutex);
  g->comm->turns.push_back(g);
  g->comm->came.notify_one();
}
void work(ncclComm& c) {
  for (uint32_t through = 0;;) {
    StreamGroup* group = nullptr;
    {
      std::unique_lock<std::mutex> lock(c.mutex);
      c.came.wait(lock, [&] { return c.ends || !c.turns.empty(); });
      if (c.turns.empty()) return;
      group = c.turns.front();
      c.turns.pop_front();
    }
    uint32_t* const is_through = group->is_through;
    run_group(group);
    if (is_through != nullptr)
      std::atomic_ref<uint32_t>(*is_through).store(1);
    else
      std::atomic_ref<uint32_t>(*c.num_through).store(++through);
  }
}

// Whether the stream will wait for the group's messages.
bool put_messages(ncclComm& c, StreamGroup* group) {
  if (!c.worker.joinable()) {
    c.num_through = reinterpret_cast<uint32_t*>(stage.take(sizeof(uint32_t), false));
    if (c.num_through == nullptr) return false;
    *c.num_through = 0;
    c.worker = std::thread([&c] { work(c); });
  }
  if (group->is_through != nullptr)
    return stage.call(c.stream, hand_over, group) &&
           stage.await_number(c.stream, group->is_through, 1) &&
           stage.write_number(c.stream, group->is_through, 0);
  return stage.call(c.stream, hand_over, group) &&
         stage.await_number(c.stream, c.num_through, ++c.num_groups);
}

int put_into_stream(ncclComm& c, std::vector<Op> ops) {
  const bool recorded = stage.is_capturing(c.stream);
  size_t bytes = recorded ? 256 : 0;
  for (const Op& op : ops) bytes += (op.bytes + 255) / 256 * 256;
  char* at = stage.take(bytes, !recorded);
  if (at == nullptr) return kSystemError;
  auto* group = new StreamGroup{.comm = &c, .ops = std::move(ops), .memory = at, .bytes = bytes};
  if (recorded) {
    group->is_through = reinterpret_cast<uint32_t*>(std::exchange(at, at + 256));
    *group->is_through = 0;
  }
  // NOTE: recorded groups of a communicator are all in one stream.
  bool good = recorded || stage.begin_group(c.stream, c.order);
  for (Op& op : group->ops) {
    op.gpu = std::exchange(op.data, at);
    at += (op.bytes + 255) / 256 * 256;
    if (op.send) good = good && stage.to_host(op.data, op.gpu, op.bytes, c.stream);
  }
  good = good && put_messages(c, group);
  for (const Op& op : group->ops)
    if (!op.send) good = good && stage.to_gpu(op.gpu, op.data, op.bytes, c.stream);
  // A recorded group runs again with every launch, and keeps its memory.
  good = good && (recorded ||
                  (stage.call(c.stream, give_back, group) && stage.end_group(c.stream, c.order)));
  return good ? kSuccess : kSystemError;
}

int end_group(ncclComm& c) {
  std::vector<Op> ops = std::exchange(c.group, {});
  if (!ops.empty() && stage.is_gpu_memory(ops[0].data)) return put_into_stream(c, std::move(ops));
  return run(c, std::move(ops));
}

int enqueue(bool send, void* data, size_t count, int type, int peer, ncclComm* c, void* stream) {
  if (type != 1 || peer == c->rank || peer < 0 || static_cast<size_t>(peer) >= c->to.size())
    return kInvalidUsage;
  c->group.push_back(
      {.send = send, .peer = peer, .data = static_cast<char*>(data), .bytes = count});
  c->stream = stream;
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
  return stage.reserve() ? kSuccess : kSystemError;
}

// NCCL's own takes a while, and not the same on every rank; a test sets how long on its rank.
int fake_nccl_end_ms = 0;
int ncclCommDestroy(ncclComm* c) {
  std::this_thread::sleep_for(std::chrono::milliseconds(fake_nccl_end_ms));
  if (c->worker.joinable()) {
    {
      const std::lock_guard<std::mutex> lock(c->mutex);
      c->ends = true;
      c->came.notify_one();
    }
    c->worker.join();
  }
  close_all(c);
  delete c;
  return kSuccess;
}

// The communicators of a process may have different ranks; what a config says is NCCL's own matter.
int ncclCommInitRankConfig(ncclComm** comm, int num_ranks, Id id, int rank, void*) {
  return ncclCommInitRank(comm, num_ranks, id, rank);
}

// NOTE: what is aborted is not freed: its group may still run.
int ncclCommAbort(ncclComm* c) {
  c->aborted.store(true);
  if (c->worker.joinable()) c->worker.detach();
  close_all(c);
  return kSuccess;
}

int ncclGroupStart() { return kSuccess; }
int ncclGroupEnd() { return end_group(*current); }
int ncclSend(const void* data, size_t count, int type, int peer, ncclComm* c, void* stream) {
  return enqueue(true, const_cast<void*>(data), count, type, peer, c, stream);
}
int ncclRecv(void* data, size_t count, int type, int peer, ncclComm* c, void* stream) {
  return enqueue(false, data, count, type, peer, c, stream);
}
const char* ncclGetErrorString(int) { return "the fake library's error"; }
const char* ncclGetLastError(ncclComm*) { return "the ranks do not make the same calls"; }
}
