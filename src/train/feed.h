// Feed: what a run trains on and is measured with: one text, or a mixture of token shards.
//
// A mixture takes each sequence from the source that is furthest behind its weight, so after n
// sequences a source of share w has given n * w of them, within one. The state is small and exact:
// with it, a feed goes on as if it had never stopped.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/json.h"
#include "model/batch.h"
#include "train/data.h"
#include "train/run_config.h"
#include "train/token_source.h"

namespace hadal::train {

class Feed {
 public:
  // An Error if the data is missing, foreign to the tokenizer or the model, or too short.
  explicit Feed(const RunConfig& run);

  // The next `count` sequences.
  std::vector<Sequence> next(int64_t count);
  // Held-out sequences. `stride`: tokens between their beginnings. Where there are several sources,
  // in turns, so that any first part holds some of each.
  std::vector<Sequence> held_out(int64_t stride) const;
  double bytes_per_target() const { return bytes_per_target_; }
  double held_out_bytes_per_target() const { return held_out_bytes_per_target_; }
  // One line a source for the log.
  std::vector<std::string> describe() const;

  io::Json state() const;
  // An Error if the state is of other sources.
  void restore(const io::JsonObject& state);
  // Planted faults of scripts/resume_check.sh: another shuffle; one sequence left out.
  void sabotage_seed() { ++text_seed_; }
  void sabotage_position() { static_cast<void>(next(1)); }

 private:
  struct Source {
    SourceConfig config;
    std::unique_ptr<TokenSource> tokens;
    double share = 0.0;   // of the weights
    double credit = 0.0;  // sequences owed
    Cursor cursor;
    int64_t given = 0;  // sequences so far
  };
  Source& furthest_behind();

  int64_t length_;
  TextData text_;
  uint64_t text_seed_ = 0;
  int64_t text_position_ = 0;  // sequences taken from the text
  std::vector<Source> sources_;
  double bytes_per_target_ = 1.0, held_out_bytes_per_target_ = 1.0;
};

}  // namespace hadal::train
