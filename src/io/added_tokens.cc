// Finding added tokens in text.
// SPDX-License-Identifier: Apache-2.0
#include "io/added_tokens.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/check.h"

namespace hadal::io {

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  for (size_t i = 0; i < tokens_.size(); ++i)
    (tokens_[i].normalized ? normalized_ : plain_)[static_cast<uint8_t>(tokens_[i].content[0])]
        .push_back(i);
  for (Group* group : {&plain_, &normalized_})
    for (auto& list : *group)
      std::sort(list.begin(), list.end(), [&](size_t a, size_t b) {
        return tokens_[a].content.size() != tokens_[b].content.size()
                   ? tokens_[a].content.size() > tokens_[b].content.size()
                   : a < b;
      });
}

AddedToken AddedTokens::from_json(const JsonObject& entry) {
  const int64_t id = entry.integer("id");
  HADAL_CHECK(id >= 0 && id < (int64_t{1} << 24), entry.where(), ": id is ", id, "; allowed: 0 to ",
              (int64_t{1} << 24) - 1);
  AddedToken token{.id = static_cast<int32_t>(id),
                   .content = entry.string("content"),
                   .special = entry.boolean("special", false),
                   .normalized = entry.boolean("normalized", false)};
  HADAL_CHECK(!token.content.empty(), entry.where(), ": content is empty; remove this token");
  for (const char* field : {"lstrip", "rstrip", "single_word"})
    HADAL_CHECK(!entry.boolean(field, false), entry.where(), ": ", field,
                " is true; only false is supported");
  entry.check_no_unknown();
  return token;
}

Json AddedTokens::to_json() const {
  Json list = Json::array();
  for (const AddedToken& token : tokens_)
    list.push_back({{"id", token.id},
                    {"content", token.content},
                    {"special", token.special},
                    {"normalized", token.normalized},
                    {"lstrip", false},
                    {"rstrip", false},
                    {"single_word", false}});
  return list;
}

void AddedTokens::split(std::string_view text, const std::function<void(std::string_view)>& on_text,
                        const std::function<void(int32_t)>& on_token) const {
  split(
      plain_, text, [&](std::string_view rest) { split(normalized_, rest, on_text, on_token); },
      on_token);
}

void AddedTokens::split(const Group& group, std::string_view text,
                        const std::function<void(std::string_view)>& on_text,
                        const std::function<void(int32_t)>& on_token) const {
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const auto& candidates = group[static_cast<uint8_t>(text[at])];
    const auto found = std::find_if(candidates.begin(), candidates.end(), [&](size_t i) {
      return text.substr(at).starts_with(tokens_[i].content);
    });
    if (found == candidates.end()) {
      ++at;
      continue;
    }
    if (at > done) on_text(text.substr(done, at - done));
    on_token(tokens_[*found].id);
    at += tokens_[*found].content.size();
    done = at;
  }
  if (done < text.size()) on_text(text.substr(done));
}

}  // namespace hadal::io
