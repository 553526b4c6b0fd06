// Service: the routes of the API, from HTTP requests to the engine and back.
//
//   GET  / (the page) /health /ready /metrics /v1/models /v1/models/ID
//   POST /v1/chat/completions /v1/completions /v1/responses /tokenize /detokenize
//
// All functions run on the HTTP server's thread. The engine is reached through Backend, so the
// routes can be tested and timed without one.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "serve/engine.h"
#include "server/answer.h"
#include "server/api_request.h"
#include "server/http.h"

namespace hadal::server {

struct Backend {
  // Calls back on the HTTP server's thread: with a grammar, or with what is wrong. False: too many
  // wait already.
  using Compiled = std::function<void(std::shared_ptr<const serve::Grammar>, std::string error)>;
  std::function<serve::Engine::Answer(std::vector<serve::Request>)> submit;
  std::function<void(uint64_t id)> cancel;
  std::function<serve::EngineStats()> stats;
  std::function<double()> stalled_seconds;
  std::function<bool(serve::GrammarSpec, Compiled)> compile = {};
};

class Service {
 public:
  struct Options {
    std::vector<std::string> keys;                // any of them is let in; none: all are
    double stall_seconds = 60.0;                  // a step that takes longer is no health
    std::function<void(const std::string&)> log;  // a line of JSON for each request; may be empty
  };
  Service(ModelInfo model, Backend backend, Options options);
  ~Service();

  void handle(HttpRequest&& request, std::shared_ptr<HttpReply> reply);
  // What a step of the engine brought.
  void deliver(std::vector<serve::Output>&& outputs);
  // Answers 503 to what comes from now on.
  void drain() { draining_ = true; }
  // Lets go of all replies, before the HTTP server goes.
  void forget();
  int64_t num_jobs() const { return static_cast<int64_t>(jobs_.size()); }

 private:
  struct Job;
  void route(HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  bool get(const HttpRequest& request, HttpReply& reply);
  void check_key(const HttpRequest& request) const;
  void start(ApiRequest api, const HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  void compile(const std::shared_ptr<Job>& job);
  void submit(const std::shared_ptr<Job>& job, std::shared_ptr<const serve::Grammar> grammar);
  void finish(Job& job);
  void log(const HttpRequest& request, int status, const std::string& note) const;
  void log(const Job& job, const char* outcome) const;
  std::string models() const;
  std::string model_card() const;

  ModelInfo model_;
  Backend backend_;
  Options options_;
  int64_t created_;
  bool draining_ = false;
  uint64_t next_id_ = 1;
  std::map<std::string, std::shared_ptr<Job>> jobs_;     // by answer id
  std::map<uint64_t, std::pair<Job*, size_t>> choices_;  // by engine id
};

// Compares in a time that does not depend on where they differ.
bool equal_secret(std::string_view a, std::string_view b);
// The engine's counters in Prometheus' text format.
std::string metrics_text(const serve::EngineStats& stats, const std::string& model);

}  // namespace hadal::server
