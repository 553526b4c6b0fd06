// The web page at /: chat and graphs of the engine, embedded from page/ when hadal is built.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

namespace hadal::server {

struct PageFile {
  std::string_view type, content;
};
// Of /, /page.css and /page.js; null for any other.
const PageFile* page_file(std::string_view target);

}  // namespace hadal::server
