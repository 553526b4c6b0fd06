// VerifyReport: compares tensors with a golden file and keeps, for each kind of key, the worst
// error and where it is.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "cli/verify_record.h"
#include "core/tensor.h"
#include "io/safetensors.h"

namespace hadal::cli {

// Allowed errors of one kind of key; a negative bound is not checked.
struct Tolerance {
  double absolute = -1.0;     // largest |ours - golden|
  double relative_l2 = -1.0;  // ||ours - golden|| / ||golden||, over one tensor
  double mismatches = -1.0;   // share of unequal integers
};

class VerifyReport {
 public:
  explicit VerifyReport(const io::SafetensorsFile& golden) : golden_(&golden) {}
  // What would be compared is recorded instead.
  explicit VerifyReport(Recording& recording) : recording_(&recording) {}

  // Compares with golden tensor `key`; an Error if it is missing or has another shape. `kind` is
  // the row of the table.
  void compare(const std::string& kind, const std::string& key, const Tensor& ours,
               Tolerance tolerance);
  // The same against another reference than the golden tensor (relative to `scale`, if given).
  void compare_values(const std::string& kind, const std::string& where,
                      const std::vector<double>& ours, const std::vector<double>& golden,
                      const std::vector<double>& scale, Tolerance tolerance);
  // Errors unless every tensor of the file was compared or marked as read.
  void check_all_used() const;
  void mark_used(const std::string& key) { used_.insert(key); }
  const io::StoredTensor& golden(const std::string& key, const io::StoredShape& shape);

  // A tensor of the file by name; null if it has none.
  const io::StoredTensor* find(const std::string& key) const {
    return recording_ != nullptr ? recording_->find(key) : golden_->find(key);
  }

  bool passed() const;
  std::string table() const;
  std::string json() const;

 private:
  struct Row {
    Tolerance tolerance;
    double absolute = 0.0, relative_l2 = 0.0, mismatches = 0.0;
    std::string absolute_where, relative_where, mismatch_where;
    int64_t num_tensors = 0;
    bool integer = false, failed = false;
  };
  Row& row_of(const std::string& kind, Tolerance tolerance);

  const io::SafetensorsFile* golden_ = nullptr;  // or
  Recording* recording_ = nullptr;
  std::set<std::string> used_;
  std::vector<std::pair<std::string, Row>> rows_;
};

std::vector<double> to_doubles(const io::StoredTensor& tensor);
std::vector<double> to_doubles(const Tensor& tensor);

}  // namespace hadal::cli
