# The CUDA backend: src/ops/cuda/*.cu for Hopper, added to the ops, and the runtime, linked statically
# so that the program starts where no driver is installed.
# SPDX-License-Identifier: Apache-2.0
#
# nvcc is called here, not through CMake's CUDA language: CMake 3.25 does not know C++20 in nvcc 13.
find_program(HADAL_NVCC nvcc HINTS /usr/local/cuda/bin)
if(NOT HADAL_NVCC)
  message(FATAL_ERROR "HADAL_CUDA needs nvcc, the compiler of the CUDA toolkit: install CUDA 13 and "
                      "put its bin in PATH, or configure with the preset release")
endif()
find_package(CUDAToolkit REQUIRED)

# ccache, where it is installed, keeps CUDA objects as it keeps the others.
set(HADAL_CUDA_LAUNCHER)
if(CCACHE)
  set(HADAL_CUDA_LAUNCHER ${CCACHE})
endif()
set(HADAL_NVCC_FLAGS -std=c++20 -O3 -gencode arch=compute_90a,code=sm_90a -Werror=all-warnings
    -Xcompiler=-Wall,-Wextra,-Werror -DHADAL_HAS_CUDA -I${CMAKE_SOURCE_DIR}/src)
if(CMAKE_BUILD_TYPE STREQUAL Release)
  list(APPEND HADAL_NVCC_FLAGS -DNDEBUG)
endif()

# hadal_cuda_object(SOURCE NAME FLAGS...): compiles a .cu of the ops.
function(hadal_cuda_object source name)
  set(object ${CMAKE_BINARY_DIR}/ops_cuda/${name}.o)
  add_custom_command(
    OUTPUT ${object}
    COMMAND ${HADAL_CUDA_LAUNCHER} ${HADAL_NVCC} ${HADAL_NVCC_FLAGS} ${ARGN} -MD -MF ${object}.d -c ${source} -o ${object}
    DEPENDS ${source}
    DEPFILE ${object}.d
    COMMENT "Building CUDA object ${name}.o"
    VERBATIM)
  target_sources(hadal_ops PRIVATE ${object})
  set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
endfunction()

file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/ops_cuda)
# NOTE: -fmad=false: sums and exp have the CPU's bits (src/ops/cuda/detail/{rows,math}.cuh); matrix
# products fuse explicitly.
file(GLOB bodies CONFIGURE_DEPENDS src/ops/cuda/*.cu)
foreach(source ${bodies})
  get_filename_component(name ${source} NAME_WE)
  hadal_cuda_object(${source} ${name} -fmad=false)
endforeach()
# Kernels written for Hopper, a folder each.
file(GLOB launchers CONFIGURE_DEPENDS src/ops/cuda/*/launch.cu)
foreach(source ${launchers})
  get_filename_component(folder ${source} DIRECTORY)
  get_filename_component(name ${folder} NAME)
  hadal_cuda_object(${source} ${name}_sm90)
endforeach()
target_compile_definitions(hadal_ops PUBLIC HADAL_HAS_CUDA)
target_link_libraries(hadal_core PUBLIC CUDA::cudart_static)
