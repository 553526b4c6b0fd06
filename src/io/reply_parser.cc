// A machine of few states, each of which looks for a few markers.
//
//   V3, R1   calls-begin call-begin "function" sep NAME "\n```json\n" ARGUMENTS "\n```" call-end
//   ... V3.1     calls-begin call-begin NAME sep ARGUMENTS call-end ... calls-end
// SPDX-License-Identifier: Apache-2.0
#include "io/reply_parser.h"

#include <algorithm>

#include "core/check.h"
#include "io/chat_tokens.h"

namespace hadal::io {

using namespace chat_tokens;

namespace {

constexpr std::string_view kFence = "\n```json\n";
constexpr std::string_view kFencedEnd = "\n```<\uFF5Ctool\u2581call\u2581end\uFF5C>";
// Longer than any function's name: a call that does not get to its arguments is text.
constexpr size_t kMaxName = 512;

bool is_blank(std::string_view text) { return text.find_first_not_of(" \t\r\n") == text.npos; }

}  // namespace

ReplyParser::ReplyParser(const Settings& settings)
    : settings_(settings),
      state_(settings.in_reasoning                ? State::kReasoning
             : settings.family == ChatFamily::kV3 ? State::kContent
                                                  : State::kStart) {}

std::vector<ReplyParser::Event> ReplyParser::push(std::string_view text) {
  held_ += text;
  run(false);
  return std::exchange(events_, {});
}

std::vector<ReplyParser::Event> ReplyParser::finish() {
  run(true);
  if (state_ == State::kType || state_ == State::kName) {
    emit(Event::Kind::kContent, call_text_ + held_);
    held_.clear();
  }
  call_text_.clear();
  return std::exchange(events_, {});
}

void ReplyParser::emit(Event::Kind kind, std::string_view text) {
  if (text.empty()) return;
  const int64_t call = kind == Event::Kind::kArguments ? num_calls_ - 1 : -1;
  if (!events_.empty() && events_.back().kind == kind && events_.back().call == call &&
      kind != Event::Kind::kCall)
    events_.back().text += text;
  else
    events_.push_back(
        {kind, std::string(text), kind == Event::Kind::kCall ? num_calls_ - 1 : call});
}

std::string ReplyParser::take(size_t length) {
  std::string text = held_.substr(0, length);
  held_.erase(0, length);
  return text;
}

ReplyParser::Found ReplyParser::find(const std::vector<std::string_view>& markers) const {
  Found found{kNone, kNone, 0};
  for (size_t m = 0; m < markers.size(); ++m) {
    const size_t at = held_.find(markers[m]);
    if (at == held_.npos) continue;
    if (at < found.at || (at == found.at && markers[m].size() > found.length))
      found = {at, m, markers[m].size()};
  }
  return found;
}

void ReplyParser::run(bool at_end) {
  while (step(at_end)) {
  }
}

// Gives out text up to the first marker, or what cannot be the start of one. True if a marker was
// reached, which then leads held_.
bool ReplyParser::step_text(Event::Kind kind, const std::vector<std::string_view>& markers,
                            bool at_end) {
  const Found found = find(markers);
  // What may still become a marker, from its first byte on.
  size_t keep = held_.size();
  if (!at_end)
    for (std::string_view marker : markers)
      for (size_t n = std::min(marker.size() - 1, held_.size()); n > 0; --n)
        if (held_.compare(held_.size() - n, n, marker, 0, n) == 0) {
          keep = std::min(keep, held_.size() - n);
          break;
        }
  if (found.at != kNone && found.at <= keep) {
    emit(kind, take(found.at));
    return true;
  }
  emit(kind, take(keep));
  return false;
}

// False when nothing more can be decided.
bool ReplyParser::step(bool at_end) {
  const bool has_type = settings_.family != ChatFamily::kV31;
  switch (state_) {
    case State::kStart: {
      // R1 and V3.1 may open their reasoning themselves, behind blanks at most.
      const size_t first = held_.find_first_not_of(" \t\r\n");
      const std::string_view rest =
          first == held_.npos ? std::string_view() : std::string_view(held_).substr(first);
      if (rest.starts_with(kThink)) {
        take(first + kThink.size());
        state_ = State::kReasoning;
        return true;
      }
      if (!at_end && kThink.starts_with(rest)) return false;
      state_ = State::kContent;
      return true;
    }
    case State::kReasoning:
      if (!step_text(Event::Kind::kReasoning, {kThinkEnd}, at_end)) return false;
      take(kThinkEnd.size());
      state_ = State::kContent;
      return true;
    case State::kContent: {
      if (!settings_.tools) {
        emit(Event::Kind::kContent, take(held_.size()));
        return false;
      }
      // Some replies leave out the token that opens the list.
      if (!step_text(Event::Kind::kContent, {kCalls, kCall}, at_end)) return false;
      if (held_.starts_with(kCalls)) take(kCalls.size());
      state_ = State::kCalls;
      return true;
    }
    case State::kCalls: {
      const Found found = find({kCall, kCallsEnd});
      if (found.at != kNone) {
        const std::string before = take(found.at);
        if (!is_blank(before)) emit(Event::Kind::kContent, before);
        call_text_ = take(found.length);
        state_ = found.marker == 1 ? State::kContent : has_type ? State::kType : State::kName;
        if (found.marker == 1) call_text_.clear();
        return true;
      }
      if (at_end) {
        if (!is_blank(held_)) emit(Event::Kind::kContent, held_);
        held_.clear();
      }
      return false;
    }
    case State::kType:
    case State::kName: {
      const std::string_view marker = state_ == State::kName && has_type ? kFence : kSep;
      const Found found = find({marker});
      if (found.at == kNone || found.at > kMaxName) {
        if (held_.size() <= kMaxName + marker.size()) return false;
        // No call after all.
        emit(Event::Kind::kContent, call_text_ + take(kMaxName));
        call_text_.clear();
        state_ = State::kContent;
        return true;
      }
      const std::string text = take(found.at);
      call_text_ += text + take(found.length);
      if (state_ == State::kType) {
        state_ = State::kName;
        return true;
      }
      ++num_calls_;
      emit(Event::Kind::kCall, text.empty() ? " " : text);
      call_text_.clear();
      state_ = State::kArguments;
      return true;
    }
    case State::kArguments: {
      const bool ended = has_type
                             ? step_text(Event::Kind::kArguments, {kFencedEnd, kCallEnd}, at_end)
                             : step_text(Event::Kind::kArguments, {kCallEnd}, at_end);
      if (!ended) return false;
      take(held_.starts_with(kFencedEnd) ? kFencedEnd.size() : kCallEnd.size());
      state_ = State::kCalls;
      return true;
    }
  }
  HADAL_UNREACHABLE("unknown state of a reply");
}

}  // namespace hadal::io
