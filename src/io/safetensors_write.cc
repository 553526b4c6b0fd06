// Writing of safetensors files, streamed one tensor at a time, and of sharded directories.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/check.h"
#include "io/atomic.h"
#include "io/json.h"
#include "io/safetensors.h"

namespace hadal::io {

namespace {

constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kSingleName = "model.safetensors";

bool is_weight_file(const std::string& name) {
  return name == kSingleName || name == kIndexName ||
         (name.starts_with("model-") && name.ends_with(".safetensors"));
}

// Weight files of an earlier save that the new one did not replace.
void remove_stale(const std::string& dir, const std::set<std::string>& written) {
  std::vector<std::filesystem::path> stale;
  for (const auto& entry : std::filesystem::directory_iterator(dir)) {
    const std::string name = entry.path().filename().string();
    if (is_weight_file(name) && !written.contains(name)) stale.push_back(entry.path());
  }
  for (const auto& path : stale) std::filesystem::remove(path);
}

}  // namespace

std::string part_name(const std::string& stem, size_t part, size_t num_parts) {
  if (num_parts == 1) return stem + ".safetensors";
  char numbers[64];
  std::snprintf(numbers, sizeof(numbers), "-%05zu-of-%05zu.safetensors", part + 1, num_parts);
  return stem + numbers;
}

void write_safetensors_index(const std::string& dir, size_t num_parts) {
  if (num_parts == 1) return;
  Json index = {{"metadata", {{"total_size", 0}}}, {"weight_map", Json::object()}};
  size_t total = 0;
  for (size_t i = 0; i < num_parts; ++i) {
    const std::string name = part_name("model", i, num_parts);
    const SafetensorsFile file(dir + "/" + name);
    for (const auto& [tensor, stored] : file.tensors()) {
      HADAL_CHECK(!index["weight_map"].contains(tensor), file.path(), ": tensor ", tensor,
                  " is in another part too");
      index["weight_map"][tensor] = name;
      total += stored.bytes;
    }
  }
  index["metadata"]["total_size"] = total;
  write_json(dir + "/" + kIndexName, index);
}

size_t TensorSource::bytes() const {
  size_t bytes = stored_type_size(type);
  for (int64_t extent : shape) bytes *= static_cast<size_t>(extent);
  return bytes;
}

TensorSource source_of(std::string name, const Tensor& tensor) {
  HADAL_CHECK(tensor.is_dense(), "tensor ", name, " to write is not dense; copy it first");
  TensorSource source;
  source.name = std::move(name);
  source.type = to_stored_type(tensor.dtype());
  for (int i = 0; i < tensor.rank(); ++i) source.shape.push_back(tensor.dim(i));
  source.data = tensor.raw();
  return source;
}

void write_safetensors(const std::string& path, std::vector<TensorSource> tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorSource& a, const TensorSource& b) {
    const size_t size_a = stored_type_size(a.type), size_b = stored_type_size(b.type);
    return size_a != size_b ? size_a > size_b : a.name < b.name;
  });
  std::string header = R"({"__metadata__":{"format":"pt"})";
  size_t offset = 0, largest = 0;
  std::set<std::string_view> names;
  for (const TensorSource& tensor : tensors) {
    HADAL_CHECK(names.insert(tensor.name).second, path, ": tensor ", tensor.name,
                " would be written twice");
    const size_t bytes = tensor.bytes();
    header += concat(",", Json(tensor.name).dump(), R"(:{"dtype":")", stored_type_name(tensor.type),
                     R"(","shape":)", Json(tensor.shape).dump(), R"(,"data_offsets":[)", offset,
                     ",", offset + bytes, "]}");
    offset += bytes;
    if (tensor.data == nullptr) largest = std::max(largest, bytes);
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');

  AtomicFile file(path);
  std::string length;
  for (size_t i = 0; i < 8; ++i) length += static_cast<char>(header.size() >> (8 * i) & 0xff);
  file.write(length);
  file.write(header);
  std::vector<std::byte> filled(largest);
  for (const TensorSource& tensor : tensors) {
    const void* data = tensor.data;
    if (data == nullptr && tensor.bytes() > 0) {
      tensor.fill(filled.data());
      data = filled.data();
    }
    file.write(data, tensor.bytes());
  }
  file.commit();
}

void write_safetensors_dir(const std::string& dir, std::vector<TensorSource> tensors,
                           size_t max_shard_bytes) {
  std::vector<std::vector<TensorSource>> shards(1);
  size_t shard_bytes = 0, total = 0;
  for (TensorSource& tensor : tensors) {
    const size_t bytes = tensor.bytes();
    if (!shards.back().empty() && shard_bytes + bytes > max_shard_bytes) {
      shards.emplace_back();
      shard_bytes = 0;
    }
    shard_bytes += bytes;
    total += bytes;
    shards.back().push_back(std::move(tensor));
  }
  std::set<std::string> written;
  if (shards.size() == 1) {
    write_safetensors(dir + "/" + kSingleName, std::move(shards[0]));
    written.insert(kSingleName);
  } else {
    Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", Json::object()}};
    for (size_t i = 0; i < shards.size(); ++i) {
      const std::string name = part_name("model", i, shards.size());
      for (const TensorSource& tensor : shards[i]) index["weight_map"][tensor.name] = name;
      write_safetensors(dir + "/" + name, std::move(shards[i]));
      written.insert(name);
    }
    write_json(dir + "/" + kIndexName, index);
    written.insert(kIndexName);
  }
  remove_stale(dir, written);
}

}  // namespace hadal::io
