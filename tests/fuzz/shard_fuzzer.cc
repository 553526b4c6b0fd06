// Token shards: refused with an Error, or every document lies inside and every token can be read.
// Each input is read as it is, and once more with the hashes that its bytes should have.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "io/token_shard.h"
#include "tests/fuzz/fuzz.h"

namespace hadal::fuzz {
namespace {

// Where the header of docs/formats.md keeps what is repaired here.
constexpr size_t kVocabularyHash = 16, kVocabularySize = 24, kPayloadHash = 64, kHeaderHash = 72;
constexpr size_t kHeaderBytes = 80;

uint64_t word_at(std::string_view bytes, size_t at) {
  uint64_t word = 0;
  std::memcpy(&word, bytes.data() + at, std::min(sizeof(word), bytes.size() - at));
  return word;
}

uint64_t hash_of(std::string_view bytes, uint64_t seed) {
  uint64_t hash = seed ^ 0x9E3779B97F4A7C15u;
  for (size_t i = 0; i < bytes.size(); i += 8) {
    hash = (hash ^ word_at(bytes, i)) * 0xD6E8FEB86659FD93u;
    hash ^= hash >> 32;
  }
  return hash;
}

std::string repaired(std::string bytes) {
  const auto put = [&](size_t at, uint64_t word) { std::memcpy(&bytes[at], &word, sizeof word); };
  put(kPayloadHash, hash_of(std::string_view(bytes).substr(kHeaderBytes), 2));
  put(kHeaderHash, hash_of(std::string_view(bytes).substr(0, kHeaderHash), 1));
  return bytes;
}

void read(std::string_view bytes) {
  const InputFile input(bytes);
  io::Vocabulary vocabulary{.hash = 1, .size = 320};
  if (bytes.size() >= kHeaderBytes)
    vocabulary = {.hash = word_at(bytes, kVocabularyHash),
                  .size = static_cast<int64_t>(word_at(bytes, kVocabularySize))};
  expect_error_or_nothing([&] {
    const io::TokenShard shard(input.path(), vocabulary);
    int64_t sum = 0, learned = 0;
    for (int64_t d = 0; d < shard.num_documents(); ++d) {
      expect(shard.begin_of(d) < shard.end_of(d) && shard.end_of(d) <= shard.num_tokens(),
             "documents lie inside the shard");
      for (int64_t i = shard.begin_of(d); i < shard.end_of(d); ++i) sum += shard.token(i);
    }
    for (int64_t i = 0; shard.has_mask() && i < shard.num_tokens(); ++i)
      learned += shard.is_learned(i) ? 1 : 0;
    expect(!shard.has_mask() || learned == shard.num_learned(), "learned tokens are counted");
    expect(sum != INT64_MIN, "tokens can be read");
    shard.check_payload();
  });
}

}  // namespace
}  // namespace hadal::fuzz

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes = hadal::fuzz::text_of(data, size);
  hadal::fuzz::read(bytes);
  if (size >= hadal::fuzz::kHeaderBytes)
    hadal::fuzz::read(hadal::fuzz::repaired(std::string(bytes)));
  return 0;
}
