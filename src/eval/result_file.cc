// Reading, cutting and appending.
// SPDX-License-Identifier: Apache-2.0
#include "eval/result_file.h"

#include <cstdio>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/rng.h"
#include "io/atomic.h"

namespace hadal::eval {
namespace {

std::string hash_text(const io::Json& settings) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx",
                static_cast<unsigned long long>(
                    stream_id(settings.dump(-1, ' ', true, io::Json::error_handler_t::replace))));
  return text;
}

}  // namespace

ResultFile::ResultFile(const std::string& path, const io::Json& settings, const io::Json& header)
    : path_(path) {
  if (path.empty()) return;
  const std::string hash = hash_text(settings);
  if (std::filesystem::exists(path)) read(hash);
  file_.open(path, std::ios::app | std::ios::binary);
  check();
  if (std::filesystem::file_size(path) > 0) return;
  io::Json first = header;
  first["settings"] = hash;
  add(first);
}

void ResultFile::read(const std::string& settings) {
  const std::string text = io::read_file(path_, std::numeric_limits<size_t>::max());
  const size_t whole = text.rfind('\n') == text.npos ? 0 : text.rfind('\n') + 1;
  int64_t number = 0;
  for (size_t begin = 0; begin < whole;) {
    const size_t end = text.find('\n', begin);
    const io::JsonObject line = io::JsonObject::parse(
        std::string_view(text).substr(begin, end - begin), concat(path_, ":", ++number));
    begin = end + 1;
    if (number > 1) {
      lines_.push_back(line);
      continue;
    }
    HADAL_CHECK(line.has("settings") && line.string("settings") == settings, path_,
                " holds results of another model, task or options; remove it or give another "
                "--output");
  }
  std::filesystem::resize_file(path_, whole);
}

void ResultFile::add(const io::Json& line) {
  if (path_.empty()) return;
  file_ << line.dump(-1, ' ', false, io::Json::error_handler_t::replace) << '\n' << std::flush;
  check();
}

void ResultFile::check() {
  HADAL_CHECK(file_.good(), "cannot write ", path_, ": ", io::errno_text(),
              "; check the path and the space left");
}

}  // namespace hadal::eval
