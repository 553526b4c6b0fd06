// What the processor can do at most: loops that do nothing else, for benches to compare with.
//
// Each call works on the calling thread. The loops use the instruction set of the kernels
// (HADAL_ISA), so a percentage of them says how well the kernels use it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace hadal::ops::peak {

// Multiply-adds of f32 in registers; returns the floating-point operations done.
double fma_loop(int64_t rounds);
// Multiply-adds of 8-bit integers into 32 bits, in registers; returns the operations done.
double int_dot_loop(int64_t rounds);
// Reads `bytes` (a multiple of 512) from `from`; returns the bytes read.
double read_loop(const std::byte* from, int64_t bytes);
// "avx512 vnni", "avx2", ...: what the loops and the kernels use.
const char* isa_name();

}  // namespace hadal::ops::peak
