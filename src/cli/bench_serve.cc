// hadal bench serve: load on any OpenAI-compatible server, and what its clients saw.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>
#include <unistd.h>

#include "cli/bench.h"
#include "cli/bench_load.h"
#include "cli/serve.h"
#include "core/check.h"
#include "core/env.h"
#include "io/json.h"

namespace hadal::cli {
namespace {

using nlohmann::json;

struct Options {
  LoadShape shape;
  std::string url = "http://127.0.0.1:8000", picture;
  double timeout_seconds = 600.0;
};

// The first model that the server names.
std::string first_model(const server::Url& url, const std::string& key) {
  const json list = io::parse_json(server::get(url, key, "/v1/models"), "/v1/models");
  HADAL_CHECK(list.is_object() && list.contains("data") && list["data"].is_array() &&
                  !list["data"].empty() && list["data"][0].contains("id") &&
                  list["data"][0]["id"].is_string(),
              "/v1/models names no model; give --model");
  return list["data"][0]["id"].get<std::string>();
}

void run(const Options& o) {
  o.shape.check();
  HADAL_CHECK(o.timeout_seconds > 0, "--timeout is ", o.timeout_seconds, "; give more than 0");
  const server::Url url = server::Url::parse(o.url);
  LoadShape shape = o.shape;
  if (shape.model.empty()) shape.model = first_model(url, env::api_key());
  const std::vector<server::StreamRequest> requests = make_requests(shape);
  const bool shows = ::isatty(STDERR_FILENO) != 0;
  const server::LoadResult result = server::run_load(
      {.url = url,
       .key = env::api_key(),
       .max_open = shape.max_open(),
       .timeout_seconds = o.timeout_seconds,
       .progress =
           [&](size_t done) {
             if (shows) fmt::print(stderr, "\r\x1b[K{} of {} requests", done, requests.size());
           }},
      requests);
  if (shows) fmt::print(stderr, "\r\x1b[K");
  json row = load_row(result);
  row.update({{"commit", built_commit()},
              {"url", o.url},
              {"model", shape.model},
              {"arrivals", shape.arrivals},
              {"requests", shape.requests},
              {"concurrency", shape.max_open()}});
  if (shape.arrivals != "closed") row["rate"] = shape.rate;
  fmt::print("{}\n", row.dump(-1, ' ', false, json::error_handler_t::replace));
  HADAL_CHECK(row["completed"] > 0,
              "no request was answered; the first error: ", row["errors"].begin().key());
  if (!o.picture.empty()) draw_load(result, fmt::format("{} at {}", shape.model, o.url), o.picture);
}

}  // namespace

void add_load_options(CLI::App& command, LoadShape& shape) {
  command
      .add_option("--arrivals", shape.arrivals,
                  "closed (the next when one ends), or an open loop: fixed, poisson")
      ->capture_default_str();
  command.add_option("--rate", shape.rate, "requests per second of an open loop")
      ->capture_default_str();
  command
      .add_option("--concurrency", shape.concurrency,
                  "most requests at once; 0: 8 in a closed loop, no limit in an open one")
      ->capture_default_str();
  command.add_option("--requests", shape.requests, "in all")->capture_default_str();
  command.add_option("--prompt-tokens", shape.prompt_tokens, "of each random prompt")
      ->capture_default_str();
  command.add_option("--shared-tokens", shape.shared_tokens, "that all random prompts begin with")
      ->capture_default_str();
  command.add_option("--vocab", shape.vocab, "random prompts are ids below this")
      ->capture_default_str();
  command.add_option("--output-tokens", shape.output_tokens, "of each answer")
      ->capture_default_str();
  command.add_option("--seed", shape.seed, "of prompts and arrivals")->capture_default_str();
}

void add_bench_serve_command(CLI::App& bench) {
  auto o = std::make_shared<Options>();
  auto* command = bench.add_subcommand("serve", "load on a server, and what its clients saw");
  command
      ->add_option("--url", o->url,
                   "of any OpenAI-compatible server; HADAL_API_KEY is the key that is sent")
      ->capture_default_str();
  command->add_option("--model", o->shape.model, "its name there; by default the server's first");
  command
      ->add_option("--endpoint", o->shape.endpoint,
                   "of random prompts: completions (token ids) or chat (words)")
      ->capture_default_str();
  add_load_options(*command, o->shape);
  command->add_option("--jsonl", o->shape.jsonl,
                      "requests from the lines of a file, in turn: {\"prompt\": ...} or "
                      "{\"messages\": ...}, and other keys of a request");
  command->add_option("--extra-body", o->shape.extra_body, "JSON keys for every request");
  command->add_flag("--respect-eos", o->shape.respect_eos,
                    "let answers end early; other servers may not know ignore_eos");
  command->add_option("--timeout", o->timeout_seconds, "seconds of one request")
      ->capture_default_str();
  command->add_option("--picture", o->picture, "write distributions and rate to this SVG file");
  command->footer("Example: hadal bench serve --arrivals poisson --rate 4 --requests 200");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
