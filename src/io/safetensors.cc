// Reading of safetensors files and directories: every byte of a header is distrusted.
// SPDX-License-Identifier: Apache-2.0
#include "io/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/check.h"
#include "io/json.h"

namespace hadal::io {

namespace {

constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxHeaderBytes = 100'000'000;  // the format's own limit

struct TypeInfo {
  StoredType type;
  std::string_view name;
  size_t size;
  std::optional<DType> dtype;
};

constexpr std::array<TypeInfo, 16> kTypes = {{
    {StoredType::kF64, "F64", 8, DType::kF64},
    {StoredType::kI64, "I64", 8, DType::kI64},
    {StoredType::kU64, "U64", 8, std::nullopt},
    {StoredType::kF32, "F32", 4, DType::kF32},
    {StoredType::kI32, "I32", 4, DType::kI32},
    {StoredType::kU32, "U32", 4, std::nullopt},
    {StoredType::kF16, "F16", 2, DType::kF16},
    {StoredType::kBF16, "BF16", 2, DType::kBF16},
    {StoredType::kI16, "I16", 2, std::nullopt},
    {StoredType::kU16, "U16", 2, std::nullopt},
    {StoredType::kE4M3, "F8_E4M3", 1, DType::kE4M3},
    {StoredType::kE5M2, "F8_E5M2", 1, std::nullopt},
    {StoredType::kE8M0, "F8_E8M0", 1, std::nullopt},
    {StoredType::kI8, "I8", 1, std::nullopt},
    {StoredType::kU8, "U8", 1, std::nullopt},
    {StoredType::kBool, "BOOL", 1, std::nullopt},
}};

const TypeInfo& info_of(StoredType type) { return kTypes[static_cast<size_t>(type)]; }

constexpr const char* kRefetch = "; the file is damaged: download or write it again";

// Product of extents, or nullopt when it does not fit.
std::optional<uint64_t> checked_product(const StoredShape& shape, size_t element_bytes) {
  constexpr uint64_t kLimit = uint64_t{1} << 62;
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  uint64_t product = element_bytes;
  for (int64_t extent : shape) {
    if (static_cast<uint64_t>(extent) > kLimit / product) return std::nullopt;
    product *= static_cast<uint64_t>(extent);
  }
  return product;
}

// A list of integers from 0; `what` names it in messages.
std::vector<int64_t> extents_of(const Json& entry, const char* key, const std::string& where) {
  const auto it = entry.find(key);
  HADAL_CHECK(it != entry.end() && it->is_array(), where, ": ", key, " is not a list", kRefetch);
  std::vector<int64_t> list;
  for (const Json& item : *it) {
    HADAL_CHECK(
        item.is_number_unsigned() && item.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX),
        where, ": ", key, " holds something other than integers from 0 to 2^63 - 1", kRefetch);
    list.push_back(item.get<int64_t>());
  }
  return list;
}

const TypeInfo& type_of(const Json& entry, const std::string& where) {
  const auto it = entry.find("dtype");
  HADAL_CHECK(it != entry.end() && it->is_string(), where, ": dtype is not a string", kRefetch);
  const auto& name = it->get_ref<const std::string&>();
  for (const TypeInfo& type : kTypes)
    if (type.name == name) return type;
  HADAL_FAIL(where, ": dtype ", it->dump(),
             " is not known; convert the file to F32, BF16 or F8_E4M3");
}

// Printable and short, for names that come from a damaged file.
std::string quoted(const std::string& name) {
  std::string text = Json(name).dump(-1, ' ', true, Json::error_handler_t::replace);
  return text.size() <= 120 ? text : text.substr(0, 117) + "...";
}

StoredTensor parse_entry(const std::string& name, const Json& entry, const MappedFile& file,
                         size_t data_begin) {
  const std::string where = concat(file.path(), ": tensor ", quoted(name));
  HADAL_CHECK(entry.is_object(), where, ": not described by an object", kRefetch);
  for (const auto& item : entry.items())
    HADAL_CHECK(item.key() == "dtype" || item.key() == "shape" || item.key() == "data_offsets",
                where, ": unknown key ", quoted(item.key()), kRefetch);
  const TypeInfo& type = type_of(entry, where);
  StoredTensor tensor;
  tensor.type = type.type;
  tensor.shape = extents_of(entry, "shape", where);
  tensor.name = name;
  tensor.file = file.path();
  const std::vector<int64_t> offsets = extents_of(entry, "data_offsets", where);
  HADAL_CHECK(offsets.size() == 2, where, ": data_offsets has ", offsets.size(),
              " numbers where 2 are needed", kRefetch);
  const auto begin = static_cast<uint64_t>(offsets[0]), end = static_cast<uint64_t>(offsets[1]);
  const size_t data_bytes = file.size() - data_begin;
  HADAL_CHECK(begin <= end && end <= data_bytes, where, ": bytes ", begin, " to ", end,
              " lie outside the ", data_bytes, " bytes of data", kRefetch);
  const std::optional<uint64_t> bytes = checked_product(tensor.shape, type.size);
  HADAL_CHECK(bytes.has_value(), where, ": shape ", shape_text(tensor.shape),
              " is too large to count", kRefetch);
  HADAL_CHECK(*bytes == end - begin, where, ": ", type.name, " ", shape_text(tensor.shape),
              " takes ", *bytes, " bytes, but data_offsets give ", end - begin, kRefetch);
  tensor.bytes = *bytes;
  tensor.data = file.data() + data_begin + begin;
  return tensor;
}

// Length of the JSON header.
size_t header_bytes(const MappedFile& file) {
  const std::string& path = file.path();
  HADAL_CHECK(file.size() >= kLengthBytes, path, ": has ", file.size(),
              " bytes, too few for a safetensors header", kRefetch);
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i)
    length |= std::to_integer<uint64_t>(file.data()[i]) << (8 * i);
  HADAL_CHECK(length <= kMaxHeaderBytes, path, ": header of ", length, " bytes; at most ",
              kMaxHeaderBytes, " are allowed", kRefetch);
  HADAL_CHECK(length <= file.size() - kLengthBytes, path, ": header of ", length,
              " bytes, but only ", file.size() - kLengthBytes, " follow", kRefetch);
  HADAL_CHECK(length >= 2 && file.data()[kLengthBytes] == std::byte{'{'}, path,
              ": the header does not begin with {", kRefetch);
  return static_cast<size_t>(length);
}

JsonObject parse_header(std::string_view text, const std::string& path) {
  try {
    return JsonObject::parse(text, concat(path, " (header)"));
  } catch (const Error& error) {
    const std::string message = error.what();
    HADAL_FAIL(message.substr(0, message.rfind(';')), kRefetch);
  }
}

// The ranges of the tensors cover [0, data_bytes) without overlap or gap.
void check_coverage(const std::map<std::string, StoredTensor, std::less<>>& tensors,
                    const std::string& path, const std::byte* data, size_t data_bytes) {
  std::vector<const StoredTensor*> order;
  for (const auto& [name, tensor] : tensors) order.push_back(&tensor);
  std::stable_sort(order.begin(), order.end(), [](const StoredTensor* a, const StoredTensor* b) {
    return a->data != b->data ? a->data < b->data : a->bytes < b->bytes;
  });
  size_t covered = 0;
  for (const StoredTensor* tensor : order) {
    const auto begin = static_cast<size_t>(tensor->data - data);
    HADAL_CHECK(begin >= covered, path, ": tensor ", quoted(tensor->name), " begins at byte ",
                begin, " inside the tensor before it, which ends at ", covered, kRefetch);
    HADAL_CHECK(begin == covered, path, ": bytes ", covered, " to ", begin,
                " of the data belong to no tensor", kRefetch);
    covered = begin + tensor->bytes;
  }
  HADAL_CHECK(covered == data_bytes, path, ": bytes ", covered, " to ", data_bytes,
              " of the data belong to no tensor", kRefetch);
}

}  // namespace

std::string_view stored_type_name(StoredType type) { return info_of(type).name; }
size_t stored_type_size(StoredType type) { return info_of(type).size; }
std::optional<DType> to_dtype(StoredType type) { return info_of(type).dtype; }

StoredType to_stored_type(DType dtype) {
  for (const TypeInfo& type : kTypes)
    if (type.dtype == dtype) return type.type;
  HADAL_UNREACHABLE("a dtype without a stored type");
}

std::string shape_text(const StoredShape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size() && i < 16; ++i) text += concat(i == 0 ? "" : ", ", shape[i]);
  return text + (shape.size() > 16 ? ", ...]" : "]");
}

int64_t StoredTensor::num_elements() const {
  return static_cast<int64_t>(bytes / stored_type_size(type));
}

bool StoredTensor::is_aligned() const {
  return reinterpret_cast<uintptr_t>(data) % stored_type_size(type) == 0;
}

Tensor StoredTensor::tensor() const {
  const std::optional<DType> dtype = to_dtype(type);
  HADAL_CHECK(dtype.has_value(), file, ": tensor ", name, " is ", stored_type_name(type),
              "; F64, F32, F16, BF16, F8_E4M3, I32 or I64 is needed");
  HADAL_CHECK(shape.size() <= static_cast<size_t>(kMaxRank), file, ": tensor ", name, " has ",
              shape.size(), " dimensions; at most ", kMaxRank, " are read");
  HADAL_CHECK(is_aligned(), file, ": tensor ", name, " is not aligned; write the file again");
  Shape dims;
  dims.rank = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), dims.dims.begin());
  return Tensor(const_cast<std::byte*>(data), *dtype, dims);
}

SafetensorsFile::SafetensorsFile(const std::string& path) : file_(path) {
  const size_t length = header_bytes(file_), data_begin = kLengthBytes + length;
  const JsonObject header = parse_header(file_.text().substr(kLengthBytes, length), path);
  for (const auto& item : header.json().items()) {
    if (item.key() == "__metadata__") {
      HADAL_CHECK(item.value().is_object(), path, ": __metadata__ is not an object", kRefetch);
      for (const auto& entry : item.value().items()) {
        HADAL_CHECK(entry.value().is_string(), path,
                    ": __metadata__ holds something other than strings", kRefetch);
        metadata_[entry.key()] = entry.value().get<std::string>();
      }
      continue;
    }
    tensors_.emplace(item.key(), parse_entry(item.key(), item.value(), file_, data_begin));
  }
  check_coverage(tensors_, path, file_.data() + data_begin, file_.size() - data_begin);
}

const StoredTensor* SafetensorsFile::find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

const StoredTensor& SafetensorsFile::at(std::string_view name) const {
  const StoredTensor* tensor = find(name);
  HADAL_CHECK(tensor != nullptr, path(), ": tensor ", name,
              " is missing; write the file again with it");
  return *tensor;
}

SafetensorsDir::SafetensorsDir(const std::string& dir) {
  namespace fs = std::filesystem;
  const std::string index_path = dir + "/model.safetensors.index.json";
  const std::string single_path = dir + "/model.safetensors";
  if (!fs::exists(index_path)) {
    HADAL_CHECK(fs::exists(single_path), dir, ": holds neither model.safetensors nor ",
                "model.safetensors.index.json; give the directory of a checkpoint");
    const auto it = files_.emplace(single_path, SafetensorsFile(single_path)).first;
    for (const auto& [name, tensor] : it->second.tensors()) tensors_.emplace(name, &tensor);
    return;
  }
  const JsonObject index = JsonObject::read(index_path), map = index.object("weight_map");
  for (const auto& item : map.json().items()) {
    const std::string& name = item.key();
    const std::string shard = map.string(name);
    HADAL_CHECK(!shard.empty() && shard.find('/') == shard.npos, index_path, ": tensor ",
                quoted(name), " is in the shard ", quoted(shard),
                ", which is not a file name; correct the index");
    const std::string path = dir + "/" + shard;
    auto file = files_.find(path);
    if (file == files_.end()) {
      HADAL_CHECK(fs::exists(path), index_path, ": the shard ", path,
                  " is missing; download or write it again");
      file = files_.emplace(path, SafetensorsFile(path)).first;
    }
    const StoredTensor* tensor = file->second.find(name);
    HADAL_CHECK(tensor != nullptr, path, ": tensor ", quoted(name),
                " is missing, but the index says it is in this shard; download the shard again");
    tensors_.emplace(name, tensor);
  }
  for (const auto& [path, file] : files_)
    for (const auto& [name, tensor] : file.tensors())
      HADAL_CHECK(tensors_.contains(name), path, ": tensor ", quoted(name), " is not listed in ",
                  index_path, "; download or write the index again");
}

const StoredTensor* SafetensorsDir::find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : it->second;
}

size_t SafetensorsDir::num_bytes() const {
  size_t bytes = 0;
  for (const auto& [name, tensor] : tensors_) bytes += tensor->bytes;
  return bytes;
}

}  // namespace hadal::io
