// Slots of the cache for the sequences of a step; steps over several homes.
//
//   T tokens of a step   Th tokens of this home   D model width
// SPDX-License-Identifier: Apache-2.0
#include "serve/paged_step.h"

#include <algorithm>

namespace hadal::serve {
namespace {

template <class T>
std::vector<T> run_of(const std::vector<T>& all, int64_t begin, int64_t end) {
  return {all.begin() + begin, all.begin() + end};
}

// States of a home's tokens, of which who leads has those of all. It is the first home.
class HomeStates {
 public:
  HomeStates(Context& ctx, const Decoder& decoder, const HomeRuns& runs, const Tensor& all)
      : group_(decoder.group()), runs_(runs), all_(all) {
    const int64_t Th = runs.num_tokens()[index()];
    if (group_.rank() == 0)
      own_ = all.rows(0, Th);
    else
      memory_ = ctx.memory.take_tensor(decoder.act(), {Th, decoder.config().hidden_size}, &own_);
  }
  const Tensor& own() const { return own_; }  // [Th, D]
  void to_homes(Context& ctx) const { move(ctx, true); }
  void to_leader(Context& ctx) const { move(ctx, false); }

 private:
  size_t index() const { return static_cast<size_t>(group_.rank()); }
  void move(Context& ctx, bool to_homes) const {
    std::vector<Message> messages;
    const auto add = [&](bool send, int peer, const Tensor& rows) {
      if (rows.dim(0) > 0) messages.push_back({.send = send, .peer = peer, .data = rows});
    };
    if (group_.rank() > 0) add(!to_homes, 0, own_);
    for (int g = 1; group_.rank() == 0 && g < group_.size(); ++g) {
      const auto at = static_cast<size_t>(g);
      add(to_homes, g, all_.rows(runs_.tokens[at], runs_.tokens[at + 1] - runs_.tokens[at]));
    }
    group_.comm().transfer(ctx, messages);
  }

  TensorGroup group_;
  const HomeRuns& runs_;
  Tensor all_, own_;
  Block memory_;
};

// module: of a call of MTP, or -1.
void announce(const Decoder& decoder, const PagedTokens& tokens, int64_t module) {
  if (!decoder.leads()) return;
  DecoderCall said{.kind = module < 0 ? DecoderCallKind::kForward : DecoderCallKind::kMtp,
                   .module = std::max<int64_t>(module, 0),
                   .ids = tokens.ids,
                   .starts = tokens.starts,
                   .lengths = tokens.counts,
                   .homes = tokens.homes};
  for (const std::vector<int64_t>* pages : tokens.pages) said.pages.push_back(*pages);
  decoder.announce(said.words());
}

}  // namespace

HomeRuns::HomeRuns(const PagedTokens& all, int num_homes) {
  HADAL_CHECK(num_homes == 1 || all.homes.size() == all.starts.size(), "internal error: a step of ",
              all.starts.size(), " sequences names ", all.homes.size(), " homes");
  HADAL_CHECK(std::is_sorted(all.homes.begin(), all.homes.end()),
              "internal error: a step whose sequences are not in the order of their homes");
  const auto S = static_cast<int64_t>(all.starts.size());
  int64_t s = 0, t = 0;
  for (int home = 0; home < num_homes; ++home) {
    seqs.push_back(s);
    tokens.push_back(t);
    for (; s < S && (num_homes == 1 || all.homes[static_cast<size_t>(s)] == home); ++s)
      t += all.counts[static_cast<size_t>(s)];
  }
  HADAL_CHECK(s == S, "internal error: a step for home ", all.homes.empty() ? 0 : all.homes.back(),
              " of ", num_homes);
  seqs.push_back(s);
  tokens.push_back(t);
}

std::vector<int64_t> HomeRuns::num_tokens() const {
  std::vector<int64_t> counts;
  for (size_t g = 0; g + 1 < tokens.size(); ++g) counts.push_back(tokens[g + 1] - tokens[g]);
  return counts;
}

int64_t HomeRuns::most_seqs() const {
  int64_t most = 0;
  for (size_t g = 0; g + 1 < seqs.size(); ++g) most = std::max(most, seqs[g + 1] - seqs[g]);
  return most;
}

PagedTokens HomeRuns::part_of(const PagedTokens& all, int home) const {
  const auto g = static_cast<size_t>(home);
  return {.ids = run_of(all.ids, tokens[g], tokens[g + 1]),
          .starts = run_of(all.starts, seqs[g], seqs[g + 1]),
          .counts = run_of(all.counts, seqs[g], seqs[g + 1]),
          .pages = run_of(all.pages, seqs[g], seqs[g + 1])};
}

PagedStep make_paged_step(Context& ctx, Decoder& decoder, const PagedTokens& own) {
  PagedStep paged;
  for (const std::vector<int64_t>* pages : own.pages) {
    const auto slot = static_cast<int64_t>(paged.slots.size());
    decoder.cache().assign(slot, *pages);
    paged.slots.push_back(slot);
  }
  if (!own.ids.empty())
    paged.step = make_step(ctx, decoder.config(), own.ids, own.starts, own.counts, decoder.act());
  return paged;
}

namespace {

// This home's part of a step.
PagedStep begin_step(Context& ctx, Decoder& decoder, const PagedTokens& tokens,
                     const HomeRuns& runs) {
  PagedStep paged = make_paged_step(ctx, decoder, runs.part_of(tokens, decoder.home()));
  paged.step.of_ranks = runs.num_tokens();
  decoder.prepare(paged.call());
  return paged;
}

}  // namespace

void paged_forward(Context& ctx, Decoder& decoder, const PagedTokens& tokens, Out h) {
  if (!decoder.splits_sequences())
    return decoder.forward(make_paged_step(ctx, decoder, tokens).call(), h);  // [T, D]
  const HomeRuns runs(tokens, decoder.num_homes());
  const PagedStep paged = begin_step(ctx, decoder, tokens, runs);
  announce(decoder, tokens, -1);
  const HomeStates states(ctx, decoder, runs, h);
  decoder.run(paged.step, Tensor(states.own()));  // [Th, D]
  states.to_leader(ctx);                          // [T, D]
}

void paged_mtp_forward(Context& ctx, Decoder& decoder, int64_t k, const PagedTokens& tokens, In h,
                       Out out) {
  if (!decoder.splits_sequences())
    return decoder.mtp_forward(k, make_paged_step(ctx, decoder, tokens).call(), h, out);  // [T, D]
  const HomeRuns runs(tokens, decoder.num_homes());
  const PagedStep paged = begin_step(ctx, decoder, tokens, runs);
  announce(decoder, tokens, k);
  const HomeStates before(ctx, decoder, runs, h), after(ctx, decoder, runs, out);
  before.to_homes(ctx);
  decoder.run_mtp(k, paged.step, before.own(), Tensor(after.own()));  // [Th, D]
  after.to_leader(ctx);                                               // [T, D]
}

}  // namespace hadal::serve
