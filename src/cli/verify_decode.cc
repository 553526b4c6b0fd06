// hadal verify on what generation computes: decode in chunks, an MTP module, greedy tokens.
//
//   B sequences   T tokens of each   D model width   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cli/verify.h"
#include "core/transfer.h"
#include "model/bytes.h"
#include "ops/copy.h"
#include "serve/generator.h"

namespace hadal::cli {

GoldenTolerances tolerances_of_compute(const VerifyFormat& format) {
  const DType dtype = format.dtype;
  constexpr Tolerance kExact{.mismatches = 0.0};
  if (dtype == DType::kF64) {
    constexpr Tolerance kTight{.relative_l2 = 1e-6};
    return {kTight, kTight, kTight, kTight, kExact, kExact, kExact};
  }
  if (dtype == DType::kF32)
    return {.state = {.absolute = 2e-5},
            .gate = {.absolute = 1e-5},
            .loss = {.relative_l2 = 1e-5},
            .gradient = {.relative_l2 = 2e-5},
            .choice = kExact,
            .load = kExact,
            .greedy = kExact};
  // With e4m3 operands a product has 2^-4 for each factor; the rest is other choices of experts.
  const bool fp8 = format.precision.fp8;
  return {.state = {.relative_l2 = fp8 ? 0.4 : 0.2},
          .gate = {},
          .loss = {.relative_l2 = fp8 ? 0.1 : 0.05},
          .gradient = {},
          .choice = {.mismatches = fp8 ? 0.5 : 0.25},
          .load = {.mismatches = 1.0},  // one other choice changes two loads
          .greedy = {.mismatches = 1.0}};
}

namespace {

constexpr int64_t kPromptTokens = 16;

// Of what goes over the cache: an e4m3 element is off by up to 2^-4, like an operand of FP8.
GoldenTolerances tolerances_of_decode(const VerifyFormat& format) {
  GoldenTolerances t = tolerances_of_compute(format);
  if (format.cache == CacheFormat::kCompute) return t;
  t.state = {.relative_l2 = 0.4};
  t.greedy = {.mismatches = 1.0};
  return t;
}

std::vector<int32_t> integers(const io::StoredTensor& tensor) {
  std::vector<int32_t> values;
  for (double v : to_doubles(tensor)) values.push_back(static_cast<int32_t>(v));
  return values;
}

// Calls run(start, n) for the pieces of T tokens: uneven ones, so that pages and chunks do not
// meet.
template <class Run>
void for_pieces(int64_t T, const Run& run) {
  int64_t start = 0;
  for (const int64_t most : {int64_t{7}, int64_t{1}, int64_t{2}, int64_t{33}, int64_t{1}, T}) {
    const int64_t n = std::min(most, T - start);
    if (n > 0) run(start, n);
    start += n;
  }
}

// The states of all tokens, piece by piece.
class DecodedStates {
 public:
  DecodedStates(Context& ctx, const DecodeSubject& subject, const VerifyFormat& format,
                const GoldenTokens& tokens)
      : ctx_(ctx),
        config_(subject.config),
        tokens_(tokens),
        act_(format.dtype),
        decoder_(ctx, subject.config, subject.weights, format.dtype,
                 {.max_seqs = tokens.num_seqs,
                  .max_tokens = tokens.length,
                  .max_step_tokens = tokens.num_seqs * tokens.length,
                  .num_mtp = std::min<int64_t>(1, subject.config.num_nextn_predict_layers),
                  .num_pages = 0,
                  .cache = format.cache},
                 subject.ranks) {
    for (int64_t b = 0; b < tokens.num_seqs; ++b) seqs_.push_back(decoder_.cache().open());
  }

  // h [B*T, D]
  void run_main(Out h) {
    for_pieces(tokens_.length, [&](int64_t start, int64_t n) {
      const Step step = step_of(start, n, 0);
      Tensor out;
      const Block memory = ctx_.memory.take_tensor(act_, {rows(n), config_.hidden_size}, &out);
      decoder_.forward({.step = step, .seqs = seqs_}, out);
      put(out, start, n, tokens_.length, h);
    });
  }
  // Module 0 at positions that have a token after them: h [B*T, D] -> out [B*(T-1), D]
  void run_mtp(In h, Out out) {
    for_pieces(tokens_.length - 1, [&](int64_t start, int64_t n) {
      const Step step = step_of(start, n, 1);
      Tensor from, to;
      const Shape shape{rows(n), config_.hidden_size};
      const Block from_memory = ctx_.memory.take_tensor(act_, shape, &from);
      const Block to_memory = ctx_.memory.take_tensor(act_, shape, &to);
      for (int64_t b = 0; b < tokens_.num_seqs; ++b)
        ops::cast(ctx_, h.rows(b * tokens_.length + start, n), from.rows(b * n, n));
      decoder_.mtp_forward(0, {.step = step, .seqs = seqs_}, from, to);
      put(to, start, n, tokens_.length - 1, out);
    });
  }
  // Of every row of h, compared with `key` as [B, T, V].
  void compare_logits(const std::string& kind, const std::string& key, In h, int64_t T,
                      Tolerance tolerance, VerifyReport& report) {
    Tensor logits;
    const Block memory =
        ctx_.memory.take_tensor(stat_dtype(act_), {h.dim(0), config_.vocab_size}, &logits);
    decoder_.logits(h, logits);
    report.compare(kind, key,
                   HostRead(ctx_, logits.view({tokens_.num_seqs, T, config_.vocab_size})).tensor(),
                   tolerance);
  }

 private:
  int64_t rows(int64_t n) const { return tokens_.num_seqs * n; }
  // Positions [start, start + n) with the tokens `ahead` of them.
  Step step_of(int64_t start, int64_t n, int64_t ahead) {
    std::vector<int32_t> ids;
    for (int64_t b = 0; b < tokens_.num_seqs; ++b) {
      const auto first = tokens_.ids.begin() + b * tokens_.length + start + ahead;
      ids.insert(ids.end(), first, first + n);
    }
    const std::vector<int64_t> lengths(seqs_.size(), n), starts(seqs_.size(), start);
    return make_step(ctx_, config_, ids, starts, lengths, act_);
  }
  // Rows of a piece to their places among `length` of each sequence.
  void put(const Tensor& piece, int64_t start, int64_t n, int64_t length, const Tensor& all) {
    for (int64_t b = 0; b < tokens_.num_seqs; ++b)
      ops::cast(ctx_, piece.rows(b * n, n), all.rows(b * length + start, n));
  }

  Context& ctx_;
  const Config& config_;
  const GoldenTokens& tokens_;
  DType act_;
  Decoder decoder_;
  std::vector<int64_t> seqs_;
};

void compare_decode(Context& ctx, const DecodeSubject& subject, const VerifyFormat& format,
                    VerifyReport& report) {
  const GoldenTokens tokens(report);
  const int64_t B = tokens.num_seqs, T = tokens.length, D = subject.config.hidden_size;
  const Tolerance tolerance = tolerances_of_decode(format).state;
  DecodedStates states(ctx, subject, format, tokens);
  Tensor h, out;
  const Block h_memory = ctx.memory.take_tensor(format.dtype, {B * T, D}, &h);
  states.run_main(h);
  states.compare_logits("logits by decode", "logits", h, T, tolerance, report);
  if (subject.config.num_nextn_predict_layers == 0) return;
  const Block out_memory = ctx.memory.take_tensor(format.dtype, {B * (T - 1), D}, &out);
  states.run_mtp(h, out);
  states.compare_logits("mtp.logits by decode", "mtp.logits", out, T - 1, tolerance, report);
}

void compare_greedy(Context& ctx, const DecodeSubject& subject, const VerifyFormat& format,
                    VerifyReport& report) {
  const Config& c = subject.config;
  const io::StoredTensor* stored = report.find("greedy");
  HADAL_CHECK(stored != nullptr && stored->shape.size() == 2 && stored->shape[0] == 1 &&
                  stored->shape[1] > kPromptTokens,
              "the golden file needs greedy [1, n] with more than ", kPromptTokens, " tokens");
  const std::vector<int32_t> golden = integers(*stored);
  const auto n = static_cast<int64_t>(golden.size());
  for (int64_t speculate : {0, 1, 3}) {
    if (speculate > 0 && c.num_nextn_predict_layers == 0) continue;
    Decoder decoder(ctx, c, subject.weights, format.dtype,
                    {.max_seqs = 1,
                     .max_tokens = n + 8,
                     .max_step_tokens = 5,
                     .num_mtp = speculate > 0 ? c.num_nextn_predict_layers : 0,
                     .num_pages = 0,
                     .cache = format.cache},
                    subject.ranks);
    serve::Generator generator(ctx, decoder);
    const serve::GenerateResult result =
        generator.run({.prompt = {golden.begin(), golden.begin() + kPromptTokens},
                       .max_tokens = n - kPromptTokens,
                       .sampling = {},
                       .stop_ids = {},
                       .speculate = speculate,
                       .on_token = nullptr,
                       .should_stop = nullptr});
    std::vector<int32_t> all(golden.begin(), golden.begin() + kPromptTokens);
    all.insert(all.end(), result.tokens.begin(), result.tokens.end());
    const std::string kind = speculate == 0 ? "greedy" : concat("greedy, speculate ", speculate);
    report.compare(kind, "greedy", Tensor(all.data(), DType::kI32, {1, n}),
                   tolerances_of_decode(format).greedy);
  }
}

}  // namespace

GoldenTokens::GoldenTokens(VerifyReport& report) {
  const io::StoredTensor* stored = report.find("input_ids");
  HADAL_CHECK(stored != nullptr && stored->shape.size() == 2 && stored->shape[0] > 0 &&
                  stored->shape[1] > 2,
              "the golden file needs input_ids [sequences, tokens]");
  num_seqs = stored->shape[0];
  length = stored->shape[1];
  report.mark_used("input_ids");
  ids = integers(*stored);
}

void verify_decode(Context& ctx, const DecodeSubject& subject, const VerifyFormat& format,
                   VerifyReport& report) {
  compare_decode(ctx, subject, format, report);
  compare_greedy(ctx, subject, format, report);
}

}  // namespace hadal::cli
