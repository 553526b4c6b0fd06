// Sockets of Asio, answers read by Beast's parser, events line by line.
// SPDX-License-Identifier: Apache-2.0
#include "server/load_client.h"

#include <fmt/format.h>

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/check.h"
#include "core/timer.h"
#include "io/json.h"
#include "server/files.h"

namespace hadal::server {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;
using io::Json;
using tcp = asio::ip::tcp;

constexpr size_t kMaxErrorBytes = 64 << 10;  // of an answer that is no stream

std::chrono::steady_clock::duration duration_of(double seconds) {
  return std::chrono::duration_cast<std::chrono::steady_clock::duration>(
      std::chrono::duration<double>(seconds));
}

std::vector<tcp::endpoint> resolve(asio::io_context& io, const Url& url) {
  error_code error;
  tcp::resolver resolver(io);
  const auto found = resolver.resolve(url.host, url.port, error);
  HADAL_CHECK(!error, "cannot find ", url.host, ":", url.port, ": ", error.message());
  std::vector<tcp::endpoint> endpoints;
  for (const auto& entry : found) endpoints.push_back(entry.endpoint());
  return endpoints;
}

std::string head_of(const Url& url, const std::string& key, const std::string& method,
                    const std::string& route) {
  std::string text =
      fmt::format("{} {}{} HTTP/1.1\r\nHost: {}:{}\r\nConnection: close\r\nAccept: */*\r\n", method,
                  url.path, route, url.host, url.port);
  if (!key.empty()) text += "Authorization: Bearer " + key + "\r\n";
  return text;
}

// That a delta or a choice of a chunk holds part of an answer, and not only its form.
bool holds_something(const Json& choice) {
  const auto is_full = [](const Json& object, const char* key) {
    const auto value = object.find(key);
    return value != object.end() && !value->empty() && *value != "";
  };
  if (is_full(choice, "text") || is_full(choice, "token_ids")) return true;
  const auto delta = choice.find("delta");
  if (delta == choice.end() || !delta->is_object()) return false;
  for (const char* key : {"content", "reasoning_content", "reasoning", "tool_calls"})
    if (is_full(*delta, key)) return true;
  return false;
}

std::string message_of(const Json& error, const std::string& fallback) {
  if (error.is_object() && error.contains("message") && error["message"].is_string())
    return error["message"].get<std::string>();
  return error.is_string() ? error.get<std::string>() : fallback;
}

// Takes an event of a stream.
void take_event(std::string_view data, double now, StreamResult& r) {
  const Json event = Json::parse(data, nullptr, false);
  if (!event.is_object()) {
    r.error = "an event of the stream is no JSON object";
    return;
  }
  if (event.contains("error") && !event["error"].is_null()) {
    r.error = "in the stream: " + message_of(event["error"], "an error without a message");
    return;
  }
  const auto usage = event.find("usage");
  if (usage != event.end() && usage->is_object()) {
    r.has_usage = true;
    r.num_tokens = usage->value("completion_tokens", int64_t{0});
    r.num_prompt = usage->value("prompt_tokens", int64_t{0});
    const auto details = usage->find("prompt_tokens_details");
    if (details != usage->end() && details->is_object())
      r.num_cached = details->value("cached_tokens", int64_t{0});
  }
  const auto choices = event.find("choices");
  if (choices == event.end() || !choices->is_array()) return;
  for (const Json& choice : *choices)
    if (choice.is_object() && holds_something(choice)) {
      r.parts.push_back(now);
      return;
    }
}

using Parser = http::response_parser<http::string_body>;

// Gives the parser all that it takes of `bytes`, and removes that; need_more is no error.
error_code feed(Parser& parser, std::string& bytes) {
  size_t begin = 0;
  error_code error;
  while (begin < bytes.size() && !parser.is_done()) {
    const size_t used = parser.put(asio::buffer(bytes.data() + begin, bytes.size() - begin), error);
    begin += used;
    if (error || used == 0) break;
  }
  bytes.erase(0, begin);
  return error == http::error::need_more ? error_code() : error;
}

struct Load;

// One request and its answer.
class Stream : public std::enable_shared_from_this<Stream> {
 public:
  Stream(Load& load, const StreamRequest& request, StreamResult& result);
  void start();

 private:
  void send();
  void read();
  void take(size_t count);
  void take_lines(bool is_last);
  void end_of_answer();
  void finish();
  void fail(const std::string& error) {
    result_.error = error;
    finish();
  }

  Load& load_;
  const StreamRequest& request_;
  StreamResult& result_;
  tcp::socket socket_;
  asio::steady_timer timer_;
  Parser parser_;
  std::string head_;
  std::string bytes_;  // of the answer, not yet parsed
  std::string text_;   // of its body, not yet taken
  std::array<char, 8192> buffer_{};
  bool is_over_ = false, has_done_ = false;
};

// What all requests share.
struct Load {
  Load(const LoadOptions& o, const std::vector<StreamRequest>& list)
      : options(o), requests(list), due_timer(io), endpoints(resolve(io, o.url)) {
    result.streams.resize(list.size());
  }

  void start_due();
  void on_end() {
    --num_open;
    ++num_done;
    if (options.progress) options.progress(num_done);
    start_due();
  }

  const LoadOptions& options;
  const std::vector<StreamRequest>& requests;
  asio::io_context io{1};
  asio::steady_timer due_timer;
  std::vector<tcp::endpoint> endpoints;
  Timer timer;
  LoadResult result;
  size_t next = 0, num_done = 0;
  int64_t num_open = 0;
};

// Starts what is due, and sets the clock for what will be.
void Load::start_due() {
  while (next < requests.size() && (options.max_open == 0 || num_open < options.max_open)) {
    const double wait = requests[next].due - timer.seconds();
    if (wait > 0) {
      due_timer.expires_after(duration_of(wait));
      due_timer.async_wait([this](error_code error) {
        if (!error) start_due();
      });
      return;
    }
    const size_t i = next++;
    ++num_open;
    result.most_open = std::max(result.most_open, num_open);
    std::make_shared<Stream>(*this, requests[i], result.streams[i])->start();
  }
}

Stream::Stream(Load& load, const StreamRequest& request, StreamResult& result)
    : load_(load), request_(request), result_(result), socket_(load.io), timer_(load.io) {
  parser_.eager(true);
  parser_.body_limit(boost::none);
  head_ = head_of(load.options.url, load.options.key, "POST", request.route) +
          fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                      request.body.size());
  result_.due = request.due;
}

void Stream::start() {
  const auto self = shared_from_this();
  result_.begin = load_.timer.seconds();
  timer_.expires_after(duration_of(load_.options.timeout_seconds));
  timer_.async_wait([self](error_code error) {
    if (!error) self->fail("the answer took longer than the limit");
  });
  asio::async_connect(socket_, load_.endpoints, [self](error_code error, const tcp::endpoint&) {
    if (self->is_over_) return;
    if (error) return self->fail("cannot connect: " + error.message());
    self->send();
  });
}

void Stream::send() {
  error_code ignored;
  socket_.set_option(tcp::no_delay(true), ignored);
  const std::array<asio::const_buffer, 2> parts = {asio::buffer(head_),
                                                   asio::buffer(request_.body)};
  asio::async_write(socket_, parts, [self = shared_from_this()](error_code error, size_t) {
    // A server that has refused may close before it has read all: its answer is still read.
    if (!self->is_over_ && error && error != asio::error::broken_pipe &&
        error != asio::error::connection_reset)
      self->fail("the connection was lost while sending: " + error.message());
  });
  read();
}

void Stream::read() {
  socket_.async_read_some(
      asio::buffer(buffer_), [self = shared_from_this()](error_code error, size_t count) {
        if (self->is_over_) return;
        if (!error) return self->take(count);
        error_code end;
        if (self->parser_.got_some()) self->parser_.put_eof(end);
        if (error == asio::error::eof && !end && self->parser_.is_done())
          return self->end_of_answer();
        self->fail(self->result_.status == 0 ? "the connection was closed before an answer came"
                                             : "the connection was lost in the answer");
      });
}

void Stream::take(size_t count) {
  bytes_.append(buffer_.data(), count);
  if (const error_code error = feed(parser_, bytes_))
    return fail("the server does not answer in HTTP/1.1: " + error.message());
  if (parser_.is_header_done()) {
    result_.status = static_cast<int>(parser_.get().result_int());
    text_ += parser_.get().body();
    parser_.get().body().clear();
  }
  if (result_.status == 200) take_lines(false);
  if (is_over_) return;
  if (text_.size() > kMaxErrorBytes && result_.status != 200)
    return fail(fmt::format("status {} and a long answer", result_.status));
  if (parser_.is_done()) return end_of_answer();
  read();
}

// Whole lines of the body: "data: JSON" or "data: [DONE]"; comments and empty lines are passed
// over.
void Stream::take_lines(bool is_last) {
  const double now = load_.timer.seconds();
  size_t begin = 0;
  while (result_.error.empty()) {
    size_t end = text_.find('\n', begin);
    if (end == text_.npos) {
      if (!is_last || begin >= text_.size()) break;
      end = text_.size();
    }
    std::string_view line(text_.data() + begin, end - begin);
    begin = std::min(end + 1, text_.size());
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.starts_with("data:")) continue;
    line.remove_prefix(5);
    if (line.starts_with(' ')) line.remove_prefix(1);
    if (line == "[DONE]")
      has_done_ = true;
    else
      take_event(line, now, result_);
  }
  text_.erase(0, begin);
  if (!result_.error.empty()) finish();
}

void Stream::end_of_answer() {
  if (result_.status == 200) {
    take_lines(true);
    if (is_over_) return;
    if (has_done_) return finish();
    return fail("the stream ended before [DONE]");
  }
  const Json body = Json::parse(text_, nullptr, false);
  const Json error = body.is_object() && body.contains("error") ? body["error"] : body;
  fail(fmt::format("status {}: {}", result_.status, message_of(error, "no message")));
}

void Stream::finish() {
  if (is_over_) return;
  is_over_ = true;
  result_.end = load_.timer.seconds();
  if (!result_.has_usage) result_.num_tokens = static_cast<int64_t>(result_.parts.size());
  timer_.cancel();
  error_code ignored;
  socket_.close(ignored);
  // Later, so that a run of refusals does not nest.
  asio::post(load_.io, [self = shared_from_this()] { self->load_.on_end(); });
}

}  // namespace

Url Url::parse(const std::string& text) {
  constexpr std::string_view kScheme = "http://";
  HADAL_CHECK(text.starts_with(kScheme), "the URL ", text,
              " does not begin with http://; for https put a proxy in front");
  std::string rest = text.substr(kScheme.size());
  Url url;
  if (const size_t slash = rest.find('/'); slash != rest.npos) {
    url.path = rest.substr(slash);
    while (url.path.ends_with('/')) url.path.pop_back();
    rest.resize(slash);
  }
  if (url.path.ends_with("/v1")) url.path.resize(url.path.size() - 3);
  const size_t bracket = rest.find(']');  // of [::1]:8000
  const size_t colon = rest.find(':', bracket == rest.npos ? 0 : bracket);
  url.host = rest.substr(0, colon);
  if (bracket != rest.npos && url.host.starts_with('[')) url.host = rest.substr(1, bracket - 1);
  url.port = colon == rest.npos ? "80" : rest.substr(colon + 1);
  const bool is_number = url.port.find_first_not_of("0123456789") == url.port.npos;
  HADAL_CHECK(!url.host.empty() && !url.port.empty() && is_number, "the URL ", text,
              " names no host and port; write http://HOST:PORT");
  return url;
}

LoadResult run_load(const LoadOptions& options, const std::vector<StreamRequest>& requests) {
  allow_files(options.max_open == 0
                  ? static_cast<int64_t>(requests.size())
                  : std::min(options.max_open, static_cast<int64_t>(requests.size())));
  Load load(options, requests);
  asio::post(load.io, [&] { load.start_due(); });
  load.io.run();
  load.result.seconds = load.timer.seconds();
  if (!requests.empty()) load.result.seconds -= load.result.streams.front().begin;
  return std::move(load.result);
}

std::string get(const Url& url, const std::string& key, const std::string& route) {
  asio::io_context io;
  const std::string where = fmt::format("http://{}:{}{}{}", url.host, url.port, url.path, route);
  tcp::socket socket(io);
  error_code error;
  asio::connect(socket, resolve(io, url), error);
  HADAL_CHECK(!error, "cannot connect to ", where, ": ", error.message());
  asio::write(socket, asio::buffer(head_of(url, key, "GET", route) + "\r\n"), error);
  Parser parser;
  parser.eager(true);
  std::string bytes;
  std::array<char, 8192> buffer{};
  while (!error && !parser.is_done()) {
    const size_t count = socket.read_some(asio::buffer(buffer), error);
    bytes.append(buffer.data(), count);
    error_code parsed = feed(parser, bytes);
    if (!parsed && error == asio::error::eof && parser.got_some()) parser.put_eof(parsed);
    HADAL_CHECK(!parsed, where, " does not answer in HTTP/1.1: ", parsed.message());
  }
  HADAL_CHECK(parser.is_done(), where, " gave no whole answer: ", error.message());
  HADAL_CHECK(parser.get().result_int() == 200, where, " answered with status ",
              parser.get().result_int());
  return parser.get().body();
}

}  // namespace hadal::server
