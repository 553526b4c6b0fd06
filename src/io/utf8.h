// UTF-8: where a character ends, and the byte alphabet in which tokenizer.json spells any bytes.
//
// Valid as in Unicode 15, table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace hadal::io {

// Bytes of the character that starts at `at`; 0 if none is valid there.
size_t utf8_length(std::string_view text, size_t at);
// The longest prefix that is valid.
size_t utf8_valid_prefix(std::string_view text);

// The byte alphabet of byte-level BPE: printable bytes of Latin-1 stand for themselves, the other
// 68 for U+0100 and up, in order.
std::string spell_bytes(std::string_view bytes);
// The inverse; nothing if a character is not in the alphabet.
std::optional<std::string> unspell_bytes(std::string_view text);

}  // namespace hadal::io
