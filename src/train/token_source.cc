// TokenSource: orders, packing and sequences.
// SPDX-License-Identifier: Apache-2.0
#include "train/token_source.h"

#include <algorithm>
#include <numeric>

#include "core/check.h"
#include "train/shuffle.h"

namespace hadal::train {
namespace {

// Two draws of one generator: the order of documents, and the order of sequences.
Rng document_rng(uint64_t seed, int64_t epoch) {
  return {seed + static_cast<uint64_t>(epoch), stream_id("data.documents")};
}
Rng row_rng(uint64_t seed, int64_t epoch) {
  return {seed + static_cast<uint64_t>(epoch), stream_id("data.rows")};
}

int64_t sum_sizes(const auto& documents) {
  int64_t sum = 0;
  for (const auto& document : documents) sum += document.size();
  return sum;
}

double ratio(int64_t bytes, int64_t targets) {
  return static_cast<double>(bytes) / static_cast<double>(std::max<int64_t>(1, targets));
}

}  // namespace

std::vector<io::TokenShard> TokenSource::open(const std::string& dir,
                                              const std::vector<std::string>& names,
                                              const io::Vocabulary& vocabulary) {
  std::vector<io::TokenShard> shards;
  shards.reserve(names.size());
  for (const std::string& name : names) shards.emplace_back(dir + "/" + name, vocabulary);
  return shards;
}

std::vector<TokenSource::Place> TokenSource::places_of(const std::vector<io::TokenShard>& shards) {
  std::vector<Place> places;
  for (const io::TokenShard& shard : shards)
    for (int64_t d = 0; d < shard.num_documents(); ++d)
      places.push_back({.shard = &shard, .begin = shard.begin_of(d), .end = shard.end_of(d)});
  return places;
}

TokenSource::TokenSource(const SourceConfig& config, const io::Vocabulary& vocabulary,
                         int64_t length, uint64_t seed)
    : config_(config),
      dataset_(io::Dataset::read(config.shards)),
      length_(length),
      seed_(seed),
      train_(open(config.shards, dataset_.train, vocabulary)),
      held_out_(open(config.shards, dataset_.held_out, vocabulary)),
      train_documents_(places_of(train_)),
      held_out_documents_(places_of(held_out_)),
      num_tokens_(sum_sizes(train_documents_)) {
  if (config_.packing == Packing::kWhole) {
    std::erase_if(train_documents_, [](const Place& p) { return p.size() < 2; });
    std::erase_if(held_out_documents_, [](const Place& p) { return p.size() < 2; });
    num_cut_ = std::count_if(train_documents_.begin(), train_documents_.end(),
                             [&](const Place& p) { return p.size() > length_ + 1; });
    HADAL_CHECK(!train_documents_.empty(), config.shards,
                " has no training document of two tokens or more; prepare more text");
  } else {
    HADAL_CHECK(num_tokens_ > length_, config.shards, " has ", num_tokens_,
                " training tokens, fewer than one sequence of ", length_,
                " and its last target; prepare more text or lower train.sequence_length");
  }
}

int32_t TokenSource::token_of(const Place& document, int64_t index) const {
  const int32_t id = document.shard->token(document.begin + index);
  HADAL_CHECK(id >= 0 && id < dataset_.vocabulary.size, config_.shards, " holds token ", id,
              ", outside its vocabulary of ", dataset_.vocabulary.size,
              ": it is damaged; make it again with hadal data prepare");
  return id;
}

const TokenSource::Plan& TokenSource::plan_of(int64_t epoch) {
  if (plan_.epoch == epoch) return plan_;
  const auto D = static_cast<int64_t>(train_documents_.size());
  const Rng rng = document_rng(seed_, epoch);
  Plan plan;
  plan.epoch = epoch;
  for (int64_t i = 0; i < D; ++i) plan.order.push_back(permute(i, D, rng));
  if (config_.packing == Packing::kWhole) {
    pack_whole(train_documents_, plan);
  } else {
    plan.offsets.push_back(0);
    for (int64_t d : plan.order)
      plan.offsets.push_back(plan.offsets.back() + train_documents_[static_cast<size_t>(d)].size());
    plan.num_rows = (num_tokens_ - 1) / length_;
    const auto slack = static_cast<uint64_t>(num_tokens_ - 1 - plan.num_rows * length_) + 1;
    plan.shift = static_cast<int64_t>(row_rng(seed_, epoch).u64(~uint64_t{0}) % slack);
  }
  plan_ = std::move(plan);
  return plan_;
}

// Next fit: a document begins a new sequence where it does not fit into the one before.
void TokenSource::pack_whole(const std::vector<Place>& documents, Plan& plan) const {
  int64_t filled = length_ + 1;
  for (size_t i = 0; i < plan.order.size(); ++i) {
    const Place& document = documents[static_cast<size_t>(plan.order[i])];
    const int64_t positions = std::min(document.size() - 1, length_);
    if (filled + positions > length_) {
      plan.rows.push_back(static_cast<int64_t>(i));
      filled = 0;
    }
    filled += positions;
  }
  plan.num_rows = static_cast<int64_t>(plan.rows.size());
  plan.rows.push_back(static_cast<int64_t>(plan.order.size()));
}

Sequence TokenSource::stream_row(const std::vector<Place>& documents, const Plan& plan,
                                 int64_t begin, int64_t count, int64_t first_target) const {
  Sequence s;
  auto at = std::upper_bound(plan.offsets.begin(), plan.offsets.end(), begin) - 1;
  for (int64_t t = begin; t <= begin + count; ++t) {
    while (t >= at[1]) ++at;
    const auto in_order = static_cast<size_t>(at - plan.offsets.begin());
    const Place& document = documents[static_cast<size_t>(plan.order[in_order])];
    const int64_t index = t - *at;
    const int32_t id = token_of(document, index);
    if (t > begin) {
      const bool learned =
          index > 0 && t >= first_target && document.shard->is_learned(document.begin + index);
      s.targets.push_back(learned ? id : -1);
    }
    if (t == begin + count) break;
    if (!config_.cross_document_attention && (t == begin || index == 0))
      s.documents.push_back(t - begin);
    s.ids.push_back(id);
  }
  return s;
}

Sequence TokenSource::whole_row(const std::vector<Place>& documents, const Plan& plan,
                                int64_t row) const {
  Sequence s;
  for (int64_t i = plan.rows[static_cast<size_t>(row)]; i < plan.rows[static_cast<size_t>(row) + 1];
       ++i) {
    const Place& document = documents[static_cast<size_t>(plan.order[static_cast<size_t>(i)])];
    if (!config_.cross_document_attention)
      s.documents.push_back(static_cast<int64_t>(s.ids.size()));
    const int64_t positions = std::min(document.size() - 1, length_);
    for (int64_t j = 0; j < positions; ++j) {
      s.ids.push_back(token_of(document, j));
      s.targets.push_back(
          document.shard->is_learned(document.begin + j + 1) ? token_of(document, j + 1) : -1);
    }
  }
  return s;
}

Sequence TokenSource::next(Cursor& cursor) {
  const Plan* plan = &plan_of(cursor.epoch);
  if (cursor.row >= plan->num_rows) {
    cursor = {.epoch = cursor.epoch + 1, .row = 0};
    plan = &plan_of(cursor.epoch);
  }
  const int64_t row = permute(cursor.row++, plan->num_rows, row_rng(seed_, plan->epoch));
  if (config_.packing == Packing::kWhole) return whole_row(train_documents_, *plan, row);
  const int64_t begin = plan->shift + row * length_;
  return stream_row(train_documents_, *plan, begin, length_, begin + 1);
}

std::vector<Sequence> TokenSource::held_out(int64_t stride) const {
  Plan plan;
  plan.order.resize(held_out_documents_.size());
  std::iota(plan.order.begin(), plan.order.end(), 0);
  std::vector<Sequence> rows;
  if (config_.packing == Packing::kWhole) {
    pack_whole(held_out_documents_, plan);
    for (int64_t row = 0; row < plan.num_rows; ++row)
      rows.push_back(whole_row(held_out_documents_, plan, row));
    return rows;
  }
  plan.offsets.push_back(0);
  for (const Place& document : held_out_documents_)
    plan.offsets.push_back(plan.offsets.back() + document.size());
  const int64_t last = plan.offsets.back() - 1;  // targets are tokens 1 .. last of the stream
  int64_t next_target = 1;
  for (int64_t begin = 0; next_target <= last; begin += stride) {
    const int64_t count = std::min(length_, last - begin);
    rows.push_back(stream_row(held_out_documents_, plan, begin, count, next_target));
    next_target = begin + count + 1;
  }
  return rows;
}

double TokenSource::bytes_per_target() const {
  return ratio(dataset_.train_bytes, dataset_.train_targets);
}

}  // namespace hadal::train
