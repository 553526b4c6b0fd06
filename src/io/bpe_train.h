// Training of a byte-level BPE vocabulary.
//
// Each step merges the pair of neighbours that is most frequent inside the pieces of the text (of
// several, the one with the smaller ids, left first). Ids: special tokens, then the 256 bytes, then
// the merges in order. The same text and size give the same tokenizer everywhere.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer.h"

namespace hadal::io {

// The special tokens of a tokenizer that hadal trains: ids 0 and 1.
inline constexpr const char* kBeginOfSentence = "<|begin_of_sentence|>";
inline constexpr const char* kEndOfSentence = "<|end_of_sentence|>";

// An Error if the text has too few pairs that occur twice for so many tokens.
Tokenizer train_bpe(std::string_view text, int64_t vocab_size,
                    const std::vector<std::string>& special_tokens = {kBeginOfSentence,
                                                                      kEndOfSentence});

}  // namespace hadal::io
