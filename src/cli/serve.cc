// hadal serve: an OpenAI-compatible server for one model.
// SPDX-License-Identifier: Apache-2.0
#include "cli/serve.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>

#include "cli/model_run.h"
#include "core/check.h"
#include "core/env.h"
#include "core/timer.h"
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
  std::string name, chat_template, key_file, attention = "heads";
  int64_t context = 0, max_seqs = 16, cache_tokens = 0;
  double drain_seconds = 30.0;
  bool no_prefix_cache = false, quiet = false;
};

void check(const Options& o) {
  o.model.check();
  HADAL_CHECK(o.attention == "heads" || o.attention == "sequences", "--attention is ", o.attention,
              "; allowed: heads, sequences");
  HADAL_CHECK(o.attention == "heads" || o.model.ranks > 1,
              "--attention sequences is for a model on several ranks; give --ranks 2 or more");
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

// Prints what is going to be allocated, before anything is loaded; refuses what does not fit.
void check_plan(const Options& o, const PlanInput& input) {
  io::check_decode_parts(*input.model.checkpoint, input.model.format,
                         static_cast<int>(o.model.ranks), o.model.attention);
  const MemoryPlan memory = plan_memory(input);
  if (!o.quiet) fmt::print(stderr, "{}", describe(memory, input));
  // NOTE: processes that have used a GPU cannot start others that do.
  if (o.model.ranks > 1 && o.model.machine.device != "cpu") return;
  check_fits(memory, input, parse_device(o.model.machine.device, "--device"));
}

// Ranks that have sequences of their own.
int64_t num_homes(const Options& o) {
  return o.model.attention == AttentionSplit::kSequences ? o.model.ranks : 1;
}

server::ModelInfo info_of(const Options& o, const OpenedModel& model,
                          const Decoder::Limits& limits) {
  const Config& c = model.config();
  server::ModelInfo info;
  info.id = o.name.empty() ? std::filesystem::weakly_canonical(o.model.model).filename().string()
                           : o.name;
  info.context = limits.max_tokens;
  info.vocab_size = c.vocab_size;
  info.bos = model.bos();
  for (int64_t id : c.eos_token_ids) info.eos.push_back(static_cast<int32_t>(id));
  info.max_choices = num_homes(o) * o.max_seqs + o.engine.max_queue;
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

// The HTTP server, the routes, and the engine on a thread of its own, until a signal.
class Server {
 public:
  Server(const Options& o, const std::vector<std::string>& keys, const ModelLead& lead,
         const Decoder::Limits& limits, const server::ModelInfo& info)
      : options_(o),
        world_(lead.world),
        decoder_(lead.decoder(limits)),
        engine_(lead.ctx, decoder_, info.tokenizer, o.engine,
                [this](std::vector<serve::Output>&& outputs) { deliver(std::move(outputs)); }),
        service_(
            info, backend(info),
            {.keys = keys,
             .log = o.quiet ? std::function<void(const std::string&)>()
                            : [](const std::string& line) { fmt::print(stderr, "{}\n", line); }}),
        http_(o.http, [this](auto&& request, auto reply) {
          service_.handle(std::move(request), std::move(reply));
        }) {}
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  int port() const { return http_.port(); }

  // Serves until a signal; throws what ended the engine, if that was something else. ready() is
  // called first.
  void run(const std::function<void()>& ready) {
    std::exception_ptr failure;
    std::thread engine_thread([&] {
      try {
        engine_.run();
      } catch (...) {
        failure = std::current_exception();
        http_.post([this] { drain("the model is gone", kLastWordsSeconds); });
      }
    });
    http_.on_signal([this] {
      if (draining_) return end();
      drain("draining", options_.drain_seconds);
    });
    if (world_ != nullptr) watch_ranks();
    ready();
    http_.run();
    engine_.stop();
    engine_thread.join();
    forms_.reset();  // before the server that it calls back to
    service_.forget();
    if (failure) std::rethrow_exception(failure);
  }

 private:
  static constexpr double kWatchSeconds = 0.2, kLastWordsSeconds = 3.0;

  void deliver(std::vector<serve::Output>&& outputs) {
    http_.post([this, list = std::move(outputs)]() mutable { service_.deliver(std::move(list)); });
  }

  server::Backend backend(const server::ModelInfo& info) {
    // Without a tokenizer there is no text to hold to a form.
    if (info.tokenizer && serve::GrammarCompiler::why_not().empty())
      forms_.emplace(*info.tokenizer, info.vocab_size, static_cast<size_t>(info.max_choices));
    const auto compile = [this](serve::GrammarSpec spec, const server::Backend::Compiled& done) {
      return forms_->compile(std::move(spec), [this, done](auto grammar, std::string error) {
        http_.post([done, grammar, error] { done(grammar, error); });
      });
    };
    return {.submit = [this](auto requests) { return engine_.submit(std::move(requests)); },
            .cancel = [this](uint64_t id) { engine_.cancel(id); },
            .stats = [this] { return engine_.stats(); },
            .stalled_seconds = [this] { return engine_.stalled_seconds(); },
            .compile = forms_ ? compile : decltype(server::Backend::compile)()};
  }

  void end() {
    engine_.stop();
    http_.stop(2.0);
  }
  // Ends when all answers are out, or when the time is over.
  void drain(const char* why, double seconds) {
    draining_ = true;
    if (!options_.quiet)
      fmt::print(stderr, "{}: {} requests, {} s at most\n", why, service_.num_jobs(), seconds);
    service_.drain();
    engine_.close();
    http_.after(seconds, [this] { end(); });
    wait_until_done();
  }
  void wait_until_done() {
    if (service_.num_jobs() == 0) return end();
    http_.after(0.02, [this] { wait_until_done(); });
  }
  // While there is no work, nobody waits for the other ranks and so learns that one is gone.
  void watch_ranks() {
    if (const std::string why = world_->failure(); !why.empty())
      return engine_.abort(std::make_exception_ptr(PeerFailure(why, __FILE__, __LINE__, nullptr)));
    http_.after(kWatchSeconds, [this] { watch_ranks(); });
  }

  const Options& options_;
  const World* world_;
  Decoder decoder_;
  serve::Engine engine_;
  std::optional<serve::GrammarQueue> forms_;
  server::Service service_;
  server::HttpServer http_;
  bool draining_ = false;
};

void run(Options o) {
  check(o);
  const Timer timer;
  const std::vector<std::string> keys = read_keys(o);
  if (o.attention == "sequences") o.model.attention = AttentionSplit::kSequences;
  o.engine.speculate = o.speculation.speculate;
  o.engine.prefix_cache = !o.no_prefix_cache;
  o.engine.overlap = o.model.machine.device == "cuda";
  const OpenedModel model(o.model.model, o.model.dtype);
  o.speculation.check(model.config());
  const Decoder::Limits limits = limits_of(o, model.config(), model.act);
  const PlanInput plan{.model = model,
                       .options = o.model,
                       .limits = limits,
                       .num_logits = num_homes(o) * limits.max_seqs * (1 + o.speculation.speculate),
                       .num_states = num_homes(o) > 1 ? num_homes(o) * limits.max_step_tokens : 0};
  check_plan(o, plan);
  const server::ModelInfo info = info_of(o, model, limits);
  run_model(plan, [&](ModelLead& lead) {
    Server server(o, keys, lead, limits, info);
    server.run([&] {
      fmt::print("hadal: serving {} on http://{}:{} after {:.2f} s\n", info.id, o.http.host,
                 server.port(), timer.seconds());
      std::fflush(stdout);
    });
  });
}

}  // namespace

void add_serve_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("serve", "serve a model through OpenAI's API");
  o->model.add_to(*command);
  o->speculation.add_to(*command);
  command
      ->add_option("--attention", o->attention,
                   "how --ranks split it: heads, where each rank has all sequences; or sequences, "
                   "where each has its own, and --chunk, --max-seqs and --cache-tokens are of each "
                   "rank")
      ->capture_default_str();
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
