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
  // Indices into tokens_ by first byte, longest first.
  using Group = std::array<std::vector<size_t>, 256>;
  void split(const Group& group, std::string_view text,
             const std::function<void(std::string_view)>& on_text,
             const std::function<void(int32_t)>& on_token) const;

  std::vector<AddedToken> tokens_;
  Group plain_, normalized_;
};

}  // namespace hadal::io
