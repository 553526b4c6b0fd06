// A build without XGrammar: nothing can be compiled, and it says so.
// SPDX-License-Identifier: Apache-2.0
#include "core/check.h"
#include "serve/grammar.h"

namespace hadal::serve {

class Grammar {};
struct GrammarCompiler::Impl {};
struct GrammarState::Impl {};

std::string GrammarCompiler::why_not() {
  return "this build has no structured output; run scripts/setup.sh --full and build again";
}

GrammarCompiler::GrammarCompiler(const io::Tokenizer& /*tokenizer*/, int64_t /*vocab_size*/) {}
GrammarCompiler::~GrammarCompiler() = default;
std::shared_ptr<const Grammar> GrammarCompiler::compile(const GrammarSpec& /*spec*/) {
  HADAL_FAIL(why_not());
}

// There is no Grammar, so nobody gets here.
GrammarState::GrammarState(const Grammar& /*grammar*/, const std::vector<int32_t>& /*stop_ids*/) {
  HADAL_FAIL(GrammarCompiler::why_not());
}
GrammarState::~GrammarState() = default;
GrammarState::GrammarState(GrammarState&&) noexcept = default;
const std::vector<int32_t>& GrammarState::allowed() { HADAL_UNREACHABLE("no grammar"); }
bool GrammarState::allows(int32_t /*token*/) { HADAL_UNREACHABLE("no grammar"); }
bool GrammarState::goes_on() { HADAL_UNREACHABLE("no grammar"); }
void GrammarState::accept(int32_t /*token*/) { HADAL_UNREACHABLE("no grammar"); }

}  // namespace hadal::serve
