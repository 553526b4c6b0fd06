// Connections on Boost.Beast: one request at a time each, in order.
// SPDX-License-Identifier: Apache-2.0
#include "server/http.h"

#include <fmt/format.h>

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <csignal>
#include <optional>
#include <random>
#include <set>

#include "core/check.h"
#include "server/files.h"

namespace hadal::server {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = asio::ip::tcp;
using boost::system::error_code;

std::chrono::steady_clock::duration duration_of(double seconds) {
  return std::chrono::duration_cast<std::chrono::steady_clock::duration>(
      std::chrono::duration<double>(seconds));
}

// The client is gone, or has ended in the middle: there is nobody to answer.
// NOTE: no error has the system's category too.
bool is_lost(const error_code& error) {
  return error && (error == http::error::end_of_stream || error == http::error::partial_message ||
                   error.category() == asio::error::get_misc_category() ||
                   error.category() == boost::system::system_category());
}

std::string error_body(std::string_view message) {
  // No character of these messages needs an escape.
  return fmt::format(
      R"({{"error":{{"message":"{}","type":"invalid_request_error","param":null,"code":null}}}})",
      message);
}

}  // namespace

const char* status_text(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 413:
      return "Payload Too Large";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 503:
      return "Service Unavailable";
    default:
      return "Unknown";
  }
}

namespace {
class Connection;
}

struct HttpServer::Impl {
  Impl(const Options& o, Handler h)
      : options(o), handler(std::move(h)), io(1), acceptor(io), stopper(io), signals(io) {}

  void listen();
  void accept();
  void close_idle();
  void wait_for_signal();
  void finish_if_empty() {
    if (stopping && !gone && connections.empty()) io.stop();
  }

  Options options;
  Handler handler;
  // NOTE: before io, whose handlers hold connections until it is destroyed.
  std::set<Connection*> connections;
  std::atomic<int64_t> num_connections{0};
  bool stopping = false, gone = false;
  asio::io_context io;
  tcp::acceptor acceptor;
  asio::steady_timer stopper;
  asio::signal_set signals;
  std::function<void()> on_signal;
  uint64_t next_request = 1;
  uint32_t instance = std::random_device{}();
};

namespace {

using Impl = HttpServer::Impl;

// One client: reads a request, hands it over, writes the reply, reads the next.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Impl& server, tcp::socket socket)
      : server_(server), socket_(std::move(socket)), timer_(server.io) {
    server_.connections.insert(this);
    ++server_.num_connections;
  }
  ~Connection() {
    server_.connections.erase(this);
    --server_.num_connections;
    server_.finish_if_empty();
  }

  void read();
  void refuse(int status, std::string_view message);
  // Ends a connection that waits for a request.
  void close_if_idle() {
    if (!replying_) close();
  }

  // For Reply, which names the request it answers: a late one must not answer the next.
  void send(uint64_t request, int status, std::string_view type, std::string body,
            const HttpHeaders& headers);
  void begin(uint64_t request, int status, std::string_view type);
  void write(uint64_t request, std::string_view part);
  void end(uint64_t request);
  void on_gone(uint64_t request, std::function<void()> callback);
  bool is_current(uint64_t request) const { return open_ && request == request_; }

 private:
  void read_header();
  void on_header(error_code error);
  void read_body();
  void on_request();
  void watch();
  void queue(std::string bytes);
  void flush();
  void complete();
  void linger();
  void gone();
  void close();
  void limit(double seconds);
  std::string head(int status, std::string_view type, const HttpHeaders& headers) const;

  Impl& server_;
  tcp::socket socket_;
  asio::steady_timer timer_;
  beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  std::string request_id_;
  uint64_t request_ = 0;
  bool open_ = true, replying_ = false, keep_alive_ = false, chunked_ = false, is_head_ = false;
  bool writing_ = false, ended_ = false, watching_ = false, refused_ = false;
  std::string waiting_, in_flight_;  // bytes to be written, and being written
  std::function<void()> on_gone_;
};

class Reply : public HttpReply {
 public:
  Reply(std::shared_ptr<Connection> connection, uint64_t request)
      : connection_(std::move(connection)), request_(request) {}
  ~Reply() override { connection_->end(request_); }
  void send(int status, std::string_view type, std::string body,
            const HttpHeaders& headers) override {
    connection_->send(request_, status, type, std::move(body), headers);
  }
  void begin(int status, std::string_view type) override {
    connection_->begin(request_, status, type);
  }
  void write(std::string_view part) override { connection_->write(request_, part); }
  void end() override { connection_->end(request_); }
  void on_gone(std::function<void()> callback) override {
    connection_->on_gone(request_, std::move(callback));
  }

 private:
  std::shared_ptr<Connection> connection_;
  uint64_t request_;
};

// Closes the connection when the time is over, unless a later limit replaces this one.
void Connection::limit(double seconds) {
  timer_.expires_after(duration_of(seconds));
  timer_.async_wait([weak = weak_from_this()](error_code error) {
    const auto self = weak.lock();
    if (!error && self) self->gone();
  });
}

void Connection::read() {
  if (server_.stopping) return close();
  parser_.emplace();
  parser_->header_limit(static_cast<std::uint32_t>(server_.options.max_header_bytes));
  parser_->body_limit(static_cast<std::uint64_t>(server_.options.max_body_bytes));
  replying_ = ended_ = chunked_ = is_head_ = false;
  keep_alive_ = false;
  ++request_;
  if (buffer_.size() > 0) return read_header();
  limit(server_.options.idle_seconds);
  socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this()](error_code error) {
    if (!self->open_) return;
    if (error) return self->close();
    self->read_header();
  });
}

void Connection::read_header() {
  limit(server_.options.read_seconds);
  http::async_read_header(socket_, buffer_, *parser_,
                          [self = shared_from_this()](error_code error, size_t) {
                            if (self->open_) self->on_header(error);
                          });
}

void Connection::on_header(error_code error) {
  if (error == http::error::header_limit)
    return refuse(431, "the header is too large; send fewer or shorter fields");
  // NOTE: the body's limit is checked as soon as its length is known.
  if (error == http::error::body_limit) return refuse(413, "the body is too large");
  if (is_lost(error)) return close();
  if (error) return refuse(400, "this is no HTTP/1.1 request");
  const auto expect = parser_->get()[http::field::expect];
  if (expect.empty()) return read_body();
  if (!beast::iequals(expect, "100-continue")) return refuse(417, "only 100-continue is known");
  in_flight_ = "HTTP/1.1 100 Continue\r\n\r\n";
  asio::async_write(socket_, asio::buffer(in_flight_),
                    [self = shared_from_this()](error_code e, size_t) {
                      if (!self->open_) return;
                      if (e) return self->close();
                      self->read_body();
                    });
}

void Connection::read_body() {
  http::async_read(socket_, buffer_, *parser_,
                   [self = shared_from_this()](error_code error, size_t) {
                     if (!self->open_) return;
                     if (error == http::error::body_limit)
                       return self->refuse(413, "the body is too large");
                     if (is_lost(error)) return self->close();
                     if (error) return self->refuse(400, "this is no HTTP/1.1 request");
                     self->on_request();
                   });
}

void Connection::on_request() {
  timer_.cancel();
  auto message = parser_->release();
  parser_.reset();
  HttpRequest request;
  request.method = std::string(message.method_string());
  request.target = std::string(message.target());
  if (const size_t query = request.target.find('?'); query != std::string::npos) {
    request.query = request.target.substr(query + 1);
    request.target.resize(query);
  }
  request.authorization = std::string(message[http::field::authorization]);
  request.content_type = std::string(message[http::field::content_type]);
  request.id = request_id_ = fmt::format("{:08x}{:08x}", server_.instance, server_.next_request++);
  keep_alive_ = message.keep_alive() && !server_.stopping;
  chunked_ = message.version() >= 11;
  is_head_ = message.method() == http::verb::head;
  if (is_head_) request.method = "GET";
  request.body = std::move(message.body());
  replying_ = true;
  watch();
  server_.handler(std::move(request), std::make_shared<Reply>(shared_from_this(), request_));
}

// While a reply is made: a client that closes its side is gone. Bytes of a next request are left.
void Connection::watch() {
  if (watching_ || buffer_.size() > 0) return;
  watching_ = true;
  socket_.async_wait(
      tcp::socket::wait_read, [self = shared_from_this(), request = request_](error_code error) {
        self->watching_ = false;
        if (!self->is_current(request) || !self->replying_) return;
        if (error) return self->gone();
        char byte = 0;
        error_code peeked;
        self->socket_.non_blocking(true, peeked);
        const size_t n =
            self->socket_.receive(asio::buffer(&byte, 1), tcp::socket::message_peek, peeked);
        if (n == 0 && peeked != asio::error::would_block) self->gone();
      });
}

std::string Connection::head(int status, std::string_view type, const HttpHeaders& headers) const {
  std::string text = fmt::format("HTTP/1.1 {} {}\r\nContent-Type: {}\r\nX-Request-Id: {}\r\n",
                                 status, status_text(status), type, request_id_);
  for (const auto& [name, value] : headers) text += fmt::format("{}: {}\r\n", name, value);
  if (!keep_alive_) text += "Connection: close\r\n";
  return text;
}

// An answer to what was never a whole request; the connection ends.
void Connection::refuse(int status, std::string_view message) {
  keep_alive_ = false;
  replying_ = refused_ = true;
  send(request_, status, "application/json", error_body(message), {});
}

void Connection::send(uint64_t request, int status, std::string_view type, std::string body,
                      const HttpHeaders& headers) {
  if (!is_current(request) || !replying_ || ended_) return;
  std::string text =
      head(status, type, headers) + fmt::format("Content-Length: {}\r\n\r\n", body.size());
  if (!is_head_) text += body;
  ended_ = true;
  queue(std::move(text));
}

void Connection::begin(uint64_t request, int status, std::string_view type) {
  if (!is_current(request) || !replying_ || ended_) return;
  if (!chunked_) keep_alive_ = false;
  queue(head(status, type, {{"Cache-Control", "no-cache"}}) +
        (chunked_ ? "Transfer-Encoding: chunked\r\n\r\n" : "\r\n"));
}

void Connection::write(uint64_t request, std::string_view part) {
  if (!is_current(request) || !replying_ || ended_ || part.empty()) return;
  if (static_cast<int64_t>(waiting_.size() + in_flight_.size()) >
      server_.options.max_buffered_bytes)
    return gone();
  if (is_head_) return;
  if (!chunked_) return queue(std::string(part));
  fmt::format_to(std::back_inserter(waiting_), "{:x}\r\n", part.size());
  waiting_ += part;
  queue("\r\n");
}

void Connection::end(uint64_t request) {
  if (!is_current(request) || !replying_ || ended_) return;
  ended_ = true;
  queue(chunked_ && !is_head_ ? "0\r\n\r\n" : "");
}

void Connection::on_gone(uint64_t request, std::function<void()> callback) {
  if (!is_current(request)) return callback();
  on_gone_ = std::move(callback);
}

void Connection::queue(std::string bytes) {
  waiting_ += bytes;
  if (writing_) return;
  // What comes in the same turn of the loop goes out in one write.
  writing_ = true;
  asio::post(server_.io, [self = shared_from_this()] { self->flush(); });
}

void Connection::flush() {
  if (!open_) return;
  if (waiting_.empty()) {
    writing_ = false;
    timer_.cancel();
    if (ended_) complete();
    return;
  }
  in_flight_.clear();
  std::swap(in_flight_, waiting_);
  limit(server_.options.write_seconds);
  asio::async_write(socket_, asio::buffer(in_flight_),
                    [self = shared_from_this()](error_code error, size_t) {
                      if (!self->open_) return;
                      if (error) return self->gone();
                      self->in_flight_.clear();
                      self->flush();
                    });
}

void Connection::complete() {
  on_gone_ = nullptr;
  if (keep_alive_) {
    // Ends the wait of watch(), whose handler then sees another request.
    error_code ignored;
    replying_ = false;
    socket_.cancel(ignored);
    return read();
  }
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
  if (!refused_) return close();
  // What is still being sent is read away for a second: closing on it would reset the connection,
  // and the client might never see the answer.
  limit(1.0);
  linger();
}

void Connection::linger() {
  buffer_.clear();
  socket_.async_read_some(buffer_.prepare(1 << 16),
                          [self = shared_from_this()](error_code error, size_t) {
                            if (!self->open_) return;
                            if (error) return self->close();
                            self->linger();
                          });
}

void Connection::gone() {
  const auto callback = std::exchange(on_gone_, nullptr);
  close();
  if (callback) callback();
}

void Connection::close() {
  if (!open_) return;
  open_ = false;
  timer_.cancel();
  error_code ignored;
  socket_.close(ignored);
}

}  // namespace

void HttpServer::Impl::listen() {
  error_code error;
  const auto address = asio::ip::make_address(options.host, error);
  HADAL_CHECK(!error, "--host is ", options.host, "; give an address such as 127.0.0.1 or 0.0.0.0");
  const tcp::endpoint endpoint(address, static_cast<uint16_t>(options.port));
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(asio::socket_base::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(1024, error);
  HADAL_CHECK(!error, "cannot listen on ", options.host, ":", options.port, ": ", error.message());
  accept();
}

void HttpServer::Impl::accept() {
  acceptor.async_accept([this](error_code error, tcp::socket socket) {
    if (stopping) return;
    if (error) {
      // No descriptor is left, or the client has gone; a pause, and the next.
      stopper.expires_after(std::chrono::milliseconds(20));
      stopper.async_wait([this](error_code e) {
        if (!e && !stopping) accept();
      });
      return;
    }
    error_code ignored;
    socket.set_option(tcp::no_delay(true), ignored);
    const auto connection = std::make_shared<Connection>(*this, std::move(socket));
    if (num_connections > options.max_connections)
      connection->refuse(503, "there are too many connections; try again later");
    else
      connection->read();
    accept();
  });
}

HttpServer::HttpServer(const Options& options, Handler handler)
    : impl_(std::make_unique<Impl>(options, std::move(handler))) {
  allow_files(options.max_connections);
  impl_->listen();
}

HttpServer::~HttpServer() { impl_->gone = true; }

int HttpServer::port() const { return impl_->acceptor.local_endpoint().port(); }
int64_t HttpServer::num_connections() const { return impl_->num_connections; }

void HttpServer::run() {
  const auto guard = asio::make_work_guard(impl_->io);
  impl_->io.run();
}

void HttpServer::post(std::function<void()> task) { asio::post(impl_->io, std::move(task)); }

void HttpServer::after(double seconds, std::function<void()> task) {
  auto timer = std::make_shared<asio::steady_timer>(impl_->io, duration_of(seconds));
  timer->async_wait([timer, task = std::move(task)](error_code error) {
    if (!error) task();
  });
}

void HttpServer::on_signal(std::function<void()> task) {
  impl_->on_signal = std::move(task);
  impl_->signals.add(SIGTERM);
  impl_->signals.add(SIGINT);
  impl_->wait_for_signal();
}

void HttpServer::Impl::wait_for_signal() {
  signals.async_wait([this](error_code error, int) {
    if (error) return;
    on_signal();
    wait_for_signal();
  });
}

void HttpServer::stop(double seconds) {
  impl_->stopping = true;
  error_code ignored;
  impl_->acceptor.close(ignored);
  impl_->stopper.expires_after(duration_of(seconds));
  impl_->stopper.async_wait([this](error_code error) {
    if (!error) impl_->io.stop();
  });
  impl_->close_idle();
  post([this] { impl_->finish_if_empty(); });
}

void HttpServer::Impl::close_idle() {
  const std::set<Connection*> all = connections;
  for (Connection* connection : all) connection->close_if_idle();
}

}  // namespace hadal::server
