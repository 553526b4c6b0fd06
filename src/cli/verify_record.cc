// Recording: ids to start from, results by name, the file.
// SPDX-License-Identifier: Apache-2.0
#include "cli/verify_record.h"

#include <cstring>

#include "core/rng.h"

namespace hadal::cli {

Recording::Recording(int64_t sequences, int64_t tokens, int64_t vocab_size, uint64_t seed) {
  const Rng rng(seed, stream_id("golden"));
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < sequences * tokens; ++i)
    ids.push_back(static_cast<int32_t>(rng.u64(static_cast<uint64_t>(i)) %
                                       static_cast<uint64_t>(vocab_size)));
  put("input_ids", Tensor(ids.data(), DType::kI32, {sequences, tokens}), false);
  put("greedy", Tensor(ids.data(), DType::kI32, {1, tokens}), false);
}

const io::StoredTensor* Recording::find(const std::string& key) const {
  const auto entry = entries_.find(key);
  return entry == entries_.end() ? nullptr : &entry->second.tensor;
}

void Recording::add(const std::string& key, const Tensor& tensor) {
  const auto entry = entries_.find(key);
  if (entry == entries_.end() || !entry->second.is_result) put(key, tensor, true);
}

void Recording::put(const std::string& key, const Tensor& tensor, bool is_result) {
  const io::TensorSource source = io::source_of(key, tensor);
  Entry& entry = entries_[key];
  entry.bytes.resize(source.bytes());
  std::memcpy(entry.bytes.data(), tensor.raw(), entry.bytes.size());
  entry.is_result = is_result;
  entry.tensor = {};
  entry.tensor.name = key;
  entry.tensor.type = source.type;
  entry.tensor.shape = source.shape;
  entry.tensor.data = entry.bytes.data();
  entry.tensor.bytes = entry.bytes.size();
}

void Recording::write(const std::string& path) const {
  std::vector<io::TensorSource> sources;
  for (const auto& [key, entry] : entries_)
    sources.push_back({.name = key,
                       .type = entry.tensor.type,
                       .shape = entry.tensor.shape,
                       .data = entry.bytes.data()});
  io::write_safetensors(path, std::move(sources));
}

}  // namespace hadal::cli
