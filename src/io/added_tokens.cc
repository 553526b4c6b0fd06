// Finding added tokens in text.
// SPDX-License-Identifier: Apache-2.0
#include "io/added_tokens.h"

#include <nlohmann/json.hpp>

#include "core/check.h"

namespace hadal::io {

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  for (size_t i = 0; i < tokens_.size(); ++i)
    (tokens_[i].normalized ? normalized_ : plain_).add(tokens_[i].content, i);
}

std::array<int32_t, 256> AddedTokens::Tree::no_nodes() {
  std::array<int32_t, 256> none;
  none.fill(-1);
  return none;
}

// -1 if there is none.
int32_t AddedTokens::Tree::child(int32_t node, uint8_t byte) const {
  if (node == 0) return first_[byte];
  for (const auto& [key, next] : nodes_[static_cast<size_t>(node)].children)
    if (key == byte) return next;
  return -1;
}

void AddedTokens::Tree::add(std::string_view content, size_t token) {
  int32_t node = 0;
  for (char c : content) {
    const auto byte = static_cast<uint8_t>(c);
    int32_t next = child(node, byte);
    if (next < 0) {
      next = static_cast<int32_t>(nodes_.size());
      nodes_.emplace_back();
      if (node == 0)
        first_[byte] = next;
      else
        nodes_[static_cast<size_t>(node)].children.emplace_back(byte, next);
    }
    node = next;
  }
  nodes_[static_cast<size_t>(node)].token = static_cast<int32_t>(token);
}

int32_t AddedTokens::Tree::longest(std::string_view text) const {
  int32_t found = -1, node = 0;
  for (char c : text) {
    node = child(node, static_cast<uint8_t>(c));
    if (node < 0) break;
    if (nodes_[static_cast<size_t>(node)].token >= 0)
      found = nodes_[static_cast<size_t>(node)].token;
  }
  return found;
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

void AddedTokens::split(const Tree& tree, std::string_view text,
                        const std::function<void(std::string_view)>& on_text,
                        const std::function<void(int32_t)>& on_token) const {
  if (tree.empty() && !text.empty()) return on_text(text);
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const int32_t found = tree.begins_with(text[at]) ? tree.longest(text.substr(at)) : -1;
    if (found < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(found)];
    if (at > done) on_text(text.substr(done, at - done));
    on_token(token.id);
    at += token.content.size();
    done = at;
  }
  if (done < text.size()) on_text(text.substr(done));
}

}  // namespace hadal::io
