// What Comm is over any transport: which tensors a collective takes, and whose part of them is
// where.
//
//   G ranks of the group   n elements or rows of one rank
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/comm.h"

namespace hadal::comm_parts {

std::byte* bytes_at(const Tensor& t, int64_t element);

// Errors for tensors that do not fit.
void check_dense(const Tensor& t);
void check_message(const Message& message, int rank, int G);
// Bytes of a row of all_to_all_v's tensors, of which this rank sends itself what it expects.
int64_t check_all_to_all(const Tensor& x, std::span<const int64_t> send, const Tensor& y,
                         std::span<const int64_t> recv, int rank, int G);

// [G + 1]   in elements, where each rank's range begins, and the end.
// counts[r] rows of `all`, of which this rank's are `part`; an Error if they do not fit.
std::vector<int64_t> bounds_of(const Tensor& all, const Tensor& part,
                               std::span<const int64_t> counts, int rank, int G);
// n elements shared out.
std::vector<int64_t> even_bounds(int64_t n, int G);

}  // namespace hadal::comm_parts
