// Html: one self-contained report page, light and dark, readable on a phone and in print.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "plan/svg.h"

namespace hadal::plan {

class Html {
 public:
  explicit Html(std::string title) : title_(std::move(title)) {}

  void heading(std::string_view text);
  void paragraph(std::string_view text);
  void list(const std::vector<std::string>& items);
  // The first row is the header. Columns from `numbers_from` on hold numbers: right-aligned.
  void table(const std::vector<std::vector<std::string>>& rows, size_t numbers_from = 1);
  // In a frame that scrolls sideways where it is wider than the page.
  void picture(const Svg& svg, std::string_view caption);

  std::string page() const;

 private:
  std::string title_, body_;
};

}  // namespace hadal::plan
