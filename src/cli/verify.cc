// hadal verify: compares a model with reference outputs; exit 1 beyond tolerance.
// SPDX-License-Identifier: Apache-2.0
#include "cli/verify.h"

#include <fmt/core.h>

#include "cli/model_run.h"
#include "core/check.h"

namespace hadal::cli {
namespace {

struct Options {
  MachineOptions machine;
  CacheOptions cache;
  std::string model, golden, record, dtype = "f32";
  int64_t sequences = 2, tokens = 48, ranks = 1;
  uint64_t seed = 0;
  bool json = false;
};

VerifyFormat format_of(const Options& o) {
  VerifyFormat format{DType::kBF16};
  if (o.dtype == "fp8")
    format.precision = kFp8Recipe;
  else
    format.dtype = parse_dtype(o.dtype, {DType::kF64, DType::kF32, DType::kBF16}, "--dtype");
  format.cache = o.cache.format(format.dtype);
  return format;
}

void record(const Options& o) {
  constexpr int64_t kFewest = 18, kMost = 1 << 20;
  HADAL_CHECK(o.sequences >= 1 && o.tokens >= kFewest && o.sequences * o.tokens <= kMost,
              "--sequences ", o.sequences, " --tokens ", o.tokens,
              ": a golden has at least one sequence of ", kFewest, " tokens and at most ", kMost,
              " tokens in all");
  const auto machine = o.machine.make();
  Context ctx = machine->context();
  const io::HfCheckpoint checkpoint = io::open_checkpoint(resolve_model(o.model));
  Recording recording(o.sequences, o.tokens, checkpoint.config.vocab_size, o.seed);
  VerifyReport report(recording);
  verify_golden(ctx, checkpoint, format_of(o), report);
  recording.write(o.record);
  fmt::print("recorded: {} in {}\n", o.record, o.dtype);
}

void conclude(const Options& o, const VerifyReport& report) {
  if (o.json)
    fmt::print("{}", report.json());
  else
    fmt::print("{}", report.table());
  HADAL_CHECK(report.passed(), "verification failed: ", o.golden, " in ", o.dtype,
              " differs from what this model computes; the rows marked FAILED say where");
  if (!o.json) fmt::print("verified: {} in {}\n", o.golden, o.dtype);
}

// What generation computes, by several processes together.
void verify_over_ranks(const Options& o, const VerifyFormat& format,
                       const io::SafetensorsFile& golden) {
  OpenedModel model(o.model, "auto");
  model.act = format.dtype;
  model.format = format.dtype == DType::kF64   ? io::WeightFormat::kF64
                 : format.dtype == DType::kF32 ? io::WeightFormat::kF32
                                               : io::WeightFormat::kBF16;
  ModelOptions options;
  options.machine = o.machine;
  options.ranks = o.ranks;
  io::check_decode_parts(*model.checkpoint, model.format, static_cast<int>(o.ranks));
  const PlanInput plan{.model = model, .options = options, .limits = {}, .num_logits = 0};
  run_model(plan, [&](ModelLead& lead) {
    VerifyReport report(golden);
    verify_decode(lead.ctx,
                  {.config = model.config(), .weights = lead.model.weights, .ranks = lead.ranks},
                  format, report);
    conclude(o, report);
  });
}

void run(const Options& o) {
  HADAL_CHECK(o.golden.empty() != o.record.empty(),
              "hadal verify needs --golden FILE to compare with, or --record FILE to write");
  HADAL_CHECK(o.record.empty() || o.ranks == 1,
              "--record writes what one process computes; leave out --ranks");
  if (!o.record.empty()) return record(o);
  const VerifyFormat format = format_of(o);
  check_ranks(o.ranks);
  const io::SafetensorsFile golden(o.golden);
  const bool trains = golden.find("train.tokens") != nullptr;
  if (o.ranks > 1) {
    HADAL_CHECK(
        !trains && !format.precision.fp8, "--ranks is ", o.ranks,
        ", but ranks share what generation computes, not training: give a golden.safetensors "
        "and --dtype f64, f32 or bf16");
    return verify_over_ranks(o, format, golden);
  }
  const auto machine = o.machine.make();
  Context ctx = machine->context();
  const io::HfCheckpoint checkpoint = io::open_checkpoint(resolve_model(o.model));
  VerifyReport report(golden);
  HADAL_CHECK(!trains || format.cache == CacheFormat::kCompute, "--kv-cache is ", o.cache.kv_cache,
              ", but ", o.golden, " holds training steps, which have no cache; leave it out");
  if (trains)
    verify_train(ctx, checkpoint, format, report);
  else
    verify_golden(ctx, checkpoint, format, report);
  conclude(o, report);
}

}  // namespace

void add_verify_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("verify", "compare a model with reference outputs");
  command->add_option("--model", o->model, "checkpoint directory")->required();
  command->add_option("--golden", o->golden, "golden.safetensors or train.safetensors");
  command->add_option(
      "--record", o->record,
      "write this file instead: a golden of random tokens, as this machine computes "
      "it in --dtype; compare another device with it");
  command->add_option("--sequences", o->sequences, "of --record")->capture_default_str();
  command->add_option("--tokens", o->tokens, "of each sequence of --record")->capture_default_str();
  command->add_option("--seed", o->seed, "of the tokens of --record")->capture_default_str();
  command
      ->add_option("--dtype", o->dtype,
                   "f64, f32, bf16, or fp8: bf16 with the recipe of FP8 training")
      ->capture_default_str();
  command->add_flag("--json", o->json, "print the table as JSON");
  add_ranks_option(*command, &o->ranks);
  o->cache.add_to(*command);
  o->machine.add_to(*command);
  command->footer(
      "Example: hadal verify --model tests/goldens/base --golden "
      "tests/goldens/base/golden.safetensors");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
