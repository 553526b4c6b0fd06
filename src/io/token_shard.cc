// Token shards: layout, checks and the list of a data set's shards.
// SPDX-License-Identifier: Apache-2.0
#include "io/token_shard.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "io/atomic.h"
#include "io/json.h"

namespace hadal::io {
namespace {

static_assert(std::endian::native == std::endian::little, "shards are read by mapping");

constexpr std::array<char, 8> kMagic = {'H', 'A', 'D', 'A', 'L', 'T', 'O', 'K'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kHasMask = 1;
constexpr int64_t kShortVocabulary = 65536;

struct Header {
  std::array<char, 8> magic = kMagic;
  uint32_t version = kVersion;
  uint32_t token_bytes = 2;
  uint64_t vocabulary_hash = 0, vocabulary_size = 0;
  uint64_t num_documents = 0, num_tokens = 0, text_bytes = 0;
  uint32_t flags = 0, reserved = 0;
  uint64_t payload_hash = 0;
  uint64_t header_hash = 0;  // of all before it
};
static_assert(sizeof(Header) == 80);

// Eight bytes at a time; a file is a whole number of words or has a short last one.
uint64_t hash_bytes(const std::byte* data, size_t size, uint64_t seed) {
  uint64_t hash = seed ^ 0x9E3779B97F4A7C15u;
  for (size_t i = 0; i < size; i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, data + i, std::min<size_t>(8, size - i));
    hash = (hash ^ word) * 0xD6E8FEB86659FD93u;
    hash ^= hash >> 32;
  }
  return hash;
}

uint64_t header_hash(const Header& header) {
  return hash_bytes(reinterpret_cast<const std::byte*>(&header), offsetof(Header, header_hash), 1);
}

// Sizes of the three parts after the header; they cannot overflow for sizes that fit a file.
struct Parts {
  uint64_t ends, tokens, mask;
  uint64_t total() const { return ends + tokens + mask; }
};
Parts parts_of(const Header& h) {
  return {.ends = h.num_documents * 8,
          .tokens = h.num_tokens * h.token_bytes,
          .mask = (h.flags & kHasMask) != 0 ? (h.num_tokens + 7) / 8 : 0};
}

std::string payload_of(const std::vector<TokenDocument>& documents, Header& h) {
  bool has_mask = false;
  for (const TokenDocument& document : documents) {
    h.num_tokens += document.ids.size();
    h.text_bytes += static_cast<uint64_t>(document.text_bytes);
    has_mask = has_mask || !document.mask.empty();
  }
  h.num_documents = documents.size();
  if (has_mask) h.flags |= kHasMask;
  const Parts parts = parts_of(h);
  std::string payload(parts.total(), '\0');
  char* ends = payload.data();
  char* tokens = ends + parts.ends;
  char* mask = tokens + parts.tokens;
  uint64_t n = 0;
  for (const TokenDocument& document : documents) {
    HADAL_CHECK(!document.ids.empty(), "a document to store has no tokens");
    HADAL_CHECK(document.mask.empty() || document.mask.size() == document.ids.size(),
                "a document of ", document.ids.size(), " tokens has a mask of ",
                document.mask.size());
    for (size_t i = 0; i < document.ids.size(); ++i, ++n) {
      const auto id = static_cast<uint32_t>(document.ids[i]);
      HADAL_CHECK(id < h.vocabulary_size, "token ", document.ids[i], " is outside a vocabulary of ",
                  h.vocabulary_size);
      std::memcpy(tokens + n * h.token_bytes, &id, h.token_bytes);
      const bool learned = document.mask.empty() ? i > 0 : document.mask[i];
      if (has_mask && learned) mask[n / 8] = static_cast<char>(mask[n / 8] | 1 << (n % 8));
    }
    std::memcpy(ends, &n, 8);
    ends += 8;
  }
  return payload;
}

Json part_json(const std::vector<std::string>& shards, int64_t documents, int64_t tokens,
               int64_t targets, int64_t bytes) {
  return {{"shards", shards},
          {"documents", documents},
          {"tokens", tokens},
          {"targets", targets},
          {"text_bytes", bytes}};
}

}  // namespace

int64_t TokenDocument::num_learned() const {
  return mask.empty() ? static_cast<int64_t>(ids.size()) - 1
                      : std::count(mask.begin(), mask.end(), true);
}

void write_token_shard(const std::string& path, const Vocabulary& vocabulary,
                       const std::vector<TokenDocument>& documents) {
  Header h;
  h.token_bytes = vocabulary.size <= kShortVocabulary ? 2 : 4;
  h.vocabulary_hash = vocabulary.hash;
  h.vocabulary_size = static_cast<uint64_t>(vocabulary.size);
  const std::string payload = payload_of(documents, h);
  h.payload_hash =
      hash_bytes(reinterpret_cast<const std::byte*>(payload.data()), payload.size(), 2);
  h.header_hash = header_hash(h);
  AtomicFile file(path);
  file.write(&h, sizeof h);
  file.write(payload);
  file.commit();
}

TokenShard::TokenShard(const std::string& path, const Vocabulary& vocabulary) : file_(path) {
  constexpr const char* kAgain = "; make it again with hadal data prepare";
  Header h;
  HADAL_CHECK(file_.size() >= sizeof h, path, " has ", file_.size(),
              " bytes, fewer than the header of a token shard", kAgain);
  std::memcpy(&h, file_.data(), sizeof h);
  HADAL_CHECK(h.magic == kMagic, path, " is no token shard; make one with hadal data prepare");
  HADAL_CHECK(h.version == kVersion, path, " has version ", h.version,
              "; this hadal reads version ", kVersion, kAgain);
  HADAL_CHECK(h.header_hash == header_hash(h), path, ": the header is damaged", kAgain);
  HADAL_CHECK(h.vocabulary_hash == vocabulary.hash &&
                  h.vocabulary_size == static_cast<uint64_t>(vocabulary.size),
              path, " was made with another tokenizer (", h.vocabulary_size, " tokens, hash ",
              fmt::format("{:016x}", h.vocabulary_hash), ") than this run's (", vocabulary.size,
              " tokens, hash ", fmt::format("{:016x}", vocabulary.hash), ")", kAgain);
  HADAL_CHECK(h.token_bytes == (vocabulary.size <= kShortVocabulary ? 2u : 4u) &&
                  h.num_documents <= file_.size() && h.num_tokens <= file_.size(),
              path, ": the header is damaged", kAgain);
  const Parts parts = parts_of(h);
  HADAL_CHECK(file_.size() == sizeof h + parts.total(), path, " has ", file_.size(),
              " bytes where its header says ", sizeof h + parts.total(),
              ": it is cut short or damaged", kAgain);
  num_documents_ = static_cast<int64_t>(h.num_documents);
  num_tokens_ = static_cast<int64_t>(h.num_tokens);
  text_bytes_ = static_cast<int64_t>(h.text_bytes);
  token_bytes_ = h.token_bytes;
  ends_ = file_.data() + sizeof h;
  tokens_ = ends_ + parts.ends;
  if (parts.mask > 0) mask_ = tokens_ + parts.tokens;
  for (int64_t d = 0; d < num_documents_; ++d)
    HADAL_CHECK(end_of(d) > begin_of(d) && end_of(d) <= num_tokens_, path, ": document ", d,
                " ends at token ", end_of(d), ": the file is damaged", kAgain);
  HADAL_CHECK(num_tokens_ == (num_documents_ == 0 ? 0 : end_of(num_documents_ - 1)), path,
              ": its documents do not fill it: the file is damaged", kAgain);
}

int64_t TokenShard::begin_of(int64_t document) const {
  return document == 0 ? 0 : end_of(document - 1);
}

int64_t TokenShard::end_of(int64_t document) const {
  int64_t end = 0;
  std::memcpy(&end, ends_ + 8 * document, 8);
  return end;
}

int32_t TokenShard::token(int64_t index) const {
  uint32_t id = 0;
  std::memcpy(&id, tokens_ + token_bytes_ * index, static_cast<size_t>(token_bytes_));
  return static_cast<int32_t>(id);
}

bool TokenShard::is_learned(int64_t index) const {
  return mask_ == nullptr || (std::to_integer<int>(mask_[index / 8]) >> (index % 8) & 1) != 0;
}

int64_t TokenShard::num_learned() const {
  if (mask_ == nullptr) return num_tokens_ - num_documents_;
  int64_t count = 0;
  for (int64_t i = 0; i < num_tokens_; ++i) count += is_learned(i) ? 1 : 0;
  return count;
}

void TokenShard::check_payload() const {
  Header h;
  std::memcpy(&h, file_.data(), sizeof h);
  HADAL_CHECK(hash_bytes(file_.data() + sizeof h, file_.size() - sizeof h, 2) == h.payload_hash,
              file_.path(), ": its content is damaged; make it again with hadal data prepare");
}

Dataset Dataset::read(const std::string& dir) {
  const std::string path = dir + "/dataset.json";
  HADAL_CHECK(std::filesystem::exists(path), dir,
              " holds no dataset.json: make one with hadal data prepare, or let it finish");
  const JsonObject o = JsonObject::read(path);
  HADAL_CHECK(o.integer("format") == 1, path, " has format ", o.integer("format"),
              "; this hadal reads format 1");
  Dataset d;
  const std::string hash = o.string("vocabulary_hash");
  HADAL_CHECK(hash.size() == 16 && hash.find_first_not_of("0123456789abcdef") == std::string::npos,
              path, ": vocabulary_hash is \"", hash, "\"; it must be 16 hexadecimal digits");
  d.vocabulary = {.hash = std::stoull(hash, nullptr, 16), .size = o.integer("vocabulary_size")};
  d.bos = static_cast<int32_t>(o.integer("bos_token_id"));
  d.eos = static_cast<int32_t>(o.integer("eos_token_id"));
  const JsonObject train = o.object("train"), held_out = o.object("held_out");
  d.train = train.strings("shards");
  d.train_documents = train.integer("documents");
  d.train_tokens = train.integer("tokens");
  d.train_targets = train.integer("targets");
  d.train_bytes = train.integer("text_bytes");
  d.held_out = held_out.strings("shards");
  d.held_out_documents = held_out.integer("documents");
  d.held_out_tokens = held_out.integer("tokens");
  d.held_out_targets = held_out.integer("targets");
  d.held_out_bytes = held_out.integer("text_bytes");
  return d;
}

void Dataset::write(const std::string& dir) const {
  write_json(
      dir + "/dataset.json",
      {{"format", 1},
       {"vocabulary_hash", fmt::format("{:016x}", vocabulary.hash)},
       {"vocabulary_size", vocabulary.size},
       {"bos_token_id", bos},
       {"eos_token_id", eos},
       {"train", part_json(train, train_documents, train_tokens, train_targets, train_bytes)},
       {"held_out", part_json(held_out, held_out_documents, held_out_tokens, held_out_targets,
                              held_out_bytes)}});
}

}  // namespace hadal::io
