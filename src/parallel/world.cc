// World: rings of bytes, doorbells and status in shared memory.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/world.h"

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstring>
#include <new>
#include <utility>

#include "core/env.h"

namespace hadal {
namespace {

constexpr size_t kRingBytes = size_t{1} << 18;
constexpr size_t kTextBytes = 512;
constexpr int kMaxRanks = 512;
constexpr double kSlice = 0.05;     // seconds of one sleep
constexpr double kBeatEvery = 0.5;  // seconds
constexpr int kSpins = 2000;

static_assert(std::atomic<uint32_t>::is_always_lock_free);
static_assert(std::atomic<uint64_t>::is_always_lock_free);

void futex_wake(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
}

// Sleeps while the word is `value`, `seconds` at most.
void futex_wait(std::atomic<uint32_t>& word, uint32_t value, double seconds) {
  const timespec limit{.tv_sec = 0, .tv_nsec = static_cast<long>(seconds * 1e9)};
  syscall(SYS_futex, &word, FUTEX_WAIT, value, &limit, nullptr, 0);
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Before the bytes of each message.
struct Header {
  uint64_t bytes = 0;
  uint32_t tag = 0, magic = 0x6861646c;
};

}  // namespace

struct World::Status {
  alignas(64) std::atomic<uint32_t> doorbell{0};
  std::atomic<uint32_t> state{0};
  std::atomic<uint64_t> beat{0}, progress{0};
  std::atomic<int64_t> step{-1};
  std::atomic<const char*> what{nullptr}, group{nullptr};
  char error[kTextBytes] = {};
};

struct World::Link {
  alignas(64) std::atomic<uint64_t> written{0};
  alignas(64) std::atomic<uint64_t> read{0};
  alignas(64) std::byte ring[kRingBytes];
};

// How far a parcel is.
struct World::Progress {
  Header header;
  size_t header_bytes = 0, bytes = 0;
  bool done(const Parcel& p) const { return header_bytes == sizeof(Header) && bytes == p.bytes; }
};

World::World(const WorldOptions& options) : options_(options) {
  const int N = options.num_ranks;
  HADAL_CHECK(N >= 1 && N <= kMaxRanks, "there are ", N, " ranks on this host; allowed: 1 to ",
              kMaxRanks);
  const auto n = static_cast<size_t>(N);
  bytes_ = n * sizeof(Status) + n * n * sizeof(Link);
  memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  HADAL_CHECK(memory_ != MAP_FAILED, "cannot map ", bytes_, " bytes that ", N,
              " ranks would share: ", std::strerror(errno));
  for (int r = 0; r < N; ++r) new (&status(r)) Status;
  // NOTE: fresh pages are zero, which is what an empty Link is; touching none of them costs
  // nothing.
}

World::~World() {
  stop_beating_.store(true);
  if (heart_.joinable()) heart_.join();
  munmap(memory_, bytes_);
}

World::Status& World::status(int rank) const {
  return static_cast<Status*>(memory_)[static_cast<size_t>(rank)];
}

World::Link& World::link(int from, int to) const {
  const auto n = static_cast<size_t>(size());
  auto* links = reinterpret_cast<Link*>(static_cast<std::byte*>(memory_) + n * sizeof(Status));
  return links[static_cast<size_t>(from) * n + static_cast<size_t>(to)];
}

void World::ring(int rank) const {
  status(rank).doorbell.fetch_add(1, std::memory_order_release);
  futex_wake(status(rank).doorbell);
}

void World::enter(int rank) {
  rank_ = rank;
  seen_.resize(static_cast<size_t>(size()));
  fault_ = env::sabotage();
  may_spin_ = size() <= static_cast<int>(std::thread::hardware_concurrency());
  status(rank).state.store(static_cast<uint32_t>(RankState::kRunning));
  heart_ = std::thread([this] { beat(); });
}

void World::beat() {
  while (!stop_beating_.load()) {
    status(rank_).beat.fetch_add(1);
    for (double slept = 0.0; slept < kBeatEvery && !stop_beating_.load(); slept += kSlice)
      std::this_thread::sleep_for(std::chrono::duration<double>(kSlice));
  }
}

void World::maybe_die(const char* fault) const { maybe_die(fault, status(rank_).step.load()); }

void World::maybe_die(const char* fault, int64_t step) const {
  if (fault_ == fault && rank_ == 1 && step == 4) kill(getpid(), SIGKILL);
}

void World::at_step(int64_t step) {
  status(rank_).step.store(step);
  status(rank_).progress.fetch_add(1);
}

void World::at(const char* what, const char* group) {
  status(rank_).what.store(what);
  status(rank_).group.store(group);
  status(rank_).progress.fetch_add(1);
}

void World::leave(RankState state, const std::string& error) {
  Status& s = status(rank_);
  std::strncpy(s.error, error.c_str(), kTextBytes - 1);
  s.state.store(static_cast<uint32_t>(state), std::memory_order_release);
  for (int r = 0; r < size(); ++r) ring(r);
}

void World::mark_dead(int rank, const std::string& how) {
  Status& s = status(rank);
  std::strncpy(s.error, how.c_str(), kTextBytes - 1);
  s.state.store(static_cast<uint32_t>(RankState::kDead), std::memory_order_release);
  for (int r = 0; r < size(); ++r) ring(r);
}

RankState World::state_of(int rank) const {
  return static_cast<RankState>(status(rank).state.load(std::memory_order_acquire));
}

std::string World::error_of(int rank) const { return status(rank).error; }

std::string World::place_of(int rank) const {
  const int64_t step = status(rank).step.load();
  const char* what = status(rank).what.load();
  const char* group = status(rank).group.load();
  return concat(step < 0 ? "the start" : concat("step ", step),
                what == nullptr ? "" : concat(", in ", what, " (", group, ")"));
}

bool World::push(Link& l, const Parcel& p, Progress& progress) const {
  const uint64_t written = l.written.load(std::memory_order_relaxed);
  size_t room = kRingBytes - (written - l.read.load(std::memory_order_acquire));
  uint64_t at = written;
  const auto put = [&](const std::byte* from, size_t bytes) {
    const size_t count = std::min(bytes, room), begin = at % kRingBytes;
    const size_t first = std::min(count, kRingBytes - begin);
    if (first > 0) std::memcpy(l.ring + begin, from, first);
    if (count > first) std::memcpy(l.ring, from + first, count - first);
    at += count;
    room -= count;
    return count;
  };
  progress.header.bytes = p.bytes;
  progress.header.tag = p.tag;
  if (progress.header_bytes < sizeof(Header))
    progress.header_bytes +=
        put(reinterpret_cast<const std::byte*>(&progress.header) + progress.header_bytes,
            sizeof(Header) - progress.header_bytes);
  if (progress.header_bytes == sizeof(Header) && progress.bytes < p.bytes)
    progress.bytes +=
        put(static_cast<const std::byte*>(p.data) + progress.bytes, p.bytes - progress.bytes);
  if (at == written) return false;
  l.written.store(at, std::memory_order_release);
  ring(p.peer);
  return true;
}

bool World::pull(Link& l, const Parcel& p, Progress& progress) const {
  const uint64_t read = l.read.load(std::memory_order_relaxed);
  size_t there = l.written.load(std::memory_order_acquire) - read;
  uint64_t at = read;
  const auto get = [&](std::byte* to, size_t bytes) {
    const size_t count = std::min(bytes, there), begin = at % kRingBytes;
    const size_t first = std::min(count, kRingBytes - begin);
    if (first > 0) std::memcpy(to, l.ring + begin, first);
    if (count > first) std::memcpy(to + first, l.ring, count - first);
    at += count;
    there -= count;
    return count;
  };
  if (progress.header_bytes < sizeof(Header)) {
    progress.header_bytes +=
        get(reinterpret_cast<std::byte*>(&progress.header) + progress.header_bytes,
            sizeof(Header) - progress.header_bytes);
    const Header& h = progress.header;
    if (progress.header_bytes == sizeof(Header) &&
        (h.magic != Header().magic || h.bytes != p.bytes || h.tag != p.tag))
      HADAL_UNREACHABLE(concat("rank ", rank_, " expects message ", p.tag, " of ", p.bytes,
                               " bytes from rank ", p.peer, " at ", place_of(rank_),
                               ", and gets message ", h.tag, " of ", h.bytes,
                               " bytes: they do not make the same calls"));
  }
  if (progress.header_bytes == sizeof(Header) && progress.bytes < p.bytes)
    progress.bytes +=
        get(static_cast<std::byte*>(p.data) + progress.bytes, p.bytes - progress.bytes);
  if (at == read) return false;
  l.read.store(at, std::memory_order_release);
  ring(p.peer);
  return true;
}

// `seconds` passed in vain for the parcels that are not done.
void World::check_peers(std::span<const Parcel> parcels, const std::vector<bool>& done,
                        double seconds) {
  const auto fail = [&](std::string message) {
    throw PeerFailure(std::move(message), __FILE__, __LINE__, nullptr);
  };
  for (int r = 0; r < size(); ++r) {
    const RankState state = state_of(r);
    if (state == RankState::kFailed || state == RankState::kDead)
      fail(concat("rank ", r, " failed at ", place_of(r), ": ", error_of(r)));
  }
  const std::string mine = concat("rank ", rank_, " waited for it at ", place_of(rank_));
  for (size_t i = 0; i < parcels.size(); ++i) {
    if (done[i]) continue;
    const int peer = parcels[i].peer;
    Seen& seen = seen_[static_cast<size_t>(peer)];
    const uint64_t beat = status(peer).beat.load(), progress = status(peer).progress.load();
    seen.silent = beat == seen.beat ? seen.silent + seconds : 0.0;
    seen.idle = progress == seen.progress ? seen.idle + seconds : 0.0;
    seen.beat = beat;
    seen.progress = progress;
    // Twice: what it sent at its end may have come between the look at its ring and this one.
    const bool ended = state_of(peer) == RankState::kDone || state_of(peer) == RankState::kStopped;
    if (ended && std::exchange(seen.ended, true))
      fail(concat("rank ", peer, " has ended at ", place_of(peer), "; ", mine));
    if (seen.silent > options_.heartbeat_seconds)
      fail(concat("rank ", peer, " has not beaten for ", options_.heartbeat_seconds,
                  " s and counts as hung; it was at ", place_of(peer), "; ", mine));
    if (seen.idle > options_.timeout_seconds)
      fail(concat("rank ", peer, " has not got on for ", options_.timeout_seconds,
                  " s and counts as hung; it was at ", place_of(peer), "; ", mine));
  }
}

void World::exchange(std::span<Parcel> parcels) {
  std::vector<Progress> progress(parcels.size());
  std::vector<bool> done(parcels.size());
  std::vector<uint8_t> busy;  // links whose first unfinished parcel was tried, by (peer, direction)
  size_t left = parcels.size();
  double since = now();
  int spins = 0;
  std::fill(seen_.begin(), seen_.end(), Seen{});
  while (left > 0) {
    const uint32_t bell = status(rank_).doorbell.load(std::memory_order_acquire);
    bool moved = false;
    busy.assign(2 * static_cast<size_t>(size()), 0);
    for (size_t i = 0; i < parcels.size(); ++i) {
      if (done[i]) continue;
      const Parcel& p = parcels[i];
      uint8_t& taken = busy[2 * static_cast<size_t>(p.peer) + (p.send ? 1 : 0)];
      if (taken != 0) continue;
      moved |= p.send ? push(link(rank_, p.peer), p, progress[i])
                      : pull(link(p.peer, rank_), p, progress[i]);
      if (progress[i].done(p)) {
        done[i] = true;
        --left;
      } else {
        taken = 1;
      }
    }
    if (moved || left == 0) {
      maybe_die("die_in_collective");
      spins = 0;
      since = now();
      continue;
    }
    if (may_spin_ && ++spins < kSpins) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
      continue;
    }
    futex_wait(status(rank_).doorbell, bell, kSlice);
    const double passed = now() - since;
    since += passed;
    check_peers(parcels, done, std::min(passed, 2 * kSlice));
  }
}

}  // namespace hadal
