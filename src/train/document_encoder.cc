// DocumentEncoder: FIM, splits of combined tokens, and chats with their prompts masked.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/rng.h"
#include "io/chat_template.h"
#include "io/json.h"
#include "io/utf8.h"
#include "train/prepare.h"

namespace hadal::train {
namespace {

// Beginning and end of a text, in the order of preference: DeepSeek's names, then those of
// `hadal tokenizer train`.
constexpr const char* kBosNames[] = {"<\uFF5Cbegin\u2581of\u2581sentence\uFF5C>",
                                     "<|begin_of_sentence|>"};
constexpr const char* kEosNames[] = {"<\uFF5Cend\u2581of\u2581sentence\uFF5C>",
                                     "<|end_of_sentence|>"};
constexpr const char* kFimNames[] = {"<\uFF5Cfim\u2581begin\uFF5C>", "<\uFF5Cfim\u2581hole\uFF5C>",
                                     "<\uFF5Cfim\u2581end\uFF5C>"};
constexpr uint64_t kDrawsOfDocument = uint64_t{1} << 32;  // counters that a document may use

bool is_line_break(char c) { return c == '\n' || c == '\r'; }
bool is_punctuation(char c) {
  return c > ' ' && c < 127 && !(c >= '0' && c <= '9') && !(c >= 'a' && c <= 'z') &&
         !(c >= 'A' && c <= 'Z');
}

// Where a token's punctuation ends and its line breaks begin; 0 if it is not made of both.
size_t break_of(std::string_view token) {
  size_t end = 0;
  while (end < token.size() && is_punctuation(token[end])) ++end;
  const bool breaks =
      std::all_of(token.begin() + static_cast<std::ptrdiff_t>(end), token.end(), is_line_break);
  return end > 0 && end < token.size() && breaks ? end : 0;
}

// The place of the first character that begins at `at` or after it.
size_t character_from(std::string_view text, size_t at) {
  while (at < text.size() && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) ++at;
  return at;
}

void append(std::vector<int32_t>& to, const std::vector<int32_t>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

size_t common_prefix(std::string_view a, std::string_view b) {
  const size_t size = std::min(a.size(), b.size());
  size_t n = 0;
  while (n < size && a[n] == b[n]) ++n;
  return n;
}

// The replies of a chat as [begin, end) of its rendered text.
struct Span {
  size_t begin, end;
};
std::vector<Span> replies_of(const io::ChatTemplate& form, const io::Chat& chat,
                             const std::string& whole, const std::string& where) {
  std::vector<Span> spans;
  for (size_t i = 0; i < chat.messages.size(); ++i) {
    if (chat.messages[i].role != "assistant") continue;
    const auto until = [&](size_t count, bool prompt) {
      io::Chat part = chat;
      part.messages.resize(count);
      part.add_generation_prompt = prompt;
      return form.render(part);
    };
    const std::string with_reply = until(i + 1, false), prompt = until(i, true);
    HADAL_CHECK(
        whole.starts_with(with_reply), where, ": the template ", form.name(),
        " changes earlier turns when later ones follow; give each reply a record of its own");
    spans.push_back({common_prefix(prompt, with_reply), with_reply.size()});
  }
  HADAL_CHECK(!spans.empty(), where, ": the chat has no message of the assistant to learn from");
  return spans;
}

}  // namespace

DocumentEncoder::DocumentEncoder(const PrepareConfig& config, const io::Tokenizer& tokenizer)
    : config_(config), tokenizer_(tokenizer) {
  const auto find = [&](const std::string& name, auto& known, const char* option) {
    if (!name.empty()) return added(name, option);
    for (const char* candidate : known)
      if (const auto id = tokenizer.added_id(candidate)) return *id;
    HADAL_FAIL(config.tokenizer, " has neither ", known[0], " nor ", known[1],
               "; name its token with ", option);
  };
  bos_ = find(config.bos, kBosNames, "--bos");
  eos_ = find(config.eos, kEosNames, "--eos");
  if (config.fim_rate > 0.0) {
    fim_begin_ = added(kFimNames[0], "--fim-rate");
    fim_hole_ = added(kFimNames[1], "--fim-rate");
    fim_end_ = added(kFimNames[2], "--fim-rate");
  }
  splits_.resize(static_cast<size_t>(tokenizer.vocab_size()));
  for (int32_t id = 0; config.split_rate > 0.0 && id < tokenizer.vocab_size(); ++id) {
    if (!tokenizer.knows(id)) continue;
    const std::string_view bytes = tokenizer.bytes(id);
    const size_t at = break_of(bytes);
    if (at == 0) continue;
    splits_[static_cast<size_t>(id)] = {.first = tokenizer.encode(bytes.substr(0, at)),
                                        .second = tokenizer.encode(bytes.substr(at))};
  }
}

int32_t DocumentEncoder::added(const std::string& name, const char* option) const {
  const auto id = tokenizer_.added_id(name);
  HADAL_CHECK(id.has_value(), option, " needs the token ", name, ", which ", config_.tokenizer,
              " does not have; train one with hadal tokenizer train --special ", name);
  return *id;
}

bool DocumentEncoder::is_held_out(int64_t number) const {
  return rng("prepare.held_out").uniform(static_cast<uint64_t>(number)) < config_.held_out;
}

std::vector<int32_t> DocumentEncoder::encode_fim(std::string_view text, int64_t number) const {
  const Rng draw = rng("prepare.fim_cut");
  size_t cut[2];
  for (uint64_t i = 0; i < 2; ++i)
    cut[i] =
        character_from(text, draw.u64(2 * static_cast<uint64_t>(number) + i) % (text.size() + 1));
  const auto [first, last] = std::minmax(cut[0], cut[1]);
  std::vector<int32_t> ids = {fim_begin_};
  append(ids, tokenizer_.encode(text.substr(0, first)));
  ids.push_back(fim_hole_);
  append(ids, tokenizer_.encode(text.substr(last)));
  ids.push_back(fim_end_);
  append(ids, tokenizer_.encode(text.substr(first, last - first)));
  return ids;
}

void DocumentEncoder::split_combined(std::vector<int32_t>& ids, int64_t number) const {
  const Rng draw = rng("prepare.split");
  uint64_t counter = static_cast<uint64_t>(number) * kDrawsOfDocument;
  std::vector<int32_t> split;
  for (int32_t id : ids) {
    const Split& s = splits_[static_cast<size_t>(id)];
    if (s.first.empty() || draw.uniform(counter++) >= config_.split_rate) {
      split.push_back(id);
      continue;
    }
    append(split, s.first);
    append(split, s.second);
  }
  ids = std::move(split);
}

io::TokenDocument DocumentEncoder::encode_text(std::string_view text, int64_t number) const {
  const bool fim = config_.fim_rate > 0.0 &&
                   rng("prepare.fim").uniform(static_cast<uint64_t>(number)) < config_.fim_rate;
  std::vector<int32_t> ids = fim ? encode_fim(text, number) : tokenizer_.encode(text);
  if (config_.split_rate > 0.0) split_combined(ids, number);
  io::TokenDocument document;
  document.text_bytes = static_cast<int64_t>(text.size());
  document.ids.push_back(bos_);
  append(document.ids, ids);
  document.ids.push_back(eos_);
  return document;
}

io::TokenDocument DocumentEncoder::encode_chat(const std::string& json,
                                               const std::string& where) const {
  HADAL_CHECK(!config_.chat_template.empty(), where,
              " is a chat; name the model's template with --chat-template");
  const io::ChatTemplate form = io::ChatTemplate::named(config_.chat_template);
  io::Chat chat = io::Chat::parse(json, where);
  chat.add_generation_prompt = false;
  const std::string whole = form.render(chat);
  const std::vector<Span> replies = replies_of(form, chat, whole, where);
  io::TokenDocument document;
  std::vector<int32_t> ids = tokenizer_.encode(whole);
  if (ids.empty() || ids.front() != bos_) {
    document.ids.push_back(bos_);
    document.mask.push_back(false);
  }
  size_t begin = 0;
  auto reply = replies.begin();
  for (int32_t id : ids) {
    const size_t end = begin + tokenizer_.bytes(id).size();
    while (reply != replies.end() && begin >= reply->end) ++reply;
    const bool learned = reply != replies.end() && begin >= reply->begin && end <= reply->end;
    document.ids.push_back(id);
    document.mask.push_back(learned);
    if (learned && id != eos_) document.text_bytes += static_cast<int64_t>(end - begin);
    begin = end;
  }
  if (document.ids.back() != eos_) {
    document.ids.push_back(eos_);
    document.mask.push_back(chat.messages.back().role == "assistant");
  }
  return document;
}

io::TokenDocument DocumentEncoder::encode(const io::Document& document, int64_t number) const {
  if (!document.json) return encode_text(document.text, number);
  const io::JsonObject record = io::JsonObject::parse(document.text, document.where);
  if (record.has("messages")) return encode_chat(document.text, document.where);
  HADAL_CHECK(record.has(config_.text_key), document.where, " has neither \"", config_.text_key,
              "\" nor \"messages\"; name the key of its text with --text-key");
  return encode_text(record.string(config_.text_key), number);
}

}  // namespace hadal::train
