// RunConfig: reading, checking and writing.
// SPDX-License-Identifier: Apache-2.0
#include "train/run_config.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "io/hf_config.h"
#include "train/precision_config.h"

namespace hadal::train {
namespace {

constexpr double kMostSequences = 100000;  // of a step

void check_integer(const std::string& where, const char* key, int64_t value, int64_t low,
                   int64_t high) {
  HADAL_CHECK(value >= low && value <= high, where, ": ", key, " is ", value, "; allowed: ", low,
              " to ", high);
}

void check_number(const std::string& where, const char* key, double value, double low,
                  double high) {
  HADAL_CHECK(std::isfinite(value) && value >= low && value <= high, where, ": ", key, " is ",
              value, "; allowed: ", low, " to ", high);
}

SourceConfig read_source(const io::JsonObject& o) {
  SourceConfig s;
  s.shards = o.string("shards");
  s.weight = o.number("weight", s.weight);
  check_number(o.where(), "weight", s.weight, 1e-9, 1e9);
  const std::string packing = o.string("packing", "stream");
  HADAL_CHECK(packing == "stream" || packing == "whole", o.where(), ": packing is \"", packing,
              "\"; allowed: stream, whole");
  s.packing = packing == "stream" ? Packing::kStream : Packing::kWhole;
  s.cross_document_attention = o.boolean("cross_document_attention", s.cross_document_attention);
  o.check_no_unknown();
  return s;
}

DataConfig read_data(const io::JsonObject& o) {
  DataConfig d;
  d.text = o.string("text", "");
  d.tokenizer = o.string("tokenizer", "");
  d.held_out = o.number("held_out", d.held_out);
  if (o.has("sources"))
    for (const io::JsonObject& source : o.objects("sources"))
      d.sources.push_back(read_source(source));
  o.check_no_unknown();
  check_number(o.where(), "held_out", d.held_out, 0.0, 0.9);
  HADAL_CHECK(d.text.empty() || d.sources.empty(), o.where(),
              ": there are a text and sources; give one of them");
  return d;
}

// {"peak", "final", "warmup_steps", "constant_steps"}, or a schedule of its own.
Schedule read_lr(const io::JsonObject& train, const TrainConfig& t) {
  const io::Json& json = train.json();
  const bool usual = !json.contains("lr") || json["lr"].is_null() ||
                     (json["lr"].is_object() && !json["lr"].contains("pieces"));
  if (!usual) return read_schedule(train, "lr", 0.0, 10.0);
  WarmupCosine lr;
  if (train.has("lr")) {
    const io::JsonObject o = train.object("lr");
    lr.peak = o.number("peak", lr.peak);
    lr.final = o.number("final", lr.final);
    lr.warmup_steps = o.integer("warmup_steps", lr.warmup_steps);
    lr.constant_steps = o.integer("constant_steps", lr.constant_steps);
    o.know("pieces");
    o.check_no_unknown();
    check_number(o.where(), "peak", lr.peak, 0.0, 10.0);
    check_number(o.where(), "final", lr.final, 0.0, lr.peak);
    check_integer(o.where(), "warmup_steps", lr.warmup_steps, 0, int64_t{1} << 40);
    check_integer(o.where(), "constant_steps", lr.constant_steps, 0, int64_t{1} << 40);
  }
  HADAL_CHECK(t.tokens == 0, train.where(),
              ": lr decays over train.steps, and this run is measured in tokens; give lr as start "
              "and pieces");
  return warmup_cosine(lr, t.steps);
}

GuardConfig read_guard(const io::JsonObject& o) {
  GuardConfig g;
  g.enabled = true;
  g.spike_sigma = o.number("spike_sigma", g.spike_sigma);
  g.window = o.integer("window", g.window);
  g.max_skips = o.integer("max_skips", g.max_skips);
  g.max_rollbacks = o.integer("max_rollbacks", g.max_rollbacks);
  o.check_no_unknown();
  check_number(o.where(), "spike_sigma", g.spike_sigma, 0.0, 1e6);
  check_integer(o.where(), "window", g.window, 4, 1 << 20);
  check_integer(o.where(), "max_skips", g.max_skips, 0, 1 << 20);
  check_integer(o.where(), "max_rollbacks", g.max_rollbacks, 0, 1 << 20);
  return g;
}

DType read_dtype(const io::JsonObject& o, const char* key) {
  const std::string name = o.string(key, "f32");
  if (name == "f32") return DType::kF32;
  if (name == "bf16") return DType::kBF16;
  HADAL_FAIL(o.where(), ": ", key, " is \"", name, "\"; allowed: f32, bf16");
}

void check(const std::string& where, const TrainConfig& t) {
  constexpr int64_t kMany = int64_t{1} << 40;
  check_integer(where, "steps", t.steps, 1, kMany);
  check_integer(where, "sequence_length", t.sequence_length, 2, int64_t{1} << 20);
  check_integer(where, "micro_batch_sequences", t.micro_batch_sequences, 1,
                static_cast<int64_t>(t.batch_sequences.largest()));
  HADAL_CHECK(t.device == "cpu" || t.device == "cuda", where, ": device is ", t.device,
              "; allowed: cpu, cuda");
  check_integer(where, "threads", t.threads, 0, 1024);
  check_number(where, "beta1", t.beta1, 0.0, 0.999999);
  check_number(where, "beta2", t.beta2, 0.0, 0.999999);
  check_number(where, "eps", t.eps, 1e-30, 1.0);
  check_number(where, "weight_decay", t.weight_decay, 0.0, 100.0);
  check_number(where, "clip_norm", t.clip_norm, 0.0, 1e9);
  check_number(where, "ema_decay", t.ema_decay, 0.0, 0.999999);
  HADAL_CHECK(!t.guard.enabled || t.checkpoint_every > 0, where,
              ": guard rolls back to checkpoints, and checkpoint_every is 0; set it");
  check_integer(where, "eval_every", t.eval_every, 0, kMany);
  check_integer(where, "eval_tokens", t.eval_tokens, 0, kMany);
  check_integer(where, "checkpoint_every", t.checkpoint_every, 0, kMany);
  check_integer(where, "keep_checkpoints", t.keep_checkpoints, 0, 1 << 20);
}

// A schedule, if there is one.
void read(const io::JsonObject& o, const char* key, double low, double high, Schedule& schedule) {
  if (o.has(key)) schedule = read_schedule(o, key, low, high);
}

TrainConfig read_train(const io::JsonObject& o) {
  TrainConfig t;
  t.output = o.string("output");
  t.init_from = o.string("init_from", "");
  t.tokens = static_cast<int64_t>(o.number("tokens", 0.0));
  check_number(o.where(), "tokens", o.number("tokens", 0.0), 0.0, 1e18);
  HADAL_CHECK(t.tokens == 0 || !o.has("steps"), o.where(),
              ": the run has a length in steps and in tokens; give one of them");
  t.steps = o.integer("steps", t.steps);
  t.sequence_length = o.integer("sequence_length", t.sequence_length);
  read(o, "batch_sequences", 1.0, kMostSequences, t.batch_sequences);
  for (const Schedule::Piece& piece : t.batch_sequences.pieces)
    HADAL_CHECK(piece.keeps || piece.to == std::floor(piece.to), o.where(),
                ": batch_sequences goes to ", piece.to, "; it must be a whole number");
  HADAL_CHECK(t.batch_sequences.start == std::floor(t.batch_sequences.start), o.where(),
              ": batch_sequences is ", t.batch_sequences.start, "; it must be a whole number");
  t.micro_batch_sequences = o.integer("micro_batch_sequences", 0);
  if (t.micro_batch_sequences == 0)
    t.micro_batch_sequences = static_cast<int64_t>(t.batch_sequences.largest());
  const int64_t seed = o.integer("seed", static_cast<int64_t>(t.seed));
  check_integer(o.where(), "seed", seed, 0, INT64_MAX);  // what JSON can give back
  t.seed = static_cast<uint64_t>(seed);
  t.dtype = read_dtype(o, "dtype");
  t.precision = read_precision(o);
  t.moments = read_dtype(o, "moments");
  if (o.has("device")) t.device = o.string("device");
  t.threads = o.integer("threads", t.threads);
  t.lr = read_lr(o, t);
  t.beta1 = o.number("beta1", t.beta1);
  t.beta2 = o.number("beta2", t.beta2);
  t.eps = o.number("eps", t.eps);
  t.weight_decay = o.number("weight_decay", t.weight_decay);
  t.clip_norm = o.number("clip_norm", t.clip_norm);
  read(o, "mtp_weight", 0.0, 100.0, t.mtp_weight);
  read(o, "balance_alpha", 0.0, 100.0, t.balance_alpha);
  read(o, "bias_gamma", 0.0, 1.0, t.bias_gamma);
  t.ema_decay = o.number("ema_decay", t.ema_decay);
  if (o.has("guard")) t.guard = read_guard(o.object("guard"));
  t.eval_every = o.integer("eval_every", t.eval_every);
  t.eval_tokens = o.integer("eval_tokens", t.eval_tokens);
  t.checkpoint_every = o.integer("checkpoint_every", t.checkpoint_every);
  t.background_checkpoints = o.boolean("background_checkpoints", t.background_checkpoints);
  t.keep_checkpoints = o.integer("keep_checkpoints", t.keep_checkpoints);
  o.check_no_unknown();
  check(o.where(), t);
  return t;
}

int axis_of(const io::JsonObject& o, const char* key) {
  const int64_t value = o.integer(key, 1);
  check_integer(o.where(), key, value, 1, 512);
  return static_cast<int>(value);
}

ParallelConfig read_parallel(const io::JsonObject& o) {
  ParallelConfig p;
  p.mesh = {.pp = axis_of(o, "pp"),
            .dp = axis_of(o, "dp"),
            .ep = axis_of(o, "ep"),
            .tp = axis_of(o, "tp")};
  p.schedule = parse_schedule(o.string("schedule", schedule_name(p.schedule)));
  p.stages_per_rank = static_cast<int>(o.integer("stages_per_rank", p.stages_per_rank));
  p.ranks_per_node = static_cast<int>(o.integer("ranks_per_node", p.ranks_per_node));
  p.exchange = parse_exchange(o.string("exchange", exchange_name(p.exchange)));
  p.overlap = o.boolean("overlap", p.overlap);
  p.record = o.boolean("record", p.record);
  if (p.exchange == ExchangeKind::kWindows) p.comm_sms = 0;
  p.comm_sms = static_cast<int>(o.integer("comm_sms", p.comm_sms));
  p.link_sms = static_cast<int>(o.integer("link_sms", p.link_sms));
  p.row_capacity = o.number("row_capacity", p.row_capacity);
  p.heartbeat_seconds = o.number("heartbeat_seconds", p.heartbeat_seconds);
  p.timeout_seconds = o.number("timeout_seconds", p.timeout_seconds);
  if (o.has("layers")) p.layers = o.integers("layers");
  o.check_no_unknown();
  check_integer(o.where(), "stages_per_rank", p.stages_per_rank, 1, 64);
  check_integer(o.where(), "ranks_per_node", p.ranks_per_node, 0, 512);
  check_integer(o.where(), "comm_sms", p.comm_sms, 0, 64);
  check_integer(o.where(), "link_sms", p.link_sms, 0, 16);
  check_number(o.where(), "row_capacity", p.row_capacity, 0.0, 512.0);
  check_number(o.where(), "heartbeat_seconds", p.heartbeat_seconds, 1.0, 30.0);
  check_number(o.where(), "timeout_seconds", p.timeout_seconds, 1.0, 1e6);
  return p;
}

}  // namespace

RunConfig run_config_of(const io::JsonObject& object) {
  RunConfig run;
  run.model = io::model_from_json(object.object("model"));
  if (object.has("data")) run.data = read_data(object.object("data"));
  run.train = read_train(object.object("train"));
  if (object.has("parallel")) run.parallel = read_parallel(object.object("parallel"));
  object.check_no_unknown();
  HADAL_CHECK(run.train.sequence_length <= run.model.max_position_embeddings, object.where(),
              ": train.sequence_length is ", run.train.sequence_length,
              ", more than model.max_position_embeddings = ", run.model.max_position_embeddings);
  HADAL_CHECK(
      run.train.sequence_length > run.model.num_nextn_predict_layers, object.where(),
      ": train.sequence_length is ", run.train.sequence_length,
      "; it must be above model.num_nextn_predict_layers = ", run.model.num_nextn_predict_layers);
  HADAL_CHECK(run.parallel.exchange == ExchangeKind::kMessages || run.train.device == "cuda",
              object.where(), ": parallel.exchange = windows is for ranks on GPUs: set ",
              "train.device to cuda, or the exchange to messages");
  check_parallel(run.parallel, run.model, run.train.batch_of({}, run.parallel.mesh.dp),
                 run.train.micro_batch_sequences);
  return run;
}

Config trained_model(const RunConfig& run) {
  Config config = run.model;
  config.precision = run.train.precision;
  return config;
}

int64_t most_micro_batches(const RunConfig& run) {
  const auto of_rank =
      static_cast<int64_t>(run.train.batch_sequences.largest()) / run.parallel.mesh.dp;
  const int64_t size = run.train.micro_batch_sequences;
  return std::max<int64_t>(1, (of_rank + size - 1) / size);
}

std::vector<Phase> read_phases(const std::string& path,
                               const std::vector<std::string>& assignments) {
  io::Json root = io::read_json(path);
  for (const std::string& assignment : assignments) io::set_by_path(root, assignment);
  const io::JsonObject object(root, path);
  if (!object.has("phases")) return {{.name = "", .run = run_config_of(object)}};
  std::vector<Phase> phases;
  std::string before;
  root.erase("phases");
  const std::string output = object.object("train").string("output");
  for (const io::JsonObject& patch : object.objects("phases")) {
    const std::string name = patch.string("name");
    HADAL_CHECK(!name.empty() && name.find('/') == std::string::npos, patch.where(), ": name is \"",
                name, "\"; it must be the name of a directory");
    io::Json merged = root, changes = patch.json();
    changes.erase("name");
    merged.merge_patch(changes);
    merged["train"]["output"] = output + "/" + name;
    if (!before.empty()) merged["train"]["init_from"] = before + "/checkpoints/latest";
    before = output + "/" + name;
    phases.push_back(
        {.name = name, .run = run_config_of(io::JsonObject(std::move(merged), patch.where()))});
  }
  HADAL_CHECK(!phases.empty(), path, ": phases is empty; list some, or leave it out");
  return phases;
}

RunConfig read_run_config(const std::string& path, const std::vector<std::string>& assignments) {
  std::vector<Phase> phases = read_phases(path, assignments);
  HADAL_CHECK(phases.size() == 1 && phases[0].name.empty(), path,
              " has phases where one run is needed");
  return std::move(phases[0].run);
}

int64_t TrainConfig::batch_of(Moment begin, int64_t dp) const {
  const auto value = static_cast<int64_t>(batch_sequences.at(begin, begin));
  if (batch_sequences.pieces.empty()) return value;
  const int64_t unit = micro_batch_sequences * dp;
  return std::max<int64_t>(1, value / unit) * unit;
}

namespace {

io::Json to_json(const DataConfig& data) {
  io::Json json = {{"text", data.text}, {"tokenizer", data.tokenizer}, {"held_out", data.held_out}};
  for (const SourceConfig& s : data.sources)
    json["sources"].push_back({{"shards", s.shards},
                               {"weight", s.weight},
                               {"packing", s.packing == Packing::kStream ? "stream" : "whole"},
                               {"cross_document_attention", s.cross_document_attention}});
  return json;
}

io::Json to_json(const ParallelConfig& p) {
  io::Json json = {{"pp", p.mesh.pp},
                   {"dp", p.mesh.dp},
                   {"ep", p.mesh.ep},
                   {"tp", p.mesh.tp},
                   {"schedule", schedule_name(p.schedule)},
                   {"stages_per_rank", p.stages_per_rank},
                   {"ranks_per_node", p.ranks_per_node},
                   {"exchange", exchange_name(p.exchange)},
                   {"overlap", p.overlap},
                   {"record", p.record},
                   {"comm_sms", p.comm_sms},
                   {"link_sms", p.link_sms},
                   {"row_capacity", p.row_capacity},
                   {"heartbeat_seconds", p.heartbeat_seconds},
                   {"timeout_seconds", p.timeout_seconds}};
  if (!p.layers.empty()) json["layers"] = p.layers;
  return json;
}

}  // namespace

io::Json to_json(const RunConfig& run) {
  const TrainConfig& t = run.train;
  io::Json train = {{"output", t.output},
                    {"init_from", t.init_from},
                    {"sequence_length", t.sequence_length},
                    {"batch_sequences", to_json(t.batch_sequences)},
                    {"micro_batch_sequences", t.micro_batch_sequences},
                    {"seed", t.seed},
                    {"dtype", std::string(dtype_name(t.dtype))},
                    {"precision", to_json(t.precision)},
                    {"moments", std::string(dtype_name(t.moments))},
                    {"device", t.device},
                    {"threads", t.threads},
                    {"lr", {{"start", t.lr.start}, {"pieces", io::Json::array()}}},
                    {"beta1", t.beta1},
                    {"beta2", t.beta2},
                    {"eps", t.eps},
                    {"weight_decay", t.weight_decay},
                    {"clip_norm", t.clip_norm},
                    {"mtp_weight", to_json(t.mtp_weight)},
                    {"balance_alpha", to_json(t.balance_alpha)},
                    {"bias_gamma", to_json(t.bias_gamma)},
                    {"ema_decay", t.ema_decay},
                    {"eval_every", t.eval_every},
                    {"eval_tokens", t.eval_tokens},
                    {"checkpoint_every", t.checkpoint_every},
                    {"background_checkpoints", t.background_checkpoints},
                    {"keep_checkpoints", t.keep_checkpoints}};
  if (!t.lr.pieces.empty()) train["lr"] = to_json(t.lr);
  if (t.tokens > 0)
    train["tokens"] = t.tokens;
  else
    train["steps"] = t.steps;
  if (t.guard.enabled)
    train["guard"] = {{"spike_sigma", t.guard.spike_sigma},
                      {"window", t.guard.window},
                      {"max_skips", t.guard.max_skips},
                      {"max_rollbacks", t.guard.max_rollbacks}};
  return {{"model", io::hf_config_to_json(run.model, DType::kF32, {})},
          {"data", to_json(run.data)},
          {"train", std::move(train)},
          {"parallel", to_json(run.parallel)}};
}

}  // namespace hadal::train
