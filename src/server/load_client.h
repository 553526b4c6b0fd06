// A client of an OpenAI-compatible server that holds many streams open, on one thread.
//
// It sends each request when it is due, on a connection of its own, and notes when each part of the
// answer came. Requests that fail are results too. http:// alone.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace hadal::server {

struct Url {
  std::string host = {}, port = {}, path = {};  // path without a trailing slash and without /v1
  // http://HOST[:PORT][/PATH]; an Error for anything else.
  static Url parse(const std::string& text);
};

struct StreamRequest {
  std::string route;  // behind the URL: /v1/completions or /v1/chat/completions
  std::string body;   // JSON with "stream": true
  double due = 0.0;   // seconds after the start of the load
};

// Times are seconds after the start of the load.
struct StreamResult {
  double due = 0.0, begin = 0.0, end = 0.0;
  std::vector<double> parts;  // when each part that holds something came
  int64_t num_tokens = 0;     // as the server's usage says; without it, one for each part
  int64_t num_prompt = 0, num_cached = 0;
  bool has_usage = false;
  int status = 0;     // of HTTP; 0: there was no answer
  std::string error;  // empty: complete
};

struct LoadOptions {
  Url url;
  std::string key = {};
  int64_t max_open = 0;  // requests at once, in order; 0: all that are due
  double timeout_seconds = 600.0;
  std::function<void(size_t num_done)> progress = {};  // after each request; may be empty
};

struct LoadResult {
  std::vector<StreamResult> streams;  // in the order of the requests
  double seconds = 0.0;               // from the first request to the last answer
  int64_t most_open = 0;              // at once
};

LoadResult run_load(const LoadOptions& options, const std::vector<StreamRequest>& requests);

// The body of a GET; an Error if it cannot be had.
std::string get(const Url& url, const std::string& key, const std::string& route);

}  // namespace hadal::server
