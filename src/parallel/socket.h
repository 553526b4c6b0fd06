// Socket: a TCP connection between two hosts, and the little that it takes to make one (IPv4).
//
// Calls with `seconds` return or throw by then, whatever the other end does.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"

namespace hadal {

class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket();
  int fd() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }

  // All bytes, or why not.
  [[nodiscard]] std::string send_all(const void* data, size_t bytes, double seconds) const;
  [[nodiscard]] std::string receive_all(void* data, size_t bytes, double seconds) const;

 private:
  int fd_ = -1;  // non-blocking
};

// On every interface, at a port that the system chooses.
Socket listen_anywhere(int backlog, uint16_t* port);
// The next connection and the address that it comes from; none within `seconds`.
std::optional<std::pair<Socket, std::string>> accept_within(const Socket& listener, double seconds);
// The first of the addresses that answers; not open if none does. `seconds` for each.
Socket connect_to(const std::vector<std::string>& addresses, uint16_t port, double seconds);
// This host's, those of other interfaces before the loopback's.
std::vector<std::string> own_addresses();
double monotonic_seconds();

}  // namespace hadal
