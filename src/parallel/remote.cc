// Remote: sockets, and the thread that waits for them.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/remote.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <utility>

namespace hadal {
namespace {

constexpr double kEndSeconds = 2.0;
constexpr size_t kMostAtOnce = size_t{1} << 30;

enum Kind : uint64_t { kWake, kData, kWords, kProcess };
uint64_t event_of(Kind kind, size_t rank) { return (uint64_t{kind} << 32) | rank; }

bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

}  // namespace

Remote::Remote(Meeting meeting, std::function<void()> ring, std::function<void(int)> on_death)
    : ring_(std::move(ring)),
      on_death_(std::move(on_death)),
      events_(epoll_create1(EPOLL_CLOEXEC)),
      wake_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  HADAL_CHECK(events_.is_open() && wake_.is_open(),
              "cannot wait for sockets: ", std::strerror(errno));
  add(wake_.fd(), EPOLLIN, event_of(kWake, 0));
  processes_.resize(meeting.members.size());
  for (size_t r = 0; r < meeting.members.size(); ++r) {
    Peer& peer = *peers_.emplace_back(std::make_unique<Peer>());
    peer.data = std::move(meeting.data[r]);
    peer.words = std::move(meeting.status[r]);
    // NOTE: of a socket that carries data, only changes are told; whoever waits for one tries
    // first.
    if (peer.data.is_open())
      add(peer.data.fd(), EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, event_of(kData, r));
    if (peer.words.is_open()) add(peer.words.fd(), EPOLLIN, event_of(kWords, r));
  }
  for (const int r : meeting.local) {
    if (r == meeting.rank) continue;
    Descriptor& process = processes_[static_cast<size_t>(r)];
    process = Descriptor(
        static_cast<int>(syscall(SYS_pidfd_open, meeting.members[static_cast<size_t>(r)].pid, 0)));
    HADAL_CHECK(process.is_open(), "rank ", r, " went away at the start: ", std::strerror(errno));
    add(process.fd(), EPOLLIN | EPOLLONESHOT, event_of(kProcess, static_cast<size_t>(r)));
  }
  watcher_ = std::thread([this] { watch(); });
}

Remote::~Remote() {
  const uint64_t one = 1;
  (void)!write(wake_.fd(), &one, sizeof(one));
  watcher_.join();
  // Unread bytes would make the system cut the connection before the last frame is read.
  for (const auto& peer : peers_)
    for (const Socket* s : {&peer->data, &peer->words}) {
      if (!s->is_open()) continue;
      shutdown(s->fd(), SHUT_WR);
      char rest[1024];
      while (recv(s->fd(), rest, sizeof(rest), MSG_DONTWAIT) > 0) {
      }
    }
}

void Remote::add(int fd, uint32_t events, uint64_t what) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = what;
  HADAL_CHECK(epoll_ctl(events_.fd(), EPOLL_CTL_ADD, fd, &event) == 0,
              "cannot wait for a socket: ", std::strerror(errno));
}

size_t Remote::send(int rank, const void* data, size_t bytes, bool more_follows) {
  Peer& peer = *peers_[static_cast<size_t>(rank)];
  const ssize_t n = ::send(peer.data.fd(), data, std::min(bytes, kMostAtOnce),
                           MSG_NOSIGNAL | MSG_DONTWAIT | (more_follows ? MSG_MORE : 0));
  if (n < 0 && !would_block()) peer.broken.store(true);
  return n > 0 ? static_cast<size_t>(n) : 0;
}

size_t Remote::receive(int rank, void* data, size_t bytes) {
  Peer& peer = *peers_[static_cast<size_t>(rank)];
  const ssize_t n = recv(peer.data.fd(), data, std::min(bytes, kMostAtOnce), MSG_DONTWAIT);
  if (n == 0 || (n < 0 && !would_block())) peer.broken.store(true);
  return n > 0 ? static_cast<size_t>(n) : 0;
}

Remote::Frame Remote::frame_of(const RankStatus& mine) {
  Frame f;
  f.beat = mine.beat.load();
  f.progress = mine.progress.load();
  f.steps_begun = mine.steps_begun.load();
  f.state = static_cast<uint32_t>(mine.get_state());
  std::strncpy(f.what, mine.what.get().c_str(), sizeof(f.what) - 1);
  std::strncpy(f.group, mine.group.get().c_str(), sizeof(f.group) - 1);
  if (mine.has_ended()) std::memcpy(f.error, mine.error, sizeof(f.error));
  return f;
}

// Whether the peer has taken the whole frame, or takes nothing any more.
bool Remote::flush(Peer& peer) {
  while (peer.out_bytes < sizeof(Frame)) {
    const ssize_t n =
        ::send(peer.words.fd(), reinterpret_cast<const char*>(&peer.out) + peer.out_bytes,
               sizeof(Frame) - peer.out_bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) return !would_block();
    peer.out_bytes += static_cast<size_t>(n);
  }
  return true;
}

void Remote::tell(const RankStatus& mine) {
  const std::lock_guard lock(telling_);
  const Frame frame = frame_of(mine);
  for (const auto& peer : peers_) {
    if (!peer->words.is_open() || !flush(*peer)) continue;
    peer->out = frame;
    peer->out_bytes = 0;
    flush(*peer);
  }
}

void Remote::tell_the_end(const RankStatus& mine) {
  const std::lock_guard lock(telling_);
  const double end = monotonic_seconds() + kEndSeconds;
  const Frame frame = frame_of(mine);
  for (const auto& peer : peers_) {
    if (!peer->words.is_open()) continue;
    for (const bool last : {false, true}) {
      while (!flush(*peer) && monotonic_seconds() < end)
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      if (last || peer->out_bytes < sizeof(Frame)) break;
      peer->out = frame;
      peer->out_bytes = 0;
    }
  }
}

// Frames of the peer; at their end, whether it was expected.
void Remote::listen_to(Peer& peer) {
  for (;;) {
    const ssize_t n = recv(peer.words.fd(), reinterpret_cast<char*>(&peer.in) + peer.in_bytes,
                           sizeof(Frame) - peer.in_bytes, MSG_DONTWAIT);
    if (n < 0 && would_block()) return;
    RankStatus& s = *peer.status;
    if (n <= 0) {
      epoll_ctl(events_.fd(), EPOLL_CTL_DEL, peer.words.fd(), nullptr);
      if (!s.has_ended())
        s.end(RankState::kDead, "its connection was closed: its process or its host is gone");
      ring_();
      return;
    }
    peer.in_bytes += static_cast<size_t>(n);
    if (peer.in_bytes < sizeof(Frame)) continue;
    peer.in_bytes = 0;
    Frame& f = peer.in;
    f.what[sizeof(f.what) - 1] = f.group[sizeof(f.group) - 1] = f.error[sizeof(f.error) - 1] = '\0';
    s.beat.store(f.beat);
    s.progress.store(f.progress);
    s.steps_begun.store(f.steps_begun);
    s.what.set(f.what);
    s.group.set(f.group);
    if (s.has_ended() || f.state > static_cast<uint32_t>(RankState::kDead)) continue;
    s.end(static_cast<RankState>(f.state), f.error);
    if (s.has_ended()) ring_();
  }
}

void Remote::watch() {
  for (;;) {
    epoll_event events[64];
    const int n = epoll_wait(events_.fd(), events, static_cast<int>(std::size(events)), -1);
    bool ring = false;
    for (int i = 0; i < n; ++i) {
      const auto kind = static_cast<Kind>(events[i].data.u64 >> 32);
      const size_t rank = events[i].data.u64 & UINT32_MAX;
      if (kind == kWake) return;
      if (kind == kWords) listen_to(*peers_[rank]);
      if (kind == kProcess) on_death_(static_cast<int>(rank));
      if (kind == kData) ring = true;
    }
    if (ring) ring_();
  }
}

}  // namespace hadal
