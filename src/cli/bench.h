// What the benches share: timed samples with the machine's ceilings measured between them, the
// model that is timed, and JSON rows.
//
// The machine may be shared, so a rate is worth only what a ceiling measured beside it says: every
// sample follows a measurement of all three ceilings, and medians are compared.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/options.h"
#include "model/params.h"

namespace hadal::cli {

// Work done, and what it took: seconds of the clock, and of the processors (all threads).
struct Timed {
  double work = 0.0, wall = 0.0, cpu = 0.0;
};

// Register-only loops and streaming reads over 2 MiB pages, on all threads at once.
class Ceilings {
 public:
  explicit Ceilings(Context& ctx);
  void measure();  // adds one sample of each, about 15 ms
  nlohmann::json to_json() const;
  // Work per second of the clock, and per second of one processor.
  struct Rate {
    double wall, cpu;
  };
  Rate flops() const { return rate(fma_); }
  Rate int_ops() const { return rate(dot_); }
  Rate bytes() const { return rate(read_); }

 private:
  Timed timed(const std::function<double(int thread)>& loop);
  static Rate rate(const std::vector<Timed>& samples);

  Context& ctx_;
  Block memory_;
  Tensor buffer_;
  int64_t next_ = 0, fma_rounds_ = 1 << 12, dot_rounds_ = 1 << 12;
  std::vector<Timed> fma_, dot_, read_;
};

// What one sample does.
struct Work {
  double flops = 0.0;  // in f32 or, for integer weights, in 8 bits
  double bytes = 0.0;  // that must come from memory
  bool is_int = false;
};

// Runs `fn` once to warm up, then `count` times between ceilings.
struct Sampled {
  std::vector<double> wall, cpu;
  nlohmann::json ceilings;
  nlohmann::json to_json(const Work& work) const;  // quantiles, rates, percentages
  Ceilings::Rate flops, int_ops, bytes;
};
Sampled sample(Context& ctx, int64_t count, const std::function<void()>& fn);
double quantile(std::vector<double> values, double q);

// The commit that this program was built from.
const char* built_commit();
// commit, processor, instruction set, threads, command.
nlohmann::json machine_row(const Context& ctx, const std::string& command);

// A model of a config with weights that mean nothing, in one of the formats.
struct BenchModel {
  BenchModel(Context& ctx, const Config& config, const std::string& format);

  Config config;
  std::string format;  // f32, bf16, fp8, int8, int4
  DType act;
  Weights weights;
  bool is_int() const { return format.starts_with("int"); }
  // Bytes of the weights that one token reads, and operations of their products; without the
  // embedding, and of the head or without it.
  double active_bytes = 0.0, active_flops = 0.0, head_flops = 0.0;
  // Of attention over the cache: of one token that sees `depth` positions.
  double attention_flops(double depth) const;
  double cache_bytes(double depth, CacheFormat cache) const;

 private:
  std::vector<Block> memory_;
};

// A weight [N, K] of a format, as BenchModel fills them.
Operand bench_weight(Context& ctx, const Shape& shape, const std::string& format,
                     std::vector<Block>& memory);

void bench_decode(Context& ctx, const BenchModel& model, CacheFormat cache, int64_t depth,
                  int64_t count, nlohmann::json row);
void bench_prefill(Context& ctx, const BenchModel& model, int64_t tokens, int64_t count,
                   nlohmann::json row);
struct RatesOptions {
  std::vector<std::string> plans = {"configs/plans/quickstart_cpu.json"};
  std::string source, output;
  int64_t rounds = 20;
};
// Rows of rates for configs/rates; steps run on a second machine of the same options.
void bench_rates(Context& ctx, const MachineOptions& machine, const RatesOptions& options);
// Milliseconds of a layer's forward pass and of the halves of its backward pass; on any device.
void bench_layer(Context& ctx, const Config& config, const Precision& precision, int64_t tokens,
                 int64_t count, nlohmann::json row);
// The operations that are bound by memory, beside a copy; on a GPU.
void bench_rows(Context& ctx, const Config& config, int64_t tokens, int64_t count,
                const nlohmann::json& row);
// hadal bench train, overlap and comm: start ranks of their own.
void add_bench_train_command(CLI::App& bench);
void add_bench_overlap_command(CLI::App& bench);
void add_bench_comm_command(CLI::App& bench);
void bench_ops(Context& ctx, const Config& config, const std::string& format, int64_t count,
               const nlohmann::json& row);

}  // namespace hadal::cli
