// Decoder: the layers over the cache, one after the other.
// SPDX-License-Identifier: Apache-2.0
#include "model/decoder.h"

#include <algorithm>
#include <utility>

#include "model/bytes.h"
#include "model/embed.h"
#include "model/head.h"
#include "ops/norm.h"

namespace hadal {
namespace {

int64_t num_pages(const Decoder::Limits& limits) {
  if (limits.num_pages > 0) return limits.num_pages;
  return limits.max_seqs *
         ((limits.max_tokens + ops::kCachePageTokens - 1) / ops::kCachePageTokens);
}

int64_t num_row_pages(const Config& c, const ExpertRun& here, int64_t T) {
  const int64_t K = std::min(c.num_experts_per_tok, here.count);
  return std::max<int64_t>(1, experts::max_pages(T * K, here.count));
}

Share share_in(const TensorGroup& group) { return {.ways = group.size(), .index = group.rank()}; }

bool splits_heads(const DecoderRanks& ranks) {
  return !ranks.tensor.is_alone() && ranks.attention == AttentionSplit::kHeads;
}

// What this rank's attention has. Widths follow from the weights.
Config part_of(const Config& config, const DecoderRanks& ranks) {
  return splits_heads(ranks) ? split_config(config, ranks.tensor.size()) : config;
}

// Rows of a tied table; of a head of its own each rank loads no others.
Operand head_part(const Config& c, const Weights& weights, const DecoderRanks& ranks) {
  const Operand& head = weights.head_of(c);
  if (!splits_heads(ranks) || !c.tie_word_embeddings) return head;
  const int64_t part = c.vocab_size / ranks.tensor.size();
  return head.rows(ranks.tensor.rank() * part, part);
}

// Tokens that a rank's experts may see in a step.
int64_t most_expert_tokens(const Decoder::Limits& limits, const DecoderRanks& ranks) {
  return splits_heads(ranks) ? limits.max_step_tokens
                             : limits.max_step_tokens * ranks.tensor.size();
}

}  // namespace

Decoder::Decoder(Context& ctx, const Config& config, const Weights& weights, DType act,
                 Limits limits, DecoderRanks ranks)
    : ctx_(ctx),
      config_(config),
      weights_(weights),
      act_(act),
      limits_(limits),
      ranks_(std::move(ranks)),
      part_(part_of(config, ranks_)),
      head_(head_part(config, weights, ranks_)),
      cache_(ctx, config, act, limits.cache,
             {.num_layers = config.num_hidden_layers + limits.num_mtp,
              .num_pages = num_pages(limits),
              .max_seqs = limits.max_seqs,
              .max_tokens = limits.max_tokens}),
      rows_(ctx, config, act,
            num_row_pages(config, decode_experts(config, share_in(ranks_.tensor)),
                          most_expert_tokens(limits, ranks_))),
      exchange_(rows_, decode_experts(config, share_in(ranks_.tensor))) {
  HADAL_CHECK(limits.num_mtp <= config.num_nextn_predict_layers, "the model has ",
              config.num_nextn_predict_layers, " MTP modules, ", limits.num_mtp, " were asked for");
  if (leads()) announce(DecoderCall{.kind = DecoderCallKind::kMake, .limits = limits}.words());
}

// module: of a call of MTP, or -1.
void Decoder::announce(const Call& call, int64_t module) const {
  if (!leads()) return;
  DecoderCall said{.kind = module < 0 ? DecoderCallKind::kForward : DecoderCallKind::kMtp,
                   .module = std::max<int64_t>(module, 0),
                   .ids = call.step.host_ids,
                   .lengths = call.step.lengths};
  for (size_t s = 0; s < call.seqs.size(); ++s) {
    said.starts.push_back(call.step.ends[s] - call.step.lengths[s]);
    said.pages.push_back(cache_.pages_of(call.seqs[s]));
  }
  announce(said.words());
}

void Decoder::prepare(const Call& call) {
  HADAL_CHECK(splits_sequences() == !call.step.of_ranks.empty(),
              "internal error: a step that does not say whose its tokens are");
  HADAL_CHECK(call.step.seq.num_tokens <= limits_.max_step_tokens, "a step of ",
              call.step.seq.num_tokens, " tokens is over the limit of ", limits_.max_step_tokens);
  HADAL_CHECK(call.step.seq.num_seqs == static_cast<int64_t>(call.seqs.size()), "a step of ",
              call.step.seq.num_seqs, " sequences names ", call.seqs.size());
  for (size_t s = 0; s < call.seqs.size(); ++s) cache_.reserve(call.seqs[s], call.step.ends[s]);
  if (!call.seqs.empty()) cache_.select(call.seqs);
}

void Decoder::forward(const Call& call, Out h) {
  prepare(call);
  announce(call, -1);
  run(call.step, h);
}

void Decoder::run(const Step& step, Out h) {
  const int64_t T = step.seq.num_tokens, D = config_.hidden_size;
  HADAL_CHECK_SHAPE(h, T, D);
  Tensor x, rstd;
  const Block x_memory = ctx_.memory.take_tensor(act_, {T, D}, &x);
  const Block rstd_memory = ctx_.memory.take_tensor(stat_dtype(act_), {T}, &rstd);
  if (T > 0) embed::forward(ctx_, weights_.embed, step.ids, x);  // [T, D]
  for (int64_t l = 0; l < config_.num_hidden_layers; ++l) {
    const block::Layer layer{.config = part_,
                             .w = weights_.layers[static_cast<size_t>(l)],
                             .exchange = exchange_,
                             .is_moe = config_.is_moe_layer(l),
                             .tensor = ranks_.tensor,
                             .tokens = step.of_ranks};
    block::decode(ctx_, layer, step.seq, cache_.layer(l), x);  // [T, D]
  }
  if (T > 0)
    ops::rmsnorm_forward(ctx_, x, weights_.norm.data, config_.rms_norm_eps, h, rstd);  // [T, D]
}

void Decoder::check_mtp(int64_t k) const {
  HADAL_CHECK(k < limits_.num_mtp, "MTP module ", k, " has no cache; limits.num_mtp is ",
              limits_.num_mtp);
}

void Decoder::mtp_forward(int64_t k, const Call& call, In h, Out out) {
  check_mtp(k);
  prepare(call);
  announce(call, k);
  if (leads()) broadcast(ctx_, ranks_.tensor, h);
  run_mtp(k, call.step, h, out);
}

void Decoder::run_mtp(int64_t k, const Step& step, In h, Out out) {
  check_mtp(k);
  const mtp::Module module{.config = part_,
                           .w = weights_.mtp[static_cast<size_t>(k)],
                           .embed = weights_.embed,
                           .exchange = exchange_,
                           .tensor = ranks_.tensor,
                           .tokens = step.of_ranks};
  mtp::decode(ctx_, module, step, cache_.layer(config_.num_hidden_layers + k), h, out);
}

void Decoder::logits(In h, Out logits) {
  if (leads() && !splits_sequences()) {
    announce(DecoderCall{.kind = DecoderCallKind::kLogits, .num_rows = h.dim(0)}.words());
    broadcast(ctx_, ranks_.tensor, h);
  }
  head(h, logits);
}

void Decoder::head(In h, Out logits) {
  head::logits(ctx_, head_, h, logits, splits_sequences() ? TensorGroup() : ranks_.tensor);
}

void Decoder::copy_rows(int64_t from, int64_t to, int64_t num_rows, int64_t home) {
  if (leads())
    announce(DecoderCall{.kind = DecoderCallKind::kCopyRows,
                         .num_rows = num_rows,
                         .from = from,
                         .to = to,
                         .home = home}
                 .words());
  if (!splits_sequences() || home == this->home()) cache_.copy_rows(from, to, num_rows);
}

}  // namespace hadal
