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
#include "core/device_memory.h"
#include "core/env.h"
#include "core/timer.h"
#include "io/panels.h"
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

Decoder::Limits limits_of(const Options& o, const Config& c, DType act) {
  Decoder::Limits limits;
  limits.cache = o.model.cache.format(act);
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
  if (o.engine.overlap) ++limits.num_pages;  // recorded steps keep one to themselves
  HADAL_CHECK(limits.num_pages >= pages(limits.max_tokens), "--cache-tokens is ", o.cache_tokens,
              ", which does not hold one sequence of --context ", limits.max_tokens);
  return limits;
}

// Bytes that a step takes beside weights and cache: an upper bound of what modules hold at once.
double step_bytes(const Options& o, const Config& c, DType act, const Decoder::Limits& limits,
                  int64_t num_tokens) {
  const auto T = static_cast<double>(num_tokens);
  const auto size = static_cast<double>(dtype_size(act));
  const auto H = static_cast<double>(c.num_attention_heads);
  const double attention =
      static_cast<double>(c.hidden_size * 4 + c.q_lora_rank * 2 + c.latent_dim()) +
      H * static_cast<double>(c.qk_nope_head_dim + c.qk_rope_head_dim + c.latent_dim() +
                              c.kv_lora_rank + c.v_head_dim);
  const double mlp = 3.0 * static_cast<double>(std::max(
                               c.intermediate_size, c.n_shared_experts * c.moe_intermediate_size));
  // Rows of experts are in pages; x and gate|up of them live in the decoder's own pool.
  const auto rows = static_cast<double>(experts::max_pages(c, num_tokens) * ops::kPageRows);
  const double moe = rows * static_cast<double>(2 * c.hidden_size + 3 * c.moe_intermediate_size);
  double bytes = (T * (attention + mlp) + moe) * size;
  if (o.model.machine.device == "cuda") {
    // Long contexts are attended to in splits of 16 pages or more, each with a result of its own.
    const double splits = std::clamp(static_cast<double>(limits.max_tokens) / 1024.0, 1.0, 256.0);
    bytes += splits * T * H * (static_cast<double>(c.kv_lora_rank) * 2.0 + 4.0);
  }
  return bytes;
}

// What the model is computed in, as LoadedModel decides.
DType act_of(const Options& o, const io::HfCheckpoint& checkpoint) {
  if (o.model.dtype != "auto")
    return parse_dtype(o.model.dtype, {DType::kF32, DType::kBF16}, "--dtype");
  const bool is_f32 = checkpoint.params.front().data->type == io::StoredType::kF32;
  return is_f32 ? DType::kF32 : DType::kBF16;
}

// Bytes of the weights as they will be loaded, without those that stay mapped from the file.
double weight_bytes(const Options& o, const io::HfCheckpoint& checkpoint) {
  const bool is_mapped = o.model.machine.device == "cpu" && o.model.dtype == "auto";
  double bytes = 0.0;
  for (const io::HfParam& p : checkpoint.params) {
    if (is_mapped) {
      if (io::goes_into_panels(p)) bytes += static_cast<double>(p.data->bytes);
      continue;
    }
    const auto count = static_cast<double>(p.info.shape.num_elements());
    double size = static_cast<double>(io::stored_type_size(p.data->type));
    if (o.model.dtype != "auto") size = o.model.dtype == "f32" ? 4.0 : 2.0;
    bytes += count * size;
    if (p.scale != nullptr) bytes += count * 4.0 / (kScaleBlock * kScaleBlock);
  }
  return bytes;
}

// What is going to be allocated, before anything is loaded; refuses what does not fit.
void plan_memory(const Options& o, const io::HfCheckpoint& checkpoint, Device where,
                 const Decoder::Limits& limits) {
  const Config& c = checkpoint.config;
  const DType act = act_of(o, checkpoint);
  const double mib = 1024.0 * 1024.0;
  const double weights = weight_bytes(o, checkpoint);
  const auto cache =
      static_cast<double>(limits.num_pages * ops::kCachePageTokens *
                          cache_bytes_per_token(c, act, limits.cache, limits.num_mtp));
  double logits =
      static_cast<double>(limits.max_seqs * (1 + o.speculation.speculate) * c.vocab_size) *
      static_cast<double>(dtype_size(stat_dtype(act)));
  double step = step_bytes(o, c, act, limits, limits.max_step_tokens);
  if (where.kind == DeviceKind::kCuda) {  // recorded steps have memory of their own
    logits *= 2.0;
    step += step_bytes(o, c, act, limits, limits.max_seqs) + 64e6;
  }
  if (!o.quiet)
    fmt::print(
        stderr,
        "memory: weights {}, cache {:.1f} MiB ({} tokens in pages of {}), logits {:.1f} MiB, "
        "a step of {} tokens at most {:.1f} MiB\n",
        weights > 0 ? fmt::format("{:.1f} MiB", weights / mib) : "mapped from the file",
        cache / mib, limits.num_pages * ops::kCachePageTokens, ops::kCachePageTokens, logits / mib,
        limits.max_step_tokens, step / mib);
  const auto needed = static_cast<int64_t>(weights + cache + logits + step);
  const int64_t available = where.kind == DeviceKind::kCpu
                                ? available_memory()
                                : static_cast<int64_t>(device::memory_free(where));
  HADAL_CHECK(needed<available, weights> 0 ? "weights, cache and a step" : "the cache and a step",
              " need ", needed >> 20, " MiB, and ", available >> 20,
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
  o.engine.speculate = o.speculation.speculate;
  o.engine.prefix_cache = !o.no_prefix_cache;
  o.engine.overlap = machine->device.kind == DeviceKind::kCuda;
  const io::HfCheckpoint checkpoint = io::open_checkpoint(resolve_model(o.model.model));
  o.speculation.check(checkpoint.config);
  const Decoder::Limits limits = limits_of(o, checkpoint.config, act_of(o, checkpoint));
  plan_memory(o, checkpoint, machine->device, limits);
  LoadedModel model(ctx, o.model.model, o.model.dtype);
  const Block panels = io::pack_weights(ctx, model.checkpoint, model.weights);
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
  command
      ->add_option("--max-seqs", o->max_seqs,
                   "sequences that run at once; 256 on a GPU unless given")
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
  command->callback([o, command] {
    // A GPU is fed with more at once.
    const bool is_cuda = o->model.machine.device == "cuda";
    if (is_cuda && command->count("--chunk") == 0) o->model.chunk = 8192;
    if (is_cuda && command->count("--max-seqs") == 0) o->max_seqs = 256;
    run(*o);
  });
}

}  // namespace hadal::cli
