// Rates: kinds of operations, reading, and the rate of a shape.
// SPDX-License-Identifier: Apache-2.0
#include "plan/rates.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>

#include "core/check.h"
#include "io/json.h"

namespace hadal::plan {
namespace {

enum class WorkKind : uint8_t {
  kProduct,
  kAttentionForward,
  kAttentionBackward,
  kFirst,
  kFirstTwo,
  kAll
};

// What an operation's shape means and what counts as its work.
struct OpKind {
  std::string_view name;
  size_t num_dims;
  std::string_view dims;
  std::string_view unit;
  WorkKind work;
};

constexpr OpKind kKinds[] = {
    // Products count 2 x all dimensions. Tokens are the inner dimension of a weight gradient.
    {"gemm_fp8", 3, "tokens x N x K", "flop", WorkKind::kProduct},
    {"gemm_bf16", 3, "tokens x N x K", "flop", WorkKind::kProduct},
    {"wgrad_fp8", 3, "tokens x N x K", "flop", WorkKind::kProduct},
    {"wgrad_bf16", 3, "tokens x N x K", "flop", WorkKind::kProduct},
    {"grouped_gemm_fp8", 3, "rows x N x K", "flop", WorkKind::kProduct},
    {"grouped_gemm_bf16", 3, "rows x N x K", "flop", WorkKind::kProduct},
    {"grouped_wgrad_fp8", 3, "rows x N x K", "flop", WorkKind::kProduct},
    {"grouped_wgrad_bf16", 3, "rows x N x K", "flop", WorkKind::kProduct},
    // Core attention of one causal sequence: H S^2 (Dqk + Dv), and H S^2 (3 Dqk + 2 Dv) backward.
    {"attention_forward", 4, "tokens x heads x Dqk x Dv", "flop", WorkKind::kAttentionForward},
    {"attention_backward", 4, "tokens x heads x Dqk x Dv", "flop", WorkKind::kAttentionBackward},
    // Bound by memory: bytes read and written.
    {"cast_fp8", 1, "bytes", "byte", WorkKind::kFirst},
    {"transpose_fp8", 1, "bytes", "byte", WorkKind::kFirst},
    {"permute", 1, "bytes", "byte", WorkKind::kFirst},
    {"norm", 1, "bytes", "byte", WorkKind::kFirst},
    {"elementwise", 1, "bytes", "byte", WorkKind::kFirst},
    {"optimizer", 1, "bytes", "byte", WorkKind::kFirst},
    // Links: bytes that one device sends to the nodes (or, inside a node, the devices) of its
    // tokens.
    {"dispatch", 2, "bytes x devices", "byte", WorkKind::kFirst},
    {"combine", 2, "bytes x devices", "byte", WorkKind::kFirst},
    // Small kernels and what a trace shows beside the named ones.
    {"router", 2, "tokens x experts", "element", WorkKind::kAll},
    {"rest_forward", 2, "tokens x hidden", "element", WorkKind::kAll},
    {"rest_backward", 2, "tokens x hidden", "element", WorkKind::kAll},
    {"rest_weight", 2, "tokens x hidden", "element", WorkKind::kAll},
    // Calls of our own runtime (runtime_ops.h), as `hadal bench rates` times them.
    {"gemm_nt", 3, "rows x N x K", "flop", WorkKind::kProduct},
    {"gemm_nn", 3, "rows x N x K", "flop", WorkKind::kProduct},
    {"gemm_nn_acc", 3, "rows x N x K", "flop", WorkKind::kProduct},
    {"gemm_tn_acc", 3, "tokens x N x K", "flop", WorkKind::kProduct},
    {"gemm_nt_f32", 3, "rows x N x K", "flop", WorkKind::kProduct},
    {"gemm_nn_acc_f32", 3, "rows x N x K", "flop", WorkKind::kProduct},
    {"gemm_tn_acc_f32", 3, "tokens x N x K", "flop", WorkKind::kProduct},
    {"grouped_gemm_nt", 4, "rows x N x K x experts", "flop", WorkKind::kProduct},
    {"grouped_gemm_nn", 4, "rows x N x K x experts", "flop", WorkKind::kProduct},
    {"grouped_gemm_nn_acc", 4, "rows x N x K x experts", "flop", WorkKind::kProduct},
    {"grouped_gemm_tn_acc", 4, "rows x N x K x experts", "flop", WorkKind::kProduct},
    {"mla_attention_forward", 5, "sequences x tokens x heads x Dqk x Dv", "flop",
     WorkKind::kAttentionForward},
    {"mla_attention_backward", 5, "sequences x tokens x heads x Dqk x Dv", "flop",
     WorkKind::kAttentionBackward},
    {"rmsnorm_forward", 2, "tokens x width", "element", WorkKind::kAll},
    {"rmsnorm_recompute", 2, "tokens x width", "element", WorkKind::kAll},
    {"rmsnorm_backward", 2, "tokens x width", "element", WorkKind::kAll},
    {"rope_table", 2, "tokens x width", "element", WorkKind::kAll},
    {"rope_apply", 3, "tokens x heads x width", "element", WorkKind::kAll},
    {"swiglu_forward", 2, "tokens x width", "element", WorkKind::kAll},
    {"swiglu_backward", 2, "tokens x width", "element", WorkKind::kAll},
    {"grouped_swiglu_forward", 3, "rows x width x experts", "element", WorkKind::kFirstTwo},
    {"grouped_swiglu_backward", 3, "rows x width x experts", "element", WorkKind::kFirstTwo},
    {"gate_forward", 3, "tokens x experts x choices", "element", WorkKind::kFirstTwo},
    {"gate_backward", 3, "tokens x experts x choices", "element", WorkKind::kFirstTwo},
    {"balance_loss_forward", 3, "tokens x experts x sequences", "element", WorkKind::kFirstTwo},
    {"balance_loss_backward", 3, "tokens x experts x sequences", "element", WorkKind::kFirstTwo},
    {"expert_layout", 2, "rows x experts", "element", WorkKind::kFirst},
    {"scatter_choices", 2, "rows x experts", "element", WorkKind::kFirst},
    {"gather_choices", 2, "rows x experts", "element", WorkKind::kFirst},
    {"count_choices", 2, "rows x experts", "element", WorkKind::kFirst},
    {"scatter_rows", 3, "rows x width x choices", "element", WorkKind::kFirstTwo},
    {"combine_rows", 3, "rows x width x choices", "element", WorkKind::kFirstTwo},
    {"cross_entropy_forward", 2, "tokens x vocabulary", "element", WorkKind::kAll},
    {"cross_entropy_backward", 2, "tokens x vocabulary", "element", WorkKind::kAll},
    {"embed_forward", 2, "tokens x width", "element", WorkKind::kAll},
    {"embed_backward_acc", 3, "tokens x width x table", "element", WorkKind::kFirstTwo},
    {"add", 1, "elements", "element", WorkKind::kFirst},
    {"add_acc", 1, "elements", "element", WorkKind::kFirst},
    {"cast", 1, "elements", "element", WorkKind::kFirst},
    {"cast_f32", 1, "elements", "element", WorkKind::kFirst},
    {"fill_f32", 1, "elements", "element", WorkKind::kFirst},
    {"sum_acc", 1, "elements", "element", WorkKind::kFirst},
    {"sum_squares_acc", 1, "elements", "element", WorkKind::kFirst},
    {"adamw", 1, "elements", "element", WorkKind::kFirst},
    // Calls of all ranks of a group at once. Of a reduction, the elements before it; of a gather,
    // those after it.
    {"exchange_dispatch", 5, "tokens x width x choices x experts x ranks", "element",
     WorkKind::kFirstTwo},
    {"exchange_combine", 5, "tokens x width x choices x experts x ranks", "element",
     WorkKind::kFirstTwo},
    {"exchange_combine_backward", 5, "tokens x width x choices x experts x ranks", "element",
     WorkKind::kFirstTwo},
    {"exchange_dispatch_backward", 5, "tokens x width x choices x experts x ranks", "element",
     WorkKind::kFirstTwo},
    {"reduce_scatter", 2, "elements x ranks", "element", WorkKind::kFirst},
    {"all_gather", 2, "elements x ranks", "element", WorkKind::kFirst},
    {"all_reduce", 2, "elements x ranks", "element", WorkKind::kFirst},
    {"all_reduce_f64", 2, "elements x ranks", "element", WorkKind::kFirst},
    {"transfer", 1, "elements", "element", WorkKind::kFirst},
};

const OpKind* find_kind(std::string_view op) {
  for (const OpKind& kind : kKinds)
    if (kind.name == op) return &kind;
  return nullptr;
}

const OpKind& kind_of(std::string_view op) {
  const OpKind* kind = find_kind(op);
  HADAL_CHECK(kind != nullptr, "there is no operation ", op);
  return *kind;
}

RateRow read_row(const io::JsonObject& o) {
  RateRow row;
  row.op = o.string("op");
  const OpKind* kind = find_kind(row.op);
  std::string names;
  for (const OpKind& k : kKinds) names += concat(names.empty() ? "" : ", ", k.name);
  HADAL_CHECK(kind != nullptr, o.where(), ": op is \"", row.op, "\"; known: ", names);
  row.shape = o.integers("shape");
  HADAL_CHECK(row.shape.size() == kind->num_dims, o.where(), ": shape has ", row.shape.size(),
              " dimensions; ", row.op, " has ", kind->num_dims, ": ", kind->dims);
  for (const int64_t dim : row.shape)
    HADAL_CHECK(dim > 0, o.where(), ": shape holds ", dim, "; dimensions are above 0");
  row.sms = static_cast<int>(o.integer("sms", 0));
  row.source = o.string("source");
  HADAL_CHECK(o.has("rate") != o.has("seconds"), o.where(),
              ": give either rate (work per second) or seconds");
  const double value = o.has("rate") ? o.number("rate") : o.number("seconds");
  HADAL_CHECK(value > 0.0 && value < 1e30, o.where(), ": ", o.has("rate") ? "rate" : "seconds",
              " is ", value, "; it has to be above 0");
  row.rate = o.has("rate") ? value : work_of(row.op, row.shape) / value;
  o.check_no_unknown();
  return row;
}

double log_distance(const OpShape& a, const OpShape& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = std::log(static_cast<double>(a[i]) / static_cast<double>(b[i]));
    sum += d * d;
  }
  return sum;
}

}  // namespace

void Basis::merge(const Basis& other) {
  for (const auto& [row, use] : other.uses_) {
    uses_[row].exact += use.exact;
    uses_[row].carried += use.carried;
  }
}

const char* work_unit(const std::string& op) { return kind_of(op).unit.data(); }

std::string shape_names(const std::string& op) { return std::string(kind_of(op).dims); }

double work_of(const std::string& op, const OpShape& shape) {
  const auto dim = [&](size_t i) { return static_cast<double>(shape[i]); };
  const auto last = [&](size_t i) { return dim(shape.size() - i); };
  // Heads x tokens x tokens, of one sequence or of several.
  const auto scores = [&] {
    return (shape.size() == 5 ? dim(0) : 1.0) * last(3) * last(4) * last(4);
  };
  switch (kind_of(op).work) {
    case WorkKind::kProduct:
      return 2.0 * dim(0) * dim(1) * dim(2);
    case WorkKind::kAttentionForward:
      return scores() * (last(2) + last(1));
    case WorkKind::kAttentionBackward:
      return scores() * (3.0 * last(2) + 2.0 * last(1));
    case WorkKind::kFirst:
      return dim(0);
    case WorkKind::kFirstTwo:
      return dim(0) * dim(1);
    case WorkKind::kAll: {
      double all = 1.0;
      for (size_t i = 0; i < shape.size(); ++i) all *= dim(i);
      return all;
    }
  }
  HADAL_UNREACHABLE("kind of work");
}

RateTable::RateTable(std::vector<RateRow> rows) : rows_(std::move(rows)) {
  for (size_t i = 0; i < rows_.size(); ++i) {
    const RateRow& row = rows_[i];
    const OpShape others(row.shape.begin() + 1, row.shape.end());
    // The first file wins where two rows are of one shape.
    families_[row.op][others].emplace(row.shape[0], i);
  }
}

RateTable RateTable::read(const std::vector<std::string>& files) {
  std::vector<RateRow> rows;
  std::string names;
  for (const std::string& file : files) {
    const io::JsonObject o = io::JsonObject::read(file);
    o.know("about");
    for (const io::JsonObject& row : o.objects("rows")) rows.push_back(read_row(row));
    o.check_no_unknown();
    names += concat(names.empty() ? "" : ", ", file);
  }
  RateTable table(std::move(rows));
  table.files_ = names;
  return table;
}

void RateTable::scale(double flops, double bytes) {
  for (RateRow& row : rows_) {
    const std::string_view unit = work_unit(row.op);
    const double factor = unit == "flop" ? flops : bytes;
    if (factor == 1.0) continue;
    row.rate *= factor;
    row.source += concat(", times ", factor);
  }
}

double RateTable::rate_of(const std::string& op, const OpShape& shape, int sms,
                          Basis& basis) const {
  const auto found = families_.find(op);
  HADAL_CHECK(found != families_.end(), "no rate of ", op, " (", kind_of(op).dims, ") in ",
              files_.empty() ? "the table" : files_, "; add a row of it");
  const OpShape others(shape.begin() + 1, shape.end());
  const Family* family = nullptr;
  double nearest = std::numeric_limits<double>::infinity();
  bool agrees = false;
  for (const auto& [dims, candidate] : found->second) {
    const double distance = log_distance(dims, others);
    if (distance >= nearest) continue;
    nearest = distance;
    family = &candidate;
    agrees = distance == 0.0;
  }
  const auto use = [&](size_t i, bool exact) {
    const RateRow& row = rows_[i];
    basis.note(row, exact);
    return sms > 0 && row.sms > 0 ? row.rate * sms / row.sms : row.rate;
  };
  const int64_t first = shape[0];
  const auto above = family->lower_bound(first);
  if (above == family->end()) return use(std::prev(above)->second, false);
  if (above->first == first) return use(above->second, agrees);
  if (above == family->begin()) return use(above->second, false);
  const auto below = std::prev(above);
  const double low = use(below->second, false), high = use(above->second, false);
  const double t = std::log(static_cast<double>(first) / static_cast<double>(below->first)) /
                   std::log(static_cast<double>(above->first) / static_cast<double>(below->first));
  return low + t * (high - low);
}

double RateTable::seconds(const std::string& op, const OpShape& shape, int sms,
                          Basis& basis) const {
  HADAL_CHECK(shape.size() == kind_of(op).num_dims, "internal error: ", op, " takes ",
              kind_of(op).dims);
  const double work = work_of(op, shape);
  return work == 0.0 ? 0.0 : work / rate_of(op, shape, sms, basis);
}

}  // namespace hadal::plan
