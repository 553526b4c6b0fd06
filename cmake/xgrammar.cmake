# XGrammar, the library behind structured output, from the sources that scripts/setup.sh --full
# unpacks. Without them `hadal serve` refuses requests for a form.
# SPDX-License-Identifier: Apache-2.0
set(xgrammar_dir ${CMAKE_SOURCE_DIR}/build/sources/xgrammar)
if(NOT EXISTS ${xgrammar_dir}/include/xgrammar/xgrammar.h)
  message(STATUS "hadal: structured output is left out, there is no XGrammar (scripts/setup.sh --full)")
  return()
endif()
file(GLOB xgrammar_sources ${xgrammar_dir}/cpp/*.cc ${xgrammar_dir}/cpp/support/*.cc
     ${xgrammar_dir}/cpp/converter_ext/*.cc)
add_library(xgrammar STATIC ${xgrammar_sources})
# NOTE: what it logs comes to serve/grammar.cc, which makes errors of it; so each needs the other.
target_compile_definitions(xgrammar PUBLIC XGRAMMAR_LOG_CUSTOMIZE=1 XGRAMMAR_ENABLE_CPPTRACE=0
                           XGRAMMAR_ENABLE_INTERNAL_CHECK=0)
target_include_directories(xgrammar SYSTEM PUBLIC ${xgrammar_dir}/include
                           ${xgrammar_dir}/3rdparty/picojson ${xgrammar_dir}/3rdparty/dlpack/include)
target_compile_options(xgrammar PRIVATE -w)
if(HADAL_SANITIZE)
  target_compile_options(xgrammar PRIVATE -fsanitize=${HADAL_SANITIZE} -fno-omit-frame-pointer)
endif()
target_link_libraries(xgrammar PUBLIC Threads::Threads INTERFACE $<LINK_ONLY:hadal_serve>)
