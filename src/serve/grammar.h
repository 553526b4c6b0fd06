// Grammar: what a reply may be, and which tokens may come next.
//
//   V vocabulary
//
// XGrammar (Dong et al., 2024) reads JSON schemas, regular expressions, EBNF and structural tags
// and decides about tokens. This is all of it that hadal sees. A build without it has
// grammar_none.cc in the place of grammar.cc.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "io/tokenizer.h"

namespace hadal::serve {

struct GrammarSpec {
  // kJson: any JSON object. kStructuralTag: XGrammar's own JSON, in which the others can be nested.
  enum class Kind : uint8_t { kNone, kJson, kSchema, kRegex, kEbnf, kStructuralTag };
  Kind kind = Kind::kNone;
  std::string text;
  bool asks() const { return kind != Kind::kNone; }
};

// A compiled spec, shared by all sequences that are held to it.
class Grammar;

// Any thread may call; compilations run one after the other on the threads that ask for them.
class GrammarCompiler {
 public:
  // The empty string where structured output is built in, else why it is not.
  static std::string why_not();

  // The end tokens are no text; nor are added tokens, but for a spec that names their ids.
  GrammarCompiler(const io::Tokenizer& tokenizer, int64_t vocab_size);
  ~GrammarCompiler();
  // An Error says what cannot be read, or what of it cannot be honoured.
  std::shared_ptr<const Grammar> compile(const GrammarSpec& spec);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// How far one reply has come.
class GrammarState {
 public:
  // `stop_ids` end a reply that is complete; of them those that are no text count.
  // An Error if there is none.
  GrammarState(const Grammar& grammar, const std::vector<int32_t>& stop_ids);
  ~GrammarState();
  GrammarState(GrammarState&&) noexcept;

  // Bit v of word v / 32 says whether token v may come next. [ceil(V / 32)]
  const std::vector<int32_t>& allowed();
  bool allows(int32_t token);
  // REQUIRES: allows(token).
  void accept(int32_t token);
  // Whether a token other than those that end it can follow.
  bool goes_on();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hadal::serve
