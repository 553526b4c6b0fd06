# Kernels compiled once per instruction set; which one runs is chosen at run time (ops/cpu/isa.h).
# SPDX-License-Identifier: Apache-2.0
include(CheckCXXCompilerFlag)
# Where a jump crosses a boundary of 32 bytes, Intel's processors up to Cascade Lake decode the loop
# anew each time round: loops would be fast or slow by where the linker puts them.
check_cxx_compiler_flag(-Wa,-mbranches-within-32B-boundaries HADAL_HAS_BRANCH_BOUNDARIES)
set(branch_flags "")
if(HADAL_HAS_BRANCH_BOUNDARIES)
  set(branch_flags ";-Wa,-mbranches-within-32B-boundaries")
endif()
file(GLOB isa_sources CONFIGURE_DEPENDS src/ops/cpu/isa/*.cc)
foreach(source ${isa_sources})
  if(source MATCHES "_(avx2|avx512|vnni)\\.cc$" AND NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    continue()
  endif()
  if(source MATCHES "_avx2\\.cc$")
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma${branch_flags}")
  elseif(source MATCHES "_avx512\\.cc$")
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
      "-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mfma;-mprefer-vector-width=512${branch_flags}")
  elseif(source MATCHES "_vnni\\.cc$")
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
      "-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512vnni;-mfma;-mprefer-vector-width=512${branch_flags}")
  endif()
  target_sources(hadal_ops PRIVATE ${source})
endforeach()
