// PCRE2 behind io/regex.h.
// SPDX-License-Identifier: Apache-2.0
#include "io/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <nlohmann/json.hpp>

#include "core/check.h"
#include "io/json.h"

namespace hadal::io {
namespace {

std::string error_text(int error) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(error, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

uint32_t options_of(Regex::Syntax syntax) {
  switch (syntax) {
    case Regex::Syntax::kLines:
      return PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE;
    case Regex::Syntax::kText:
      return PCRE2_UTF | PCRE2_UCP;
    case Regex::Syntax::kLiteral:
      return PCRE2_UTF | PCRE2_LITERAL;
  }
  HADAL_UNREACHABLE("a syntax of regular expressions");
}

}  // namespace

Regex::Regex(const std::string& pattern, Syntax syntax, const std::string& where)
    : pattern_(pattern) {
  const std::unique_ptr<pcre2_compile_context, void (*)(pcre2_compile_context*)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  HADAL_CHECK(context != nullptr, "no memory left to compile a regular expression");
  // Fixed here, because the library's default depends on how it was built.
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE at = 0;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                            options_of(syntax), &error, &at, context.get()),
              [](pcre2_code* code) { pcre2_code_free(code); });
  HADAL_CHECK(code_ != nullptr, where, ": the regular expression ", Json(pattern).dump(),
              " is invalid at byte ", at, ": ", error_text(error));
  // Without JIT on this machine the interpreter runs the same expression.
  pcre2_jit_compile(static_cast<pcre2_code*>(code_.get()), PCRE2_JIT_COMPLETE);
}

Regex::Matches::Matches(const Regex& regex)
    : data_(pcre2_match_data_create_from_pattern(static_cast<const pcre2_code*>(regex.code_.get()),
                                                 nullptr),
            [](pcre2_match_data* data) { pcre2_match_data_free(data); }) {
  HADAL_CHECK(data_ != nullptr, "no memory left to match a regular expression");
}

size_t Regex::Matches::num_groups() const {
  return pcre2_get_ovector_count(static_cast<pcre2_match_data*>(data_.get()));
}

std::optional<Regex::Range> Regex::Matches::group(size_t i) const {
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(static_cast<pcre2_match_data*>(data_.get()));
  if (i >= num_groups() || range[2 * i] == PCRE2_UNSET) return {};
  return Range{range[2 * i], range[2 * i + 1]};
}

bool Regex::search(std::string_view text, size_t from, Matches& matches) const {
  const int found =
      pcre2_match(static_cast<const pcre2_code*>(code_.get()),
                  reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from, PCRE2_NO_UTF_CHECK,
                  static_cast<pcre2_match_data*>(matches.data_.get()), nullptr);
  if (found == PCRE2_ERROR_NOMATCH) return false;
  HADAL_CHECK(found >= 0, "the regular expression ", Json(pattern_).dump(), " failed on a text of ",
              text.size(), " bytes: ", error_text(found), "; simplify it");
  return true;
}

}  // namespace hadal::io
