// RunConfig: reading, checking and writing.
// SPDX-License-Identifier: Apache-2.0
#include "train/run_config.h"

#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "io/hf_config.h"

namespace hadal::train {
namespace {

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

DataConfig read_data(const io::JsonObject& o) {
  DataConfig d;
  d.text = o.string("text", "");
  d.tokenizer = o.string("tokenizer", "");
  d.held_out = o.number("held_out", d.held_out);
  o.check_no_unknown();
  check_number(o.where(), "held_out", d.held_out, 0.0, 0.9);
  return d;
}

LrSchedule read_lr(const io::JsonObject& o) {
  LrSchedule lr;
  lr.peak = o.number("peak", lr.peak);
  lr.final = o.number("final", lr.final);
  lr.warmup_steps = o.integer("warmup_steps", lr.warmup_steps);
  lr.constant_steps = o.integer("constant_steps", lr.constant_steps);
  o.check_no_unknown();
  check_number(o.where(), "peak", lr.peak, 0.0, 10.0);
  check_number(o.where(), "final", lr.final, 0.0, lr.peak);
  check_integer(o.where(), "warmup_steps", lr.warmup_steps, 0, int64_t{1} << 40);
  check_integer(o.where(), "constant_steps", lr.constant_steps, 0, int64_t{1} << 40);
  return lr;
}

DType read_dtype(const io::JsonObject& o) {
  const std::string name = o.string("dtype", "f32");
  if (name == "f32") return DType::kF32;
  if (name == "bf16") return DType::kBF16;
  HADAL_FAIL(o.where(), ": dtype is \"", name, "\"; allowed: f32, bf16");
}

void check(const std::string& where, const TrainConfig& t) {
  constexpr int64_t kMany = int64_t{1} << 40;
  check_integer(where, "steps", t.steps, 1, kMany);
  check_integer(where, "sequence_length", t.sequence_length, 2, int64_t{1} << 20);
  check_integer(where, "batch_sequences", t.batch_sequences, 1, int64_t{1} << 24);
  check_integer(where, "micro_batch_sequences", t.micro_batch_sequences, 1, t.batch_sequences);
  HADAL_CHECK(t.device == "cpu" || t.device == "cuda", where, ": device is ", t.device,
              "; allowed: cpu, cuda");
  check_integer(where, "threads", t.threads, 0, 1024);
  check_number(where, "beta1", t.beta1, 0.0, 0.999999);
  check_number(where, "beta2", t.beta2, 0.0, 0.999999);
  check_number(where, "eps", t.eps, 1e-30, 1.0);
  check_number(where, "weight_decay", t.weight_decay, 0.0, 100.0);
  check_number(where, "clip_norm", t.clip_norm, 0.0, 1e9);
  check_number(where, "mtp_weight", t.mtp_weight, 0.0, 100.0);
  check_number(where, "mtp_weight_final", t.mtp_weight_final, 0.0, 100.0);
  check_integer(where, "mtp_weight_final_step", t.mtp_weight_final_step, 0, kMany);
  check_number(where, "balance_alpha", t.balance_alpha, 0.0, 100.0);
  check_number(where, "bias_gamma", t.bias_gamma, 0.0, 1.0);
  check_integer(where, "bias_gamma_zero_step", t.bias_gamma_zero_step, 0, kMany);
  check_integer(where, "eval_every", t.eval_every, 0, kMany);
  check_integer(where, "eval_tokens", t.eval_tokens, 0, kMany);
  check_integer(where, "checkpoint_every", t.checkpoint_every, 0, kMany);
  check_integer(where, "keep_checkpoints", t.keep_checkpoints, 0, 1 << 20);
}

TrainConfig read_train(const io::JsonObject& o) {
  TrainConfig t;
  t.output = o.string("output");
  t.init_from = o.string("init_from", "");
  t.steps = o.integer("steps", t.steps);
  t.sequence_length = o.integer("sequence_length", t.sequence_length);
  t.batch_sequences = o.integer("batch_sequences", t.batch_sequences);
  t.micro_batch_sequences = o.integer("micro_batch_sequences", 0);
  if (t.micro_batch_sequences == 0) t.micro_batch_sequences = t.batch_sequences;
  const int64_t seed = o.integer("seed", static_cast<int64_t>(t.seed));
  check_integer(o.where(), "seed", seed, 0, INT64_MAX);  // what JSON can give back
  t.seed = static_cast<uint64_t>(seed);
  t.dtype = read_dtype(o);
  if (o.has("device")) t.device = o.string("device");
  t.threads = o.integer("threads", t.threads);
  if (o.has("lr")) t.lr = read_lr(o.object("lr"));
  t.beta1 = o.number("beta1", t.beta1);
  t.beta2 = o.number("beta2", t.beta2);
  t.eps = o.number("eps", t.eps);
  t.weight_decay = o.number("weight_decay", t.weight_decay);
  t.clip_norm = o.number("clip_norm", t.clip_norm);
  t.mtp_weight = o.number("mtp_weight", t.mtp_weight);
  t.mtp_weight_final = o.number("mtp_weight_final", t.mtp_weight);
  t.mtp_weight_final_step = o.integer("mtp_weight_final_step", 0);
  t.balance_alpha = o.number("balance_alpha", t.balance_alpha);
  t.bias_gamma = o.number("bias_gamma", t.bias_gamma);
  t.bias_gamma_zero_step = o.integer("bias_gamma_zero_step", 0);
  t.eval_every = o.integer("eval_every", t.eval_every);
  t.eval_tokens = o.integer("eval_tokens", t.eval_tokens);
  t.checkpoint_every = o.integer("checkpoint_every", t.checkpoint_every);
  t.keep_checkpoints = o.integer("keep_checkpoints", t.keep_checkpoints);
  o.check_no_unknown();
  check(o.where(), t);
  return t;
}

}  // namespace

RunConfig run_config_of(const io::JsonObject& object) {
  RunConfig run;
  run.model = io::model_from_json(object.object("model"));
  if (object.has("data")) run.data = read_data(object.object("data"));
  run.train = read_train(object.object("train"));
  object.check_no_unknown();
  HADAL_CHECK(run.train.sequence_length <= run.model.max_position_embeddings, object.where(),
              ": train.sequence_length is ", run.train.sequence_length,
              ", more than model.max_position_embeddings = ", run.model.max_position_embeddings);
  HADAL_CHECK(
      run.train.sequence_length > run.model.num_nextn_predict_layers, object.where(),
      ": train.sequence_length is ", run.train.sequence_length,
      "; it must be above model.num_nextn_predict_layers = ", run.model.num_nextn_predict_layers);
  return run;
}

RunConfig read_run_config(const std::string& path, const std::vector<std::string>& assignments) {
  io::Json root = io::read_json(path);
  for (const std::string& assignment : assignments) io::set_by_path(root, assignment);
  return run_config_of(io::JsonObject(std::move(root), path));
}

io::Json to_json(const RunConfig& run) {
  const TrainConfig& t = run.train;
  io::Json root;
  root["model"] = io::hf_config_to_json(run.model, DType::kF32, {});
  root["data"] = {
      {"text", run.data.text}, {"tokenizer", run.data.tokenizer}, {"held_out", run.data.held_out}};
  root["train"] = {{"output", t.output},
                   {"init_from", t.init_from},
                   {"steps", t.steps},
                   {"sequence_length", t.sequence_length},
                   {"batch_sequences", t.batch_sequences},
                   {"micro_batch_sequences", t.micro_batch_sequences},
                   {"seed", t.seed},
                   {"dtype", std::string(dtype_name(t.dtype))},
                   {"device", t.device},
                   {"threads", t.threads},
                   {"lr",
                    {{"peak", t.lr.peak},
                     {"final", t.lr.final},
                     {"warmup_steps", t.lr.warmup_steps},
                     {"constant_steps", t.lr.constant_steps}}},
                   {"beta1", t.beta1},
                   {"beta2", t.beta2},
                   {"eps", t.eps},
                   {"weight_decay", t.weight_decay},
                   {"clip_norm", t.clip_norm},
                   {"mtp_weight", t.mtp_weight},
                   {"mtp_weight_final", t.mtp_weight_final},
                   {"mtp_weight_final_step", t.mtp_weight_final_step},
                   {"balance_alpha", t.balance_alpha},
                   {"bias_gamma", t.bias_gamma},
                   {"bias_gamma_zero_step", t.bias_gamma_zero_step},
                   {"eval_every", t.eval_every},
                   {"eval_tokens", t.eval_tokens},
                   {"checkpoint_every", t.checkpoint_every},
                   {"keep_checkpoints", t.keep_checkpoints}};
  return root;
}

}  // namespace hadal::train
