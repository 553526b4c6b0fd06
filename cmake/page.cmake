# The server's web page as string literals of a source of the layer server.
# SPDX-License-Identifier: Apache-2.0
foreach(part html css js)
  set(page_file ${CMAKE_SOURCE_DIR}/src/server/page/page.${part})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${page_file})
  string(TOUPPER ${part} page_name)
  file(READ ${page_file} PAGE_${page_name})
endforeach()
configure_file(${CMAKE_SOURCE_DIR}/src/server/page.cc.in ${CMAKE_BINARY_DIR}/page.cc @ONLY)
target_sources(hadal_server PRIVATE ${CMAKE_BINARY_DIR}/page.cc)
