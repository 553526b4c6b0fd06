// ReplyParser: a reply as it is generated, to reasoning, content and tool calls.
//
// The sum of what push() and finish() return does not depend on how the text was cut. Nothing is
// lost: what looks like a tool call and is none comes out as content. Memory does not grow with the
// reply.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "io/chat_template.h"

namespace hadal::io {

class ReplyParser {
 public:
  struct Settings {
    ChatFamily family = ChatFamily::kV3;
    bool in_reasoning = false;  // the prompt ended inside reasoning
    bool tools = false;         // calls are looked for
  };
  explicit ReplyParser(const Settings& settings);

  struct Event {
    enum class Kind : uint8_t { kReasoning, kContent, kCall, kArguments };
    Kind kind;
    std::string text;   // of kCall: the function's name, of kArguments: a part of its JSON text
    int64_t call = -1;  // of the last two: 0, 1, ...
  };
  // Texts of one kind that follow each other are one event.
  std::vector<Event> push(std::string_view text);
  std::vector<Event> finish();
  bool in_reasoning() const { return state_ == State::kReasoning; }

 private:
  enum class State : uint8_t { kStart, kReasoning, kContent, kCalls, kType, kName, kArguments };
  // The first of the markers in held_, the longest of those that begin there; kNone: none is
  // complete.
  struct Found {
    size_t at, marker, length;
  };
  static constexpr size_t kNone = static_cast<size_t>(-1);
  Found find(const std::vector<std::string_view>& markers) const;
  void run(bool at_end);
  bool step(bool at_end);
  bool step_text(Event::Kind kind, const std::vector<std::string_view>& markers, bool at_end);
  void emit(Event::Kind kind, std::string_view text);
  std::string take(size_t length);

  Settings settings_;
  State state_;
  std::string held_;       // not yet decided
  std::string call_text_;  // of a call whose name is not known yet
  std::string name_;
  int64_t num_calls_ = 0;
  std::vector<Event> events_;
};

}  // namespace hadal::io
