// Replies of a model: reasoning, content and tool calls do not depend on how the text was cut. The
// first byte says the family and what is looked for.
// SPDX-License-Identifier: Apache-2.0
#include "io/reply_parser.h"
#include "tests/fuzz/fuzz.h"

namespace {

using hadal::io::ReplyParser;
using Kind = ReplyParser::Event::Kind;

// Pieces of `length` bytes; each event as its kind and call, once for texts that follow each other.
std::string parse(const ReplyParser::Settings& settings, std::string_view text, size_t length) {
  ReplyParser parser(settings);
  std::string all, last;
  const auto add = [&](const std::vector<ReplyParser::Event>& events) {
    for (const auto& e : events) {
      std::string head = hadal::concat("\n[", static_cast<int>(e.kind), " ", e.call, "] ");
      if (head != last || e.kind == Kind::kCall) all += head;
      all += e.text;
      last = std::move(head);
    }
  };
  for (size_t at = 0; at < text.size(); at += length) add(parser.push(text.substr(at, length)));
  add(parser.finish());
  return all;
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hadal;
  if (size == 0) return 0;
  const std::string_view text = fuzz::text_of(data, size).substr(1);
  constexpr io::ChatFamily kFamilies[] = {io::ChatFamily::kV3, io::ChatFamily::kR1,
                                          io::ChatFamily::kV31};
  const ReplyParser::Settings settings{.family = kFamilies[(data[0] & 15) % 3],
                                       .in_reasoning = (data[0] & 16) != 0,
                                       .tools = (data[0] & 32) != 0};
  const std::string whole = parse(settings, text, size);
  for (const size_t length : {size_t{1}, size_t{2}, size_t{3}, size_t{7}})
    fuzz::expect(parse(settings, text, length) == whole, "cuts change nothing");
  return 0;
}
