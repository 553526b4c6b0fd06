// hadal bench: speed of training, decode, prefill and single products, as JSON rows.
// SPDX-License-Identifier: Apache-2.0
#include "cli/bench.h"

#include <fmt/core.h>

#include "cli/bench_rank.h"
#include "cli/convert.h"
#include "cli/model_config.h"
#include "cli/run_options.h"
#include "cli/serve.h"
#include "core/check.h"

namespace hadal::cli {
namespace {

struct Options {
  MachineOptions machine;
  std::string config = "configs/bench_cpu.json";
  std::vector<std::string> formats = {"bf16"};
  std::vector<std::string> kv_caches = {"auto"};
  std::vector<int64_t> depths = {0}, tokens = {512};
  int64_t samples = 10;
};

void check(const Options& o) {
  HADAL_CHECK(o.samples >= 1 && o.samples <= 10000, "--samples is ", o.samples,
              "; allowed: 1 to 10000");
  for (const std::string& f : o.formats)
    HADAL_CHECK(f == "f32" || f == "bf16" || f == "fp8" || f == "int8" || f == "int4",
                "--format is ", f, "; allowed: f32, bf16, fp8, int8, int4");
  for (const std::string& cache : o.kv_caches) CacheOptions{cache}.check();
  for (int64_t d : o.depths)
    HADAL_CHECK(d >= 0 && d <= 1000000, "--depth is ", d, "; allowed: 0 to 1000000");
  for (int64_t t : o.tokens)
    HADAL_CHECK(t >= 1 && t <= 65536, "--tokens is ", t, "; allowed: 1 to 65536");
}

template <class Fn>
CLI::App* add(CLI::App& bench, const char* name, const char* what, const char* example,
              const std::shared_ptr<Options>& o, const Fn& run, bool any_device = false) {
  CLI::App* command = bench.add_subcommand(name, what);
  command->add_option("--config", o->config, "config.json, or a run config")->capture_default_str();
  command->add_option("--samples", o->samples, "runs that are timed")->capture_default_str();
  o->machine.add_to(*command);
  command->footer(std::string("Example: ") + example);
  command->callback([o, run, name, command, any_device] {
    check(*o);
    HADAL_CHECK(any_device || o->machine.device == "cpu", "hadal bench ", name,
                " measures the CPU; use --device cpu");
    const auto machine = o->machine.make();
    Context ctx = machine->context();
    nlohmann::json row =
        machine_row(ctx, fmt::format("hadal bench {} --config {} --samples {} --threads {}", name,
                                     o->config, o->samples, ctx.threads.num_threads()));
    row["config"] = o->config;
    run(ctx, *o, row);
  });
  return command;
}

void add_formats(CLI::App* command, const std::shared_ptr<Options>& o) {
  command->add_option("--format", o->formats, "of weights: f32, bf16, fp8, int8, int4")
      ->delimiter(',')
      ->capture_default_str();
}

void add_rates(CLI::App& bench) {
  struct Rates {
    MachineOptions machine;
    RatesOptions rates;
  };
  auto o = std::make_shared<Rates>();
  auto* command = bench.add_subcommand(
      "rates", "operations of training plans one by one: rows for configs/rates, and the step");
  command->add_option("--plan", o->rates.plans, "plans of hadal train, all of as many ranks")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--rounds", o->rates.rounds, "steps, and calls of each operation")
      ->capture_default_str();
  command->add_option("--source", o->rates.source, "where and when, for every row")->required();
  command->add_option("--output", o->rates.output, "file of rates to write");
  o->machine.add_to(*command);
  command->footer(
      "Example: hadal bench rates --threads 1 --source \"Xeon, today\" --output rates.json");
  command->callback([o] {
    HADAL_CHECK(o->rates.rounds >= 1 && o->rates.rounds <= 10000, "--rounds is ", o->rates.rounds,
                "; allowed: 1 to 10000");
    const auto machine = o->machine.make();
    Context ctx = machine->context();
    bench_rates(ctx, o->machine, o->rates);
  });
}

}  // namespace

void add_bench_command(CLI::App& app) {
  auto* bench = app.add_subcommand("bench", "how fast this machine runs, and of what it could");
  bench->require_subcommand(1);
  bench->footer("Each row has the ceilings that were measured between its samples.");
  auto o = std::make_shared<Options>();
  auto* decode = add(*bench, "decode", "tokens one by one over a cache",
                     "hadal bench decode --format bf16,int4 --depth 0,2048", o,
                     [](Context& ctx, const Options& options, const nlohmann::json& row) {
                       for (const std::string& format : options.formats) {
                         const BenchModel model(ctx, read_model_config(options.config), format);
                         for (const std::string& cache : options.kv_caches)
                           for (int64_t depth : options.depths)
                             bench_decode(ctx, model, CacheOptions{cache}.format(model.act), depth,
                                          options.samples, row);
                       }
                     });
  add_formats(decode, o);
  decode->add_option("--depth", o->depths, "tokens in the cache")->delimiter(',');
  decode
      ->add_option("--kv-cache", o->kv_caches, "what it holds: auto (the compute type), bf16, fp8")
      ->delimiter(',')
      ->capture_default_str();
  auto* prefill = add(*bench, "prefill", "a prompt in one step",
                      "hadal bench prefill --format bf16,fp8 --tokens 128,512", o,
                      [](Context& ctx, const Options& options, const nlohmann::json& row) {
                        for (const std::string& format : options.formats) {
                          const BenchModel model(ctx, read_model_config(options.config), format);
                          for (int64_t tokens : options.tokens)
                            bench_prefill(ctx, model, tokens, options.samples, row);
                        }
                      });
  add_formats(prefill, o);
  prefill->add_option("--tokens", o->tokens, "of the prompt")->delimiter(',');
  add_bench_train_command(*bench);
  auto* layer = add(
      *bench, "layer", "one MoE layer of a rank with 4 experts",
      "hadal bench layer --config configs/deepseek_v3.json --tokens 4096 --format bf16,fp8 "
      "--device cuda",
      o,
      [](Context& ctx, const Options& options, const nlohmann::json& row) {
        for (const std::string& format : options.formats)
          for (int64_t tokens : options.tokens)
            bench_layer(ctx, read_model_config(options.config), precision_of(format), tokens,
                        options.samples, row);
      },
      true);
  add_formats(layer, o);
  layer->add_option("--tokens", o->tokens, "of the one sequence")->delimiter(',');
  add_bench_overlap_command(*bench);
  auto* ops = add(*bench, "ops", "matrix products one by one", "hadal bench ops --format int8", o,
                  [](Context& ctx, const Options& options, const nlohmann::json& row) {
                    const Config config = read_model_config(options.config);
                    for (const std::string& format : options.formats)
                      bench_ops(ctx, config, format, options.samples, row);
                  });
  add_formats(ops, o);
  auto* rows = add(
      *bench, "rows", "operations that are bound by memory, one by one, on a GPU",
      "hadal bench rows --config configs/deepseek_v3.json --tokens 4096 --device cuda", o,
      [](Context& ctx, const Options& options, const nlohmann::json& row) {
        const Config config = read_model_config(options.config);
        for (int64_t tokens : options.tokens) bench_rows(ctx, config, tokens, options.samples, row);
      },
      true);
  rows->add_option("--tokens", o->tokens, "of a step")->delimiter(',');
  add_rates(*bench);
  add_bench_comm_command(*bench);
  add_bench_serve_command(*bench);
  add_bench_frontend_command(*bench);
}

}  // namespace hadal::cli
