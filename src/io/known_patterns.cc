// One matcher for each pattern: the end of the match that begins at a place, or the place if none.
// SPDX-License-Identifier: Apache-2.0
#include "io/known_patterns.h"

#include "io/unicode.h"

namespace hadal::io {
namespace {

constexpr uint8_t kWord = kLetter | kMark;

// The characters of a text and their classes.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}
  size_t size() const { return text_.size(); }
  // No class at the end of the text.
  uint8_t classes(size_t at) const {
    return at < text_.size() ? classes_[character_at(text_, at).code] : 0;
  }
  bool is(size_t at, uint8_t any_of) const { return (classes(at) & any_of) != 0; }
  bool is_char(size_t at, char c) const { return at < text_.size() && text_[at] == c; }
  bool is_break(size_t at) const { return is_char(at, '\r') || is_char(at, '\n'); }
  size_t next(size_t at) const { return at + character_at(text_, at).length; }
  // The end of the longest run of such characters from `at`.
  size_t run(size_t at, uint8_t any_of) const {
    while (is(at, any_of)) at = next(at);
    return at;
  }
  // The same of characters that have none of the classes.
  size_t run_without(size_t at, uint8_t none_of) const {
    while (at < text_.size() && !is(at, none_of)) at = next(at);
    return at;
  }
  size_t breaks(size_t at) const {
    while (is_break(at)) ++at;
    return at;
  }
  bool starts_with(size_t at, std::string_view what) const {
    return text_.substr(at).starts_with(what);
  }

 private:
  std::string_view text_;
  const uint8_t* classes_ = unicode_classes();
};

// Up to `most` characters of the classes.
size_t run_of(const Reader& r, size_t at, uint8_t any_of, int most) {
  for (int i = 0; i < most && r.is(at, any_of); ++i) at = r.next(at);
  return at;
}

// \s+(?!\S)|\s+: white space up to the last one before something else; one if there is no other.
size_t match_spaces(const Reader& r, size_t at) {
  size_t end = at, last = at;
  while (r.is(end, kSpace)) {
    last = end;
    end = r.next(end);
  }
  return end == r.size() || last == at ? end : last;
}

// \s*[\r\n]+|\s+(?!\S)|\s+: up to the last line break of the run, if it has one.
size_t match_breaks(const Reader& r, size_t at) {
  size_t broken = at;
  for (size_t end = at; r.is(end, kSpace); end = r.next(end))
    if (r.is_break(end)) broken = end + 1;
  return broken > at ? broken : match_spaces(r, at);
}

size_t match_byte_level(const Reader& r, size_t at) {
  if (r.is_char(at, '\''))
    for (std::string_view ending : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
      if (r.starts_with(at, ending)) return at + ending.size();
  const size_t from = r.is_char(at, ' ') ? at + 1 : at;
  for (uint8_t one_class : {kLetter, kNumber})
    if (r.is(from, one_class)) return r.run(from, one_class);
  const size_t end = r.run_without(from, kSpace | kLetter | kNumber);
  return end > from ? end : match_spaces(r, at);
}

size_t match_standard(const Reader& r, size_t at) {
  if (r.is_char(at, '\'')) {
    const size_t end = run_of(r, at + 1, kLetter, 2);
    if (end > at + 1 && !r.is(end, kWord)) return end;
  }
  const size_t from = r.is_char(at, ' ') ? at + 1 : at;
  if (r.is(from, kWord)) return r.run(from, kWord);
  if (r.is(at, kNumber)) return run_of(r, at, kNumber, 3);
  const size_t end = r.run_without(from, kSpace | kWord | kNumber);
  return end > from ? r.breaks(end) : match_breaks(r, at);
}

size_t match_numbers(const Reader& r, size_t at) { return run_of(r, at, kNumber, 3); }

bool is_ascii_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

size_t match_words(const Reader& r, size_t at, std::string_view text) {
  const uint8_t first = r.classes(at);
  const bool is_mark = (first & (kPunctuation | kSymbol)) != 0;
  if (is_mark && static_cast<uint8_t>(text[at]) < 0x80) {
    size_t end = at + 1;
    while (end < text.size() && is_ascii_letter(text[end])) ++end;
    if (end > at + 1) return end;
  }
  if ((first & kWord) != 0) return r.run(at, kWord);
  if (!is_mark && !r.is_break(at)) {
    const size_t from = r.next(at);
    if (r.is(from, kWord)) return r.run(from, kWord);
  }
  const size_t from = r.is_char(at, ' ') ? at + 1 : at;
  if (r.is(from, kPunctuation | kSymbol)) return r.breaks(r.run(from, kPunctuation | kSymbol));
  return match_breaks(r, at);
}

// Cuts by a matcher.
template <class Match>
void cut_by(std::string_view text, const Emit& emit, const Match& match) {
  const Reader reader(text);
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = match(reader, at);
    if (end == at) {
      at = reader.next(at);
      continue;
    }
    if (at > done) emit(text.substr(done, at - done));
    emit(text.substr(at, end - at));
    done = at = end;
  }
  if (done < text.size()) emit(text.substr(done));
}

void cut_byte_level(std::string_view text, const Emit& emit) {
  cut_by(text, emit, [](const Reader& r, size_t at) { return match_byte_level(r, at); });
}
void cut_standard(std::string_view text, const Emit& emit) {
  cut_by(text, emit, [](const Reader& r, size_t at) { return match_standard(r, at); });
}
void cut_numbers(std::string_view text, const Emit& emit) {
  cut_by(text, emit, [](const Reader& r, size_t at) { return match_numbers(r, at); });
}
void cut_words(std::string_view text, const Emit& emit) {
  cut_by(text, emit, [text](const Reader& r, size_t at) { return match_words(r, at, text); });
}

void cut_cjk(std::string_view text, const Emit& emit) {
  cut_by(text, emit, [text](const Reader& r, size_t at) {
    while (at < r.size() && static_cast<uint8_t>(text[at]) >= 0xE3) {
      const Character c = character_at(text, at);
      if ((c.code < 0x4E00 || c.code > 0x9FA5) && (c.code < 0x3040 || c.code > 0x30FF)) break;
      at += c.length;
    }
    return at;
  });
}

}  // namespace

Cut known_cut(std::string_view pattern) {
  if (pattern == kByteLevelPattern) return cut_byte_level;
  if (pattern == kStandardPattern) return cut_standard;
  if (pattern == kDeepseekNumbers) return cut_numbers;
  if (pattern == kDeepseekCjk) return cut_cjk;
  if (pattern == kDeepseekWords) return cut_words;
  return nullptr;
}

}  // namespace hadal::io
