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
#include <cstdio>
#include <cstring>
#include <new>
#include <numeric>
#include <utility>

#include "core/env.h"

namespace hadal {
namespace {

constexpr size_t kRingBytes = size_t{1} << 18;
constexpr int kMaxRanks = 512;
constexpr double kSlice = 0.05;     // seconds of one sleep
constexpr double kBeatEvery = 0.5;  // seconds
constexpr double kEndAfter = 5.0;   // seconds that a stopped rank has to come back from a wait
constexpr double kBroken = 2.0;     // seconds of a broken connection to a rank that still beats
constexpr int kSpins = 2000;

void futex_wake(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
}

// Sleeps while the word is `value`, `seconds` at most.
void futex_wait(std::atomic<uint32_t>& word, uint32_t value, double seconds) {
  const timespec limit{.tv_sec = 0, .tv_nsec = static_cast<long>(seconds * 1e9)};
  syscall(SYS_futex, &word, FUTEX_WAIT, value, &limit, nullptr, 0);
}

// Before the bytes of each message.
struct Header {
  uint64_t bytes = 0;
  uint32_t tag = 0, magic = 0x6861646c;
};

}  // namespace

struct World::Link {
  alignas(64) std::atomic<uint64_t> written{0};
  alignas(64) std::atomic<uint64_t> read{0};
  alignas(64) std::byte ring[kRingBytes];
};

// How far a parcel is.
struct World::Progress {
  Header header;
  size_t header_bytes = 0, bytes = 0;
  size_t total() const { return header_bytes + bytes; }
  bool done(const Parcel& p) const { return header_bytes == sizeof(Header) && bytes == p.bytes; }
};

World::World(const WorldOptions& options) : options_(options) {
  for (int r = 0; r < size(); ++r) local_.push_back(r);
  local_index_ = local_;
  host_of_.assign(local_.size(), 0);
  hosts_ = {"this"};
  map_memory(-1);
}

World::World(const WorldOptions& options, Meeting meeting)
    : options_(options), rank_(meeting.rank), local_(meeting.local) {
  HADAL_CHECK(static_cast<int>(meeting.members.size()) == size(),
              "internal error: ", meeting.members.size(), " ranks met in a world of ", size());
  local_index_.assign(meeting.members.size(), -1);
  for (size_t i = 0; i < local_.size(); ++i)
    local_index_[static_cast<size_t>(local_[i])] = static_cast<int>(i);
  for (const Member& m : meeting.members) {
    const auto at = std::find(hosts_.begin(), hosts_.end(), m.host);
    host_of_.push_back(static_cast<int>(at - hosts_.begin()));
    if (at == hosts_.end()) hosts_.push_back(m.host);
  }
  shared_ = std::move(meeting.memory);
  map_memory(shared_.fd());
  const double seconds = meeting.seconds;
  remote_ = std::make_unique<Remote>(
      std::move(meeting), [this] { ring(rank_); },
      [this](int rank) {
        if (!status(rank).has_ended()) mark_dead(rank, "its process is gone");
      });
  meet_local_ranks(seconds);
}

std::vector<int> World::all_ranks() const {
  std::vector<int> all(static_cast<size_t>(size()));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

// Until all ranks of this host have mapped the memory and watch each other's processes: one that
// fails before that would be gone with the memory in which the others read why.
void World::meet_local_ranks(double seconds) {
  status(rank_).has_met.store(1, std::memory_order_release);
  ring_all();
  const double end = monotonic_seconds() + seconds;
  for (const int r : local_)
    for (;;) {
      const uint32_t bell = status(rank_).doorbell.load(std::memory_order_acquire);
      if (status(r).has_met.load(std::memory_order_acquire) == 1 || status(r).has_ended()) break;
      HADAL_CHECK(monotonic_seconds() < end, "rank ", rank_, " waited in vain for rank ", r,
                  " of its host to begin");
      futex_wait(status(rank_).doorbell, bell, kSlice);
    }
}

// Zero pages, which is what an empty Link and a status are; touching none of them costs nothing.
void World::map_memory(int fd) {
  const int N = num_local();
  HADAL_CHECK(N >= 1 && N <= kMaxRanks, "there are ", N, " ranks on this host; allowed: 1 to ",
              kMaxRanks);
  const auto n = static_cast<size_t>(N);
  bytes_ = n * sizeof(RankStatus) + n * n * sizeof(Link);
  if (fd >= 0) size_memory(fd, bytes_);
  memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_NORESERVE | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);
  HADAL_CHECK(memory_ != MAP_FAILED, "cannot map ", bytes_, " bytes that ", N,
              " ranks would share: ", std::strerror(errno));
}

World::~World() {
  stop_beating_.store(true);
  if (heart_.joinable()) heart_.join();
  remote_.reset();
  munmap(memory_, bytes_);
}

RankStatus& World::status(int rank) const {
  if (!is_local(rank)) return remote_->status(rank);
  return static_cast<RankStatus*>(memory_)[local_index_[static_cast<size_t>(rank)]];
}

World::Link& World::link(int from, int to) const {
  const auto n = local_.size();
  auto* links = reinterpret_cast<Link*>(static_cast<std::byte*>(memory_) + n * sizeof(RankStatus));
  return links[static_cast<size_t>(local_index_[static_cast<size_t>(from)]) * n +
               static_cast<size_t>(local_index_[static_cast<size_t>(to)])];
}

void World::ring(int rank) const {
  status(rank).doorbell.fetch_add(1, std::memory_order_release);
  futex_wake(status(rank).doorbell);
}

void World::ring_all() const {
  for (const int r : local_) ring(r);
}

void World::enter(int rank) {
  rank_ = rank;
  seen_.resize(static_cast<size_t>(size()));
  fault_ = env::sabotage();
  may_spin_ = num_local() <= static_cast<int>(std::thread::hardware_concurrency());
  status(rank).state.store(static_cast<uint32_t>(RankState::kRunning));
  heart_ = std::thread([this] { beat(); });
}

void World::beat() {
  while (!stop_beating_.load()) {
    status(rank_).beat.fetch_add(1);
    if (remote_) remote_->tell(status(rank_));
    for (double slept = 0.0; slept < kBeatEvery && !stop_beating_.load(); slept += kSlice) {
      std::this_thread::sleep_for(std::chrono::duration<double>(kSlice));
      look(kSlice);
    }
  }
}

void World::maybe_die(const char* fault) const {
  maybe_die(fault, status(rank_).steps_begun.load() - 1);
}

void World::maybe_die(const char* fault, int64_t step) const {
  if (fault_ == fault && rank_ == 1 && step == 4) kill(getpid(), SIGKILL);
}

void World::at_step(int64_t step) {
  status(rank_).steps_begun.store(step + 1);
  status(rank_).progress.fetch_add(1);
  if (remote_) remote_->tell(status(rank_));
}

void World::at(const char* what, const char* group) {
  status(rank_).what.set(what);
  status(rank_).group.set(group);
  status(rank_).progress.fetch_add(1);
}

void World::leave(RankState state, const std::string& error) {
  {
    const std::lock_guard<std::mutex> lock(leaving_);
    if (status(rank_).has_ended()) return;
    status(rank_).end(state, error);
  }
  if (remote_) remote_->tell_the_end(status(rank_));
  ring_all();
}

void World::mark_dead(int rank, const std::string& how) {
  status(rank).end(RankState::kDead, how);
  ring_all();
}

RankState World::state_of(int rank) const { return status(rank).get_state(); }

std::string World::error_of(int rank) const { return status(rank).error; }

std::string World::place_of(int rank) const {
  const int64_t step = status(rank).steps_begun.load() - 1;
  const std::string what = status(rank).what.get();
  return concat(step < 0 ? "the start" : concat("step ", step),
                what.empty() ? "" : concat(", in ", what, " (", status(rank).group.get(), ")"));
}

// put(data, bytes, whether more follows) takes what it can of the bytes.
template <class Put>
void World::send_part(const Parcel& p, Progress& progress, const Put& put) const {
  progress.header.bytes = p.bytes;
  progress.header.tag = p.tag;
  if (progress.header_bytes < sizeof(Header))
    progress.header_bytes +=
        put(reinterpret_cast<const std::byte*>(&progress.header) + progress.header_bytes,
            sizeof(Header) - progress.header_bytes, p.bytes > 0);
  if (progress.header_bytes == sizeof(Header) && progress.bytes < p.bytes)
    progress.bytes += put(static_cast<const std::byte*>(p.data) + progress.bytes,
                          p.bytes - progress.bytes, false);
}

// get(data, bytes) gives what there is of the bytes.
template <class Get>
void World::receive_part(const Parcel& p, Progress& progress, const Get& get) const {
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
}

bool World::push(const Parcel& p, Progress& progress) const {
  const size_t before = progress.total();
  if (!is_local(p.peer)) {
    send_part(p, progress, [&](const std::byte* from, size_t bytes, bool more) {
      return remote_->send(p.peer, from, bytes, more);
    });
    return progress.total() > before;
  }
  Link& l = link(rank_, p.peer);
  uint64_t at = l.written.load(std::memory_order_relaxed);
  size_t room = kRingBytes - (at - l.read.load(std::memory_order_acquire));
  send_part(p, progress, [&](const std::byte* from, size_t bytes, bool) {
    const size_t count = std::min(bytes, room), begin = at % kRingBytes;
    const size_t first = std::min(count, kRingBytes - begin);
    if (first > 0) std::memcpy(l.ring + begin, from, first);
    if (count > first) std::memcpy(l.ring, from + first, count - first);
    at += count;
    room -= count;
    return count;
  });
  if (progress.total() == before) return false;
  l.written.store(at, std::memory_order_release);
  ring(p.peer);
  return true;
}

bool World::pull(const Parcel& p, Progress& progress) const {
  const size_t before = progress.total();
  if (!is_local(p.peer)) {
    receive_part(p, progress,
                 [&](std::byte* to, size_t bytes) { return remote_->receive(p.peer, to, bytes); });
    return progress.total() > before;
  }
  Link& l = link(p.peer, rank_);
  uint64_t at = l.read.load(std::memory_order_relaxed);
  size_t there = l.written.load(std::memory_order_acquire) - at;
  receive_part(p, progress, [&](std::byte* to, size_t bytes) {
    const size_t count = std::min(bytes, there), begin = at % kRingBytes;
    const size_t first = std::min(count, kRingBytes - begin);
    if (first > 0) std::memcpy(to, l.ring + begin, first);
    if (count > first) std::memcpy(to + first, l.ring, count - first);
    at += count;
    there -= count;
    return count;
  });
  if (progress.total() == before) return false;
  l.read.store(at, std::memory_order_release);
  ring(p.peer);
  return true;
}

std::optional<int> World::failed_rank() const {
  for (int r = 0; r < size(); ++r) {
    const RankState state = state_of(r);
    if (r != rank_ && (state == RankState::kFailed || state == RankState::kDead)) return r;
  }
  return std::nullopt;
}

std::string World::failure_of(int rank) const {
  return concat("rank ", rank, " failed at ", place_of(rank), ": ", error_of(rank));
}

std::string World::failure() const {
  const std::optional<int> rank = failed_rank();
  return rank ? failure_of(*rank) : "";
}

// `seconds` passed in vain for a rank: a sentence once that was too long; else nothing.
std::string World::trouble_with(int peer, Seen& seen, double seconds, Patience patience) const {
  const std::string mine = concat("rank ", rank_, " waited for it at ", place_of(rank_));
  const uint64_t beat = status(peer).beat.load(), progress = status(peer).progress.load();
  seen.silent = beat == seen.beat ? seen.silent + seconds : 0.0;
  seen.idle = progress == seen.progress ? seen.idle + seconds : 0.0;
  seen.beat = beat;
  seen.progress = progress;
  // Twice: what it sent at its end may have come between the look at its ring and this one.
  // What comes from another host may be on its way until its connection is closed.
  const bool broken = !is_local(peer) && remote_->is_broken(peer);
  seen.broken = broken ? seen.broken + seconds : 0.0;
  const bool ended = status(peer).has_ended() && (is_local(peer) || broken);
  if (ended && std::exchange(seen.ended, true))
    return concat("rank ", peer, " has ended at ", place_of(peer), "; ", mine);
  if (seen.broken > kBroken)
    return concat("the connection to rank ", peer, " broke, which was at ", place_of(peer), "; ",
                  mine);
  if (seen.silent > options_.heartbeat_seconds)
    return concat("rank ", peer, " has not beaten for ", options_.heartbeat_seconds,
                  " s and counts as hung; it was at ", place_of(peer), "; ", mine);
  if (patience == Patience::kTimeout && seen.idle > options_.timeout_seconds)
    return concat("rank ", peer, " has not got on for ", options_.timeout_seconds,
                  " s and counts as hung; it was at ", place_of(peer), "; ", mine);
  return "";
}

// `seconds` passed in vain for the parcels that are not done.
void World::check_peers(std::span<const Parcel> parcels, const std::vector<bool>& done,
                        double seconds, Patience patience) {
  std::string trouble = failure();
  for (size_t i = 0; i < parcels.size() && trouble.empty(); ++i)
    if (!done[i])
      trouble = trouble_with(parcels[i].peer, seen_[static_cast<size_t>(parcels[i].peer)], seconds,
                             patience);
  if (!trouble.empty()) throw PeerFailure(std::move(trouble), __FILE__, __LINE__, nullptr);
}

void World::watch(Watch watch) {
  const std::lock_guard<std::mutex> lock(watching_);
  watch_ = std::move(watch);
  watched_.assign(static_cast<size_t>(size()), Seen{});
  stopped_seconds_ = 0.0;
}

void World::stop_watching() {
  const std::lock_guard<std::mutex> lock(watching_);
  watch_.reset();
}

// What is wrong with another rank, as a rank sees it whose device waits.
std::string World::trouble_of_any(double seconds) {
  std::string trouble = failure();
  if (!trouble.empty()) return trouble;
  // Whom the device waits for is unknown: a rank that has ended, or is silent, or does not get on
  // while this one does not either.
  Seen& own = watched_[static_cast<size_t>(rank_)];
  const uint64_t progress = status(rank_).progress.load();
  if (std::exchange(own.progress, progress) != progress)
    for (Seen& seen : watched_) seen.idle = 0.0;
  for (int r = 0; r < size() && trouble.empty(); ++r)
    if (r != rank_)
      trouble = trouble_with(r, watched_[static_cast<size_t>(r)], seconds, Patience::kTimeout);
  return !trouble.empty() && watch_->is_waiting() ? trouble : "";
}

// A look of the heart; `seconds` have passed since the one before.
void World::look(double seconds) {
  const std::lock_guard<std::mutex> lock(watching_);
  if (!watch_) return;
  if (status(rank_).has_ended()) {
    stopped_seconds_ += seconds;
    if (stopped_seconds_ < kEndAfter) return;
    // NOTE: the rank's own thread waits for a device that no abort has freed. Others hear what this
    // process cannot throw any more; the launcher says it for the ranks that it started.
    if (remote_) std::fputs(concat("hadal: ", error_of(rank_), "\n").c_str(), stderr);
    _exit(1);
  }
  const std::string trouble = trouble_of_any(seconds);
  if (trouble.empty()) return;
  leave(RankState::kStopped, trouble);
  watch_->on_failure();
}

void World::exchange(std::span<Parcel> parcels, Patience patience) {
  std::vector<Progress> progress(parcels.size());
  std::vector<bool> done(parcels.size());
  std::vector<uint8_t> busy;  // links whose first unfinished parcel was tried, by (peer, direction)
  size_t left = parcels.size();
  double since = monotonic_seconds();
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
      moved |= p.send ? push(p, progress[i]) : pull(p, progress[i]);
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
      since = monotonic_seconds();
      continue;
    }
    if (may_spin_ && ++spins < kSpins) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
      continue;
    }
    futex_wait(status(rank_).doorbell, bell, kSlice);
    const double passed = monotonic_seconds() - since;
    since += passed;
    check_peers(parcels, done, std::min(passed, 2 * kSlice), patience);
  }
}

}  // namespace hadal
