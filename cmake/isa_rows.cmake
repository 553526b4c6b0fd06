# Compiler flags of the row kernels: one source, three instruction sets (src/ops/cpu/isa).
# SPDX-License-Identifier: Apache-2.0
# Neither math-errno nor trapping-math changes a result; both stop loops from being vectorised.
set(rows_flags -O3 -fno-math-errno -fno-trapping-math)
set_source_files_properties(src/ops/cpu/rows_portable.cc PROPERTIES COMPILE_OPTIONS "${rows_flags}")
set_source_files_properties(src/ops/cpu/rows_avx2.cc PROPERTIES
  COMPILE_OPTIONS "${rows_flags};-mavx2;-mfma")
set_source_files_properties(src/ops/cpu/rows_avx512.cc PROPERTIES
  COMPILE_OPTIONS "${rows_flags};-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mfma;-mprefer-vector-width=512")
