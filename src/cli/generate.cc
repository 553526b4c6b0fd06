// hadal generate: text from a prompt, greedy or sampled, with or without MTP speculation.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/options.h"
#include "core/check.h"
#include "io/hf.h"
#include "io/tokenizer.h"
#include "serve/generator.h"

namespace hadal::cli {
namespace {

struct Options {
  MachineOptions machine;
  std::string model, prompt, prompt_ids, dtype = "auto";
  std::vector<std::string> stop;
  int64_t max_tokens = 128, top_k = 0, speculate = 0, chunk = 256;
  double temperature = 0.0, top_p = 1.0;
  uint64_t seed = 0;
  bool json = false, ignore_eos = false;
};

void check(const Options& o) {
  HADAL_CHECK(o.prompt.empty() != o.prompt_ids.empty(),
              "give either --prompt TEXT or --prompt-ids 5,9,200");
  HADAL_CHECK(o.max_tokens >= 1, "--max-tokens is ", o.max_tokens, "; give 1 or more");
  HADAL_CHECK(o.temperature >= 0.0 && o.temperature <= 100.0, "--temperature is ", o.temperature,
              "; allowed: 0 (greedy) to 100");
  HADAL_CHECK(o.top_k >= 0, "--top-k is ", o.top_k, "; give 0 (all) or more");
  HADAL_CHECK(o.top_p > 0.0 && o.top_p <= 1.0, "--top-p is ", o.top_p,
              "; allowed: above 0, at most 1");
  HADAL_CHECK(o.speculate >= 0 && o.speculate <= 16, "--speculate is ", o.speculate,
              "; allowed: 0 to 16");
  HADAL_CHECK(o.chunk >= 1 && o.chunk <= 65536, "--chunk is ", o.chunk, "; allowed: 1 to 65536");
}

// Weights and the type to compute in.
struct Model {
  Model(Context& ctx, const Options& o) : checkpoint(io::open_checkpoint(resolve_model(o.model))) {
    const io::StoredType stored = checkpoint.params.front().data->type;
    act = stored == io::StoredType::kF32 ? DType::kF32 : DType::kBF16;
    io::WeightFormat format = io::WeightFormat::kKeep;
    if (o.dtype != "auto") {
      act = parse_dtype(o.dtype, {DType::kF32, DType::kBF16}, "--dtype");
      format = act == DType::kF32 ? io::WeightFormat::kF32 : io::WeightFormat::kBF16;
    }
    memory = io::load_weights(ctx, checkpoint, format, weights);
  }
  io::HfCheckpoint checkpoint;
  Block memory;
  Weights weights;
  DType act;
};

// Prints text as it becomes complete; knows when a stop string has appeared.
class Printer {
 public:
  Printer(const io::Tokenizer* tokenizer, const Options& o) : tokenizer_(tokenizer), options_(o) {}

  // False when a stop string has appeared: the text ends before it.
  bool add(int32_t token) {
    if (tokenizer_ == nullptr) return true;
    // NOTE: vocab_size may be above the tokenizer's; such tokens have no text.
    if (tokenizer_->knows(token)) ids_.push_back(token);
    text_ = tokenizer_->decode(ids_);
    for (const std::string& stop : options_.stop) {
      const size_t at = text_.find(stop);
      if (at == std::string::npos) continue;
      text_.resize(at);
      stopped_ = true;
    }
    if (!options_.json) show(stopped_ ? text_.size() : complete());
    return !stopped_;
  }
  void finish() {
    if (options_.json) return;
    if (tokenizer_ != nullptr) show(text_.size());
    fmt::print("\n");
  }
  const std::string& text() const { return text_; }

 private:
  // Bytes that can be shown: not into a character or what may become a stop string.
  size_t complete() const {
    size_t end = text_.size();
    for (size_t back = 1; back <= std::min<size_t>(4, end); ++back) {
      const auto byte = static_cast<unsigned char>(text_[end - back]);
      if ((byte & 0xC0) == 0x80) continue;
      const size_t need = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1;
      if (need > back) end -= back;
      break;
    }
    size_t held = 0;
    for (const std::string& stop : options_.stop)
      for (size_t n = std::min(stop.size(), end); n > held; --n)
        if (text_.compare(end - n, n, stop, 0, n) == 0) held = n;
    return end - held;
  }
  void show(size_t end) {
    if (end <= shown_) return;
    std::fwrite(text_.data() + shown_, 1, end - shown_, stdout);
    std::fflush(stdout);
    shown_ = end;
  }

  const io::Tokenizer* tokenizer_;
  const Options& options_;
  std::vector<int32_t> ids_;
  std::string text_;
  size_t shown_ = 0;
  bool stopped_ = false;
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
    // NOTE: a reply can end inside a character; such bytes are replaced in JSON.
    fmt::print("{}\n", root.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
    return;
  }
  if (!has_text) {
    std::string ids;
    for (int32_t id : r.tokens) ids += fmt::format("{}{}", ids.empty() ? "" : ",", id);
    fmt::print("{}\n", ids);
  }
  std::string line =
      fmt::format("[{} tokens, {:.1f} tokens/s", r.tokens.size(), r.tokens_per_second());
  if (o.speculate > 0)
    line += fmt::format(", first draft accepted {:.1f}%", 100.0 * r.acceptance());
  fmt::print(stderr, "{}]\n", line);
}

void run(const Options& o) {
  check(o);
  const auto machine = o.machine.make();
  Context ctx = machine->context();
  Model model(ctx, o);
  const Config& c = model.checkpoint.config;
  HADAL_CHECK(o.speculate == 0 || c.num_nextn_predict_layers > 0,
              "--speculate needs a model with an MTP ", "module; this one has none");
  const std::string tokenizer_path = resolve_model(o.model) + "/tokenizer.json";
  std::optional<io::Tokenizer> tokenizer;
  if (std::filesystem::exists(tokenizer_path)) tokenizer = io::Tokenizer::load(tokenizer_path);
  HADAL_CHECK(tokenizer || o.prompt.empty(), tokenizer_path,
              " is missing; use --prompt-ids 5,9,200");
  HADAL_CHECK(tokenizer || o.stop.empty(), tokenizer_path, " is missing; --stop needs a tokenizer");

  serve::GenerateRequest request;
  if (!o.prompt_ids.empty()) {
    request.prompt = parse_ids(o.prompt_ids);
  } else {
    // Text continues a document, so it starts after the token that begins one.
    request.prompt = tokenizer->encode(o.prompt);
    request.prompt.insert(request.prompt.begin(), static_cast<int32_t>(c.bos_token_id));
  }
  request.max_tokens = o.max_tokens;
  request.sampling = {
      .temperature = o.temperature, .top_k = o.top_k, .top_p = o.top_p, .seed = o.seed};
  if (!o.ignore_eos) request.stop_ids = c.eos_token_ids;
  request.speculate = o.speculate;
  Printer printer(tokenizer ? &*tokenizer : nullptr, o);
  request.on_token = [&](int32_t token) { return printer.add(token); };

  const auto needed = static_cast<int64_t>(request.prompt.size()) + o.max_tokens + o.speculate + 1;
  Decoder decoder(ctx, c, model.weights, model.act,
                  {.max_seqs = 1,
                   .max_tokens = std::min(needed, c.max_position_embeddings),
                   .max_step_tokens = std::max(o.chunk, o.speculate + 1),
                   .num_mtp = o.speculate > 0 ? c.num_nextn_predict_layers : 0});
  const serve::GenerateResult result = serve::Generator(ctx, decoder).run(request);
  if (tokenizer) printer.finish();
  report(o, result, printer.text(), tokenizer.has_value());
}

}  // namespace

void add_generate_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("generate", "generate text from a prompt");
  command->add_option("--model", o->model, "checkpoint, or output directory of a training run")
      ->required();
  command->add_option("--prompt", o->prompt, "text to go on from");
  command->add_option("--prompt-ids", o->prompt_ids, "token ids instead of text: 5,9,200");
  command->add_option("--max-tokens", o->max_tokens, "tokens to generate")->capture_default_str();
  command->add_option("--temperature", o->temperature, "0 is greedy")->capture_default_str();
  command->add_option("--top-k", o->top_k, "keep the k most probable tokens; 0 keeps all")
      ->capture_default_str();
  command->add_option("--top-p", o->top_p, "keep the most probable tokens up to this probability")
      ->capture_default_str();
  command->add_option("--seed", o->seed, "the same seed gives the same text")
      ->capture_default_str();
  command->add_option("--stop", o->stop, "end before this text; may be repeated");
  command->add_flag("--ignore-eos", o->ignore_eos, "go on after an end-of-sequence token");
  command
      ->add_option("--speculate", o->speculate,
                   "tokens drafted by MTP in a round; the text stays the same")
      ->capture_default_str();
  command->add_option("--chunk", o->chunk, "prompt tokens of one prefill step")
      ->capture_default_str();
  command->add_option("--dtype", o->dtype, "auto (as stored), f32 or bf16")->capture_default_str();
  command->add_flag("--json", o->json,
                    "print token_ids, text, acceptance and tokens_per_second as JSON");
  o->machine.add_to(*command);
  command->footer(
      "Example: hadal generate --model runs/quickstart --prompt \"In the beginning\" --speculate "
      "1");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
