// RowPool: the paged pool that holds what MoE layers save of their experts' rows.
//
//   P pages   D model width   F hidden width of an expert
//
// A page is ops::kPageRows rows: their input x [rows, D], and gate|up before SwiGLU [rows, 2F];
// either is e4m3 in tiles where the config's precision says so.
// All MoE layers and micro-batches in flight share one pool, sized for a stated worst case; which
// page a row lands in never changes a result. Taking more pages than are left is an error, unless
// the pool counts what is missing: then the rows of those pages are of no use, and whoever finds a
// count does the work again with fewer tokens at a time.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/context.h"
#include "model/config.h"
#include "ops/routing.h"

namespace hadal {

class RowPool;

// Pages taken from a pool for one layout; given back on destruction.
class [[nodiscard]] RowLease {
 public:
  RowLease() = default;
  RowLease(RowLease&& other) noexcept;
  RowLease& operator=(RowLease&& other) noexcept;
  RowLease(const RowLease&) = delete;
  RowLease& operator=(const RowLease&) = delete;
  ~RowLease();

  ops::PagedRows x() const;        // [P, kPageRows, D]
  ops::PagedRows gate_up() const;  // [P, kPageRows, 2F]

 private:
  friend class RowPool;
  RowPool* pool_ = nullptr;
  ops::ExpertLayout layout_;
  Tensor page_;
};

class RowPool {
 public:
  enum class TooFew : uint8_t { kError, kCounted };
  RowPool(Context& ctx, const Config& config, DType act, int64_t num_pages,
          TooFew too_few = TooFew::kError);
  RowPool(const RowPool&) = delete;
  RowPool& operator=(const RowPool&) = delete;

  // Takes the pages of a layout. REQUIRES: the layout's tensors and `page` outlive the lease.
  RowLease take(const ops::ExpertLayout& layout, const Tensor& page);
  int64_t num_pages() const { return stack_.free.dim(0); }
  // [1] i64   pages that could not be given since it was last set to 0; empty where that is an
  // error
  Tensor missing() const { return stack_.missing; }
  int64_t num_free_pages() const;
  bool is_fp8() const { return !x_.scale.empty(); }  // of experts' inputs

 private:
  friend class RowLease;
  Context& ctx_;
  Block memory_;
  ops::PagedRows x_, gate_up_;  // [P, kPageRows, D]  [P, kPageRows, 2F], without their pages
  ops::PageStack stack_;
};

}  // namespace hadal
