// hadal generate: text from a prompt, greedy or sampled, with or without MTP speculation.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/model_run.h"
#include "core/check.h"
#include "io/safetensors.h"
#include "io/stream_decoder.h"
#include "serve/generator.h"

namespace hadal::cli {
namespace {

struct Options {
  ModelOptions model;
  SamplingOptions sampling;
  SpeculateOptions speculation;
  std::string prompt, prompt_ids, logits;
  std::vector<std::string> stop;
  int64_t max_tokens = 128;
  bool json = false, ignore_eos = false;
};

void check(const Options& o) {
  HADAL_CHECK(o.prompt.empty() != o.prompt_ids.empty(),
              "give either --prompt TEXT or --prompt-ids 5,9,200");
  HADAL_CHECK(o.max_tokens >= 1, "--max-tokens is ", o.max_tokens, "; give 1 or more");
  o.sampling.check();
  o.speculation.check();
  o.model.check();
}

// Shows text as it becomes complete; knows when a stop string has appeared.
class Printer {
 public:
  Printer(const std::optional<io::Tokenizer>& tokenizer, const Options& o)
      : options_(o), scanner_(o.stop) {
    if (tokenizer) decoder_.emplace(*tokenizer);
  }

  // False when a stop string has appeared: the text ends before it.
  bool add(int32_t token) {
    if (!decoder_) return true;
    show(scanner_.push(decoder_->push(token)));
    return !scanner_.stopped();
  }
  void finish() {
    if (!decoder_) return;
    if (!scanner_.stopped()) show(scanner_.push(decoder_->finish()) + scanner_.finish());
    if (!options_.json) fmt::print("\n");
  }
  const std::string& text() const { return text_; }

 private:
  void show(const std::string& text) {
    text_ += text;
    if (options_.json || text.empty()) return;
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }

  const Options& options_;
  std::optional<io::StreamDecoder> decoder_;
  io::StopScanner scanner_;
  std::string text_;
};

void report(const Options& o, const serve::GenerateResult& r, const std::string& text,
            bool has_text) {
  if (o.json) {
    nlohmann::json root = {{"token_ids", r.tokens},
                           {"acceptance", r.acceptance()},
                           {"drafted", r.drafted},
                           {"accepted", r.accepted},
                           {"rounds", r.num_rounds},
                           {"prefill_seconds", r.prefill_seconds},
                           {"tokens_per_second", r.tokens_per_second()}};
    if (has_text) root["text"] = text;
    fmt::print("{}\n", root.dump(2));
    return;
  }
  if (!has_text) {
    std::string ids;
    for (int32_t id : r.tokens) ids += fmt::format("{}{}", ids.empty() ? "" : ",", id);
    fmt::print("{}\n", ids);
  }
  std::string line =
      fmt::format("[{} tokens, {:.1f} tokens/s", r.tokens.size(), r.tokens_per_second());
  if (o.speculation.speculate > 0)
    line += fmt::format(", first draft accepted {:.1f}%", 100.0 * r.acceptance());
  fmt::print(stderr, "{}]\n", line);
}

// The logits after each token of prompt and reply, by another pass over them: they have the same
// bits however the tokens were cut into steps.
void write_logits(Context& ctx, Decoder& decoder, std::vector<int32_t> ids,
                  const std::string& path) {
  const auto n = static_cast<int64_t>(ids.size());
  const Config& c = decoder.config();
  const auto fill = [&](void* out) {
    const Tensor logits(out, DType::kF32, {n, c.vocab_size});
    const std::vector<int64_t> seqs = {decoder.cache().open()};
    for (int64_t i = 0; i < n;) {
      const int64_t count = std::min(n - i, decoder.limits().max_step_tokens);
      const std::vector<int32_t> chunk(ids.begin() + i, ids.begin() + i + count);
      const Step step = make_step(ctx, c, chunk, {i}, {count}, decoder.act());
      Tensor h;
      const Block memory = ctx.memory.take_tensor(decoder.act(), {count, c.hidden_size}, &h);
      decoder.forward({.step = step, .seqs = seqs}, h);
      decoder.logits(h, logits.rows(i, count));
      i += count;
    }
    decoder.cache().close(seqs[0]);
  };
  io::TensorSource logits{
      .name = "logits", .type = io::StoredType::kF32, .shape = {n, c.vocab_size}};
  logits.fill = fill;
  io::write_safetensors(
      path, {io::source_of("input_ids", Tensor(ids.data(), DType::kI32, {n})), std::move(logits)});
}

// What is asked for: a prompt, and when to stop.
serve::GenerateRequest request_of(const Options& o, const OpenedModel& model,
                                  const std::optional<io::Tokenizer>& tokenizer) {
  serve::GenerateRequest request;
  if (!o.prompt_ids.empty()) {
    request.prompt = parse_ids(o.prompt_ids);
  } else {
    // Text continues a document, so it starts after the token that begins one.
    request.prompt = tokenizer->encode(o.prompt);
    request.prompt.insert(request.prompt.begin(), model.bos());
  }
  request.max_tokens = o.max_tokens;
  request.sampling = o.sampling.rule();
  if (!o.ignore_eos) request.stop_ids = model.config().eos_token_ids;
  request.speculate = o.speculation.speculate;
  return request;
}

void generate(const Options& o, const ModelLead& lead, const Decoder::Limits& limits,
              serve::GenerateRequest request, const std::optional<io::Tokenizer>& tokenizer) {
  Printer printer(tokenizer, o);
  request.on_token = [&](int32_t token) { return printer.add(token); };
  Decoder decoder = lead.decoder(limits);
  const serve::GenerateResult result = serve::Generator(lead.ctx, decoder).run(request);
  printer.finish();
  if (!o.logits.empty()) {
    std::vector<int32_t> ids = request.prompt;
    ids.insert(ids.end(), result.tokens.begin(), result.tokens.end());
    write_logits(lead.ctx, decoder, std::move(ids), o.logits);
  }
  report(o, result, printer.text(), tokenizer.has_value());
}

void run(const Options& o) {
  check(o);
  const OpenedModel model(o.model.model, o.model.dtype);
  const Config& c = model.config();
  o.speculation.check(c);
  const std::string tokenizer_path = model.dir + "/tokenizer.json";
  std::optional<io::Tokenizer> tokenizer;
  if (std::filesystem::exists(tokenizer_path)) tokenizer = io::Tokenizer::load(tokenizer_path);
  HADAL_CHECK(tokenizer || o.prompt.empty(), tokenizer_path,
              " is missing; use --prompt-ids 5,9,200");
  HADAL_CHECK(tokenizer || o.stop.empty(), tokenizer_path, " is missing; --stop needs a tokenizer");
  const serve::GenerateRequest request = request_of(o, model, tokenizer);

  const int64_t speculate = o.speculation.speculate;
  const auto needed = static_cast<int64_t>(request.prompt.size()) + o.max_tokens + speculate + 1;
  const Decoder::Limits limits =
      limits_of_one(model, o.model, std::min(needed, c.max_position_embeddings), speculate);
  const PlanInput plan{.model = model,
                       .options = o.model,
                       .limits = limits,
                       .num_logits = o.logits.empty() ? 1 : limits.max_step_tokens,
                       .num_states = (1 + limits.num_mtp) * limits.max_tokens};
  check_ranks_of(plan);
  run_model(plan, [&](ModelLead& lead) { generate(o, lead, limits, request, tokenizer); });
}

}  // namespace

void add_generate_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("generate", "generate text from a prompt");
  o->model.add_to(*command);
  command->add_option("--prompt", o->prompt, "text to go on from");
  command->add_option("--prompt-ids", o->prompt_ids, "token ids instead of text: 5,9,200");
  command->add_option("--max-tokens", o->max_tokens, "tokens to generate")->capture_default_str();
  o->sampling.add_to(*command);
  o->speculation.add_to(*command);
  command->add_option("--stop", o->stop, "end before this text; may be repeated");
  command->add_flag("--ignore-eos", o->ignore_eos, "go on after an end-of-sequence token");
  command->add_flag("--json", o->json,
                    "print token_ids, text, acceptance and tokens_per_second as JSON");
  command->add_option("--logits", o->logits,
                      "write input_ids (prompt and reply) and the logits after each to this "
                      "safetensors file");
  command->footer(
      "Example: hadal generate --model runs/quickstart --prompt \"In the beginning\" --speculate "
      "1");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
