// TokenSource: the shards of one data set as an endless stream of training sequences.
//
//   L sequence length   N tokens of all documents
//
// Every epoch puts the documents in an order of its own, drawn from (seed, epoch). Packing:
// - kStream: documents end to end, cut every L tokens, the sequences visited in a random order;
// each
//   token is a target once an epoch at most (report, 4.2: pre-training).
// - kWhole: each sequence holds as many whole documents as fit; one longer than L is cut (SFT).
// No position learns to predict the beginning of the next document. With cross-document attention
// off, documents of a sequence do not see each other (Sequence::documents).
// A sequence is a function of (seed, cursor) alone.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/token_shard.h"
#include "model/batch.h"

namespace hadal::train {

enum class Packing : uint8_t { kStream, kWhole };

// What DIR is for a run, as the config says.
struct SourceConfig {
  std::string shards;  // directory of hadal data prepare
  double weight = 1.0;
  Packing packing = Packing::kStream;
  bool cross_document_attention = true;
};

// Where a source stands: the next sequence is `row` of `epoch`.
struct Cursor {
  int64_t epoch = 0, row = 0;
};

class TokenSource {
 public:
  // Opens the shards; `vocabulary` is that of the run's tokenizer. An Error if there is not one
  // sequence in them.
  TokenSource(const SourceConfig& config, const io::Vocabulary& vocabulary, int64_t length,
              uint64_t seed);

  TokenSource(const TokenSource&) = delete;  // documents point to shards
  TokenSource& operator=(const TokenSource&) = delete;

  const io::Dataset& dataset() const { return dataset_; }
  // The sequence at the cursor, which moves to the next one.
  Sequence next(Cursor& cursor);
  // Held-out documents in the order of the files; each of their tokens is a target at most once. In
  // kStream, windows begin every `stride` tokens. REQUIRES: 1 <= stride <= L.
  std::vector<Sequence> held_out(int64_t stride) const;
  // Text bytes of a target, over the training documents.
  double bytes_per_target() const;
  // Documents that kWhole cuts to the sequence length.
  int64_t num_cut() const { return num_cut_; }

 private:
  // One document of a list of shards.
  struct Place {
    const io::TokenShard* shard;
    int64_t begin, end;  // tokens of the shard
    int64_t size() const { return end - begin; }
  };
  // Documents in an order, and where they and the sequences begin.
  struct Plan {
    int64_t epoch = -1;
    std::vector<int64_t> order;    // [D]    documents
    std::vector<int64_t> offsets;  // [D+1]  kStream: their first tokens in the stream
    std::vector<int64_t> rows;     // [R+1]  kWhole: places in `order` where sequences begin
    int64_t shift = 0;             // kStream: the first token of sequence 0
    int64_t num_rows = 0;
  };
  static std::vector<io::TokenShard> open(const std::string& dir,
                                          const std::vector<std::string>& names,
                                          const io::Vocabulary& vocabulary);
  static std::vector<Place> places_of(const std::vector<io::TokenShard>& shards);
  const Plan& plan_of(int64_t epoch);
  void pack_whole(const std::vector<Place>& documents, Plan& plan) const;
  // kStream: targets [begin + 1, begin + count] of the stream, of them only those from
  // first_target.
  Sequence stream_row(const std::vector<Place>& documents, const Plan& plan, int64_t begin,
                      int64_t count, int64_t first_target) const;
  Sequence whole_row(const std::vector<Place>& documents, const Plan& plan, int64_t row) const;
  int32_t token_of(const Place& document, int64_t index) const;

  SourceConfig config_;
  io::Dataset dataset_;
  int64_t length_;
  uint64_t seed_;
  std::vector<io::TokenShard> train_, held_out_;
  std::vector<Place> train_documents_, held_out_documents_;
  int64_t num_tokens_ = 0, num_cut_ = 0;
  Plan plan_;
};

}  // namespace hadal::train
