// Dynamic redundancy: which of the hosted experts run for one batch, and how tokens are split.
//
// (1) Every expert gets one running replica: heaviest first, on the lightest GPU that hosts it,
// displacing others along an augmenting path where all its GPUs are full. (2) The split of tokens
// levels each expert's GPUs in turn: the sum of squares falls in each step, and its minimum also
// has the smallest maximum. (3) Free slots, then exchanges, relieve the most loaded GPU while that
// helps.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "core/check.h"
#include "parallel/placement.h"

namespace hadal::placement {
namespace {

constexpr double kTolerance = 1e-6;  // of the mean load, where levelling stops
constexpr int kMaxSweeps = 2000;
constexpr int kMaxSteps = 512;  // improvements of the choice of slots

class Chooser {
 public:
  Chooser(const Placement& hosted, std::span<const double> loads, int64_t active_per_gpu)
      : hosted_(hosted),
        loads_(loads),
        active_per_gpu_(active_per_gpu),
        slots_of_(loads.size()),
        free_(static_cast<size_t>(hosted.num_gpus), active_per_gpu) {
    const size_t R = hosted.expert_of_slot.size();
    result_.active.assign(R, 0);
    result_.tokens_of_slot.assign(R, 0.0);
    result_.tokens_of_gpu.assign(static_cast<size_t>(hosted.num_gpus), 0.0);
    // A second replica of an expert on one GPU is never of use.
    for (size_t s = 0; s < R; ++s) {
      auto& slots = slots_of_[expert(s)];
      if (slots.empty() || gpu_of(slots.back()) != gpu_of(s)) slots.push_back(s);
    }
  }

  Activation choose() {
    std::vector<size_t> order(loads_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return loads_[a] > loads_[b]; });
    for (const size_t e : order) start_one(e);
    level();
    for (int step = 0; step < kMaxSteps && (relieve() || exchange()); ++step) {
    }
    return std::move(result_);
  }

 private:
  size_t gpu_of(size_t slot) const { return slot / static_cast<size_t>(hosted_.slots_per_gpu()); }
  size_t expert(size_t slot) const { return static_cast<size_t>(hosted_.expert_of_slot[slot]); }
  void start(size_t slot, double tokens) {
    result_.active[slot] = 1;
    result_.tokens_of_slot[slot] = tokens;
    result_.tokens_of_gpu[gpu_of(slot)] += tokens;
    --free_[gpu_of(slot)];
  }
  double stop(size_t slot) {
    const double tokens = result_.tokens_of_slot[slot];
    result_.active[slot] = 0;
    result_.tokens_of_slot[slot] = 0.0;
    result_.tokens_of_gpu[gpu_of(slot)] -= tokens;
    ++free_[gpu_of(slot)];
    return tokens;
  }

  // The slot of expert e on the lightest GPU that has room.
  std::optional<size_t> lightest_free(size_t e) const {
    std::optional<size_t> best;
    for (const size_t s : slots_of_[e])
      if (!result_.active[s] && free_[gpu_of(s)] > 0 &&
          (!best || result_.tokens_of_gpu[gpu_of(s)] < result_.tokens_of_gpu[gpu_of(*best)]))
        best = s;
    return best;
  }

  void start_one(size_t e) {
    std::vector<uint8_t> visited(free_.size(), 0);
    HADAL_CHECK(lightest_free(e) || make_room(e, visited), "no choice of ", active_per_gpu_,
                " experts a GPU runs every expert: expert ", e,
                " finds no room; host more replicas or run more of them");
    start(*lightest_free(e), loads_[e]);
  }

  // Moves another expert away from a GPU of expert e, which then has room.
  bool make_room(size_t e, std::vector<uint8_t>& visited) {
    for (const size_t slot : slots_of_[e]) {
      const size_t gpu = gpu_of(slot);
      if (visited[gpu]) continue;
      visited[gpu] = 1;
      const size_t per_gpu = static_cast<size_t>(hosted_.slots_per_gpu());
      for (size_t other = gpu * per_gpu; other < (gpu + 1) * per_gpu; ++other) {
        if (!result_.active[other]) continue;
        const size_t moved = expert(other);
        if (!lightest_free(moved) && !make_room(moved, visited)) continue;
        const size_t to = *lightest_free(moved);
        start(to, stop(other));
        return true;
      }
    }
    return false;
  }

  // Splits the tokens of one expert so that its GPUs end as level as they can; the largest change.
  double level(size_t e) {
    std::vector<size_t> slots;
    double total = 0;
    for (const size_t s : slots_of_[e]) {
      if (!result_.active[s]) continue;
      slots.push_back(s);
      total += result_.tokens_of_slot[s];
      result_.tokens_of_gpu[gpu_of(s)] -= result_.tokens_of_slot[s];
    }
    const auto others = [&](size_t s) { return result_.tokens_of_gpu[gpu_of(s)]; };
    std::sort(slots.begin(), slots.end(),
              [&](size_t a, size_t b) { return others(a) < others(b); });
    // water: the level that the `wet` lightest GPUs reach together
    double water = 0, below = 0;
    for (size_t wet = 1; wet <= slots.size(); ++wet) {
      below += others(slots[wet - 1]);
      water = (below + total) / static_cast<double>(wet);
      if (wet == slots.size() || water <= others(slots[wet])) break;
    }
    double change = 0;
    std::vector<double> tokens;
    for (const size_t s : slots) tokens.push_back(std::max(0.0, water - others(s)));
    for (size_t i = 0; i < slots.size(); ++i) {
      change = std::max(change, std::abs(tokens[i] - result_.tokens_of_slot[slots[i]]));
      result_.tokens_of_slot[slots[i]] = tokens[i];
      result_.tokens_of_gpu[gpu_of(slots[i])] += tokens[i];
    }
    return change;
  }

  void level() {
    const double mean =
        std::accumulate(loads_.begin(), loads_.end(), 0.0) / static_cast<double>(hosted_.num_gpus);
    for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
      double change = 0;
      for (size_t e = 0; e < loads_.size(); ++e) change = std::max(change, level(e));
      if (change <= kTolerance * mean) return;
    }
  }

  // Starts one more replica of an expert of the most loaded GPU; false if none lowers the maximum.
  bool relieve() {
    const auto& gpus = result_.tokens_of_gpu;
    const auto heaviest =
        static_cast<size_t>(std::max_element(gpus.begin(), gpus.end()) - gpus.begin());
    const double before = gpus[heaviest];
    const size_t per_gpu = static_cast<size_t>(hosted_.slots_per_gpu());
    std::optional<size_t> best;
    for (size_t s = heaviest * per_gpu; s < (heaviest + 1) * per_gpu; ++s) {
      if (!result_.active[s] || result_.tokens_of_slot[s] <= 0) continue;
      const auto to = lightest_free(expert(s));
      if (to && (!best || gpus[gpu_of(*to)] < gpus[gpu_of(*best)])) best = to;
    }
    if (!best || gpus[gpu_of(*best)] >= before * (1 - kTolerance)) return false;
    start(*best, 0.0);
    level();
    return true;
  }

  // A trade: `to` takes all tokens of `from`, a slot of its expert on the most loaded GPU, or half
  // of them (split); `out`, on the GPU of `to`, stops for it, and its tokens go to `next`, another
  // slot of its expert that runs or then starts.
  struct Trade {
    size_t from, to, out, next;
    bool split;
  };

  // The trade that leaves the lowest maximum over the GPUs it touches; false if none helps.
  bool exchange() {
    const auto& gpus = result_.tokens_of_gpu;
    const auto heaviest =
        static_cast<size_t>(std::max_element(gpus.begin(), gpus.end()) - gpus.begin());
    double best = gpus[heaviest] * (1 - kTolerance);
    std::optional<Trade> chosen;
    const size_t per_gpu = static_cast<size_t>(hosted_.slots_per_gpu());
    for (size_t from = heaviest * per_gpu; from < (heaviest + 1) * per_gpu; ++from) {
      if (!result_.active[from]) continue;
      for (const size_t to : slots_of_[expert(from)]) {
        if (result_.active[to]) continue;
        for (size_t out = gpu_of(to) * per_gpu; out < (gpu_of(to) + 1) * per_gpu; ++out) {
          if (!result_.active[out]) continue;
          for (const size_t next : slots_of_[expert(out)]) {
            for (const bool split : {false, true}) {
              const Trade trade{from, to, out, next, split};
              const double maximum = maximum_after(trade);
              if (maximum < best) best = maximum, chosen = trade;
            }
          }
        }
      }
    }
    if (!chosen) return false;
    double moved = result_.tokens_of_slot[chosen->from] / 2;
    if (chosen->split)
      add(chosen->from, -moved);
    else
      moved = stop(chosen->from);
    const double homeless = stop(chosen->out);
    start(chosen->to, moved);
    if (!result_.active[chosen->next]) start(chosen->next, 0.0);
    add(chosen->next, homeless);
    level();
    return true;
  }

  // Over the three GPUs of a trade, before levelling; infinite if it cannot be made.
  double maximum_after(const Trade& t) const {
    const auto& gpus = result_.tokens_of_gpu;
    const size_t heaviest = gpu_of(t.from), to = gpu_of(t.to), next = gpu_of(t.next);
    const bool has_room = free_[next] > 0 || (!t.split && next == heaviest);
    if (t.next == t.out || (!result_.active[t.next] && !has_room))
      return std::numeric_limits<double>::infinity();
    const double homeless = result_.tokens_of_slot[t.out];
    const double moved = result_.tokens_of_slot[t.from] / (t.split ? 2 : 1);
    const double first = gpus[heaviest] - moved + (next == heaviest ? homeless : 0.0);
    const double third = next == heaviest ? first : gpus[next] + homeless;
    return std::max({first, gpus[to] + moved - homeless, third});
  }

  void add(size_t slot, double tokens) {
    result_.tokens_of_slot[slot] += tokens;
    result_.tokens_of_gpu[gpu_of(slot)] += tokens;
  }

  const Placement& hosted_;
  std::span<const double> loads_;
  int64_t active_per_gpu_;
  std::vector<std::vector<size_t>> slots_of_;  // [E]
  std::vector<int64_t> free_;                  // [G]  slots that may still run
  Activation result_;
};

}  // namespace

Activation activate(const Placement& hosted, std::span<const double> loads,
                    int64_t active_per_gpu) {
  HADAL_CHECK(loads.size() == hosted.num_replicas_of.size(), "there are ", loads.size(),
              " loads for a placement of ", hosted.num_replicas_of.size(), " experts");
  HADAL_CHECK(active_per_gpu > 0 && active_per_gpu <= hosted.slots_per_gpu(), "active_per_gpu is ",
              active_per_gpu, "; allowed: 1 to ", hosted.slots_per_gpu(), " hosted on a GPU");
  return Chooser(hosted, loads, active_per_gpu).choose();
}

}  // namespace hadal::placement
