// An HTTP/1.1 server on one thread: requests in, replies out, whole or as a stream. No routes.
//
// Every function and callback but those marked otherwise runs on the thread of run(). Nothing
// blocks: a reader that is too slow is cut off when more than max_buffered_bytes wait for it, and a
// client that goes away is noticed while its reply is still being made.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace hadal::server {

struct HttpRequest {
  std::string method, target, body;  // target without its query
  std::string query;
  std::string id;             // of this request, for logs and headers
  std::string authorization;  // the header's value
  std::string content_type;
};

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

// The way back to one request's client. Once it is closed, writing does nothing.
class HttpReply {
 public:
  virtual ~HttpReply() = default;
  // A whole answer.
  virtual void send(int status, std::string_view content_type, std::string body,
                    const HttpHeaders& headers = {}) = 0;
  // An answer in parts: begin, any number of writes, end.
  virtual void begin(int status, std::string_view content_type) = 0;
  virtual void write(std::string_view part) = 0;
  virtual void end() = 0;
  // Called once if the client is gone before the answer is complete.
  virtual void on_gone(std::function<void()> callback) = 0;
};

class HttpServer {
 public:
  struct Options {
    std::string host = "127.0.0.1";
    int port = 8000;  // 0: any that is free
    int64_t max_header_bytes = 16 << 10, max_body_bytes = 8 << 20;
    int64_t max_connections = 4096;
    int64_t max_buffered_bytes = 1 << 20;  // of one client
    double read_seconds = 30.0;            // for one request to arrive, from its first byte
    double idle_seconds = 75.0;            // between two requests
    double write_seconds = 60.0;           // without a byte taken
  };
  using Handler = std::function<void(HttpRequest&&, std::shared_ptr<HttpReply>)>;
  // Listens; an Error says what keeps it from that.
  HttpServer(const Options& options, Handler handler);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  int port() const;
  // Serves until stop().
  void run();
  // From any thread: `task` runs on the thread of run().
  void post(std::function<void()> task);
  // Calls on the thread of run(), once after `seconds`.
  void after(double seconds, std::function<void()> task);
  // Calls for each SIGTERM and SIGINT of the process.
  void on_signal(std::function<void()> task);
  // No new connections or requests; run() returns when the last reply has been written, or after
  // `seconds`.
  void stop(double seconds);

  int64_t num_connections() const;

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

const char* status_text(int status);

}  // namespace hadal::server
