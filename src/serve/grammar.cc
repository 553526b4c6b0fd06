// XGrammar behind serve/grammar.h.
// SPDX-License-Identifier: Apache-2.0
#include "serve/grammar.h"

#include <xgrammar/xgrammar.h>

#include <algorithm>
#include <mutex>
#include <set>

#include "core/check.h"

namespace {

// What XGrammar warned of on this thread: parts of a spec that it would leave out.
thread_local std::vector<std::string> warnings;

}  // namespace

namespace xgrammar {

[[noreturn]] void LogFatalImpl(const std::string& file, int line, const std::string& message);
void LogMessageImpl(const std::string& file, int line, int level, const std::string& message);

void LogFatalImpl(const std::string& /*file*/, int /*line*/, const std::string& message) {
  HADAL_FAIL(message);
}
void LogMessageImpl(const std::string& /*file*/, int /*line*/, int level,
                    const std::string& message) {
  constexpr int kWarning = 2;
  if (level == kWarning) warnings.push_back(message);
}

}  // namespace xgrammar

namespace hadal::serve {
namespace {

// A sentence of another's: one line, without what is not ASCII-printable, no full stop.
std::string sentence(std::string text) {
  for (char& c : text)
    if (c == '\n' || c == '\r' || c == '\t') c = ' ';
  while (!text.empty() && (text.back() == ' ' || text.back() == '.')) text.pop_back();
  constexpr size_t kMost = 400;
  if (text.size() > kMost) text = text.substr(0, kMost) + " ...";
  return text;
}

// A vocabulary as XGrammar sees it.
struct Vocabulary {
  Vocabulary(const io::Tokenizer& tokenizer, int64_t vocab_size)
      : bytes(static_cast<size_t>(vocab_size)), is_text(static_cast<size_t>(vocab_size)) {
    for (size_t v = 0; v < bytes.size(); ++v) {
      const auto id = static_cast<int32_t>(v);
      is_text[v] = tokenizer.knows(id);
      // An id that no token has is empty, which XGrammar never allows.
      if (is_text[v]) bytes[v] = tokenizer.bytes(id);
    }
    for (const io::AddedToken& token : tokenizer.spec().added) {
      if (token.id >= vocab_size) continue;
      const auto v = static_cast<size_t>(token.id);
      // NOTE: 0xFF is in no UTF-8, so such a token is in no text, and can still be named by its id.
      bytes[v] = "\xFF" + token.content;
      is_text[v] = false;
    }
  }
  std::vector<std::string> bytes;
  std::vector<bool> is_text;
};

}  // namespace

class Grammar {
 public:
  Grammar(xgrammar::CompiledGrammar grammar, std::shared_ptr<const Vocabulary> words)
      : compiled(std::move(grammar)), vocabulary(std::move(words)) {}
  xgrammar::CompiledGrammar compiled;
  std::shared_ptr<const Vocabulary> vocabulary;
};

struct GrammarCompiler::Impl {
  Impl(const io::Tokenizer& tokenizer, int64_t vocab_size)
      : vocabulary(std::make_shared<Vocabulary>(tokenizer, vocab_size)),
        info(vocabulary->bytes, xgrammar::VocabType::RAW, static_cast<int>(vocab_size),
             std::vector<int32_t>()),
        compiler(info, 1, true, kCacheBytes) {}

  static constexpr int64_t kCacheBytes = 256 << 20;
  // Between two parts of JSON: enough for a line and its indentation, too few to go on for ever.
  static constexpr int kMaxBlanks = 16;
  xgrammar::CompiledGrammar compile(const GrammarSpec& spec);

  std::mutex mutex;
  std::shared_ptr<const Vocabulary> vocabulary;
  xgrammar::TokenizerInfo info;
  xgrammar::GrammarCompiler compiler;
};

std::string GrammarCompiler::why_not() { return ""; }

GrammarCompiler::GrammarCompiler(const io::Tokenizer& tokenizer, int64_t vocab_size)
    : impl_(std::make_unique<Impl>(tokenizer, vocab_size)) {}
GrammarCompiler::~GrammarCompiler() = default;

xgrammar::CompiledGrammar GrammarCompiler::Impl::compile(const GrammarSpec& spec) {
  switch (spec.kind) {
    case GrammarSpec::Kind::kJson:
      return compiler.CompileJSONSchema(R"({"type":"object"})", true, std::nullopt, std::nullopt,
                                        false, kMaxBlanks);
    case GrammarSpec::Kind::kSchema:
      // Strict: properties that the schema does not name are left out.
      return compiler.CompileJSONSchema(spec.text, true, std::nullopt, std::nullopt, true,
                                        kMaxBlanks);
    case GrammarSpec::Kind::kRegex:
      return compiler.CompileRegex(spec.text);
    case GrammarSpec::Kind::kEbnf:
      return compiler.CompileGrammar(spec.text);
    case GrammarSpec::Kind::kStructuralTag:
      return compiler.CompileStructuralTag(spec.text);
    case GrammarSpec::Kind::kNone:
      break;
  }
  HADAL_UNREACHABLE("there is nothing to compile");
}

std::shared_ptr<const Grammar> GrammarCompiler::compile(const GrammarSpec& spec) {
  const std::lock_guard lock(impl_->mutex);
  warnings.clear();
  try {
    auto grammar = std::make_shared<Grammar>(impl_->compile(spec), impl_->vocabulary);
    if (warnings.empty()) return grammar;
  } catch (const std::exception& e) {
    HADAL_FAIL(sentence(e.what()));
  }
  const std::string warning = sentence(warnings.front());
  // A copy in the cache would not warn again.
  impl_->compiler.ClearCache();
  HADAL_FAIL(warning);
}

struct GrammarState::Impl {
  Impl(const Grammar& grammar, const std::vector<int32_t>& stop_ids)
      : ends(stop_ids),
        matcher(grammar.compiled, stop_ids),
        words((static_cast<size_t>(grammar.compiled.GetTokenizerInfo().GetVocabSize()) + 31) / 32) {
  }

  std::vector<int32_t> ends;
  xgrammar::GrammarMatcher matcher;
  std::vector<int32_t> words;
  bool is_filled = false;
};

GrammarState::GrammarState(const Grammar& grammar, const std::vector<int32_t>& stop_ids) {
  const std::vector<bool>& is_text = grammar.vocabulary->is_text;
  std::vector<int32_t> ends;
  for (int32_t id : stop_ids)
    if (!is_text[static_cast<size_t>(id)]) ends.push_back(id);
  HADAL_CHECK(!ends.empty(),
              "a reply that is held to a form needs an end token; leave out "
              "ignore_eos");
  impl_ = std::make_unique<Impl>(grammar, ends);
}
GrammarState::~GrammarState() = default;
GrammarState::GrammarState(GrammarState&&) noexcept = default;

const std::vector<int32_t>& GrammarState::allowed() {
  if (impl_->is_filled) return impl_->words;
  auto shape = static_cast<int64_t>(impl_->words.size());
  DLTensor mask{};
  mask.data = impl_->words.data();
  mask.device = {kDLCPU, 0};
  mask.ndim = 1;
  mask.dtype = xgrammar::GetBitmaskDLType();
  mask.shape = &shape;
  impl_->matcher.FillNextTokenBitmask(&mask);
  impl_->is_filled = true;
  return impl_->words;
}

bool GrammarState::allows(int32_t token) {
  const auto word = static_cast<uint32_t>(allowed()[static_cast<size_t>(token) / 32]);
  return ((word >> (static_cast<uint32_t>(token) % 32)) & 1u) != 0;
}

bool GrammarState::goes_on() {
  // Without the end tokens, something is left.
  std::vector<int32_t> words = allowed();
  for (int32_t id : impl_->ends)
    words[static_cast<size_t>(id) / 32] &=
        static_cast<int32_t>(~(1u << (static_cast<uint32_t>(id) % 32)));
  return std::any_of(words.begin(), words.end(), [](int32_t word) { return word != 0; });
}

void GrammarState::accept(int32_t token) {
  impl_->is_filled = false;
  HADAL_CHECK(impl_->matcher.AcceptToken(token), "token ", token,
              " does not belong to the form that was asked for");
}

}  // namespace hadal::serve
