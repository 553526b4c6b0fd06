// UTF-8 validity and the byte alphabet of tokenizer.json.
// SPDX-License-Identifier: Apache-2.0
#include "io/utf8.h"

#include <array>
#include <cstring>

namespace hadal::io {
namespace {

// Code points of the byte alphabet are all below kAlphabetEnd.
constexpr int kAlphabetEnd = 0x100 + 68;

struct Alphabet {
  std::array<uint16_t, 256> code{};          // of a byte
  std::array<int16_t, kAlphabetEnd> byte{};  // of a code point; -1 for none
};

constexpr Alphabet make_alphabet() {
  Alphabet a;
  for (auto& b : a.byte) b = -1;
  int next = 0x100;
  for (int b = 0; b < 256; ++b) {
    const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    const int code = printable ? b : next++;
    a.code[static_cast<size_t>(b)] = static_cast<uint16_t>(code);
    a.byte[static_cast<size_t>(code)] = static_cast<int16_t>(b);
  }
  return a;
}
constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

size_t utf8_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(at);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || at + length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i)
    if ((byte(at + i) & 0xC0) != 0x80) return 0;
  const uint8_t second = byte(at + 1);
  if ((lead == 0xE0 && second < 0xA0) || (lead == 0xED && second > 0x9F)) return 0;
  if ((lead == 0xF0 && second < 0x90) || (lead == 0xF4 && second > 0x8F)) return 0;
  return length;
}

size_t utf8_valid_prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    uint64_t eight;
    if (at + sizeof(eight) <= text.size()) {
      std::memcpy(&eight, text.data() + at, sizeof(eight));
      if ((eight & 0x8080808080808080u) == 0) {
        at += sizeof(eight);
        continue;
      }
    }
    const size_t length = utf8_length(text, at);
    if (length == 0) break;
    at += length;
  }
  return at;
}

std::string spell_bytes(std::string_view bytes) {
  std::string text;
  for (char c : bytes) {
    const unsigned code = kAlphabet.code[static_cast<uint8_t>(c)];
    if (code < 0x80) {
      text += static_cast<char>(code);
    } else {
      text += static_cast<char>(0xC0 | (code >> 6));
      text += static_cast<char>(0x80 | (code & 0x3F));
    }
  }
  return text;
}

std::optional<std::string> unspell_bytes(std::string_view text) {
  std::string bytes;
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text, at);
    if (length == 0 || length > 2) return {};
    unsigned code = static_cast<uint8_t>(text[at]);
    if (length == 2) code = ((code & 0x1F) << 6) | (static_cast<uint8_t>(text[at + 1]) & 0x3F);
    if (code >= kAlphabetEnd || kAlphabet.byte[code] < 0) return {};
    bytes += static_cast<char>(kAlphabet.byte[code]);
    at += length;
  }
  return bytes;
}

}  // namespace hadal::io
