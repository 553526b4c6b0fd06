// VerifyReport: comparison and the printed table.
// SPDX-License-Identifier: Apache-2.0
#include "cli/verify_report.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/check.h"

namespace hadal::cli {
namespace {

std::string coordinate(const std::string& key, const io::StoredShape& shape, size_t index) {
  std::vector<size_t> at(shape.size());
  for (size_t i = shape.size(); i-- > 0;) {
    const auto extent = static_cast<size_t>(std::max<int64_t>(1, shape[i]));
    at[i] = index % extent;
    index /= extent;
  }
  std::string text = key + "[";
  for (size_t i = 0; i < at.size(); ++i) text += fmt::format("{}{}", i > 0 ? "," : "", at[i]);
  return text + "]";
}

bool is_integer(io::StoredType type) {
  return type == io::StoredType::kI32 || type == io::StoredType::kI64;
}

}  // namespace

std::vector<double> to_doubles(const io::StoredTensor& t) {
  const auto dtype = io::to_dtype(t.type);
  HADAL_CHECK(dtype.has_value(), t.file, ": tensor ", t.name, " has type ",
              io::stored_type_name(t.type), ", which cannot be compared");
  std::vector<double> values(static_cast<size_t>(t.num_elements()));
  std::vector<std::byte> aligned(t.data, t.data + t.bytes);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = load_element(aligned.data(), *dtype, static_cast<int64_t>(i));
  return values;
}

std::vector<double> to_doubles(const Tensor& t) {
  HADAL_CHECK(t.is_dense(), "only dense tensors are compared, got ", t.str());
  std::vector<double> values(static_cast<size_t>(t.num_elements()));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = load_element(t.raw(), t.dtype(), static_cast<int64_t>(i));
  return values;
}

VerifyReport::Row& VerifyReport::row_of(const std::string& kind, Tolerance tolerance) {
  for (auto& [name, row] : rows_)
    if (name == kind) return row;
  rows_.emplace_back(kind, Row{});
  rows_.back().second.tolerance = tolerance;
  return rows_.back().second;
}

const io::StoredTensor& VerifyReport::golden(const std::string& key, const io::StoredShape& shape) {
  const io::StoredTensor* found = golden_->find(key);
  HADAL_CHECK(found != nullptr, golden_->path(), " has no tensor ", key,
              "; it does not belong to this model or is incomplete");
  HADAL_CHECK(found->shape == shape, golden_->path(), ": tensor ", key, " has shape ",
              io::shape_text(found->shape), ", this model gives ", io::shape_text(shape));
  used_.insert(key);
  return *found;
}

void VerifyReport::compare(const std::string& kind, const std::string& key, const Tensor& ours,
                           Tolerance tolerance) {
  if (recording_ != nullptr) return recording_->add(key, ours);
  io::StoredShape shape;
  for (int i = 0; i < ours.rank(); ++i) shape.push_back(ours.dim(i));
  const io::StoredTensor& want = golden(key, shape);
  const std::vector<double> a = to_doubles(ours), b = to_doubles(want);
  if (!is_integer(want.type)) {
    compare_values(kind, key, a, b, {}, tolerance);
    return;
  }
  Row& row = row_of(kind, tolerance);
  row.integer = true;
  ++row.num_tensors;
  size_t wrong = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i]) continue;
    if (wrong++ == 0 && row.mismatch_where.empty()) row.mismatch_where = coordinate(key, shape, i);
  }
  const double share = a.empty() ? 0.0 : static_cast<double>(wrong) / static_cast<double>(a.size());
  row.mismatches = std::max(row.mismatches, share);
  if (share > tolerance.mismatches) row.failed = true;
}

void VerifyReport::compare_values(const std::string& kind, const std::string& where,
                                  const std::vector<double>& ours,
                                  const std::vector<double>& golden,
                                  const std::vector<double>& scale, Tolerance tolerance) {
  HADAL_CHECK(ours.size() == golden.size(), where, ": ", ours.size(), " values against ",
              golden.size());
  Row& row = row_of(kind, tolerance);
  ++row.num_tensors;
  double error = 0.0, norm = 0.0, worst = 0.0;
  size_t worst_at = 0;
  bool finite = true;
  for (size_t i = 0; i < ours.size(); ++i) {
    const double difference = std::fabs(ours[i] - golden[i]);
    if (!std::isfinite(ours[i])) finite = false;
    if (difference > worst) {
      worst = difference;
      worst_at = i;
    }
    error += difference * difference;
    const double size = scale.empty() ? golden[i] : scale[i];
    norm += size * size;
  }
  const double infinity = std::numeric_limits<double>::infinity();
  double relative = error == 0.0 ? 0.0 : norm > 0.0 ? std::sqrt(error / norm) : infinity;
  if (!finite) worst = relative = infinity;
  if (worst >= row.absolute) {
    row.absolute = worst;
    row.absolute_where = fmt::format("{}[{}]", where, worst_at);
  }
  if (relative >= row.relative_l2) {
    row.relative_l2 = relative;
    row.relative_where = where;
  }
  // NOTE: negated, so that NaN fails.
  if (tolerance.absolute >= 0.0 && !(worst <= tolerance.absolute)) row.failed = true;
  if (tolerance.relative_l2 >= 0.0 && !(relative <= tolerance.relative_l2)) row.failed = true;
}

void VerifyReport::check_all_used() const {
  if (recording_ != nullptr) return;
  for (const auto& [name, tensor] : golden_->tensors())
    HADAL_CHECK(used_.count(name) > 0, golden_->path(), ": tensor ", name,
                " has no counterpart in this model; the file belongs to another model");
}

bool VerifyReport::passed() const {
  return std::none_of(rows_.begin(), rows_.end(), [](const auto& r) { return r.second.failed; });
}

std::string VerifyReport::table() const {
  std::string text = fmt::format("{:<22} {:>7} {:>12} {:>12} {:>24}  {}\n", "kind", "tensors",
                                 "worst abs", "worst rel L2", "allowed", "where");
  for (const auto& [kind, r] : rows_) {
    std::string allowed;
    if (r.integer) {
      allowed = r.tolerance.mismatches == 0.0
                    ? "equal"
                    : fmt::format("{:.0f}% unequal", 100.0 * r.tolerance.mismatches);
      text += fmt::format("{:<22} {:>7} {:>11.3g}% {:>12} {:>24}  {}", kind, r.num_tensors,
                          100.0 * r.mismatches, "", allowed, r.mismatch_where);
    } else {
      if (r.tolerance.absolute >= 0.0) allowed = fmt::format("abs {:g}", r.tolerance.absolute);
      if (r.tolerance.relative_l2 >= 0.0)
        allowed += fmt::format("{}rel {:g}", allowed.empty() ? "" : ", ", r.tolerance.relative_l2);
      const bool by_absolute = r.tolerance.absolute >= 0.0;
      text += fmt::format("{:<22} {:>7} {:>12.3g} {:>12.3g} {:>24}  {}", kind, r.num_tensors,
                          r.absolute, r.relative_l2, allowed,
                          by_absolute ? r.absolute_where : r.relative_where);
    }
    text += r.failed ? "  FAILED\n" : "\n";
  }
  return text;
}

std::string VerifyReport::json() const {
  nlohmann::json root;
  root["passed"] = passed();
  for (const auto& [kind, r] : rows_) {
    auto& row = root["kinds"][kind];
    row["passed"] = !r.failed;
    row["tensors"] = r.num_tensors;
    if (r.integer) {
      row["unequal_share"] = r.mismatches;
    } else {
      row["worst_absolute"] = r.absolute;
      row["worst_relative_l2"] = r.relative_l2;
      row["worst_absolute_at"] = r.absolute_where;
      row["worst_relative_at"] = r.relative_where;
    }
  }
  return root.dump(2) + "\n";
}

}  // namespace hadal::cli
