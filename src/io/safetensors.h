// safetensors: a JSON header of names, types, shapes and byte ranges, then the bytes.
//
// Reading maps the file: entries point into it and live as long as the reader. Every rule of the
// format is checked before an entry is given out: header length, JSON, types, shapes, and that the
// byte ranges cover the data exactly once. Writing streams one tensor at a time into an AtomicFile.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"
#include "io/mmap.h"

namespace hadal::io {

// Element types of the format. Those without a DType can be listed but not computed with.
enum class StoredType : uint8_t {
  kF64,
  kI64,
  kU64,
  kF32,
  kI32,
  kU32,
  kF16,
  kBF16,
  kI16,
  kU16,
  kE4M3,
  kE5M2,
  kE8M0,
  kI8,
  kU8,
  kBool
};
std::string_view stored_type_name(StoredType type);  // "F8_E4M3"
size_t stored_type_size(StoredType type);
std::optional<DType> to_dtype(StoredType type);
StoredType to_stored_type(DType dtype);

using StoredShape = std::vector<int64_t>;
std::string shape_text(const StoredShape& shape);  // "[2, 96]"

// One tensor of a file.
struct StoredTensor {
  StoredType type = StoredType::kF32;
  StoredShape shape;
  const std::byte* data = nullptr;  // into the mapping; no alignment beyond that of the file
  size_t bytes = 0;
  std::string name;
  std::string file;  // path, for messages

  int64_t num_elements() const;
  bool is_aligned() const;  // can be read in place
  // A view of the mapped bytes. REQUIRES: is_aligned(). An Error for types without a DType and for
  // more than kMaxRank dimensions.
  Tensor tensor() const;
};

// One file.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path);
  const std::string& path() const { return file_.path(); }
  const std::map<std::string, StoredTensor, std::less<>>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const StoredTensor* find(std::string_view name) const;  // null if absent
  const StoredTensor& at(std::string_view name) const;    // an Error if absent

 private:
  MappedFile file_;
  std::map<std::string, StoredTensor, std::less<>> tensors_;
  std::map<std::string, std::string> metadata_;
};

// The tensors of a checkpoint directory: model.safetensors, or the shards that
// model.safetensors.index.json names.
class SafetensorsDir {
 public:
  explicit SafetensorsDir(const std::string& dir);
  const std::map<std::string, const StoredTensor*, std::less<>>& tensors() const {
    return tensors_;
  }
  const StoredTensor* find(std::string_view name) const;
  size_t num_files() const { return files_.size(); }
  size_t num_bytes() const;  // of all tensors

 private:
  std::map<std::string, SafetensorsFile> files_;
  std::map<std::string, const StoredTensor*, std::less<>> tensors_;
};

// A tensor to write: `data` if set, or else what `fill` writes into the given bytes.
struct TensorSource {
  std::string name;
  StoredType type = StoredType::kF32;
  StoredShape shape{};
  const void* data = nullptr;
  std::function<void(void* out)> fill{};

  size_t bytes() const;
};
TensorSource source_of(std::string name, const Tensor& tensor);  // REQUIRES: tensor.is_dense()

// Sorted by element size, largest first, then by name, so that every tensor is aligned.
void write_safetensors(const std::string& path, std::vector<TensorSource> tensors);

// dir/model.safetensors, or shards of at most max_shard_bytes (a larger tensor stands alone) named
// model-00001-of-00002.safetensors and model.safetensors.index.json. Shards fill in the order
// given.
void write_safetensors_dir(const std::string& dir, std::vector<TensorSource> tensors,
                           size_t max_shard_bytes);
// The same written by several processes: each its part, dir/STEM.safetensors where there is one
// part, else dir/STEM-00001-of-00002.safetensors; then one of them the index of all parts (of
// models).
std::string part_name(const std::string& stem, size_t part, size_t num_parts);
void write_safetensors_index(const std::string& dir, size_t num_parts);

}  // namespace hadal::io
