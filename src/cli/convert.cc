// hadal convert: the same weights in another format, and what that costs in accuracy.
//
//   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include "cli/convert.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "cli/loaded_model.h"
#include "cli/options.h"
#include "core/check.h"
#include "io/atomic.h"
#include "io/int_weights.h"
#include "model/decoder.h"

namespace hadal::cli {
namespace {

namespace fs = std::filesystem;

struct Options {
  MachineOptions machine;
  std::string model, to, dir, report;
  int64_t shard_mib = 5120, report_tokens = 4096;
  bool json = false;
};

void check(const Options& o) {
  HADAL_CHECK(o.to == "f32" || o.to == "bf16" || o.to == "fp8" || o.to == "fp8-ue8m0" ||
                  o.to == "int8" || o.to == "int4",
              "--to is ", o.to, "; allowed: f32, bf16, fp8, fp8-ue8m0, int8, int4");
  HADAL_CHECK(o.shard_mib >= 1, "--shard-mib is ", o.shard_mib, "; give 1 or more");
  HADAL_CHECK(o.report_tokens >= 2, "--report-tokens is ", o.report_tokens, "; give 2 or more");
  HADAL_CHECK(!fs::exists(o.dir), o.dir, " exists; give a directory that does not");
}

void write(const Options& o, const LoadedModel& model, const std::string& dir) {
  const size_t shard = static_cast<size_t>(o.shard_mib) << 20;
  if (o.to.starts_with("int")) {
    io::save_int_checkpoint(dir, model.config(), model.weights, o.to == "int8" ? 8 : 4, shard);
    return;
  }
  io::SaveFormat format{.dtype = o.to == "f32" ? DType::kF32 : DType::kBF16,
                        .quantization = {},
                        .max_shard_bytes = shard};
  format.quantization.fp8 = o.to.starts_with("fp8");
  if (o.to == "fp8-ue8m0") format.quantization.scale_format = io::ScaleFormat::kPowerOfTwo;
  io::save_checkpoint(dir, model.config(), model.weights, format);
}

// Everything of the directory but weights and configs: the tokenizer, mostly.
void copy_others(const std::string& from, const std::string& to) {
  for (const auto& entry : fs::directory_iterator(from)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file() || !name.starts_with("tokenizer")) continue;
    std::error_code error;
    fs::copy_file(entry.path(), fs::path(to) / name, error);
    HADAL_CHECK(!error, "cannot copy ", entry.path().string(), ": ", error.message());
  }
}

// The logits of a window of tokens.
class Scorer {
 public:
  Scorer(Context& ctx, const LoadedModel& model, int64_t window)
      : ctx_(ctx),
        decoder_(ctx, model.config(), model.weights, model.act,
                 {.max_seqs = 1, .max_tokens = window, .max_step_tokens = window, .num_mtp = 0}) {}

  Tensor run(const std::vector<int32_t>& ids) {
    const auto n = static_cast<int64_t>(ids.size());
    const std::vector<int64_t> slots = {decoder_.cache().open()};
    const Step step = make_step(ctx_, decoder_.config(), ids, {0}, {n}, decoder_.act());
    Tensor h, logits;
    const Block h_memory =
        ctx_.memory.take_tensor(decoder_.act(), {n, decoder_.config().hidden_size}, &h);
    memory_ = ctx_.memory.take_tensor(DType::kF32, {n, decoder_.config().vocab_size}, &logits);
    decoder_.forward({.step = step, .seqs = slots}, h);
    decoder_.logits(h, logits);
    decoder_.cache().close(slots[0]);
    return logits;
  }

 private:
  Context& ctx_;
  Decoder decoder_;
  Block memory_;
};

// Sums over the tokens of a text.
struct Accuracy {
  double kl = 0.0, nats_before = 0.0, nats_after = 0.0;
  int64_t agree = 0, tokens = 0;
};

std::vector<double> log_probabilities(const float* logits, int64_t V) {
  const double top = *std::max_element(logits, logits + V);
  double sum = 0.0;
  for (int64_t v = 0; v < V; ++v) sum += std::exp(static_cast<double>(logits[v]) - top);
  std::vector<double> p(static_cast<size_t>(V));
  for (int64_t v = 0; v < V; ++v)
    p[static_cast<size_t>(v)] = static_cast<double>(logits[v]) - top - std::log(sum);
  return p;
}

void compare(const float* before, const float* after, int64_t V, int32_t target, Accuracy& sum) {
  const std::vector<double> p = log_probabilities(before, V), q = log_probabilities(after, V);
  for (size_t v = 0; v < p.size(); ++v) sum.kl += std::exp(p[v]) * (p[v] - q[v]);
  sum.nats_before -= p[static_cast<size_t>(target)];
  sum.nats_after -= q[static_cast<size_t>(target)];
  sum.agree +=
      std::max_element(before, before + V) - before == std::max_element(after, after + V) - after
          ? 1
          : 0;
  ++sum.tokens;
}

void report(const Options& o, Context& ctx, const LoadedModel& before) {
  const LoadedModel after(ctx, o.dir, "auto");
  std::ifstream file(o.report, std::ios::binary);
  HADAL_CHECK(file, "cannot open ", o.report, "; check the path");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  std::vector<int32_t> ids = before.tokenizer().encode(text);
  if (static_cast<int64_t>(ids.size()) > o.report_tokens)
    ids.resize(static_cast<size_t>(o.report_tokens));
  const int64_t V = before.config().vocab_size;
  const int64_t window = std::min<int64_t>(512, before.config().max_position_embeddings);
  Scorer one(ctx, before, window), other(ctx, after, window);
  Accuracy sum;
  for (size_t begin = 0; begin < ids.size(); begin += static_cast<size_t>(window - 1)) {
    const size_t end = std::min(ids.size(), begin + static_cast<size_t>(window - 1));
    std::vector<int32_t> tokens = {before.bos()};
    tokens.insert(tokens.end(), ids.begin() + static_cast<std::ptrdiff_t>(begin),
                  ids.begin() + static_cast<std::ptrdiff_t>(end));
    const Tensor x = one.run(tokens), y = other.run(tokens);
    for (size_t t = 0; t + 1 < tokens.size(); ++t)
      compare(x.data<float>() + static_cast<int64_t>(t) * V,
              y.data<float>() + static_cast<int64_t>(t) * V, V, tokens[t + 1], sum);
  }
  HADAL_CHECK(sum.tokens > 0, o.report, " is empty; give a text");
  const auto n = static_cast<double>(sum.tokens);
  const double ppl_before = std::exp(sum.nats_before / n), ppl_after = std::exp(sum.nats_after / n);
  if (o.json) {
    const nlohmann::json root = {{"to", o.to},
                                 {"tokens", sum.tokens},
                                 {"kl", sum.kl / n},
                                 {"top1_agreement", static_cast<double>(sum.agree) / n},
                                 {"perplexity_before", ppl_before},
                                 {"perplexity_after", ppl_after}};
    fmt::print("{}\n", root.dump(2));
    return;
  }
  fmt::print("KL divergence    {:.6f} nats per token\n", sum.kl / n);
  fmt::print("top-1 agreement  {:.2f}%\n", 100.0 * static_cast<double>(sum.agree) / n);
  fmt::print("perplexity       {:.4f}, before {:.4f}\n", ppl_after, ppl_before);
  fmt::print("{} tokens\n", sum.tokens);
}

void run(const Options& o) {
  check(o);
  const auto machine = o.machine.make();
  Context ctx = machine->context();
  const LoadedModel model(ctx, o.model, "auto");
  for (const io::HfParam& param : model.checkpoint->params)
    HADAL_CHECK(param.data->type != io::StoredType::kI32, model.dir,
                " holds INT8 or INT4 weights; convert from the checkpoint that it was made of");
  const std::string temporary = o.dir + ".tmp";
  std::error_code error;
  fs::remove_all(temporary, error);
  fs::create_directories(temporary, error);
  HADAL_CHECK(!error, "cannot make ", temporary, ": ", error.message());
  try {
    write(o, model, temporary);
    copy_others(model.dir, temporary);
  } catch (...) {
    fs::remove_all(temporary, error);
    throw;
  }
  io::rename_dir_atomic(temporary, o.dir);
  if (!o.json) fmt::print("wrote {} in {}\n", o.dir, o.to);
  if (!o.report.empty()) report(o, ctx, model);
}

}  // namespace

void add_convert_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("convert", "write a checkpoint in another format");
  command->add_option("--model", o->model, "checkpoint, or output directory of a training run")
      ->required();
  command->add_option("--to", o->to, "f32, bf16, fp8, fp8-ue8m0, int8 or int4")->required();
  command->add_option("dir", o->dir, "directory to make")->required();
  command->add_option("--shard-mib", o->shard_mib, "largest file")->capture_default_str();
  command->add_option("--report", o->report,
                      "text to compare both on: KL divergence, top-1 agreement, perplexity");
  command->add_option("--report-tokens", o->report_tokens, "tokens of it to use")
      ->capture_default_str();
  command->add_flag("--json", o->json, "print the report as JSON");
  o->machine.add_to(*command);
  command->footer(
      "Example: hadal convert --model runs/quickstart --to int4 /tmp/int4 --report data/kjv.txt");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
