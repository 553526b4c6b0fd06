// tokenizer.json: reading with every field checked, and writing.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "core/check.h"
#include "io/atomic.h"
#include "io/tokenizer.h"
#include "io/utf8.h"

namespace hadal::io {
namespace {

// Ids are indices of tables, so that a wild one must not size them.
constexpr int64_t kMaxVocab = int64_t{1} << 24;

using Ids = std::unordered_map<std::string, int32_t>;

void check_absent(const JsonObject& object, const char* key, const char* what) {
  HADAL_CHECK(!object.has(key), object.where(), ": ", key, " is ", object.json()[key].dump(), "; ",
              what, " is not supported, only null");
  object.know(key);
}

using Token = TokenizerSpec::Token;

Ids read_vocab(const JsonObject& model, std::vector<Token>& vocab) {
  const JsonObject object = model.object("vocab");
  Ids ids;
  ids.reserve(object.json().size());
  vocab.reserve(object.json().size());
  for (const auto& [name, value] : object.json().items()) {
    const auto id = value.is_number_integer() ? value.get<int64_t>() : -1;
    HADAL_CHECK(id >= 0 && id < kMaxVocab, object.where(), ": the id of ", Json(name).dump(),
                " is ", value.dump(), "; an integer from 0 to ", kMaxVocab - 1, " is needed");
    HADAL_CHECK(!name.empty(), object.where(), ": the token with id ", id, " is empty; remove it");
    vocab.push_back({static_cast<int32_t>(id), name, unspell_bytes(name).value_or(name)});
    ids.emplace(name, static_cast<int32_t>(id));
  }
  std::stable_sort(vocab.begin(), vocab.end(),
                   [](const Token& a, const Token& b) { return a.id < b.id; });
  for (size_t i = 1; i < vocab.size(); ++i)
    HADAL_CHECK(vocab[i - 1].id != vocab[i].id, object.where(), ": ",
                Json(vocab[i - 1].name).dump(), " and ", Json(vocab[i].name).dump(),
                " have the same id ", vocab[i].id, "; give each its own");
  return ids;
}

// The token with this id, or null.
const Token* find_token(const std::vector<Token>& vocab, int32_t id) {
  const auto at = std::lower_bound(vocab.begin(), vocab.end(), id,
                                   [](const Token& token, int32_t i) { return token.id < i; });
  return at != vocab.end() && at->id == id ? &*at : nullptr;
}

// "a b" or ["a", "b"]
std::pair<std::string, std::string> read_pair(const Json& value, const std::string& where) {
  if (value.is_array() && value.size() == 2 && value[0].is_string() && value[1].is_string())
    return {value[0].get<std::string>(), value[1].get<std::string>()};
  const std::string text = value.is_string() ? value.get<std::string>() : "";
  const size_t space = text.find(' ');
  HADAL_CHECK(space != text.npos && text.find(' ', space + 1) == text.npos, where, " is ",
              value.dump(), "; \"left right\" or [\"left\", \"right\"] is needed");
  return {text.substr(0, space), text.substr(space + 1)};
}

void read_merges(const JsonObject& model, const Ids& ids,
                 std::vector<TokenizerSpec::Merge>& merges) {
  HADAL_CHECK(model.has("merges"), model.where(), ": merges is missing; add it");
  const Json& list = model.json()["merges"];
  HADAL_CHECK(list.is_array(), model.where(), ": merges is no list; a list of pairs is needed");
  model.know("merges");
  merges.reserve(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string where = concat(model.where(), ": merges[", i, "]");
    const auto [left, right] = read_pair(list[i], where);
    const auto id = [&](const std::string& name) {
      const auto at = ids.find(name);
      HADAL_CHECK(at != ids.end(), where, " needs the token ", Json(name).dump(),
                  ", which vocab does not have; ", "add it");
      return at->second;
    };
    merges.push_back({id(left), id(right), id(left + right)});
  }
}

// First of all, so that tokenizers of other kinds are refused for what they are.
void check_kind(const JsonObject& model) {
  constexpr const char* kAdvice =
      " is not supported, only byte-level BPE; choose a model with such a tokenizer, or train one "
      "with hadal tokenizer train";
  const std::string type = model.string("type", "BPE");
  HADAL_CHECK(type == "BPE", model.where(), ": type is ", type, ", which", kAdvice);
  HADAL_CHECK(!model.boolean("byte_fallback", false), model.where(),
              ": byte_fallback is true, as of SentencePiece, which", kAdvice);
}

void read_model(const JsonObject& model, TokenizerSpec& spec, Ids& ids) {
  HADAL_CHECK(model.number("dropout", 0.0) == 0.0, model.where(),
              ": dropout is not 0; only null or 0 is supported");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    HADAL_CHECK(model.string(key, "").empty(), model.where(), ": ", key, " is \"",
                model.string(key), "\"; only null is supported");
  // Every byte has a token, so nothing is ever unknown.
  model.know("unk_token");
  model.know("fuse_unk");
  spec.ignore_merges = model.boolean("ignore_merges", false);
  ids = read_vocab(model, spec.vocab);
  read_merges(model, ids, spec.merges);
  model.check_no_unknown();
}

void read_added(const JsonObject& root, const Ids& ids, TokenizerSpec& spec) {
  if (!root.has("added_tokens")) return root.know("added_tokens");
  std::unordered_map<std::string, size_t> seen;
  std::unordered_map<int32_t, size_t> seen_ids;
  for (const JsonObject& entry : root.objects("added_tokens")) {
    AddedToken token = AddedTokens::from_json(entry);
    const auto at = ids.find(token.content);
    HADAL_CHECK(at == ids.end() || at->second == token.id, entry.where(), ": ",
                Json(token.content).dump(), " has the id ", token.id, ", but ",
                at == ids.end() ? 0 : at->second, " in model.vocab; make them equal");
    const Token* holder = at == ids.end() ? find_token(spec.vocab, token.id) : nullptr;
    HADAL_CHECK(holder == nullptr, entry.where(), ": the id ", token.id, " is that of ",
                holder == nullptr ? "" : Json(holder->name).dump(),
                " in model.vocab; give it another");
    HADAL_CHECK(seen.emplace(token.content, spec.added.size()).second, entry.where(), ": ",
                Json(token.content).dump(), " stands twice; remove one");
    HADAL_CHECK(seen_ids.emplace(token.id, spec.added.size()).second, entry.where(), ": the id ",
                token.id, " stands twice; give each token its own");
    spec.added.push_back(std::move(token));
  }
}

// Normalizers change text, which could not be restored then; an empty list of them does not.
void check_normalizer(const JsonObject& root) {
  if (!root.has("normalizer")) return root.know("normalizer");
  const JsonObject normalizer = root.object("normalizer");
  const std::string type = normalizer.string("type");
  HADAL_CHECK(type == "Sequence" && normalizer.objects("normalizers").empty(), normalizer.where(),
              ": type is ", type, "; only null or an empty Sequence is supported");
}

void check_decoder(const JsonObject& root) {
  if (!root.has("decoder")) return root.know("decoder");
  const JsonObject decoder = root.object("decoder");
  const std::string type = decoder.string("type");
  HADAL_CHECK(type == "ByteLevel", decoder.where(), ": type is ", type,
              "; only ByteLevel is supported");
}

}  // namespace

Tokenizer Tokenizer::load(const std::string& path) {
  const JsonObject root = JsonObject::read(path);
  TokenizerSpec spec;
  Ids ids;
  root.know("version");
  // One text is encoded at a time, so there is nothing to pad.
  root.know("padding");
  const JsonObject model = root.object("model");
  check_kind(model);
  check_absent(root, "truncation", "cutting the text");
  check_normalizer(root);
  check_decoder(root);
  spec.pre_tokenizer = PreTokenizer::from_json(root.object("pre_tokenizer"));
  read_model(model, spec, ids);
  read_added(root, ids, spec);
  // Adds tokens around the text, which encode() leaves to the caller.
  if (root.has("post_processor")) spec.post_processor = root.object("post_processor").json().dump();
  root.know("post_processor");
  root.check_no_unknown();
  try {
    return Tokenizer(std::move(spec));
  } catch (const Error& error) {
    HADAL_FAIL(path, ": model: ", error.what());
  }
}

void Tokenizer::save(const std::string& path) const {
  const TokenizerSpec& s = spec();
  Json vocab = Json::object();
  for (const Token& token : s.vocab) vocab[token.name] = token.id;
  const auto name = [&](int32_t id) {
    const Token* token = find_token(s.vocab, id);
    HADAL_CHECK(token != nullptr, "a merge needs the token ", id, ", which is not there");
    return token->name;
  };
  Json merges = Json::array();
  for (const TokenizerSpec::Merge& merge : s.merges)
    merges.push_back(name(merge.left) + " " + name(merge.right));
  write_json(path, {{"version", "1.0"},
                    {"truncation", nullptr},
                    {"padding", nullptr},
                    {"added_tokens", AddedTokens(s.added).to_json()},
                    {"normalizer", nullptr},
                    {"pre_tokenizer", s.pre_tokenizer.to_json()},
                    {"post_processor", Json::parse(s.post_processor)},
                    {"decoder",
                     {{"type", "ByteLevel"},
                      {"add_prefix_space", true},
                      {"trim_offsets", true},
                      {"use_regex", true}}},
                    {"model",
                     {{"type", "BPE"},
                      {"dropout", nullptr},
                      {"unk_token", nullptr},
                      {"continuing_subword_prefix", nullptr},
                      {"end_of_word_suffix", nullptr},
                      {"fuse_unk", false},
                      {"byte_fallback", false},
                      {"ignore_merges", s.ignore_merges},
                      {"vocab", std::move(vocab)},
                      {"merges", std::move(merges)}}}});
}

}  // namespace hadal::io
