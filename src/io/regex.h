// Regex: a regular expression in the syntax of PCRE2, over valid UTF-8, with Unicode classes.
//
// Compiled at construction, to machine code where the library can. Immutable; search() may run on
// several threads at once, each with a Matches of its own.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace hadal::io {

class Regex {
 public:
  // kLines: `^` and `$` match at line breaks, as in Ruby; kText: only at the ends of the text, as
  // in Python; kLiteral: no character means anything but itself.
  enum class Syntax : uint8_t { kLines, kText, kLiteral };
  // An Error that leads with `where` names what is wrong with the pattern.
  Regex(const std::string& pattern, Syntax syntax, const std::string& where);

  struct Range {
    size_t begin, end;
  };
  // The groups of the last match; group 0 is all of it.
  class Matches {
   public:
    explicit Matches(const Regex& regex);
    std::optional<Range> group(size_t i) const;  // none if it took no part in the match
    size_t num_groups() const;                   // with group 0

   private:
    friend class Regex;
    std::shared_ptr<void> data_;
  };
  // Looks for a match that begins at `from` or after. REQUIRES: valid UTF-8.
  bool search(std::string_view text, size_t from, Matches& matches) const;

 private:
  std::string pattern_;
  std::shared_ptr<void> code_;
};

}  // namespace hadal::io
