// The model that is timed, and decode and prefill of it.
//
//   N rows   K columns   D model width   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "cli/bench.h"
#include "core/panels.h"
#include "core/rng.h"
#include "io/fp8.h"
#include "io/int_weights.h"
#include "io/panels.h"
#include "model/bytes.h"
#include "model/decoder.h"

namespace hadal::cli {
namespace {

using nlohmann::json;

// Fills memory with copies of a pattern: speed does not depend on what a weight says, only the
// experts that tokens choose do, so gates have their own numbers.
constexpr int64_t kPatternElements = int64_t{1} << 18;

const std::vector<float>& pattern() {
  static const std::vector<float> values = [] {
    const Rng rng(1, stream_id("bench"));
    std::vector<float> v(static_cast<size_t>(kPatternElements));
    for (size_t i = 0; i < v.size(); ++i) v[i] = 0.02f * static_cast<float>(rng.normal(i));
    return v;
  }();
  return values;
}

// `bytes` of the pattern in the type of `out`.
template <class Fn>
void fill_with(const Tensor& out, const Fn& element) {
  const auto size = static_cast<int64_t>(dtype_size(out.dtype()));
  const int64_t n = std::min(out.num_elements(), kPatternElements);
  for (int64_t i = 0; i < n; ++i) element(i);
  auto* bytes = static_cast<char*>(out.raw());
  for (int64_t done = n; done < out.num_elements();) {
    const int64_t count = std::min(done, out.num_elements() - done);
    std::memcpy(bytes + done * size, bytes, static_cast<size_t>(count * size));
    done += count;
  }
}

void fill_float(const Tensor& out, double factor) {
  fill_with(out, [&](int64_t i) {
    store_element(out.raw(), out.dtype(), i, factor * pattern()[static_cast<size_t>(i)]);
  });
}

// All but the small begin a large page, as most do in the one block that loading takes.
Tensor take(Context& ctx, DType dtype, const Shape& shape, std::vector<Block>& memory) {
  constexpr size_t kLargePage = size_t{2} << 20, kSmall = size_t{256} << 10;
  const size_t bytes = tensor_bytes(dtype, shape);
  memory.push_back(ctx.memory.take(bytes < kSmall ? bytes : std::max(bytes, kLargePage)));
  return memory.back().tensor(dtype, shape);
}

}  // namespace

Operand bench_weight(Context& ctx, const Shape& shape, const std::string& format,
                     std::vector<Block>& memory) {
  if (format == "f32" || format == "bf16") {
    Operand w(take(ctx, format == "f32" ? DType::kF32 : DType::kBF16, shape, memory));
    fill_float(w.data, 1.0);
    return w;
  }
  if (format == "fp8") {
    Operand w(take(ctx, DType::kE4M3, shape, memory),
              take(ctx, DType::kF32, io::scale_shape(shape), memory));
    fill_float(w.data, 5000.0);
    fill_with(w.scale, [&](int64_t i) { store_element(w.scale.raw(), DType::kF32, i, 2e-4); });
    return w;
  }
  const int bits = format == "int8" ? 8 : 4;
  const Tensor all_words = take(ctx, DType::kI32, int_words_shape(shape, bits), memory);
  Tensor all_scales;
  memory.push_back(ctx.memory.take_tensor(DType::kBF16, int_scales_shape(shape), &all_scales));
  const Rng rng(2, stream_id("bench"));
  auto* words = all_words.data<int32_t>();
  fill_with(all_words, [&](int64_t i) {
    words[i] = static_cast<int32_t>(static_cast<uint32_t>(rng.u64(static_cast<uint64_t>(i))));
  });
  const double scale = bits == 8 ? 3e-4 : 4e-3;
  fill_with(all_scales,
            [&](int64_t i) { store_element(all_scales.raw(), DType::kBF16, i, scale); });
  return int_operand(shape, all_words, all_scales);
}

BenchModel::BenchModel(Context& ctx, const Config& c, const std::string& f)
    : config(c), format(f), act(f == "f32" ? DType::kF32 : DType::kBF16) {
  config.num_nextn_predict_layers = 0;
  resize(config, weights);
  const int bits = format == "int8" ? 8 : 4;
  for_each_param(
      config,
      [&](const ParamInfo& info, Operand& leaf) {
        const bool is_gate = info.name.ends_with("gate.weight");
        if (info.shape.rank == 1 || is_gate) {
          leaf = Operand(take(ctx, DType::kF32, info.shape, memory_));
          if (is_gate)
            fill_float(leaf.data, 1.0);
          else
            fill_with(leaf.data, [&](int64_t i) {
              store_element(leaf.data.raw(), DType::kF32, i,
                            info.kind == ParamKind::kBuffer ? 0.0 : 1.0);
            });
        } else {
          std::string stored = info.kind == ParamKind::kMatrix ? format : "bf16";
          if (format == "f32") stored = "f32";
          if (is_int()) {
            const int of_param = io::bits_of_param(info, bits);
            stored = of_param == 0 ? "bf16" : of_param == 8 ? "int8" : "int4";
          }
          leaf = bench_weight(ctx, info.shape, stored, memory_);
          if (io::is_for_panels(info) && fits_panels(leaf))
            leaf = pack_panels(ctx, leaf, leaf.data.raw());
        }
        if (info.name == "embed" && !config.tie_word_embeddings) return;
        double share = 1.0;
        if (info.shard == ParamShard::kExpert)
          share = static_cast<double>(config.num_experts_per_tok) /
                  static_cast<double>(config.n_routed_experts);
        active_bytes += share * static_cast<double>(leaf.data.num_bytes());
        if (!leaf.scale.empty())
          active_bytes += share * static_cast<double>(leaf.scale.num_bytes());
        if (info.shape.rank < 2) return;
        const double flops = 2.0 * share * static_cast<double>(info.shape.num_elements());
        (info.name == "head" || info.name == "embed" ? head_flops : active_flops) += flops;
      },
      weights);
}

double BenchModel::attention_flops(double depth) const {
  const auto H = static_cast<double>(config.num_attention_heads);
  const auto R = static_cast<double>(config.kv_lora_rank);
  const auto W = static_cast<double>(config.latent_dim());
  return static_cast<double>(config.num_hidden_layers) * 2.0 * H * depth * (W + R);
}

double BenchModel::cache_bytes(double depth, CacheFormat cache) const {
  return static_cast<double>(cache_bytes_per_token(config, act, cache, 0)) * depth;
}

namespace {

std::vector<int32_t> some_ids(const Config& c, int64_t count) {
  std::vector<int32_t> ids;
  const Rng rng(3, stream_id("bench"));
  for (int64_t i = 0; i < count; ++i)
    ids.push_back(static_cast<int32_t>(rng.u64(static_cast<uint64_t>(i)) %
                                       static_cast<uint64_t>(c.vocab_size)));
  return ids;
}

// One sequence of a decoder: runs tokens from a position on, the logits of the last one included.
class Sequence {
 public:
  Sequence(Context& ctx, const BenchModel& model, CacheFormat cache, int64_t max_tokens,
           int64_t max_step)
      : ctx_(ctx),
        model_(model),
        decoder_(ctx, model.config, model.weights, model.act,
                 {.max_seqs = 1,
                  .max_tokens = max_tokens,
                  .max_step_tokens = max_step,
                  .num_mtp = 0,
                  .num_pages = 0,
                  .cache = cache}),
        ids_(some_ids(model.config, max_tokens)),
        slots_{decoder_.cache().open()} {
    h_memory_ = ctx.memory.take_tensor(model.act, {max_step, model.config.hidden_size}, &h_);
    logits_memory_ = ctx.memory.take_tensor(DType::kF32, {1, model.config.vocab_size}, &logits_);
  }

  // Positions [0, count) of the cache, with latents that mean nothing: speed does not depend on
  // them, and computing them takes longer than what is timed.
  void fill_cache(int64_t count) {
    if (count == 0) return;
    const int64_t page = std::min(count, ops::kCachePageTokens);
    decoder_.cache().reserve(slots_[0], count);
    decoder_.cache().select(slots_);
    Tensor latent;
    const Block memory =
        ctx_.memory.take_tensor(model_.act, {page, model_.config.latent_dim()}, &latent);
    fill_float(latent, 10.0);
    const Step step =
        make_step(ctx_, model_.config, some_ids(model_.config, page), {0}, {page}, model_.act);
    for (int64_t l = 0; l < model_.config.num_hidden_layers; ++l) {
      const ops::LatentPages cache = decoder_.cache().layer(l);
      ops::latent_cache_write(ctx_, step.seq, latent, cache);
      const Tensor first = cache.pages.row(cache.table.data<int32_t>()[0]);
      for (int64_t i = 0; i < cache.pages.dim(0); ++i)
        if (cache.pages.row(i).raw() != first.raw())
          std::memcpy(cache.pages.row(i).raw(), first.raw(),
                      static_cast<size_t>(first.num_bytes()));
    }
  }

  void run(int64_t start, int64_t count) {
    const std::vector<int32_t> ids(ids_.begin() + start, ids_.begin() + start + count);
    const Step step = make_step(ctx_, model_.config, ids, {start}, {count}, model_.act);
    decoder_.forward({.step = step, .seqs = slots_}, h_.rows(0, count));
    decoder_.logits(h_.rows(count - 1, 1), logits_);
  }

 private:
  Context& ctx_;
  const BenchModel& model_;
  Decoder decoder_;
  std::vector<int32_t> ids_;
  std::vector<int64_t> slots_;
  Block h_memory_, logits_memory_;
  Tensor h_, logits_;
};

}  // namespace

void bench_decode(Context& ctx, const BenchModel& model, CacheFormat cache, int64_t depth,
                  int64_t count, json row) {
  constexpr int64_t kTokens = 2;  // of a sample: short, so that ceilings are measured near by
  Sequence seq(ctx, model, cache, depth + kTokens, 1);
  seq.fill_cache(depth);
  const Sampled s = sample(ctx, count, [&] {
    for (int64_t t = 0; t < kTokens; ++t) seq.run(depth + t, 1);
  });
  const double seen = static_cast<double>(depth) + 0.5 * (kTokens + 1);
  const double bytes = model.active_bytes + model.cache_bytes(seen, cache);
  row.update({{"bench", "decode"},
              {"format", model.format},
              {"kv_cache", cache == CacheFormat::kFp8 ? "fp8" : dtype_name(model.act)},
              {"depth", depth},
              {"mb_per_token", bytes / 1e6},
              {"tokens_per_s", kTokens / quantile(s.wall, 0.5)}});
  row.update(s.to_json({.flops = 0.0, .bytes = kTokens * bytes}));
  fmt::print("{}\n", row.dump());
}

void bench_prefill(Context& ctx, const BenchModel& model, int64_t tokens, int64_t count, json row) {
  Sequence seq(ctx, model, CacheFormat::kCompute, tokens, tokens);
  const Sampled s = sample(ctx, count, [&] { seq.run(0, tokens); });
  const auto T = static_cast<double>(tokens);
  const double weights = T * model.active_flops + model.head_flops;
  row.update({{"bench", "prefill"},
              {"format", model.format},
              {"tokens", tokens},
              {"gflop_per_token", model.active_flops / 1e9},
              {"attention_gflop_per_token", model.attention_flops(0.5 * (T + 1.0)) / 1e9},
              {"tokens_per_s", T / quantile(s.wall, 0.5)}});
  row.update(s.to_json({.flops = weights, .bytes = 0.0, .is_int = model.is_int()}));
  fmt::print("{}\n", row.dump());
}

}  // namespace hadal::cli
