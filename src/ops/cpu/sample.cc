// Choosing the next token on the CPU.
//
//   T rows   V vocabulary
//
// Probabilities in f64 whatever the logits' type. top_p counts probability among the tokens that
// top_k keeps.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/rng.h"
#include "ops/cpu/rows.h"
#include "ops/draw.h"

namespace hadal::ops::cpu {
namespace {

// The smallest id among those with the largest logit.
int64_t largest_id(const double* logits, int64_t V, int64_t t) {
  int64_t best = 0;
  bool has_nan = false;
  for (int64_t v = 0; v < V; ++v) {
    if (logits[v] > logits[best]) best = v;
    has_nan = has_nan || std::isnan(logits[v]);
  }
  HADAL_CHECK(!has_nan && std::isfinite(logits[best]), "row ", t,
              " of the logits has NaN or no finite largest element: nothing can be drawn from it");
  return best;
}

// Hands out ids from the most probable to the least; ties go to the smaller id.
class Descending {
 public:
  Descending(const double* weights, int32_t* heap, int64_t V)
      : less_{weights}, heap_(heap), left_(V) {
    for (int64_t v = 0; v < V; ++v) heap[v] = static_cast<int32_t>(v);
    std::make_heap(heap, heap + V, less_);
  }
  bool done() const { return left_ == 0; }
  int32_t next() {
    std::pop_heap(heap_, heap_ + left_, less_);
    return heap_[--left_];
  }

 private:
  struct Less {
    const double* w;
    bool operator()(int32_t a, int32_t b) const { return w[a] < w[b] || (w[a] == w[b] && a > b); }
  };
  Less less_;
  int32_t* heap_;
  int64_t left_;
};

// Inverse of the cumulative distribution, in order of descending weight, at u in [0, 1).
int32_t draw(const SampleRule& rule, const double* weights, int32_t* heap, int32_t* kept, int64_t V,
             double u) {
  Descending order(weights, heap, V);
  int64_t num_kept = 0;
  double total = 0;
  const auto keep_next = [&] {
    kept[num_kept] = order.next();
    total += weights[kept[num_kept++]];
  };
  const int64_t most = rule.top_k > 0 ? std::min(rule.top_k, V) : V;
  if (most < V) {
    while (num_kept < most) keep_next();
  } else {
    total = row_kernels().f64.sum(weights, V);
  }

  if (rule.top_p < 1) {
    const double wanted = rule.top_p * total;
    const int64_t num_ordered = num_kept;
    double mass = 0;
    int64_t count = 0;
    while (mass < wanted && count < most) {
      if (count >= num_ordered) kept[count] = order.next();
      mass += weights[kept[count++]];
    }
    total = mass;
    num_kept = count;
  }

  const double threshold = u * total;
  double mass = 0;
  int32_t token = 0;
  for (int64_t i = 0; num_kept > 0 ? i < num_kept : !order.done(); ++i) {
    const int32_t candidate = num_kept > 0 ? kept[i] : order.next();
    if (weights[candidate] == 0) break;  // rounding left mass below the threshold
    token = candidate;
    mass += weights[token];
    if (mass > threshold) break;
  }
  return token;
}

// rule(t) says how row t is drawn.
template <class RuleOf>
void sample_rows(Context& ctx, const RuleOf& rule_of, In logits, In positions, Out tokens) {
  const int64_t T = logits.dim(0), V = logits.dim(1);
  const ScratchRows<double> values(ctx, 2, V);
  const ScratchRows<int32_t> ids(ctx, 2, V);
  const auto positions_at = positions.data<int32_t>();
  for_rows(ctx, T, 4 * V, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t t = begin; t < end; ++t) {
      const SampleRule rule = rule_of(t);
      const double* row = read_row(logits, t * logits.stride(0), V, values.row(thread, 0));
      const int64_t best = largest_id(row, V, t);
      int32_t& token = tokens.data<int32_t>()[t * tokens.stride(0)];
      token = static_cast<int32_t>(best);
      if (rule.temperature == 0) continue;
      double* weights = values.row(thread, 1);
      for (int64_t v = 0; v < V; ++v)
        weights[v] = std::exp((row[v] - row[best]) / rule.temperature);
      const int64_t position = positions_at[t * positions.stride(0)];
      const Rng rng(rule.seed, stream_id("sample"));
      token = draw(rule, weights, ids.row(thread, 0), ids.row(thread, 1), V,
                   rng.uniform(static_cast<uint64_t>(position)));
    }
  });
}

}  // namespace

void sample(Context& ctx, const SampleRule& rule, In logits, In positions, Out tokens) {
  sample_rows(
      ctx, [&](int64_t) { return rule; }, logits, positions, tokens);
}

void top_logits(Context& ctx, In logits, Out ids, Out values) {
  const int64_t T = logits.dim(0), V = logits.dim(1), K = ids.dim(1);
  with_arithmetic({logits.dtype()}, [&]<class R>(R) {
    const ScratchRows<R> scratch(ctx, 1, V);
    const ScratchRows<int32_t> order(ctx, 1, V);
    for_rows(ctx, T, 4 * V, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t t = begin; t < end; ++t) {
        const R* row = read_row(logits, t * logits.stride(0), V, scratch.row(thread, 0));
        const auto value = [&](int32_t v) {
          return std::isnan(row[v]) ? -std::numeric_limits<R>::infinity() : row[v];
        };
        int32_t* const first = order.row(thread, 0);
        std::iota(first, first + V, 0);
        std::partial_sort(first, first + K, first + V, [&](int32_t a, int32_t b) {
          return value(a) > value(b) || (value(a) == value(b) && a < b);
        });
        for (int64_t k = 0; k < K; ++k) {
          ids.data<int32_t>()[t * K + k] = first[k];
          values.data<R>()[t * K + k] = value(first[k]);
        }
      }
    });
  });
}

void sample_each(Context& ctx, const SampleRules& rules, In logits, In positions, Out tokens) {
  const double *temperature = rules.temperature.data<double>(), *top_p = rules.top_p.data<double>();
  const int64_t *top_k = rules.top_k.data<int64_t>(), *seed = rules.seed.data<int64_t>();
  const auto rule_of = [&](int64_t t) {
    return SampleRule{.temperature = temperature[t],
                      .top_k = top_k[t],
                      .top_p = top_p[t],
                      .seed = static_cast<uint64_t>(seed[t])};
  };
  sample_rows(ctx, rule_of, logits, positions, tokens);
}

void fill_tokens(Context&, In given, In drawn, Out ids) {
  const int64_t N = drawn.dim(0);
  for (int64_t t = 0; t < given.dim(0); ++t) {
    const int64_t id = given.data<int32_t>()[t * given.stride(0)];
    HADAL_CHECK(id >= -N, "token ", t, " of the step is row ", -1 - id, " of ", N, " drawn ones");
    ids.data<int32_t>()[t * ids.stride(0)] =
        id >= 0 ? static_cast<int32_t>(id) : drawn.data<int32_t>()[(-1 - id) * drawn.stride(0)];
  }
}

}  // namespace hadal::ops::cpu
