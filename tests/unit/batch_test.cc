// Batches of packed documents: where attention, positions and MTP depths begin and end.
// SPDX-License-Identifier: Apache-2.0
#include "model/batch.h"

#include "tests/grad/harness.h"
#include "tests/unit/expect_error.h"

namespace hadal::test {
namespace {

std::vector<int32_t> ints(const Tensor& t) {
  return {t.data<int32_t>(), t.data<int32_t>() + t.num_elements()};
}

using Ints = std::vector<int32_t>;

// A sequence of documents of 3, 1 and 2 tokens, and one of a single document of 2.
TEST(Batch, DocumentsKeptApart) {
  Machine machine(1);
  const std::vector<Sequence> sequences = {
      {.ids = {1, 2, 3, 4, 5, 6}, .targets = {2, 3, -1, -1, 6, 7}, .documents = {0, 3, 4}},
      {.ids = {7, 8}, .targets = {8, 9}, .documents = {}}};
  const Batch batch = make_batch(machine.ctx, tiny_config(), sequences, 2, DType::kF32);
  EXPECT_EQ(ints(batch.seq.offsets), (Ints{0, 3, 4, 6, 8}));
  EXPECT_EQ(ints(batch.seq.positions), (Ints{0, 1, 2, 0, 0, 1, 0, 1}));
  EXPECT_EQ(batch.seq.num_seqs, 4);
  EXPECT_EQ(batch.seq.max_len, 3);
  EXPECT_EQ(batch.seq.num_rows, 2);
  EXPECT_EQ(ints(batch.seq.row_offsets), (Ints{0, 6, 8}));
  EXPECT_EQ(batch.seq.by_rows().num_seqs, 2);
  EXPECT_EQ(batch.num_targets, 6);

  // Depth 1 loses the first token of each document, and the one of 1 token altogether.
  const Batch::Depth& first = batch.mtp[0];
  EXPECT_EQ(ints(first.ids), (Ints{2, 3, 6, 8}));
  EXPECT_EQ(ints(first.targets), (Ints{3, -1, 7, 9}));
  EXPECT_EQ(ints(first.rows), (Ints{0, 1, 4, 6}));
  EXPECT_EQ(ints(first.seq.offsets), (Ints{0, 2, 3, 4}));
  EXPECT_EQ(ints(first.seq.row_offsets), (Ints{0, 3, 4}));
  // Depth 2 is left with one, and its rows are its sequences.
  const Batch::Depth& second = batch.mtp[1];
  EXPECT_EQ(ints(second.ids), (Ints{3}));
  EXPECT_EQ(ints(second.rows), (Ints{0}));
  EXPECT_TRUE(second.seq.row_offsets.empty());
  EXPECT_EQ(second.num_targets, 0);
}

TEST(Batch, DocumentsTogetherAreOneSequence) {
  Machine machine(1);
  const std::vector<Sequence> sequences = {
      {.ids = {1, 2, 3}, .targets = {2, -1, 4}, .documents = {}}};
  const Batch batch = make_batch(machine.ctx, tiny_config(), sequences, 1, DType::kF32);
  EXPECT_EQ(ints(batch.seq.offsets), (Ints{0, 3}));
  EXPECT_TRUE(batch.seq.row_offsets.empty());
  EXPECT_EQ(ints(batch.mtp[0].ids), (Ints{2, 3}));
}

TEST(Batch, WrongDocumentsAreSentences) {
  Machine machine(1);
  const auto make = [&](std::vector<int64_t> documents) {
    const Sequence s{.ids = {1, 2}, .targets = {2, 3}, .documents = std::move(documents)};
    return make_batch(machine.ctx, tiny_config(), {s}, 0, DType::kF32);
  };
  EXPECT_ERROR(make({1}), "the first document of a sequence begins at 1; it must begin at 0");
  EXPECT_ERROR(make({0, 2}),
               "document 1 of a sequence of 2 tokens begins at 2 and ends at 2; each needs one "
               "token or more");
}

}  // namespace
}  // namespace hadal::test
