// The loops of well-known patterns cut any text as PCRE2 does. The first byte chooses the patterns.
// Characters whose class PCRE2's version of Unicode does not know become an x.
// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>
#include <vector>

#include "io/pretokenizer.h"
#include "io/regex.h"
#include "io/unicode.h"
#include "io/utf8.h"
#include "tests/fuzz/fuzz.h"

namespace hadal::fuzz {
namespace {

io::PreTokenizer of(const std::vector<std::string_view>& patterns) {
  io::Json steps = io::Json::array();
  for (std::string_view pattern : patterns)
    steps.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", std::string(pattern)}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  steps.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}});
  const io::Json json = {{"type", "Sequence"}, {"pretokenizers", steps}};
  return io::PreTokenizer::from_json(io::JsonObject(json, "pre_tokenizer"));
}

// What PCRE2 gives another class than the table; U+180E is white space to it alone.
std::string without_unknown(std::string_view text) {
  static const io::Regex unassigned("\\p{Cn}|\\x{180E}", io::Regex::Syntax::kText, "unassigned");
  io::Regex::Matches matches(unassigned);
  std::string known;
  while (!text.empty()) {
    const size_t length = io::utf8_length(text, 0);
    const std::string_view character = text.substr(0, std::max<size_t>(length, 1));
    const bool differs =
        length > 0 && unassigned.search(character, 0, matches) &&
        (character == "\u180e" || io::unicode_classes()[io::character_at(text, 0).code] != 0);
    // NOTE: not left out: what stands around it could be another one then.
    known += differs ? std::string_view("x") : character;
    text.remove_prefix(character.size());
  }
  return known;
}

}  // namespace
}  // namespace hadal::fuzz

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hadal;
  static const std::vector<io::PreTokenizer> all = {
      fuzz::of({io::kByteLevelPattern}), fuzz::of({io::kStandardPattern}),
      fuzz::of({io::kDeepseekNumbers, io::kDeepseekCjk, io::kDeepseekWords}),
      fuzz::of({io::kDeepseekWords})};
  if (size == 0) return 0;
  const io::PreTokenizer& fast = all[data[0] % all.size()];
  const std::string text = fuzz::without_unknown(fuzz::text_of(data + 1, size - 1));
  fuzz::expect(fast.split(text) == fast.with_pcre2().split(text), "loops cut as PCRE2 does");
  return 0;
}
