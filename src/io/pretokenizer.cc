// Regular expressions of tokenizer.json, evaluated with PCRE2.
// SPDX-License-Identifier: Apache-2.0
#include "io/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <nlohmann/json.hpp>

#include "core/check.h"
#include "io/utf8.h"

namespace hadal::io {
namespace {

// What ByteLevel with use_regex splits by: contractions, words, numbers, the rest, spaces.
constexpr const char* kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

constexpr const char* kStandardPattern =
    R"('\p{L}{1,2}(?![\p{L}\p{M}])| ?[\p{L}\p{M}]+|\p{N}{1,3})"
    R"(| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatch {
  void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
};
struct FreeContext {
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
};
using Code = std::unique_ptr<pcre2_code, FreeCode>;

std::string error_text(int error) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(error, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

Code compile(const std::string& pattern, bool literal, const std::string& where) {
  const std::unique_ptr<pcre2_compile_context, FreeContext> context(
      pcre2_compile_context_create(nullptr));
  HADAL_CHECK(context != nullptr, "no memory left to compile a regular expression");
  // Fixed here, because the library's default depends on how it was built.
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  const uint32_t options =
      literal ? PCRE2_UTF | PCRE2_LITERAL : PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE;
  int error = 0;
  PCRE2_SIZE at = 0;
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options,
                          &error, &at, context.get()));
  HADAL_CHECK(code != nullptr, where, ": the regular expression ", Json(pattern).dump(),
              " is invalid at byte ", at, ": ", error_text(error));
  // Without JIT on this machine the interpreter runs the same expression.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return code;
}

}  // namespace

struct PreTokenizer::Rules {
  struct Regex {
    Code code;
    std::string pattern;
  };
  std::vector<Regex> regexes;
  Json json;

  void add(const std::string& pattern, bool literal, const std::string& where) {
    HADAL_CHECK(!pattern.empty(), where, ": the pattern is empty; give a regular expression");
    regexes.push_back({compile(pattern, literal, where), pattern});
  }
  void add_step(const JsonObject& step);
};

namespace {

void check_only(const JsonObject& step, const char* field, bool is_supported,
                const std::string& value, const char* supported) {
  HADAL_CHECK(is_supported, step.where(), ": ", field, " is ", value, "; only ", supported,
              " is supported");
}

}  // namespace

void PreTokenizer::Rules::add_step(const JsonObject& step) {
  const std::string type = step.string("type");
  const std::string& where = step.where();
  if (type == "Split") {
    const std::string behavior = step.string("behavior");
    check_only(step, "behavior", behavior == "Isolated", behavior, "Isolated");
    check_only(step, "invert", !step.boolean("invert", false), "true", "false");
    const JsonObject pattern = step.object("pattern");
    const bool literal = pattern.has("String");
    add(pattern.string(literal ? "String" : "Regex"), literal, pattern.where());
    pattern.check_no_unknown();
  } else if (type == "Digits") {
    add(step.boolean("individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)", false, where);
  } else if (type == "ByteLevel") {
    check_only(step, "add_prefix_space", !step.boolean("add_prefix_space", false), "true", "false");
    step.know("trim_offsets");  // of character offsets, which are not computed
    if (step.boolean("use_regex", true)) add(kByteLevelPattern, false, where);
  } else {
    HADAL_FAIL(where, ": type is ", type, "; only Split, Digits and ByteLevel are supported");
  }
  step.check_no_unknown();
}

PreTokenizer PreTokenizer::standard() {
  const Json json = {{"type", "Sequence"},
                     {"pretokenizers",
                      {{{"type", "Split"},
                        {"pattern", {{"Regex", kStandardPattern}}},
                        {"behavior", "Isolated"},
                        {"invert", false}},
                       {{"type", "ByteLevel"},
                        {"add_prefix_space", false},
                        {"trim_offsets", true},
                        {"use_regex", false}}}}};
  return from_json(JsonObject(json, "pre_tokenizer"));
}

PreTokenizer PreTokenizer::from_json(const JsonObject& object) {
  auto rules = std::make_shared<Rules>();
  rules->json = object.json();
  std::vector<JsonObject> steps = {object};
  if (object.string("type") == "Sequence") {
    steps = object.objects("pretokenizers");
    object.check_no_unknown();
  }
  for (size_t i = 0; i < steps.size(); ++i) {
    rules->add_step(steps[i]);
    HADAL_CHECK(i + 1 == steps.size() || steps[i].string("type") != "ByteLevel", steps[i].where(),
                ": ByteLevel stands before other steps; only as the last one is it supported");
  }
  HADAL_CHECK(!steps.empty() && steps.back().string("type") == "ByteLevel", object.where(),
              ": no ByteLevel step ends it; only byte-level BPE is supported");
  return PreTokenizer(std::move(rules));
}

Json PreTokenizer::to_json() const { return rules_->json; }

namespace {

// Cuts `text` into the matches of `code` and what lies between.
void split_by(const pcre2_code* code, pcre2_match_data* match, const std::string& pattern,
              std::string_view text, std::vector<std::string_view>& pieces) {
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match);
  size_t done = 0, from = 0;
  while (from < text.size()) {
    const int found =
        pcre2_match(code, subject, text.size(), from, PCRE2_NO_UTF_CHECK, match, nullptr);
    if (found == PCRE2_ERROR_NOMATCH) break;
    HADAL_CHECK(found >= 0, "the regular expression ", Json(pattern).dump(),
                " failed on a text of ", text.size(), " bytes: ", error_text(found),
                "; simplify it in the tokenizer's pre_tokenizer");
    const size_t begin = range[0], end = range[1];
    if (end <= begin || begin < from) {  // nothing, or a lookbehind's odd range: go on after it
      from = std::max(from, begin);
      if (from < text.size()) from += utf8_length(text, from);
      continue;
    }
    if (begin > done) pieces.push_back(text.substr(done, begin - done));
    pieces.push_back(text.substr(begin, end - begin));
    done = from = end;
  }
  if (done < text.size()) pieces.push_back(text.substr(done));
}

}  // namespace

std::vector<std::string_view> PreTokenizer::split(std::string_view text) const {
  std::vector<std::string_view> pieces, cut;
  const std::unique_ptr<pcre2_match_data, FreeMatch> match(pcre2_match_data_create(1, nullptr));
  HADAL_CHECK(match != nullptr, "no memory left to match a regular expression");
  std::vector<std::string_view> result;
  while (!text.empty()) {
    const size_t valid = utf8_valid_prefix(text);
    if (valid == 0) {
      result.push_back(text.substr(0, 1));
      text.remove_prefix(1);
      continue;
    }
    pieces = {text.substr(0, valid)};
    for (const Rules::Regex& regex : rules_->regexes) {
      cut.clear();
      for (std::string_view piece : pieces)
        split_by(regex.code.get(), match.get(), regex.pattern, piece, cut);
      pieces.swap(cut);
    }
    result.insert(result.end(), pieces.begin(), pieces.end());
    text.remove_prefix(valid);
  }
  return result;
}

}  // namespace hadal::io
