// Generator: prefill in chunks, then rounds of draft, verify, accept.
//
//   n known tokens   D model width   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include "serve/generator.h"

#include <algorithm>
#include <map>
#include <memory>

#include "core/timer.h"
#include "core/transfer.h"
#include "model/bytes.h"
#include "ops/copy.h"
#include "serve/step_graph.h"

namespace hadal::serve {

double GenerateResult::acceptance() const {
  if (drafted.empty() || drafted[0] == 0) return 0.0;
  return static_cast<double>(accepted[0]) / static_cast<double>(drafted[0]);
}

double GenerateResult::tokens_per_second() const {
  if (tokens.size() < 2 || decode_seconds <= 0.0) return 0.0;
  return static_cast<double>(tokens.size() - 1) / decode_seconds;
}

// One running sequence. Position i has a state once the main model ran over it; `done` positions
// are final. states[0] are the main model's, states[k] those of MTP depth k, kept for the next
// depth and the next request.
struct Generator::Session {
  Session(Context& ctx, Decoder& decoder, int64_t modules);
  ~Session() { decoder.cache().close(slots[0]); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Rows of the cache for every token that the request may reach.
  void reserve_all();
  // Runs ids at start, ... and draws the token after each of them, in one recorded step.
  std::vector<int32_t> step(const std::vector<int32_t>& ids, int64_t start);
  void restart(const GenerateRequest& request);
  int32_t draw(In h, int64_t position);
  bool run_main(const std::vector<int32_t>& ids, int64_t start);
  int32_t run_mtp(int64_t depth, int64_t module, const std::vector<int32_t>& ids, int64_t start);
  std::vector<int32_t> draft();

  Context& ctx;
  Decoder& decoder;
  const GenerateRequest* request = nullptr;
  std::vector<int64_t> slots;
  std::vector<int32_t> tokens;  // n known
  int64_t done = 0;
  std::vector<int64_t> mtp_done;  // by module: positions run with known tokens
  Block memory;
  std::vector<Tensor> states;  // [1 + modules] of [max_tokens, D]
  Tensor logits;               // [1, V]
  Tensor where, token;         // [1] i32   a position, and the token drawn for it
  std::map<size_t, std::unique_ptr<StepGraph>> graphs;  // by number of tokens
};

Generator::Session::Session(Context& c, Decoder& d, int64_t modules)
    : ctx(c), decoder(d), slots{d.cache().open()} {
  const Shape state{d.limits().max_tokens, d.config().hidden_size};
  const DType stat = stat_dtype(d.act());
  ByteCount bytes;
  for (int64_t k = 0; k <= modules; ++k) bytes.add(d.act(), state);
  bytes.add(stat, {1, d.config().vocab_size}).add(DType::kI32, {1}).add(DType::kI32, {1});
  memory = ctx.memory.take(bytes.total());
  for (int64_t k = 0; k <= modules; ++k) states.push_back(memory.tensor(d.act(), state));
  logits = memory.tensor(stat, {1, d.config().vocab_size});
  where = memory.tensor(DType::kI32, {1});
  token = memory.tensor(DType::kI32, {1});
  mtp_done.assign(static_cast<size_t>(modules), 0);
}

void Generator::Session::reserve_all() {
  const int64_t wanted =
      static_cast<int64_t>(request->prompt.size()) + request->max_tokens + request->speculate + 1;
  decoder.cache().reserve(slots[0], std::min(wanted, decoder.limits().max_tokens));
}

std::vector<int32_t> Generator::Session::step(const std::vector<int32_t>& ids, int64_t start) {
  std::unique_ptr<StepGraph>& graph = graphs[ids.size()];
  if (!graph)
    graph = std::make_unique<StepGraph>(ctx, decoder, request->sampling, slots[0],
                                        static_cast<int64_t>(ids.size()));
  std::vector<int32_t> drawn = graph->run(ids, start);
  if (!mtp_done.empty())
    ops::cast(ctx, graph->states(), states[0].rows(start, static_cast<int64_t>(ids.size())));
  return drawn;
}

// What was run over tokens that the prompt begins with stays, but for its last token, whose state
// the next one is drawn from.
void Generator::Session::restart(const GenerateRequest& r) {
  request = &r;
  const int64_t same =
      std::mismatch(tokens.begin(), tokens.end(), r.prompt.begin(), r.prompt.end()).first -
      tokens.begin();
  tokens = r.prompt;
  graphs.clear();  // recorded for another sampling rule and other pages
  done = std::min({done, same, static_cast<int64_t>(tokens.size()) - 1});
  // Module m at position i has seen the token at i + 1 + m.
  for (size_t m = 0; m < mtp_done.size(); ++m)
    mtp_done[m] = std::clamp<int64_t>(same - 1 - static_cast<int64_t>(m), 0, mtp_done[m]);
}

// The token at `position`, from the state of the position before it.
int32_t Generator::Session::draw(In h, int64_t position) {
  decoder.logits(h, logits);  // [1, V]
  upload(ctx, std::vector<int32_t>{static_cast<int32_t>(position)}, where);
  ops::sample(ctx, request->sampling, logits, where, token);  // [1]
  return download<int32_t>(ctx, token)[0];
}

// Runs the main model over ids at positions start, start+1, ...; false if it was stopped before the
// last of them.
bool Generator::Session::run_main(const std::vector<int32_t>& ids, int64_t start) {
  const auto n = static_cast<int64_t>(ids.size());
  for (int64_t i = 0; i < n;) {
    if (i > 0 && request->should_stop && request->should_stop()) {
      done = start + i;
      return false;
    }
    const int64_t count = std::min(n - i, decoder.limits().max_step_tokens);
    const std::vector<int32_t> chunk(ids.begin() + i, ids.begin() + i + count);
    const Step step = make_step(ctx, decoder.config(), chunk, {start + i}, {count}, decoder.act());
    decoder.forward({.step = step, .seqs = slots}, states[0].rows(start + i, count));
    i += count;
  }
  return true;
}

// Runs one MTP module over positions start, ...: `depth` says whose states it reads, and where its
// own go. Returns the token that its last state predicts.
int32_t Generator::Session::run_mtp(int64_t depth, int64_t module, const std::vector<int32_t>& ids,
                                    int64_t start) {
  const auto n = static_cast<int64_t>(ids.size());
  const auto from = static_cast<size_t>(std::min<int64_t>(depth, module));
  const auto to = static_cast<size_t>(module + 1);
  // NOTE: a module that runs again on its own output reads the position before (from == its own).
  const bool again = depth > module;
  const Tensor& source = again ? states[to] : states[from];
  const int64_t shift = again ? -1 : 0;
  for (int64_t i = 0; i < n;) {
    const int64_t count = std::min(n - i, decoder.limits().max_step_tokens);
    const std::vector<int32_t> chunk(ids.begin() + i, ids.begin() + i + count);
    const Step step = make_step(ctx, decoder.config(), chunk, {start + i}, {count}, decoder.act());
    decoder.mtp_forward(module, {.step = step, .seqs = slots},
                        source.rows(start + i + shift, count), states[to].rows(start + i, count));
    i += count;
  }
  return draw(states[to].rows(start + n - 1, 1), start + n + 1 + module);
}

// Drafts of the tokens at n, n+1, ...: depth d by module d, and beyond the last module by that
// module again, one position further each time with its own state.
std::vector<int32_t> Generator::Session::draft() {
  const auto n = static_cast<int64_t>(tokens.size()), last = n - 2;  // last position with a state
  const auto modules = static_cast<int64_t>(mtp_done.size());
  const int64_t limit = decoder.limits().max_tokens;
  std::vector<int32_t> known = tokens;  // grows by the drafts
  for (int64_t d = 0; d < request->speculate && n + d < limit; ++d) {
    const int64_t module = std::min(d, modules - 1), ahead = d - module;
    const int64_t start = ahead > 0 ? last + ahead : mtp_done[static_cast<size_t>(module)];
    const int64_t end = last + ahead + 1;
    const std::vector<int32_t> ids(known.begin() + start + 1 + module,
                                   known.begin() + end + 1 + module);
    known.push_back(run_mtp(d, module, ids, start));
    if (ahead == 0)
      mtp_done[static_cast<size_t>(module)] = std::max<int64_t>(start, last + 1 - module);
  }
  return {known.begin() + n, known.end()};
}

Generator::Generator(Context& ctx, Decoder& decoder) : ctx_(ctx), decoder_(decoder) {}
Generator::~Generator() = default;

GenerateResult Generator::run(const GenerateRequest& request) {
  const int64_t limit = decoder_.limits().max_tokens;
  HADAL_CHECK(!request.prompt.empty(), "the prompt is empty; give at least one token");
  HADAL_CHECK(static_cast<int64_t>(request.prompt.size()) < limit, "the prompt has ",
              request.prompt.size(), " tokens; at most ", limit - 1, " fit the context of ", limit);
  HADAL_CHECK(request.speculate >= 0, "the number of drafts is ", request.speculate,
              "; allowed: 0 (no speculation) or more");
  HADAL_CHECK(request.speculate == 0 || decoder_.limits().num_mtp > 0,
              "speculation needs a model with an MTP module; use --speculate 0");
  for (int32_t id : request.prompt)
    HADAL_CHECK(id >= 0 && id < decoder_.config().vocab_size, "token ", id,
                " is outside the vocabulary of ", decoder_.config().vocab_size);
  GenerateResult result;
  result.drafted.assign(static_cast<size_t>(request.speculate), 0);
  result.accepted = result.drafted;
  const size_t modules = request.speculate > 0 ? static_cast<size_t>(decoder_.limits().num_mtp) : 0;
  std::unique_ptr<Session> session = std::move(session_);
  if (session == nullptr || session->mtp_done.size() < modules) {
    session.reset();  // gives its sequence back first
    session = std::make_unique<Session>(ctx_, decoder_, static_cast<int64_t>(modules));
  }
  Session& s = *session;
  s.restart(request);
  result.num_reused = s.done;
  Timer timer;
  std::vector<int32_t> drafts;
  const auto is_stop = [&](int32_t token) {
    return std::find(request.stop_ids.begin(), request.stop_ids.end(), token) !=
           request.stop_ids.end();
  };
  bool prefilled = false;
  const bool records = device::can_record(ctx_.device) && decoder_.is_alone();
  if (records) s.reserve_all();
  for (bool running = request.max_tokens > 0; running;) {
    // Run the tokens without a state and the drafts; then draw until a draft is wrong.
    std::vector<int32_t> ids(s.tokens.begin() + s.done, s.tokens.end());
    ids.insert(ids.end(), drafts.begin(), drafts.end());
    std::vector<int32_t> drawn;
    const bool at_once = records && prefilled;
    if (at_once)
      drawn = s.step(ids, s.done);
    else if (!s.run_main(ids, s.done))
      break;
    const int64_t first = s.done;
    for (size_t d = 0; running; ++d) {
      const auto n = static_cast<int64_t>(s.tokens.size());
      const int32_t token = at_once ? drawn[static_cast<size_t>(n - 1 - first)]
                                    : s.draw(s.states[0].rows(n - 1, 1), n);
      const bool right = d < drafts.size() && drafts[d] == token;
      if (d < drafts.size()) {
        ++result.drafted[d];
        if (right) ++result.accepted[d];
      }
      s.done = n;
      if (is_stop(token)) {
        result.stopped = true;
        running = false;
        break;
      }
      s.tokens.push_back(token);
      result.tokens.push_back(token);
      running = !(request.on_token && !request.on_token(token)) &&
                static_cast<int64_t>(result.tokens.size()) < request.max_tokens && n + 1 < limit;
      if (!right) break;
    }
    if (prefilled) ++result.num_rounds;
    if (!prefilled) {
      result.prefill_seconds = timer.seconds();
      timer = Timer();
      prefilled = true;
    }
    drafts.clear();
    if (running && request.speculate > 0) drafts = s.draft();
  }
  result.decode_seconds = timer.seconds();
  session_ = std::move(session);
  return result;
}

}  // namespace hadal::serve
