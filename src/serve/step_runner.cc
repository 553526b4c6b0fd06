// StepRunner: staging, recording, launching.
//
//   T tokens of a step   S sequences   R draws   P pages of a sequence   D model width
//   V vocabulary   Dr rope width
// SPDX-License-Identifier: Apache-2.0
#include "serve/step_runner.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "core/pinned.h"
#include "core/transfer.h"
#include "model/bytes.h"
#include "ops/copy.h"
#include "ops/rope.h"
#include "serve/rank_calls.h"

namespace hadal::serve {
namespace {

// Numbers of sequences that steps are recorded for: powers of two and one and a half of them.
std::vector<int64_t> recorded_sizes(int64_t max_seqs) {
  std::vector<int64_t> sizes;
  for (int64_t size = 1; size < max_seqs; size *= 2) {
    sizes.push_back(size);
    if (size > 1 && size * 3 / 2 < max_seqs) sizes.push_back(size * 3 / 2);
  }
  sizes.push_back(max_seqs);
  return sizes;
}

std::vector<int64_t> first_slots(int64_t count) {
  std::vector<int64_t> slots(static_cast<size_t>(count));
  std::iota(slots.begin(), slots.end(), 0);
  return slots;
}

}  // namespace

StepRunner::StepRunner(Context& ctx, Decoder& decoder)
    : ctx_(ctx),
      decoder_(decoder),
      num_homes_(decoder.num_homes()),
      home_(decoder.home()),
      max_seqs_(decoder.limits().max_seqs),
      temporaries_(ctx.memory) {
  decoder.announce(words_of(RankCall::kStepRunner));
  const Config& c = decoder.config();
  const int64_t S = max_seqs_;
  const DType stat = stat_dtype(decoder.act());
  decoder.cache().select(first_slots(S));
  table_ = decoder.cache().layer(0).table;
  memory_ = ctx.memory.take(ByteCount()
                                .add(DType::kI32, {S})
                                .add(DType::kI32, {S})
                                .add(DType::kI64, {S})
                                .add(DType::kI64, {S})
                                .add(DType::kF64, {S})
                                .add(DType::kF64, {S})
                                .add(DType::kI32, {S})
                                .add(DType::kI32, {S + 1})
                                .add(DType::kI32, {S})
                                .add(stat, {S, c.qk_rope_head_dim})
                                .add(DType::kF64, {c.qk_rope_head_dim / 2})
                                .add(DType::kI32, {num_homes_, S})
                                .total());
  Fields& f = fields_;
  f.given = memory_.tensor(DType::kI32, {S});
  f.positions = memory_.tensor(DType::kI32, {S});
  f.top_k = memory_.tensor(DType::kI64, {S});
  f.seed = memory_.tensor(DType::kI64, {S});
  f.temperature = memory_.tensor(DType::kF64, {S});
  f.top_p = memory_.tensor(DType::kF64, {S});
  f.where = memory_.tensor(DType::kI32, {S});
  offsets_ = memory_.tensor(DType::kI32, {S + 1});
  staged_bytes_ = static_cast<size_t>(static_cast<std::byte*>(offsets_.raw()) -
                                      static_cast<std::byte*>(memory_.data()));
  ids_ = memory_.tensor(DType::kI32, {S});
  rope_ = memory_.tensor(stat, {S, c.qk_rope_head_dim});
  inv_freq_ = memory_.tensor(DType::kF64, {c.qk_rope_head_dim / 2});
  all_drawn_ = memory_.tensor(DType::kI32, {num_homes_, S});
  drawn_ = all_drawn_.row(home_);
  std::vector<int32_t> offsets(static_cast<size_t>(S) + 1);
  std::iota(offsets.begin(), offsets.end(), 0);
  upload(ctx, offsets, offsets_);
  upload(ctx, rope_inv_freq(c), inv_freq_);
  // Those that no step has drawn travel too.
  upload(ctx, std::vector<int32_t>(static_cast<size_t>(num_homes_ * S)), all_drawn_);
  const size_t bytes = staged_bytes_ + static_cast<size_t>(table_.num_bytes());
  for (Slot& slot : slots_) {
    slot.staged = static_cast<std::byte*>(device::allocate_pinned(ctx.device, bytes));
    slot.drawn = static_cast<int32_t*>(
        device::allocate_pinned(ctx.device, static_cast<size_t>(all_drawn_.num_bytes())));
    HADAL_CHECK(slot.staged != nullptr && slot.drawn != nullptr, "out of memory: could not get ",
                bytes >> 10, " KiB for the tokens of a step");
  }
  for (Marks& marks : marks_)
    marks = {device::make_event(ctx.device), device::make_event(ctx.device), false};
}

StepRunner::~StepRunner() {
  try {
    device::synchronize(ctx_.device, ctx_.stream);
  } catch (const std::exception&) {
    // Nobody is left to tell.
  }
  for (const auto& [size, graph] : graphs_) device::destroy(ctx_.device, graph);
  for (Slot& slot : slots_) {
    device::release_pinned(ctx_.device, slot.staged);
    device::release_pinned(ctx_.device, slot.drawn);
  }
  for (Marks& marks : marks_) {
    device::destroy(ctx_.device, marks.begin);
    device::destroy(ctx_.device, marks.done);
  }
}

template <class T>
T* StepRunner::staged(const Slot& slot, const Tensor& field) const {
  const auto offset = field.data<T>() - static_cast<T*>(memory_.data());
  return reinterpret_cast<T*>(slot.staged) + offset;
}

StepRunner::Part StepRunner::part_of(const Input& input) const {
  const HomeRuns runs(input.tokens, num_homes_);
  Part part;
  part.input.tokens = runs.part_of(input.tokens, home_);
  if (decoder_.splits_sequences()) part.of_ranks = runs.num_tokens();
  part.num_draws.resize(static_cast<size_t>(num_homes_));
  for (size_t g = 0; const Draw& draw : input.draws) {
    while (draw.row >= runs.tokens[g + 1]) ++g;
    ++part.num_draws[g];
    if (static_cast<int>(g) != home_) continue;
    part.input.draws.push_back(draw);
    part.input.draws.back().row -= runs.tokens[g];
  }
  for (int32_t& id : part.input.tokens.ids)
    if (id < 0) id += static_cast<int32_t>(first_drawn_);
  const size_t S = input.tokens.starts.size();
  part.most_seqs = runs.most_seqs();
  part.one_each = input.tokens.ids.size() == S && input.draws.size() == S;
  return part;
}

// What a recorded step of `size` sequences reads. Rows behind the input's fill up: token 0 at
// position 0 of the scratch page.
void StepRunner::stage(const Slot& slot, const Input& input, int64_t size) {
  const int64_t P = table_.dim(1);
  auto* const table = reinterpret_cast<int32_t*>(slot.staged + staged_bytes_);
  std::fill(table, table + size * P, -1);
  for (int64_t s = 0; s < size; ++s) {
    int32_t given = 0;
    int64_t position = 0;
    ops::SampleRule rule;
    if (s < static_cast<int64_t>(input.tokens.starts.size())) {
      const auto at = static_cast<size_t>(s);
      given = input.tokens.ids[at];
      position = input.tokens.starts[at];
      rule = input.draws[at].rule;
      const std::vector<int64_t>& pages = *input.tokens.pages[at];
      for (size_t i = 0; i < pages.size(); ++i)
        table[s * P + static_cast<int64_t>(i)] = static_cast<int32_t>(pages[i]);
    } else {
      table[s * P] = static_cast<int32_t>(scratch_page_);
    }
    staged<int32_t>(slot, fields_.given)[s] = given;
    staged<int32_t>(slot, fields_.positions)[s] = static_cast<int32_t>(position);
    staged<int32_t>(slot, fields_.where)[s] = static_cast<int32_t>(position) + 1;
    staged<int64_t>(slot, fields_.top_k)[s] = rule.top_k;
    staged<int64_t>(slot, fields_.seed)[s] = static_cast<int64_t>(rule.seed);
    staged<double>(slot, fields_.temperature)[s] = rule.temperature;
    staged<double>(slot, fields_.top_p)[s] = rule.top_p;
  }
  device::copy_to_device(ctx_.device, ctx_.stream, slot.staged, memory_.data(), staged_bytes_);
  device::copy_to_device(ctx_.device, ctx_.stream, table, table_.raw(),
                         static_cast<size_t>(size * P) * sizeof(int32_t));
}

void StepRunner::recorded_work(int64_t size) {
  const Config& c = decoder_.config();
  const int64_t S = size;
  Step step;
  if (decoder_.splits_sequences()) step.of_ranks.assign(static_cast<size_t>(num_homes_), S);
  step.seq.num_tokens = step.seq.num_seqs = S;
  step.seq.max_len = 1;
  step.seq.offsets = offsets_.rows(0, S + 1);
  step.seq.positions = fields_.positions.rows(0, S);
  step.seq.rope = rope_.rows(0, S);
  step.ids = ids_.rows(0, S);
  Tensor h, logits;
  const Block h_memory = ctx_.memory.take_tensor(decoder_.act(), {S, c.hidden_size}, &h);
  const Block logits_memory =
      ctx_.memory.take_tensor(stat_dtype(decoder_.act()), {S, c.vocab_size}, &logits);
  ops::fill_tokens(ctx_, fields_.given.rows(0, S), drawn_, Tensor(step.ids));  // [S]
  ops::rope_table(ctx_, step.seq.positions, inv_freq_, rope_magnitude(c), Tensor(step.seq.rope));
  decoder_.run(step, h);     // [S, D]
  decoder_.head(h, logits);  // [S, V]
  const ops::SampleRules rules{.temperature = fields_.temperature.rows(0, S),
                               .top_p = fields_.top_p.rows(0, S),
                               .top_k = fields_.top_k.rows(0, S),
                               .seed = fields_.seed.rows(0, S)};
  ops::sample_each(ctx_, rules, logits, fields_.where.rows(0, S), drawn_.rows(0, S));  // [S]
  gather_draws();
}

// Those of other homes are the leader's to read.
void StepRunner::gather_draws() {
  if (num_homes_ > 1) decoder_.group().comm().all_gather(ctx_, drawn_, all_drawn_);  // [G, S]
}

void StepRunner::record_steps(int64_t scratch_page) {
  decoder_.announce(words_of(RankCall::kRecord, scratch_page));
  scratch_page_ = scratch_page;
  for (int64_t size : recorded_sizes(std::min(max_seqs_, decoder_.limits().max_step_tokens))) {
    decoder_.cache().select(first_slots(size));
    stage(slots_[0], {}, size);
    const GraphMemory::Scope scope(temporaries_);
    recorded_work(size);  // finds all memory that the recording takes
    device::synchronize(ctx_.device, ctx_.stream);
    device::begin_recording(ctx_.device, ctx_.stream);
    recorded_work(size);
    graphs_[size] = device::end_recording(ctx_.device, ctx_.stream);
  }
}

// A step of the most tokens and draws: on each home all sequences but the last add one token, and
// it adds what is left.
void StepRunner::run_largest() {
  const Decoder::Limits& limits = decoder_.limits();
  const int64_t S = std::min(max_seqs_, limits.max_step_tokens);
  const int64_t most = std::min(limits.max_step_tokens - (S - 1), limits.max_tokens);
  const int64_t T = S - 1 + most;
  std::vector<int64_t> pages(
      static_cast<size_t>((most + ops::kCachePageTokens - 1) / ops::kCachePageTokens));
  std::iota(pages.begin(), pages.end(), 0);
  Input input;
  input.tokens.ids.assign(static_cast<size_t>(num_homes_ * T), 0);
  for (int64_t home = 0; home < num_homes_; ++home)
    for (int64_t s = 0; s < S; ++s) {
      const int64_t count = s + 1 < S ? 1 : most;
      input.tokens.starts.push_back(0);
      input.tokens.counts.push_back(count);
      input.tokens.pages.push_back(&pages);
      if (decoder_.splits_sequences()) input.tokens.homes.push_back(home);
      input.draws.push_back({.row = home * T + s + count - 1, .position = count});
    }
  launch(input);
  take();
}

// A step call by call.
void StepRunner::run(const Part& part) {
  const Input& input = part.input;
  const Config& c = decoder_.config();
  const auto T = static_cast<int64_t>(input.tokens.ids.size());
  const auto R = static_cast<int64_t>(input.draws.size());
  PagedTokens known = input.tokens;
  for (int32_t& id : known.ids) id = std::max(id, 0);
  PagedStep paged = make_paged_step(ctx_, decoder_, known);
  paged.step.of_ranks = part.of_ranks;
  if (known.ids != input.tokens.ids) {
    Tensor given;
    const Block memory = ctx_.memory.take_tensor(DType::kI32, {T}, &given);
    upload(ctx_, input.tokens.ids, given);
    ops::fill_tokens(ctx_, given, drawn_, Tensor(paged.step.ids));
  }
  Tensor h;
  const Block h_memory = ctx_.memory.take_tensor(decoder_.act(), {T, c.hidden_size}, &h);
  decoder_.prepare(paged.call());
  decoder_.run(paged.step, h);  // [T, D]
  if (R > 0) draw(input, h);    // [R]
}

// Draws from the states h [T, D] of a step.
void StepRunner::draw(const Input& input, const Tensor& h) {
  const Config& c = decoder_.config();
  const int64_t T = h.dim(0), R = static_cast<int64_t>(input.draws.size());
  Tensor logits, last = h;
  Block last_memory;

  std::vector<int32_t> rows, where;
  std::vector<double> temperature, top_p;
  std::vector<int64_t> top_k, seed;
  for (const Draw& draw : input.draws) {
    rows.push_back(static_cast<int32_t>(draw.row));
    where.push_back(static_cast<int32_t>(draw.position));
    temperature.push_back(draw.rule.temperature);
    top_p.push_back(draw.rule.top_p);
    top_k.push_back(draw.rule.top_k);
    seed.push_back(static_cast<int64_t>(draw.rule.seed));
  }
  std::vector<Block> kept;
  const auto put = [&](const auto& values) {
    Tensor t;
    using Value = typename std::decay_t<decltype(values)>::value_type;
    kept.push_back(ctx_.memory.take_tensor(DTypeOf<Value>::value, {R}, &t));
    upload(ctx_, values, t);
    return t;
  };
  if (R < T) {
    last_memory = ctx_.memory.take_tensor(decoder_.act(), {R, c.hidden_size}, &last);
    ops::embed_forward(ctx_, h, put(rows), last);  // [R, D]
  }
  const Block logits_memory =
      ctx_.memory.take_tensor(stat_dtype(decoder_.act()), {R, c.vocab_size}, &logits);
  decoder_.head(last, logits);  // [R, V]
  const ops::SampleRules rules{
      .temperature = put(temperature), .top_p = put(top_p), .top_k = put(top_k), .seed = put(seed)};
  ops::sample_each(ctx_, rules, logits, put(where), drawn_.rows(0, R));  // [R]
}

// The recorded step that takes this one, or none.
std::map<int64_t, Graph>::const_iterator StepRunner::recorded(const Part& part) const {
  return part.one_each ? graphs_.lower_bound(part.most_seqs) : graphs_.end();
}

void StepRunner::launch(const Input& input) {
  HADAL_CHECK(num_under_way() < 2, "internal error: a third step at once");
  if (decoder_.leads()) decoder_.announce(words_of(input));
  Slot& slot = slots_[static_cast<size_t>(num_launched_ % 2)];
  Marks& marks = marks_[static_cast<size_t>(num_launched_ % 4)];
  marks.follows = num_under_way() > 0;
  const Part part = part_of(input);
  slot.num_draws = part.num_draws;
  const auto graph = recorded(part);
  if (graph != graphs_.end()) {
    stage(slot, part.input, graph->first);
    device::record(ctx_.device, ctx_.stream, marks.begin);
    device::launch(ctx_.device, ctx_.stream, graph->second);
  } else {
    device::record(ctx_.device, ctx_.stream, marks.begin);
    run(part);
    gather_draws();
  }
  if (home_ == 0)
    device::copy_to_pinned(ctx_.device, ctx_.stream, all_drawn_.raw(), slot.drawn,
                           static_cast<size_t>(all_drawn_.num_bytes()));
  device::record(ctx_.device, ctx_.stream, marks.done);
  first_drawn_ =
      std::accumulate(part.num_draws.begin(), part.num_draws.begin() + home_, int64_t{0});
  ++num_launched_;
}

std::vector<int32_t> StepRunner::take() {
  HADAL_CHECK(num_under_way() > 0, "internal error: no step is under way");
  const Slot& slot = slots_[static_cast<size_t>(num_taken_ % 2)];
  const Marks& marks = marks_[static_cast<size_t>(num_taken_ % 4)];
  const Marks& before = marks_[static_cast<size_t>((num_taken_ + 3) % 4)];
  ++num_taken_;
  device::wait_checked(ctx_.device, marks.done);
  busy_seconds_ += 1e-3 * device::elapsed_ms(ctx_.device, marks.begin, marks.done);
  if (marks.follows)
    idle_seconds_ += 1e-3 * device::elapsed_ms(ctx_.device, before.done, marks.begin);
  std::vector<int32_t> drawn;
  for (int home = 0; home_ == 0 && home < num_homes_; ++home) {
    const int32_t* const first = slot.drawn + home * max_seqs_;
    drawn.insert(drawn.end(), first, first + slot.num_draws[static_cast<size_t>(home)]);
  }
  return drawn;
}

}  // namespace hadal::serve
