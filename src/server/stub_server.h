// StubServer: the HTTP server and the API over a stub of the engine, for benches and fuzzers.
//
// Each step of the stub brings every open request one token, " word", and the next step begins when
// the last but one has been handed on. Forms of replies are refused, as nothing would follow them.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "server/api_request.h"
#include "server/http.h"
#include "server/service.h"

namespace hadal::server {

class StubEngine {
 public:
  using Deliver = std::function<void(std::vector<serve::Output>&&)>;
  explicit StubEngine(Deliver deliver) : deliver_(std::move(deliver)) {}

  // From any thread.
  serve::Engine::Answer submit(const std::vector<serve::Request>& requests);
  void cancel(uint64_t id);
  void on_delivered();  // a step has reached all its clients' connections
  void stop();
  // Steps until stop().
  void run();
  int64_t num_steps() const;

 private:
  struct Open {
    int64_t num_prompt = 0, max_tokens = 0, num_generated = 0;
  };
  Deliver deliver_;
  mutable std::mutex mutex_;  // of what follows
  std::condition_variable wake_;
  std::map<uint64_t, Open> open_;
  int64_t num_undelivered_ = 0, num_steps_ = 0;
  bool stop_ = false;
};

class StubServer {
 public:
  // Serves on threads of its own until it is destroyed.
  StubServer(ModelInfo model, const HttpServer::Options& options);
  StubServer(const StubServer&) = delete;
  StubServer& operator=(const StubServer&) = delete;
  ~StubServer();

  int port() const { return http_.port(); }
  int64_t num_steps() const { return engine_.num_steps(); }
  int64_t num_connections() const { return http_.num_connections(); }
  // Requests that have no whole answer yet.
  int64_t num_jobs();

 private:
  StubEngine engine_;
  Service service_;
  HttpServer http_;
  std::thread engine_thread_, http_thread_;
};

}  // namespace hadal::server
