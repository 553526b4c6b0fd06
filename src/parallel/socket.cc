// Socket: non-blocking calls with poll() between them.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/socket.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>

namespace hadal {
namespace {

// Whether the socket is ready for `events` by `end`.
bool wait_for(int fd, short events, double end) {
  for (;;) {
    const double left = end - monotonic_seconds();
    pollfd one{.fd = fd, .events = events, .revents = 0};
    const int n = poll(&one, 1, std::max(0, static_cast<int>(std::ceil(left * 1e3))));
    if (n > 0) return true;
    if (n == 0 || errno != EINTR) return false;
  }
}

bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

void send_at_once(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

sockaddr_in address_of(const std::string& ip, uint16_t port) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(port);
  inet_pton(AF_INET, ip.c_str(), &a.sin_addr);
  return a;
}

std::string text_of(const in_addr& a) {
  char text[INET_ADDRSTRLEN] = {};
  inet_ntop(AF_INET, &a, text, sizeof(text));
  return text;
}

}  // namespace

double monotonic_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Socket::~Socket() {
  if (fd_ >= 0) close(fd_);
}

std::string Socket::send_all(const void* data, size_t bytes, double seconds) const {
  const double end = monotonic_seconds() + seconds;
  const auto* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = send(fd_, from, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && !would_block()) return std::strerror(errno);
    if (n < 0 && !wait_for(fd_, POLLOUT, end))
      return concat("nothing went out for ", seconds, " s");
    if (n <= 0) continue;
    from += n;
    bytes -= static_cast<size_t>(n);
  }
  return "";
}

std::string Socket::receive_all(void* data, size_t bytes, double seconds) const {
  const double end = monotonic_seconds() + seconds;
  auto* to = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t n = recv(fd_, to, bytes, MSG_DONTWAIT);
    if (n == 0) return "the other end closed the connection";
    if (n < 0 && !would_block()) return std::strerror(errno);
    if (n < 0 && !wait_for(fd_, POLLIN, end)) return concat("nothing came for ", seconds, " s");
    if (n <= 0) continue;
    to += n;
    bytes -= static_cast<size_t>(n);
  }
  return "";
}

Socket listen_anywhere(int backlog, uint16_t* port) {
  Socket s(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  sockaddr_in a = address_of("0.0.0.0", 0);
  socklen_t size = sizeof(a);
  HADAL_CHECK(s.is_open() && bind(s.fd(), reinterpret_cast<sockaddr*>(&a), size) == 0 &&
                  listen(s.fd(), backlog) == 0 &&
                  getsockname(s.fd(), reinterpret_cast<sockaddr*>(&a), &size) == 0,
              "cannot listen for other ranks: ", std::strerror(errno));
  *port = ntohs(a.sin_port);
  return s;
}

std::optional<std::pair<Socket, std::string>> accept_within(const Socket& listener,
                                                            double seconds) {
  if (!wait_for(listener.fd(), POLLIN, monotonic_seconds() + seconds)) return std::nullopt;
  sockaddr_in from{};
  socklen_t size = sizeof(from);
  Socket s(accept4(listener.fd(), reinterpret_cast<sockaddr*>(&from), &size,
                   SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!s.is_open()) return std::nullopt;
  send_at_once(s.fd());
  return std::pair(std::move(s), text_of(from.sin_addr));
}

Socket connect_to(const std::vector<std::string>& addresses, uint16_t port, double seconds) {
  for (const std::string& ip : addresses) {
    Socket s(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    const sockaddr_in a = address_of(ip, port);
    if (!s.is_open()) continue;
    if (connect(s.fd(), reinterpret_cast<const sockaddr*>(&a), sizeof(a)) != 0) {
      int error = 0;
      socklen_t size = sizeof(error);
      if (errno != EINPROGRESS || !wait_for(s.fd(), POLLOUT, monotonic_seconds() + seconds) ||
          getsockopt(s.fd(), SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0)
        continue;
    }
    send_at_once(s.fd());
    return s;
  }
  return {};
}

std::vector<std::string> own_addresses() {
  std::vector<std::string> others, loopback;
  ifaddrs* list = nullptr;
  HADAL_CHECK(getifaddrs(&list) == 0,
              "cannot read this host's network interfaces: ", std::strerror(errno));
  for (const ifaddrs* i = list; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr == nullptr || i->ifa_addr->sa_family != AF_INET || (i->ifa_flags & IFF_UP) == 0)
      continue;
    const std::string ip = text_of(reinterpret_cast<const sockaddr_in*>(i->ifa_addr)->sin_addr);
    ((i->ifa_flags & IFF_LOOPBACK) != 0 ? loopback : others).push_back(ip);
  }
  freeifaddrs(list);
  others.insert(others.end(), loopback.begin(), loopback.end());
  return others;
}

}  // namespace hadal
