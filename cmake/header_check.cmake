# header_check: compiles each header on its own, as part of `all`.
# SPDX-License-Identifier: Apache-2.0
#
# A header with a source of its name beside it is left out: that source includes it first
# (tools/check_includes.py sees to it), which is the same test. *.inc.h are fragments, not headers.
file(GLOB_RECURSE headers CONFIGURE_DEPENDS RELATIVE ${CMAKE_SOURCE_DIR}
     ${CMAKE_SOURCE_DIR}/src/*.h ${CMAKE_SOURCE_DIR}/tests/*.h)
set(header_units)
foreach(header ${headers})
  string(REGEX REPLACE "\\.h$" ".cc" source ${header})
  if(header MATCHES "\\.inc\\.h$|^src/ops/cuda/" OR EXISTS ${CMAKE_SOURCE_DIR}/${source})
    continue()
  endif()
  string(REGEX REPLACE "^src/" "" path ${header})
  set(unit ${CMAKE_BINARY_DIR}/header_check/${header}.cc)
  file(CONFIGURE OUTPUT ${unit} CONTENT "#include \"${path}\"\n")
  list(APPEND header_units ${unit})
endforeach()
add_library(header_check OBJECT ${header_units})
target_include_directories(header_check PRIVATE ${CMAKE_SOURCE_DIR})
target_link_libraries(header_check PRIVATE hadal_flags GTest::gtest nlohmann_json::nlohmann_json)
target_compile_options(header_check PRIVATE -O0 -g0)
target_compile_definitions(header_check PRIVATE HADAL_BINARY="")
