// A connection's bytes to the server over a stub engine: every answer is HTTP/1.1 with OpenAI's
// JSON for an error and none is a 500, the connection ends when its client does, nothing is left
// behind and the server goes on. 0xff cuts the input into what is sent at a time.
// SPDX-License-Identifier: Apache-2.0
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "server/stub_server.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/stub_model.h"

namespace {

using namespace hadal;
using nlohmann::json;

constexpr int kPauseMilliseconds = 2, kEndMilliseconds = 20000;

server::StubServer& stub() {
  // It lives as long as the process: libFuzzer ends that from anywhere.
  static auto* const server = new server::StubServer(
      fuzz::stub_model(), {.port = 0, .max_header_bytes = 2048, .max_body_bytes = 4096});
  return *server;
}

// NOTE: libFuzzer's alarm, which watches over -timeout, interrupts calls; they are made again.
class Client {
 public:
  Client() : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(stub().port()));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const bool connected =
        connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
    fuzz::expect(connected || (errno == EINTR && is_connected_later()),
                 "the server takes connections");
  }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  ~Client() { close(fd_); }

  // Stops where the server has ended the connection.
  void send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return;
      bytes.remove_prefix(static_cast<size_t>(n));
    }
  }
  // What comes until nothing does for so long; whether the connection has ended.
  bool read(int milliseconds) {
    for (;;) {
      pollfd readable{.fd = fd_, .events = POLLIN, .revents = 0};
      const int ready = poll(&readable, 1, milliseconds);
      if (ready == 0) return false;
      char bytes[4096];
      const ssize_t n = ready < 0 ? -1 : recv(fd_, bytes, sizeof(bytes), 0);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return true;
      received_.append(bytes, static_cast<size_t>(n));
    }
  }
  void end() const { shutdown(fd_, SHUT_WR); }
  std::string_view received() const { return received_; }

 private:
  // A call that was interrupted, whose connection is made all the same.
  bool is_connected_later() const {
    pollfd writable{.fd = fd_, .events = POLLOUT, .revents = 0};
    while (poll(&writable, 1, -1) < 0 && errno == EINTR) {
    }
    int error = 0;
    socklen_t size = sizeof(error);
    return getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0;
  }

  int fd_;
  std::string received_;
};

// The value of a header, if there is one; `head` ends with a line.
std::optional<std::string_view> value_of(std::string_view head, std::string_view name) {
  const size_t at = head.find(concat("\r\n", name, ": "));
  if (at == std::string_view::npos) return {};
  const std::string_view rest = head.substr(at + 4 + name.size());
  return rest.substr(0, rest.find("\r\n"));
}

// Takes one answer off the text; false where it is not whole, as its client has left.
bool take_answer(std::string_view& text) {
  const size_t head_size = text.find("\r\n\r\n");
  if (head_size == std::string_view::npos) return false;
  const std::string_view head = text.substr(0, head_size + 2);
  text.remove_prefix(head_size + 4);
  fuzz::expect(head.size() > 14 && head.starts_with("HTTP/1.1 ") && head[12] == ' ',
               "an answer begins with a status");
  const int status = std::stoi(std::string(head.substr(9, 3)));
  if (status == 100) return true;
  fuzz::expect(std::string_view(server::status_text(status)) != "Unknown", "a status is known");
  fuzz::expect(status != 500, "no request is an internal error");
  const auto length = value_of(head, "Content-Length");
  // Of a HEAD.
  if (text.empty() || text.starts_with("HTTP/1.1 ")) return true;
  if (!length) {
    if (value_of(head, "Transfer-Encoding").value_or("") != "chunked") {
      fuzz::expect(value_of(head, "Connection").value_or("") == "close",
                   "an answer has a length, or ends with its connection");
      return false;
    }
    for (;;) {
      const size_t line = text.find("\r\n");
      if (line == std::string_view::npos) return false;
      const size_t bytes = std::stoul(std::string(text.substr(0, line)), nullptr, 16);
      if (text.size() < line + 2 + bytes + 2) return false;
      fuzz::expect(text.substr(line + 2 + bytes, 2) == "\r\n", "a chunk ends with a line");
      text.remove_prefix(line + 2 + bytes + 2);
      if (bytes == 0) return true;
    }
  }
  const size_t bytes = std::stoul(std::string(*length));
  if (text.size() < bytes) return false;
  const json body = json::parse(text.substr(0, bytes), nullptr, false);
  if (value_of(head, "Content-Type").value_or("") == "application/json")
    fuzz::expect(!body.is_discarded(), "a body of JSON is JSON");
  if (status >= 400 && status != 503)
    fuzz::expect(body.is_object() && body.contains("error") &&
                     !body["error"].value("message", std::string()).empty(),
                 "a refusal says why");
  text.remove_prefix(bytes);
  return true;
}

void expect_healthy() {
  Client client;
  client.send("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  fuzz::expect(client.read(kEndMilliseconds) && client.received().starts_with("HTTP/1.1 200 "),
               "the server goes on");
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static int64_t num_inputs = 0;
  {
    Client client;
    for (std::string_view rest = fuzz::text_of(data, size); !rest.empty();) {
      const std::string_view piece = rest.substr(0, rest.find('\xff'));
      client.send(piece);
      rest.remove_prefix(std::min(rest.size(), piece.size() + 1));
      if (!rest.empty()) std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    if (!client.read(kPauseMilliseconds)) {
      client.end();
      fuzz::expect(client.read(kEndMilliseconds), "a connection ends when its client does");
    }
    std::string_view text = client.received();
    while (!text.empty() && take_answer(text)) {
    }
  }
  fuzz::expect(stub().num_jobs() == 0, "no request outlives its connection");
  for (int i = 0; stub().num_connections() > 0; ++i) {
    fuzz::expect(i < kEndMilliseconds, "no connection is left behind");
    std::this_thread::sleep_for(std::chrono::milliseconds(i == 0 ? 0 : 1));
  }
  if (++num_inputs % 64 == 1) expect_healthy();
  return 0;
}
