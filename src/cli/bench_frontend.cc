// hadal bench frontend: the HTTP server and the API without a model, loaded by a client of the same
// process.
//
// A stub stands for the engine: each of its steps brings every open request one token, and the next
// begins when the last but one has been handed on. So what is measured is parsing, scheduling of
// replies, JSON, events, chunks and sockets, on both sides.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "cli/bench.h"
#include "cli/bench_load.h"
#include "cli/serve.h"
#include "core/check.h"
#include "server/files.h"
#include "server/http.h"
#include "server/service.h"

namespace hadal::cli {
namespace {

using nlohmann::json;

class StubEngine {
 public:
  using Deliver = std::function<void(std::vector<serve::Output>&&)>;
  explicit StubEngine(Deliver deliver) : deliver_(std::move(deliver)) {}

  serve::Engine::Answer submit(std::vector<serve::Request> requests) {
    const std::lock_guard lock(mutex_);
    for (const serve::Request& r : requests)
      open_[r.id] = {.num_prompt = static_cast<int64_t>(r.prompt.size()),
                     .max_tokens = r.params.max_tokens};
    wake_.notify_one();
    return serve::Engine::Answer::kAccepted;
  }
  void cancel(uint64_t id) {
    const std::lock_guard lock(mutex_);
    open_.erase(id);
  }
  // A step has reached all its clients' connections.
  void on_delivered() {
    const std::lock_guard lock(mutex_);
    --num_undelivered_;
    wake_.notify_one();
  }
  void stop() {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    wake_.notify_one();
  }
  void run() {
    for (;;) {
      std::vector<serve::Output> outputs;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return stop_ || (!open_.empty() && num_undelivered_ < 2); });
        if (stop_) return;
        ++num_undelivered_;
        ++num_steps_;
        for (auto at = open_.begin(); at != open_.end();) {
          Open& open = at->second;
          serve::Output out;
          out.id = at->first;
          out.text = " word";
          out.tokens = {1};
          out.num_prompt = open.num_prompt;
          out.num_generated = ++open.num_generated;
          const bool is_last = open.num_generated == open.max_tokens;
          if (is_last) out.finish = serve::Finish::kLength;
          outputs.push_back(std::move(out));
          at = is_last ? open_.erase(at) : std::next(at);
        }
      }
      deliver_(std::move(outputs));
    }
  }
  int64_t num_steps() const { return num_steps_; }

 private:
  struct Open {
    int64_t num_prompt = 0, max_tokens = 0, num_generated = 0;
  };
  Deliver deliver_;
  std::mutex mutex_;  // of what follows
  std::condition_variable wake_;
  std::map<uint64_t, Open> open_;
  int64_t num_undelivered_ = 0, num_steps_ = 0;
  bool stop_ = false;
};

struct Options {
  LoadShape shape;
  std::string picture;
};

void run(const Options& o) {
  o.shape.check();
  const int64_t streams = o.shape.max_open() == 0 ? o.shape.requests : o.shape.max_open();
  server::allow_files(2 * streams);  // both ends
  server::HttpServer* http_server = nullptr;
  server::Service* routes = nullptr;
  StubEngine* engine_ref = nullptr;
  StubEngine engine([&](std::vector<serve::Output>&& outputs) {
    http_server->post([&routes, &engine_ref, list = std::move(outputs)]() mutable {
      routes->deliver(std::move(list));
      engine_ref->on_delivered();
    });
  });
  engine_ref = &engine;
  server::ModelInfo info;
  info.id = "stub";
  info.vocab_size = o.shape.vocab;
  info.context = o.shape.prompt_tokens + o.shape.output_tokens;
  server::Service service(info,
                          {.submit = [&](auto list) { return engine.submit(std::move(list)); },
                           .cancel = [&](uint64_t id) { engine.cancel(id); },
                           .stats = [] { return serve::EngineStats(); },
                           .stalled_seconds = [] { return 0.0; }},
                          {});
  server::HttpServer http({.port = 0, .max_connections = streams}, [&](auto&& request, auto reply) {
    service.handle(std::move(request), std::move(reply));
  });
  http_server = &http;
  routes = &service;
  std::thread engine_thread([&] { engine.run(); });
  std::thread http_thread([&] { http.run(); });

  LoadShape shape = o.shape;
  shape.model = info.id;
  server::LoadResult result;
  std::string error;
  try {
    result = server::run_load({.url = {.host = "127.0.0.1", .port = std::to_string(http.port())},
                               .max_open = shape.max_open()},
                              make_requests(shape));
  } catch (const Error& e) {
    error = e.what();
  }
  http.post([&] { http.stop(2.0); });
  http_thread.join();
  engine.stop();
  engine_thread.join();
  service.forget();
  HADAL_CHECK(error.empty(), error);
  json row = load_row(result);
  row.update({{"commit", built_commit()},
              {"requests", shape.requests},
              {"concurrency", shape.max_open()},
              {"steps", engine.num_steps()}});
  fmt::print("{}\n", row.dump());
  if (!o.picture.empty()) draw_load(result, "the front end alone", o.picture);
}

}  // namespace

void add_bench_frontend_command(CLI::App& bench) {
  auto o = std::make_shared<Options>();
  o->shape.requests = o->shape.concurrency = 2000;
  o->shape.prompt_tokens = 16;
  o->shape.output_tokens = 200;
  auto* command =
      bench.add_subcommand("frontend", "the server without a model: chunks per second, streams");
  add_load_options(*command, o->shape);
  command->add_option("--picture", o->picture, "write distributions and rate to this SVG file");
  command->footer("Example: hadal bench frontend --requests 2000 --concurrency 2000");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
