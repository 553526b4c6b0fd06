// Rates: how fast a device runs each kind of kernel, as rows of (operation, shape, rate).
//
// Rows come from files (configs/rates/*.json, or what `hadal bench rates` writes): published
// figures with their source, or our own. A rate is work per second; what counts as work is the
// operation's own, in the table of kinds in rates.cc: FLOP for products and attention, bytes for
// what is bound by memory or links, elements for the rest.
//
// A shape that has no row gets the rate of others of the same operation. The first dimension (of
// tokens, rows or bytes) is interpolated linearly in its logarithm between rows that agree in all
// other dimensions, and held beyond the first and last; if no row agrees in the others, those of
// the nearest do (sum of squared logarithms). Every answer notes the rows that it used in a Basis.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace hadal::plan {

using OpShape = std::vector<int64_t>;

struct RateRow {
  std::string op;
  OpShape shape;
  double rate = 0.0;  // work per second
  int sms = 0;        // multiprocessors it ran on; 0: does not depend on them
  std::string source;
};

// Rows that an answer rests on, with the number of times each was asked for, and whether its shape
// was the asked one.
class Basis {
 public:
  struct Use {
    int64_t exact = 0, carried = 0;
  };
  void note(const RateRow& row, bool exact) {
    Use& use = uses_[&row];
    ++(exact ? use.exact : use.carried);
  }
  void merge(const Basis& other);
  const std::map<const RateRow*, Use>& uses() const { return uses_; }

 private:
  std::map<const RateRow*, Use> uses_;
};

class RateTable {
 public:
  // Rows of all files; an Error that names file and row for an unknown operation, a shape with the
  // wrong number of dimensions, or a rate that is not positive.
  static RateTable read(const std::vector<std::string>& files);
  explicit RateTable(std::vector<RateRow> rows);

  // Multiplies rates of other devices' rows; set from a cluster's rate_scale.
  void scale(double flops, double bytes);

  // Seconds of one call on `sms` multiprocessors (0: as the row). An Error that names the operation
  // if there is no row of it.
  double seconds(const std::string& op, const OpShape& shape, int sms, Basis& basis) const;
  bool has(const std::string& op) const { return families_.contains(op); }
  const std::vector<RateRow>& rows() const { return rows_; }
  std::string files() const { return files_; }

 private:
  // Rows that agree in all dimensions but the first, by that.
  using Family = std::map<int64_t, size_t>;
  double rate_of(const std::string& op, const OpShape& shape, int sms, Basis& basis) const;

  std::vector<RateRow> rows_;
  std::string files_;
  std::map<std::string, std::map<OpShape, Family>> families_;
};

// "flop", "byte" or "element"; an Error for an unknown operation.
const char* work_unit(const std::string& op);
// Work of one call.
double work_of(const std::string& op, const OpShape& shape);
// "tokens x N x K"
std::string shape_names(const std::string& op);

}  // namespace hadal::plan
