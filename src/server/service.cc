// Routes and the requests that are being answered.
// SPDX-License-Identifier: Apache-2.0
#include "server/service.h"

#include <fmt/format.h>

#include <chrono>
#include <ctime>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/timer.h"
#include "server/page.h"

namespace hadal::server {

using io::Json;

namespace {

constexpr const char* kJson = "application/json";

const std::map<std::string, const char*, std::less<>>& routes() {
  static const std::map<std::string, const char*, std::less<>> list = {
      {"/health", "GET"},         {"/ready", "GET"},
      {"/metrics", "GET"},        {"/v1/models", "GET"},
      {"/tokenize", "POST"},      {"/detokenize", "POST"},
      {"/v1/responses", "POST"},  {"/v1/chat/completions", "POST"},
      {"/v1/completions", "POST"}};
  return list;
}

void refuse(HttpReply& reply, const ApiError& error) {
  HttpHeaders headers;
  if (error.status == 429 || error.status == 503) headers.emplace_back("Retry-After", "1");
  if (error.status == 401) headers.emplace_back("WWW-Authenticate", "Bearer");
  if (error.status == 405) headers.emplace_back("Allow", error.param);
  reply.send(error.status, kJson, error.body(), headers);
}

}  // namespace

bool equal_secret(std::string_view a, std::string_view b) {
  // The length of a key is no secret worth hiding; its content is.
  volatile uint8_t different = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < a.size(); ++i)
    different = static_cast<uint8_t>(different | (a[i] ^ (b.empty() ? '\x01' : b[i % b.size()])));
  return different == 0;
}

// One request that the engine works on.
struct Service::Job {
  Job(const ModelInfo& model, ApiRequest request, const std::string& id, int64_t created)
      : answer(model, std::move(request), id, created) {}

  Answer answer;
  std::shared_ptr<HttpReply> reply;
  std::string request_id, target;
  std::vector<uint64_t> ids;  // of its choices
  Timer timer;
  double first_token = -1.0;
  std::string error;
};

Service::Service(ModelInfo model, Backend backend, Options options)
    : model_(std::move(model)),
      backend_(std::move(backend)),
      options_(std::move(options)),
      created_(std::time(nullptr)) {}
Service::~Service() = default;

void Service::forget() {
  choices_.clear();
  jobs_.clear();
}

void Service::check_key(const HttpRequest& request) const {
  if (options_.keys.empty()) return;
  constexpr std::string_view kBearer = "Bearer ";
  std::string_view given = request.authorization;
  if (!given.starts_with(kBearer))
    throw ApiError(401, "an API key is needed: send the header Authorization: Bearer KEY",
                   "missing_api_key");
  given.remove_prefix(kBearer.size());
  bool known = false;
  for (const std::string& key : options_.keys) known = equal_secret(given, key) || known;
  if (!known) throw ApiError(401, "the API key is wrong", "invalid_api_key");
}

std::string Service::model_card() const {
  return dump({{"id", model_.id},
               {"object", "model"},
               {"created", created_},
               {"owned_by", "hadal"},
               {"max_model_len", model_.context}});
}

std::string Service::models() const { return R"({"object":"list","data":[)" + model_card() + "]}"; }

void Service::handle(HttpRequest&& request, std::shared_ptr<HttpReply> reply) {
  try {
    route(request, reply);
  } catch (const ApiError& e) {
    refuse(*reply, e);
    log(request, e.status, e.what());
  } catch (const Error& e) {
    refuse(*reply, ApiError(400, e.what()));
    log(request, 400, e.what());
  } catch (const std::exception& e) {
    refuse(*reply, ApiError(500, concat("internal error: ", e.what())));
    log(request, 500, e.what());
  }
}

// What needs no key and no engine.
bool Service::get(const HttpRequest& request, HttpReply& reply) {
  if (request.target == "/health") {
    const double stalled = backend_.stalled_seconds();
    const bool healthy = stalled < options_.stall_seconds;
    reply.send(healthy ? 200 : 503, kJson,
               dump({{"status", healthy ? "ok" : "stalled"}, {"stalled_seconds", stalled}}));
    return true;
  }
  if (request.target == "/ready") {
    reply.send(draining_ ? 503 : 200, kJson, dump({{"status", draining_ ? "draining" : "ready"}}));
    return true;
  }
  if (request.target == "/metrics") {
    reply.send(200, "text/plain; version=0.0.4", metrics_text(backend_.stats(), model_.id));
    return true;
  }
  return false;
}

void Service::route(HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
  const std::string& target = request.target;
  if (const PageFile* file = page_file(target); file != nullptr && request.method == "GET")
    return reply->send(
        200, file->type, std::string(file->content),
        {{"Content-Security-Policy", "default-src 'self'; img-src data:; frame-ancestors 'none'"},
         {"X-Content-Type-Options", "nosniff"}});
  const bool is_model = target.starts_with("/v1/models/");
  const auto known = routes().find(target);
  if (known == routes().end() && !is_model)
    throw ApiError(404, concat("there is no ", target.substr(0, 200)));
  const std::string method = is_model ? "GET" : known->second;
  if (request.method != method)
    throw ApiError(405, concat(target.substr(0, 200), " takes ", method), "", method);
  if (get(request, *reply)) return;
  check_key(request);
  if (target == "/v1/models") return reply->send(200, kJson, models());
  if (is_model) {
    const std::string name = target.substr(std::string("/v1/models/").size());
    if (name != model_.id)
      throw ApiError(404, concat("there is no model ", name.substr(0, 200)), "model_not_found");
    return reply->send(200, kJson, model_card());
  }
  if (draining_)
    throw ApiError(503, "the server is shutting down; send the request to another one", "draining");
  if (!request.content_type.empty() &&
      request.content_type.find("application/json") == std::string::npos)
    throw ApiError(415, "the body must be application/json");
  if (target == "/tokenize") {
    const std::vector<int32_t> ids = parse_tokenize(model_, request.body);
    reply->send(200, kJson,
                dump({{"count", ids.size()}, {"max_model_len", model_.context}, {"tokens", ids}}));
  } else if (target == "/detokenize") {
    reply->send(
        200, kJson,
        dump({{"prompt", model_.tokenizer->decode(parse_detokenize(model_, request.body))}}));
  } else if (target == "/v1/chat/completions") {
    start(parse_chat(model_, request.body), request, reply);
  } else if (target == "/v1/responses") {
    start(parse_response(model_, request.body), request, reply);
  } else {
    start(parse_completion(model_, request.body), request, reply);
  }
}

void Service::start(ApiRequest api, const HttpRequest& request,
                    const std::shared_ptr<HttpReply>& reply) {
  const char* kind = api.kind == ApiKind::kChat         ? "chatcmpl-"
                     : api.kind == ApiKind::kCompletion ? "cmpl-"
                                                        : "resp_";
  const std::string id = kind + request.id;
  auto job = std::make_shared<Job>(model_, std::move(api), id, std::time(nullptr));
  job->reply = reply;
  job->request_id = request.id;
  job->target = request.target;
  jobs_[id] = job;
  try {
    if (job->answer.request().form.asks())
      compile(job);
    else
      submit(job, nullptr);
  } catch (...) {
    jobs_.erase(id);
    throw;
  }
  reply->on_gone([this, id] {
    const auto it = jobs_.find(id);
    if (it == jobs_.end()) return;
    const std::shared_ptr<Job> gone = it->second;
    for (uint64_t choice : gone->ids)
      if (choices_.erase(choice) > 0) backend_.cancel(choice);
    log(*gone, "client gone");
    jobs_.erase(id);
  });
}

// The form of a reply is compiled beside the server's thread, then the request goes on.
void Service::compile(const std::shared_ptr<Job>& job) {
  const auto go_on = [this, id = job->answer.id()](std::shared_ptr<const serve::Grammar> grammar,
                                                   const std::string& error) {
    const auto it = jobs_.find(id);
    if (it == jobs_.end()) return;  // its client has gone
    const std::shared_ptr<Job> waiting = it->second;
    const auto fail = [&](const ApiError& e) {
      jobs_.erase(id);
      refuse(*waiting->reply, e);
      log(*waiting, e.what());
    };
    try {
      if (!error.empty())
        throw ApiError(400, concat("the form of the reply cannot be honoured: ", error),
                       "invalid_form");
      submit(waiting, std::move(grammar));
    } catch (const ApiError& e) {
      fail(e);
    } catch (const Error& e) {
      fail(ApiError(400, e.what()));
    }
  };
  const std::string why_not = serve::GrammarCompiler::why_not();
  if (!why_not.empty() || !backend_.compile)
    throw ApiError(400, why_not.empty() ? "this server holds no reply to a form" : why_not);
  if (!backend_.compile(job->answer.request().form, go_on))
    throw ApiError(429, "the server is busy: many forms wait to be compiled; try again later",
                   "queue_full");
}

void Service::submit(const std::shared_ptr<Job>& job,
                     std::shared_ptr<const serve::Grammar> grammar) {
  const ApiRequest& r = job->answer.request();
  std::vector<serve::Request> requests;
  for (const auto& prompt : r.prompts) {
    const uint64_t leader = next_id_;
    for (int64_t i = 0; i < r.n; ++i) {
      serve::Request one{.id = next_id_++,
                         .prompt = prompt,
                         .params = r.params,
                         .priority = r.priority,
                         .leader = i > 0 ? leader : 0};
      // Choice 0 has the seed that was asked for, so n changes nothing about it.
      one.params.seed += static_cast<uint64_t>(i);
      one.params.grammar = grammar;
      job->ids.push_back(one.id);
      requests.push_back(std::move(one));
    }
  }
  switch (backend_.submit(std::move(requests))) {
    case serve::Engine::Answer::kAccepted:
      break;
    case serve::Engine::Answer::kBusy:
      throw ApiError(429, "the server is busy: its queue is full; try again later", "queue_full");
    case serve::Engine::Answer::kClosed:
      throw ApiError(503, "the server is shutting down; send the request to another one",
                     "draining");
  }
  for (size_t i = 0; i < job->ids.size(); ++i) choices_[job->ids[i]] = {job.get(), i};
  if (r.stream) {
    job->reply->begin(200, "text/event-stream");
    job->reply->write(job->answer.begin());
  }
}

void Service::deliver(std::vector<serve::Output>&& outputs) {
  for (const serve::Output& out : outputs) {
    const auto it = choices_.find(out.id);
    if (it == choices_.end()) continue;  // its client has gone
    const auto [owner, index] = it->second;
    // A write may find out that the client is gone, which ends the job.
    const std::shared_ptr<Job> job = jobs_.at(owner->answer.id());
    if (out.finish) choices_.erase(it);
    if (job->first_token < 0 && !out.tokens.empty()) job->first_token = job->timer.seconds();
    if (out.finish == serve::Finish::kError) job->error = out.error;
    if (out.finish == serve::Finish::kCancelled)
      job->error = "the server shut down before the answer was complete";
    const std::string events = job->answer.add(index, out);
    if (!out.finish && job->answer.choice(index).finish) {
      choices_.erase(out.id);
      backend_.cancel(out.id);
    }
    if (!events.empty()) job->reply->write(events);
    if (job->answer.done()) finish(*job);
  }
}

void Service::finish(Job& job) {
  const std::string id = job.answer.id();
  const auto it = jobs_.find(id);
  if (it == jobs_.end()) return;
  const std::shared_ptr<Job> keep = it->second;
  jobs_.erase(it);
  const bool stream = job.answer.request().stream;
  if (!job.error.empty()) {
    const ApiError error(500, job.error);
    if (stream) {
      job.reply->write("data: " + error.body() + "\n\n");
      job.reply->end();
    } else {
      refuse(*job.reply, error);
    }
  } else if (stream) {
    job.reply->write(job.answer.end());
    job.reply->end();
  } else {
    job.reply->send(200, kJson, job.answer.whole());
  }
  log(job, job.error.empty() ? "done" : job.error.c_str());
}

void Service::log(const HttpRequest& request, int status, const std::string& note) const {
  if (!options_.log) return;
  options_.log(dump({{"time", std::time(nullptr)},
                     {"id", request.id},
                     {"route", request.target.substr(0, 200)},
                     {"status", status},
                     {"note", note}}));
}

void Service::log(const Job& job, const char* outcome) const {
  if (!options_.log) return;
  Json line = {{"time", std::time(nullptr)},
               {"id", job.request_id},
               {"route", job.target},
               {"outcome", outcome},
               {"prompt_tokens", job.answer.prompt_tokens()},
               {"cached_tokens", job.answer.cached_tokens()},
               {"tokens", job.answer.generated_tokens()},
               {"seconds", job.timer.seconds()}};
  if (job.first_token >= 0) line["first_token_seconds"] = job.first_token;
  options_.log(dump(line));
}

}  // namespace hadal::server
