// A stub for the engine, and the server over it.
// SPDX-License-Identifier: Apache-2.0
#include "server/stub_server.h"

#include <future>
#include <utility>

namespace hadal::server {

serve::Engine::Answer StubEngine::submit(const std::vector<serve::Request>& requests) {
  const std::lock_guard lock(mutex_);
  for (const serve::Request& r : requests)
    open_[r.id] = {.num_prompt = static_cast<int64_t>(r.prompt.size()),
                   .max_tokens = r.params.max_tokens};
  wake_.notify_one();
  return serve::Engine::Answer::kAccepted;
}

void StubEngine::cancel(uint64_t id) {
  const std::lock_guard lock(mutex_);
  open_.erase(id);
}

void StubEngine::on_delivered() {
  const std::lock_guard lock(mutex_);
  --num_undelivered_;
  wake_.notify_one();
}

void StubEngine::stop() {
  const std::lock_guard lock(mutex_);
  stop_ = true;
  wake_.notify_one();
}

int64_t StubEngine::num_steps() const {
  const std::lock_guard lock(mutex_);
  return num_steps_;
}

void StubEngine::run() {
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
        const bool is_last = open.num_generated >= open.max_tokens;
        if (is_last) out.finish = serve::Finish::kLength;
        outputs.push_back(std::move(out));
        at = is_last ? open_.erase(at) : std::next(at);
      }
    }
    deliver_(std::move(outputs));
  }
}

StubServer::StubServer(ModelInfo model, const HttpServer::Options& options)
    : engine_([this](std::vector<serve::Output>&& outputs) {
        http_.post([this, list = std::move(outputs)]() mutable {
          service_.deliver(std::move(list));
          engine_.on_delivered();
        });
      }),
      service_(std::move(model),
               {.submit = [this](auto list) { return engine_.submit(list); },
                .cancel = [this](uint64_t id) { engine_.cancel(id); },
                .stats = [] { return serve::EngineStats(); },
                .stalled_seconds = [] { return 0.0; }},
               {}),
      http_(options,
            [this](HttpRequest&& request, std::shared_ptr<HttpReply> reply) {
              service_.handle(std::move(request), std::move(reply));
            }),
      engine_thread_([this] { engine_.run(); }),
      http_thread_([this] { http_.run(); }) {}

StubServer::~StubServer() {
  http_.post([this] { http_.stop(2.0); });
  http_thread_.join();
  engine_.stop();
  engine_thread_.join();
  service_.forget();
}

int64_t StubServer::num_jobs() {
  std::promise<int64_t> jobs;
  http_.post([&] { jobs.set_value(service_.num_jobs()); });
  return jobs.get_future().get();
}

}  // namespace hadal::server
