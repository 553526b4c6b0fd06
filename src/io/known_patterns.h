// The regular expressions of well-known tokenizers as loops over characters.
//
// PCRE2 evaluates any pattern, at about 100 ns a piece. Those below are most of all texts, so each
// has a function that cuts as the pattern does. Tests run both on random texts, and tests/fuzz on
// fuzzed ones; they differ only in characters whose class PCRE2's version of Unicode does not know
// (io/unicode.h).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string_view>

namespace hadal::io {

// Of GPT-2: what ByteLevel with use_regex splits by.
inline constexpr std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// Of hadal's own tokenizers.
inline constexpr std::string_view kStandardPattern =
    R"('\p{L}{1,2}(?![\p{L}\p{M}])| ?[\p{L}\p{M}]+|\p{N}{1,3})"
    R"(| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// The three of DeepSeek-V3, R1 and V3.1, in their order.
inline constexpr std::string_view kDeepseekNumbers = R"(\p{N}{1,3})";
inline constexpr std::string_view kDeepseekCjk = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+";
inline constexpr std::string_view kDeepseekWords =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+)"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
    R"(|\s*[)"
    "\r\n"
    R"(]+|\s+(?!\S)|\s+)";

using Emit = std::function<void(std::string_view)>;
// Calls emit with the matches of a pattern in `text` and what lies between them, in order; none is
// empty, together they are `text`. REQUIRES: `text` is valid UTF-8.
using Cut = void (*)(std::string_view text, const Emit& emit);

// Null for other patterns.
Cut known_cut(std::string_view pattern);

}  // namespace hadal::io
