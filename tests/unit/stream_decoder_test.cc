// Streaming decode: whole characters only, equal to decoding all at once; stop strings.
// SPDX-License-Identifier: Apache-2.0
#include "io/stream_decoder.h"

#include <gtest/gtest.h>

#include "core/rng.h"
#include "io/bpe_train.h"
#include "io/utf8.h"

namespace hadal::io {
namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer trained = train_bpe(
      "\u4F60\u597D \u4F60\u597D caf\u00E9 caf\u00E9 \U0001F680\U0001F680 \U0001F680 words", 265);
  return trained;
}

// Decoding all bytes at once, one character after the other.
std::string replace_invalid(std::string_view bytes) {
  std::string out;
  for (size_t i = 0; i < bytes.size();) {
    if (const size_t n = utf8_length(bytes, i)) {
      out += bytes.substr(i, n);
      i += n;
      continue;
    }
    // The longest start of some character: what completes to one with the right bytes behind it.
    size_t length = 1;
    for (size_t n = std::min<size_t>(3, bytes.size() - i); n >= 2 && length == 1; --n) {
      const std::string start(bytes.substr(i, n));
      for (int a = 0x80; a < 0xC0 && length == 1; ++a)
        for (const std::string& tail :
             {std::string(1, static_cast<char>(a)), std::string{static_cast<char>(a), '\x80'}})
          if (utf8_length(start + tail, 0) > n) length = n;
    }
    out += "\uFFFD";
    i += length;
  }
  return out;
}

TEST(StreamDecoder, HoldsBackUntilACharacterIsComplete) {
  StreamDecoder decoder(tokenizer());
  EXPECT_EQ(decoder.push_bytes("a\xE4"), "a");
  EXPECT_EQ(decoder.push_bytes("\xBD"), "");
  EXPECT_EQ(decoder.push_bytes("\xA0\xF0\x9F"), "\u4F60");
  EXPECT_EQ(decoder.push_bytes("\x9A\x80!"), "\U0001F680!");
  EXPECT_EQ(decoder.finish(), "");
  EXPECT_EQ(decoder.push_bytes("\xC3"), "");
  EXPECT_EQ(decoder.finish(), "\uFFFD");
  EXPECT_EQ(decoder.finish(), "");
}

TEST(StreamDecoder, MarksWhatIsNoUtf8) {
  // As Python's bytes.decode("utf-8", "replace").
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"\x80z", "\uFFFDz"},
      {"\xC0\x80", "\uFFFD\uFFFD"},
      {"\xE0\x80\x80", "\uFFFD\uFFFD\uFFFD"},
      {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},
      {"\xE4\xBDz", "\uFFFDz"},
      {"\xF0\x9F\x9Az", "\uFFFDz"},
      {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},
      {"\xF0\x9F\xC3\xA9", "\uFFFD\u00E9"},
      {"\xFF\xFE", "\uFFFD\uFFFD"}};
  for (const auto& [bytes, text] : cases) {
    StreamDecoder whole(tokenizer()), single(tokenizer());
    std::string one, many;
    one += whole.push_bytes(bytes);
    one += whole.finish();
    for (char c : bytes) many += single.push_bytes({&c, 1});
    many += single.finish();
    EXPECT_EQ(one, text);
    EXPECT_EQ(many, text);
    EXPECT_EQ(replace_invalid(bytes), text);
  }
}

TEST(StreamDecoder, EqualsDecodingAtOnceOnRandomTokens) {
  const Rng rng(3, stream_id("stream"));
  uint64_t draw = 0;
  for (int round = 0; round < 300; ++round) {
    StreamDecoder decoder(tokenizer());
    std::vector<int32_t> ids;
    std::string text;
    for (int i = 0; i < 40; ++i) {
      // Often bytes that begin or continue characters.
      const auto vocab = static_cast<uint64_t>(tokenizer().vocab_size());
      const auto id = static_cast<int32_t>(
          rng.u64(draw++) % 3 == 0 ? rng.u64(draw++) % vocab
                                   : 2 + (i % 3 == 0 ? 0xE0 : 0x80) + rng.u64(draw++) % 0x20);
      ids.push_back(id);
      const std::string part = decoder.push(id);
      EXPECT_EQ(utf8_valid_prefix(part), part.size());
      text += part;
    }
    text += decoder.finish();
    EXPECT_EQ(text, replace_invalid(tokenizer().decode(ids)));
  }
}

TEST(StreamDecoder, GivesBackEncodedText) {
  const std::string text = "\u4F60\u597D, caf\u00E9 \U0001F680\U0001F468\u200D\U0001F469 \u0e01";
  StreamDecoder decoder(tokenizer());
  std::string out;
  for (int32_t id : tokenizer().encode(text)) out += decoder.push(id);
  EXPECT_EQ(out, text);
  EXPECT_EQ(decoder.push(static_cast<int32_t>(tokenizer().vocab_size())), "");
  EXPECT_EQ(decoder.finish(), "");
}

TEST(StopScanner, EndsBeforeTheFirstStopString) {
  StopScanner scanner({"STOP", "ST\n", ""});
  EXPECT_EQ(scanner.push("a S"), "a ");
  EXPECT_EQ(scanner.push("T"), "");
  EXPECT_EQ(scanner.push("ART S"), "START ");
  EXPECT_EQ(scanner.push("TO"), "");
  EXPECT_FALSE(scanner.stopped());
  EXPECT_EQ(scanner.push("Pped"), "");
  EXPECT_TRUE(scanner.stopped());
  EXPECT_EQ(scanner.push("more"), "");
  EXPECT_EQ(scanner.finish(), "");
}

TEST(StopScanner, GivesWhatItHeldAtTheEnd) {
  StopScanner scanner({"aab"});
  EXPECT_EQ(scanner.push("aaa"), "a");
  EXPECT_EQ(scanner.finish(), "aa");
  StopScanner none({});
  EXPECT_EQ(none.push("aab"), "aab");
}

TEST(StopScanner, EqualsASearchInTheWholeText) {
  const Rng rng(5, stream_id("stop"));
  uint64_t draw = 0;
  const auto random_text = [&](uint64_t length) {
    std::string text;
    for (uint64_t i = 0; i < length; ++i) text += static_cast<char>('a' + rng.u64(draw++) % 2);
    return text;
  };
  for (int round = 0; round < 500; ++round) {
    const std::vector<std::string> stops = {random_text(2 + rng.u64(draw++) % 5),
                                            random_text(4 + rng.u64(draw++) % 5)};
    const std::string text = random_text(30);
    // Where the shortest beginning with a stop string has it.
    size_t end = text.npos;
    for (size_t n = 1; n <= text.size() && end == text.npos; ++n)
      for (const std::string& stop : stops)
        if (text.substr(0, n).ends_with(stop)) end = std::min(end, n - stop.size());
    StopScanner scanner(stops);
    std::string out;
    for (size_t i = 0; i < text.size() && !scanner.stopped();) {
      const size_t n = 1 + rng.u64(draw++) % 4;
      out += scanner.push(std::string_view(text).substr(i, n));
      i += n;
    }
    EXPECT_EQ(scanner.stopped(), end != text.npos);
    out += scanner.finish();
    EXPECT_EQ(out, text.substr(0, end));
  }
}

}  // namespace
}  // namespace hadal::io
