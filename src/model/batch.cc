// Batch and Step: host sequences to device tensors.
// SPDX-License-Identifier: Apache-2.0
#include "model/batch.h"

#include <algorithm>
#include <utility>

#include "core/transfer.h"
#include "model/bytes.h"
#include "ops/rope.h"

namespace hadal {
namespace {

// What one Packed and its token arrays are filled from.
struct Host {
  std::vector<int32_t> offsets = {0}, row_offsets = {0}, positions, rows, ids, targets;
  int64_t max_len = 0;

  void end_sequence() {
    max_len = std::max<int64_t>(max_len, static_cast<int64_t>(positions.size()) - offsets.back());
    offsets.push_back(static_cast<int32_t>(positions.size()));
  }
  void end_row() { row_offsets.push_back(static_cast<int32_t>(positions.size())); }
  int64_t num_tokens() const { return static_cast<int64_t>(positions.size()); }
  int64_t num_targets() const {
    return static_cast<int64_t>(targets.size()) - std::count(targets.begin(), targets.end(), -1);
  }
};

Tensor put(Context& ctx, Block& memory, const std::vector<int32_t>& values) {
  const Tensor t = memory.tensor(DType::kI32, {static_cast<int64_t>(values.size())});
  upload(ctx, values, t);
  return t;
}

size_t host_bytes(const Config& c, const Host& h, DType stat) {
  ByteCount n;
  for (const auto* list : {&h.offsets, &h.row_offsets, &h.positions, &h.rows, &h.ids, &h.targets})
    n.add(DType::kI32, {static_cast<int64_t>(list->size())});
  return n.add(stat, {h.num_tokens(), c.qk_rope_head_dim})
      .add(DType::kF64, {c.qk_rope_head_dim / 2})
      .total();
}

Packed upload_packed(Context& ctx, const Config& c, Block& memory, const Host& h, DType stat,
                     Tensor* inv_freq) {
  Packed seq;
  seq.num_tokens = h.num_tokens();
  seq.num_seqs = static_cast<int64_t>(h.offsets.size()) - 1;
  seq.max_len = h.max_len;
  seq.offsets = put(ctx, memory, h.offsets);
  seq.positions = put(ctx, memory, h.positions);
  if (h.row_offsets.size() > 1 && h.row_offsets != h.offsets) {
    seq.num_rows = static_cast<int64_t>(h.row_offsets.size()) - 1;
    seq.row_offsets = put(ctx, memory, h.row_offsets);
  }
  seq.rope = memory.tensor(stat, {seq.num_tokens, c.qk_rope_head_dim});
  *inv_freq = memory.tensor(DType::kF64, {c.qk_rope_head_dim / 2});
  upload(ctx, rope_inv_freq(c), *inv_freq);
  ops::rope_table(ctx, seq.positions, *inv_freq, rope_magnitude(c), seq.rope);  // [T, Dr]
  return seq;
}

// Depth k of the sequences; depth 0 is the main model. first_row: where each document begins in
// depth k-1, or -1; on return, where it begins in depth k.
Host host_depth(const std::vector<Sequence>& sequences, int64_t k,
                std::vector<int64_t>& first_row) {
  Host h;
  auto row = first_row.begin();
  for (const Sequence& sequence : sequences) {
    const int64_t row_begin = h.num_tokens();
    for (int64_t document = 0; document < sequence.num_documents(); ++document, ++row) {
      const int64_t first = sequence.begin_of(document), begin = h.num_tokens();
      const int64_t n = sequence.end_of(document) - first - k;
      if (n <= 0) {
        *row = -1;
        continue;
      }
      for (int64_t i = 0; i < n; ++i) {
        const auto at = static_cast<size_t>(first + i + k);
        h.positions.push_back(static_cast<int32_t>(i));
        h.rows.push_back(static_cast<int32_t>(*row + i));
        h.ids.push_back(sequence.ids[at]);
        h.targets.push_back(sequence.targets[at]);
      }
      h.end_sequence();
      *row = begin;
    }
    if (h.num_tokens() > row_begin) h.end_row();
  }
  return h;
}

void check_sequence(const Sequence& s) {
  HADAL_CHECK(!s.ids.empty() && s.ids.size() == s.targets.size(), "a sequence has ", s.ids.size(),
              " tokens and ", s.targets.size(), " targets; it needs as many of each, one or more");
  HADAL_CHECK(s.documents.empty() || s.documents.front() == 0,
              "the first document of a sequence begins at ", s.begin_of(0), "; it must begin at 0");
  for (int64_t d = 0; d < s.num_documents(); ++d)
    HADAL_CHECK(s.begin_of(d) < s.end_of(d), "document ", d, " of a sequence of ", s.ids.size(),
                " tokens begins at ", s.begin_of(d), " and ends at ", s.end_of(d),
                "; each needs one token or more");
}

}  // namespace

Batch Batch::views() const {
  Batch batch;
  batch.seq = seq;
  batch.ids = ids;
  batch.targets = targets;
  batch.num_targets = num_targets;
  batch.mtp = mtp;
  return batch;
}

Batch make_batch(Context& ctx, const Config& c, const std::vector<Sequence>& sequences,
                 int64_t num_mtp, DType act, Block memory) {
  HADAL_CHECK(!sequences.empty(), "a batch needs at least one sequence");
  size_t num_documents = 0;
  for (const Sequence& s : sequences) {
    check_sequence(s);
    num_documents += static_cast<size_t>(s.num_documents());
  }
  HADAL_CHECK(num_mtp >= 0 && num_mtp <= c.num_nextn_predict_layers, num_mtp,
              " MTP depths were asked for, the model has ", c.num_nextn_predict_layers);
  const DType stat = stat_dtype(act);
  std::vector<int64_t> first_row(num_documents, 0);
  std::vector<Host> depths;
  size_t bytes = 0;
  for (int64_t k = 0; k <= num_mtp; ++k) {
    depths.push_back(host_depth(sequences, k, first_row));
    bytes += host_bytes(c, depths.back(), stat);
  }
  Batch batch;
  batch.memory = memory.size() == bytes ? std::move(memory) : ctx.memory.take(bytes);
  batch.memory.rewind();
  for (size_t k = 0; k < depths.size(); ++k) {
    const Host& h = depths[k];
    Batch::Depth d;
    Tensor inv_freq;
    d.seq = upload_packed(ctx, c, batch.memory, h, stat, &inv_freq);
    d.rows = put(ctx, batch.memory, h.rows);
    d.ids = put(ctx, batch.memory, h.ids);
    d.targets = put(ctx, batch.memory, h.targets);
    d.num_targets = h.num_targets();
    if (k > 0) {
      d.num_before = depths[k - 1].num_tokens();
      batch.mtp.push_back(d);
      continue;
    }
    batch.seq = d.seq;
    batch.ids = d.ids;
    batch.targets = d.targets;
    batch.num_targets = d.num_targets;
  }
  return batch;
}

namespace {

Host host_step(const std::vector<int32_t>& ids, const std::vector<int64_t>& starts,
               const std::vector<int64_t>& lengths) {
  HADAL_CHECK(starts.size() == lengths.size(), "a step has ", starts.size(), " starts and ",
              lengths.size(), " lengths");
  Host h;
  h.ids = ids;
  for (size_t s = 0; s < starts.size(); ++s) {
    for (int64_t i = 0; i < lengths[s]; ++i)
      h.positions.push_back(static_cast<int32_t>(starts[s] + i));
    h.end_sequence();
  }
  HADAL_CHECK(h.num_tokens() == static_cast<int64_t>(ids.size()), "a step of ", h.num_tokens(),
              " positions has ", ids.size(), " tokens");
  return h;
}

std::vector<int64_t> ends_of(const std::vector<int64_t>& starts,
                             const std::vector<int64_t>& lengths) {
  std::vector<int64_t> ends;
  for (size_t s = 0; s < starts.size(); ++s) ends.push_back(starts[s] + lengths[s]);
  return ends;
}

}  // namespace

Step make_step(Context& ctx, const Config& c, const std::vector<int32_t>& ids,
               const std::vector<int64_t>& starts, const std::vector<int64_t>& lengths, DType act) {
  const Host h = host_step(ids, starts, lengths);
  const DType stat = stat_dtype(act);
  Step step;
  step.host_ids = ids;
  step.ends = ends_of(starts, lengths);
  step.lengths = lengths;
  step.memory = ctx.memory.take(host_bytes(c, h, stat));
  step.seq = upload_packed(ctx, c, step.memory, h, stat, &step.inv_freq);
  step.ids = put(ctx, step.memory, h.ids);
  return step;
}

void move_step(Context& ctx, const Config& c, const std::vector<int32_t>& ids,
               const std::vector<int64_t>& starts, Step& step) {
  const Host h = host_step(ids, starts, step.lengths);
  step.host_ids = ids;
  step.ends = ends_of(starts, step.lengths);
  upload(ctx, h.positions, step.seq.positions);
  upload(ctx, h.ids, step.ids);
  ops::rope_table(ctx, step.seq.positions, step.inv_freq, rope_magnitude(c), step.seq.rope);
}

}  // namespace hadal
