// Regular expressions of tokenizer.json, evaluated with PCRE2.
// SPDX-License-Identifier: Apache-2.0
#include "io/pretokenizer.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "io/regex.h"
#include "io/utf8.h"

namespace hadal::io {

struct PreTokenizer::Rules {
  struct Step {
    Regex regex;
    Cut known;  // null for a pattern that PCRE2 evaluates
  };
  std::vector<Step> steps;
  Json json;

  void add(const std::string& pattern, Regex::Syntax syntax, const std::string& where) {
    HADAL_CHECK(!pattern.empty(), where, ": the pattern is empty; give a regular expression");
    steps.push_back({Regex(pattern, syntax, where),
                     syntax == Regex::Syntax::kLiteral ? nullptr : known_cut(pattern)});
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
    add(pattern.string(literal ? "String" : "Regex"),
        literal ? Regex::Syntax::kLiteral : Regex::Syntax::kLines, pattern.where());
    pattern.check_no_unknown();
  } else if (type == "Digits") {
    add(step.boolean("individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)", Regex::Syntax::kLines,
        where);
  } else if (type == "ByteLevel") {
    check_only(step, "add_prefix_space", !step.boolean("add_prefix_space", false), "true", "false");
    step.know("trim_offsets");  // of character offsets, which are not computed
    if (step.boolean("use_regex", true))
      add(std::string(kByteLevelPattern), Regex::Syntax::kLines, where);
  } else {
    HADAL_FAIL(where, ": type is ", type, "; only Split, Digits and ByteLevel are supported");
  }
  step.check_no_unknown();
}

PreTokenizer PreTokenizer::standard() {
  const Json json = {{"type", "Sequence"},
                     {"pretokenizers",
                      {{{"type", "Split"},
                        {"pattern", {{"Regex", std::string(kStandardPattern)}}},
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

// Cuts `text` into the matches of `regex` and what lies between.
void cut_by(const Regex& regex, Regex::Matches& matches, std::string_view text, const Emit& emit) {
  size_t done = 0, from = 0;
  while (from < text.size() && regex.search(text, from, matches)) {
    const auto [begin, end] = *matches.group(0);
    if (end <= begin || begin < from) {  // nothing, or a lookbehind's odd range: go on after it
      from = std::max(from, begin);
      if (from < text.size()) from += utf8_length(text, from);
      continue;
    }
    if (begin > done) emit(text.substr(done, begin - done));
    emit(text.substr(begin, end - begin));
    done = from = end;
  }
  if (done < text.size()) emit(text.substr(done));
}

}  // namespace

void PreTokenizer::split(std::string_view text, const Emit& emit) const {
  // Each step cuts what the one before emits; the last emits the pieces.
  std::vector<Regex::Matches> matches;
  std::vector<Emit> steps(rules_->steps.size());
  matches.reserve(steps.size());
  for (const Rules::Step& step : rules_->steps) matches.emplace_back(step.regex);
  for (size_t i = steps.size(); i-- > 0;) {
    const Rules::Step& step = rules_->steps[i];
    const Emit& next = i + 1 < steps.size() ? steps[i + 1] : emit;
    if (step.known != nullptr && evaluation_ == Evaluation::kFast)
      steps[i] = [&step, &next](std::string_view part) { step.known(part, next); };
    else
      steps[i] = [&step, &next, &scratch = matches[i]](std::string_view part) {
        cut_by(step.regex, scratch, part, next);
      };
  }
  const Emit& first = steps.empty() ? emit : steps[0];
  while (!text.empty()) {
    const size_t valid = utf8_valid_prefix(text);
    if (valid > 0) {
      first(text.substr(0, valid));
      text.remove_prefix(valid);
    } else {
      emit(text.substr(0, 1));
      text.remove_prefix(1);
    }
  }
}

std::vector<std::string_view> PreTokenizer::split(std::string_view text) const {
  std::vector<std::string_view> pieces;
  split(text, [&](std::string_view piece) { pieces.push_back(piece); });
  return pieces;
}

PreTokenizer PreTokenizer::with_pcre2() const {
  PreTokenizer other = *this;
  other.evaluation_ = Evaluation::kPcre2;
  return other;
}

}  // namespace hadal::io
