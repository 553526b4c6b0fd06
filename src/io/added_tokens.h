// AddedTokens: tokens of tokenizer.json that are found in the text before anything else is done.
//
// Found from left to right, the longest at each place; those with normalized = false first, the
// others in what is left, as Hugging Face does.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/json.h"

namespace hadal::io {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = true, normalized = false;
};

class AddedTokens {
 public:
  AddedTokens() = default;
  // REQUIRES: contents are different and not empty.
  explicit AddedTokens(std::vector<AddedToken> tokens);
  // One entry of added_tokens; an Error names what is not supported.
  static AddedToken from_json(const JsonObject& entry);
  Json to_json() const;

  const std::vector<AddedToken>& list() const { return tokens_; }
  // Calls `text` for each stretch between tokens (never empty) and `token` for each token, in
  // order.
  void split(std::string_view text, const std::function<void(std::string_view)>& on_text,
             const std::function<void(int32_t)>& on_token) const;

 private:
  // A tree of contents by bytes: texts that are full of "<" meet hundreds of tokens that begin so.
  class Tree {
   public:
    void add(std::string_view content, size_t token);
    bool empty() const { return nodes_.size() == 1; }
    bool begins_with(char c) const { return first_[static_cast<uint8_t>(c)] >= 0; }
    // The longest token at the start of `text`; -1 for none.
    int32_t longest(std::string_view text) const;

   private:
    struct Node {
      std::vector<std::pair<uint8_t, int32_t>> children{};
      int32_t token = -1;
    };
    std::array<int32_t, 256> first_ = no_nodes();  // children of the root
    std::vector<Node> nodes_{1};
    static std::array<int32_t, 256> no_nodes();
    int32_t child(int32_t node, uint8_t byte) const;
  };
  void split(const Tree& tree, std::string_view text,
             const std::function<void(std::string_view)>& on_text,
             const std::function<void(int32_t)>& on_token) const;

  std::vector<AddedToken> tokens_;
  Tree plain_, normalized_;
};

}  // namespace hadal::io
