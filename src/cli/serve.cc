// hadal serve: an OpenAI-compatible server for one model.
// SPDX-License-Identifier: Apache-2.0
#include "cli/serve.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>

#include "cli/run_options.h"
#include "core/check.h"
#include "core/env.h"
#include "core/timer.h"
#include "model/bytes.h"
#include "serve/engine.h"
#include "serve/grammar_queue.h"
#include "server/http.h"
#include "server/service.h"

namespace hadal::cli {
namespace {

struct Options {
  ModelOptions model;
  SpeculateOptions speculation;
  server::HttpServer::Options http;
  serve::Engine::Options engine;
  std::string name, chat_template, key_file;
  int64_t context = 0, max_seqs = 16, cache_tokens = 0;
  double drain_seconds = 30.0;
  bool no_prefix_cache = false, quiet = false;
};

void check(const Options& o) {
  o.model.check();
  HADAL_CHECK(o.model.machine.device == "cpu", "--device is ", o.model.machine.device,
              "; hadal serve runs on the cpu only so far");
  o.speculation.check();
  HADAL_CHECK(o.http.port >= 0 && o.http.port <= 65535, "--port is ", o.http.port,
              "; allowed: 0 (any) to 65535");
  HADAL_CHECK(o.max_seqs >= 1 && o.max_seqs <= 4096, "--max-seqs is ", o.max_seqs,
              "; allowed: 1 to 4096");
  HADAL_CHECK(o.engine.max_queue >= 0, "--max-queue is ", o.engine.max_queue, "; give 0 or more");
  HADAL_CHECK(o.context >= 0, "--context is ", o.context, "; give 2 or more, or 0 for the model's");
  HADAL_CHECK(o.cache_tokens >= 0, "--cache-tokens is ", o.cache_tokens, "; give 0 or more");
  HADAL_CHECK(o.http.read_seconds > 0, "--read-seconds is ", o.http.read_seconds,
              "; give more than 0");
  HADAL_CHECK(o.drain_seconds >= 0, "--drain-seconds is ", o.drain_seconds, "; give 0 or more");
  HADAL_CHECK(o.http.max_body_bytes >= 1024, "--max-body is ", o.http.max_body_bytes,
              "; give 1024 or more");
}

std::vector<std::string> read_keys(const Options& o) {
  std::vector<std::string> keys;
  const auto add = [&](std::string line, const std::string& where) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (line.empty() || line[0] == '#') return;
    HADAL_CHECK(line.size() >= 8, where, " has a key of ", line.size(),
                " characters; use 8 or more");
    keys.push_back(line);
  };
  if (!o.key_file.empty()) {
    std::ifstream file(o.key_file);
    HADAL_CHECK(file.good(), "cannot read ", o.key_file);
    for (std::string line; std::getline(file, line);) add(line, o.key_file);
    HADAL_CHECK(!keys.empty(), o.key_file, " has no key; write one a line");
  }
  if (!env::api_key().empty()) add(env::api_key(), "HADAL_API_KEY");
  return keys;
}

// Bytes that the machine can still give, and how much of it the server will take.
int64_t available_memory() {
  std::ifstream file("/proc/meminfo");
  for (std::string name; file >> name;) {
    int64_t kilobytes = 0;
    if (name == "MemAvailable:" && file >> kilobytes) return kilobytes << 10;
    file.ignore(1000, '\n');
  }
  return INT64_MAX;  // unknown
}

Decoder::Limits limits_of(const Options& o, const Config& c) {
  Decoder::Limits limits;
  limits.max_tokens =
      o.context > 0 ? o.context : std::min<int64_t>(c.max_position_embeddings, 8192);
  HADAL_CHECK(limits.max_tokens >= 2 && limits.max_tokens <= c.max_position_embeddings,
              "--context is ", o.context, "; this model allows 2 to ", c.max_position_embeddings);
  limits.max_seqs = o.max_seqs;
  limits.num_mtp = o.speculation.speculate > 0 ? 1 : 0;
  const int64_t drafts =
      o.speculation.speculate * std::min(o.engine.speculate_seqs, limits.max_seqs);
  limits.max_step_tokens = std::max(o.model.chunk, limits.max_seqs + drafts);
  const auto pages = [](int64_t tokens) {
    return (tokens + ops::kCachePageTokens - 1) / ops::kCachePageTokens;
  };
  // By default every sequence has room for half the context.
  const int64_t wanted = o.cache_tokens > 0
                             ? o.cache_tokens
                             : std::max(limits.max_tokens, limits.max_seqs * limits.max_tokens / 2);
  limits.num_pages = pages(wanted);
  HADAL_CHECK(limits.num_pages >= pages(limits.max_tokens), "--cache-tokens is ", o.cache_tokens,
              ", which does not hold one sequence of --context ", limits.max_tokens);
  return limits;
}

// What is going to be allocated, before it is; refuses what does not fit.
void plan_memory(const Options& o, const LoadedModel& model, const Decoder::Limits& limits) {
  const Config& c = model.config();
  const double mib = 1024.0 * 1024.0;
  const auto size = static_cast<double>(dtype_size(model.act));
  const auto stat = static_cast<double>(dtype_size(stat_dtype(model.act)));
  const auto layers = static_cast<double>(c.num_hidden_layers + limits.num_mtp);
  const double cache = layers * static_cast<double>(limits.num_pages * ops::kCachePageTokens) *
                       static_cast<double>(c.latent_dim()) * size;
  const double logits =
      static_cast<double>(limits.max_seqs * (1 + o.speculation.speculate) * c.vocab_size) * stat;
  const double step =
      static_cast<double>(limits.max_step_tokens) *
      static_cast<double>(c.hidden_size * 4 +
                          c.num_attention_heads * (c.latent_dim() + c.kv_lora_rank)) *
      size;
  if (!o.quiet)
    fmt::print(stderr,
               "memory: cache {:.1f} MiB ({} tokens in pages of {}), logits {:.1f} MiB, a step of "
               "{} tokens about {:.1f} MiB; weights are in place\n",
               cache / mib, limits.num_pages * ops::kCachePageTokens, ops::kCachePageTokens,
               logits / mib, limits.max_step_tokens, step / mib);
  if (o.model.machine.device != "cpu") return;
  const auto needed = static_cast<int64_t>(cache + logits + step);
  const int64_t available = available_memory();
  HADAL_CHECK(needed < available, "the cache and a step need ", needed >> 20, " MiB, and ",
              available >> 20,
              " MiB are available; lower --cache-tokens, --max-seqs, --context or --chunk");
}

server::ModelInfo info_of(const Options& o, const LoadedModel& model,
                          const Decoder::Limits& limits) {
  const Config& c = model.config();
  server::ModelInfo info;
  info.id = o.name.empty() ? std::filesystem::weakly_canonical(o.model.model).filename().string()
                           : o.name;
  info.context = limits.max_tokens;
  info.vocab_size = c.vocab_size;
  info.bos = model.bos();
  for (int64_t id : c.eos_token_ids) info.eos.push_back(static_cast<int32_t>(id));
  info.max_choices = o.max_seqs + o.engine.max_queue;
  if (std::filesystem::exists(model.dir + "/tokenizer.json")) info.tokenizer = model.tokenizer();
  const std::string start =
      "; start the server with another --chat-template or use "
      "/v1/completions";
  if (!info.tokenizer) {
    info.no_chat_template =
        "the model has no tokenizer.json, so it cannot chat; use "
        "/v1/completions with token ids";
    return info;
  }
  try {
    auto chat_template = o.chat_template.empty() ? io::ChatTemplate::of_model(model.dir)
                                                 : io::ChatTemplate::named(o.chat_template);
    chat_template.check_tokens(*info.tokenizer);
    info.chat_template = chat_template;
  } catch (const Error& e) {
    // Asked for by name, it has to be there; otherwise the model is served without chat.
    if (!o.chat_template.empty()) throw;
    info.no_chat_template = concat("this model cannot chat: ", e.what(), start);
  }
  return info;
}

void run(Options o) {
  check(o);
  const Timer timer;
  const std::vector<std::string> keys = read_keys(o);
  const auto machine = o.model.machine.make();
  Context ctx = machine->context();
  const LoadedModel model(ctx, o.model.model, o.model.dtype);
  o.speculation.check(model.config());
  const Decoder::Limits limits = limits_of(o, model.config());
  plan_memory(o, model, limits);
  o.engine.speculate = o.speculation.speculate;
  o.engine.prefix_cache = !o.no_prefix_cache;
  const server::ModelInfo info = info_of(o, model, limits);

  Decoder decoder(ctx, model.config(), model.weights, model.act, limits);
  server::HttpServer* http_server = nullptr;
  server::Service* routes = nullptr;
  serve::Engine engine(
      ctx, decoder, info.tokenizer, o.engine, [&](std::vector<serve::Output>&& outputs) {
        http_server->post(
            [&routes, list = std::move(outputs)]() mutable { routes->deliver(std::move(list)); });
      });
  // Without a tokenizer there is no text to hold to a form.
  std::optional<serve::GrammarQueue> forms;
  if (info.tokenizer && serve::GrammarCompiler::why_not().empty())
    forms.emplace(*info.tokenizer, info.vocab_size, static_cast<size_t>(info.max_choices));
  const auto compile = [&](serve::GrammarSpec spec, const server::Backend::Compiled& done) {
    return forms->compile(std::move(spec), [&, done](auto grammar, std::string error) {
      http_server->post([done, grammar, error] { done(grammar, error); });
    });
  };
  const auto log = [](const std::string& line) { fmt::print(stderr, "{}\n", line); };
  server::Service service(
      info,
      {.submit = [&](auto requests) { return engine.submit(std::move(requests)); },
       .cancel = [&](uint64_t id) { engine.cancel(id); },
       .stats = [&] { return engine.stats(); },
       .stalled_seconds = [&] { return engine.stalled_seconds(); },
       .compile = forms ? compile : decltype(server::Backend::compile)()},
      {.keys = keys, .log = o.quiet ? std::function<void(const std::string&)>() : log});
  server::HttpServer http(o.http, [&](auto&& request, auto reply) {
    service.handle(std::move(request), std::move(reply));
  });
  http_server = &http;
  routes = &service;

  std::thread engine_thread([&] { engine.run(); });
  bool draining = false;
  // Ends when all answers are out, or when the time is over; a second signal ends it at once.
  const auto end = [&] {
    engine.stop();
    http.stop(2.0);
  };
  const std::function<void()> wait_until_done = [&] {
    if (service.num_jobs() == 0) return end();
    http.after(0.02, wait_until_done);
  };
  http.on_signal([&] {
    if (draining) return end();
    draining = true;
    if (!o.quiet)
      fmt::print(stderr, "draining: {} requests, {} s at most\n", service.num_jobs(),
                 o.drain_seconds);
    service.drain();
    engine.close();
    http.after(o.drain_seconds, end);
    wait_until_done();
  });
  fmt::print("hadal: serving {} on http://{}:{} after {:.2f} s\n", info.id, o.http.host,
             http.port(), timer.seconds());
  std::fflush(stdout);
  http.run();
  engine.stop();
  engine_thread.join();
  forms.reset();  // before the server that it calls back to
  service.forget();
}

}  // namespace

void add_serve_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("serve", "serve a model through OpenAI's API");
  o->model.add_to(*command);
  o->speculation.add_to(*command);
  command->add_option("--host", o->http.host, "address to listen on")->capture_default_str();
  command->add_option("--port", o->http.port, "0 takes any that is free")->capture_default_str();
  command->add_option("--name", o->name, "of the model in the API; its directory's by default");
  command->add_option("--chat-template", o->chat_template,
                      "instead of the model's own: deepseek-v3, deepseek-r1, deepseek-v3.1, ...");
  command
      ->add_option("--context", o->context, "tokens of one sequence; 0: the model's, 8192 at most")
      ->capture_default_str();
  command->add_option("--max-seqs", o->max_seqs, "sequences that run at once")
      ->capture_default_str();
  command
      ->add_option("--max-queue", o->engine.max_queue,
                   "sequences that may wait; more are refused with 429")
      ->capture_default_str();
  command
      ->add_option("--cache-tokens", o->cache_tokens,
                   "tokens of the cache; 0: half the context for each sequence")
      ->capture_default_str();
  command->add_flag("--no-prefix-cache", o->no_prefix_cache, "run every prompt from its start");
  command
      ->add_option("--speculate-seqs", o->engine.speculate_seqs,
                   "draft nothing while more sequences run")
      ->capture_default_str();
  command->add_option("--api-key-file", o->key_file,
                      "keys that are let in, one a line; HADAL_API_KEY adds one");
  command->add_option("--max-body", o->http.max_body_bytes, "bytes of a request")
      ->capture_default_str();
  command->add_option("--read-seconds", o->http.read_seconds, "for a request to arrive")
      ->capture_default_str();
  command->add_option("--max-connections", o->http.max_connections, "open at once")
      ->capture_default_str();
  command
      ->add_option("--drain-seconds", o->drain_seconds,
                   "after SIGTERM, for running requests to end")
      ->capture_default_str();
  command->add_flag("--quiet", o->quiet, "no log on stderr");
  command->footer("Example: hadal serve --model runs/quickstart --port 8000");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
