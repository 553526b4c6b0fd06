// safetensors files: what we write reads back bit for bit, and damaged files give one clear
// sentence.
// SPDX-License-Identifier: Apache-2.0
#include "io/safetensors.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "core/rng.h"
#include "io/atomic.h"
#include "tests/unit/expect_error.h"

namespace hadal::io {
namespace {

using hadal::testing::TempDir;
namespace fs = std::filesystem;

constexpr const char* kDamaged = "; the file is damaged: download or write it again";

std::string with_length(uint64_t length, const std::string& rest) {
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(length >> (8 * i) & 0xff);
  return file + rest;
}

std::string with_header(const std::string& header, size_t data_bytes) {
  return with_length(header.size(), header + std::string(data_bytes, '\1'));
}

class Safetensors : public ::testing::Test {
 protected:
  // The message of reading these bytes, without the leading path and the trailing advice.
  std::string complaint(const std::string& bytes) {
    const std::string path = dir_ / "bad.safetensors";
    std::ofstream(path, std::ios::binary) << bytes;
    try {
      SafetensorsFile file(path);
    } catch (const Error& error) {
      const std::string message = error.what(), damaged = kDamaged;
      EXPECT_TRUE(message.starts_with(path)) << message;
      if (!message.ends_with(damaged)) return message.substr(path.size());
      return message.substr(path.size(), message.size() - path.size() - damaged.size());
    }
    return "no error";
  }

  TempDir dir_;
};

TEST_F(Safetensors, RoundTripIsBitExact) {
  std::vector<float> a(6), s = {0.5f};
  std::vector<bf16> b(5);
  std::vector<e4m3> q(7);
  std::vector<double> d(3);
  const Rng rng(1, stream_id("safetensors"));
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(rng.normal(i));
  for (size_t i = 0; i < b.size(); ++i) b[i] = {static_cast<uint16_t>(rng.u64(100 + i))};
  for (size_t i = 0; i < q.size(); ++i) q[i] = {static_cast<uint8_t>(rng.u64(200 + i))};
  for (size_t i = 0; i < d.size(); ++i) d[i] = rng.normal(300 + i);
  std::vector<int64_t> n = {-1};
  std::vector<TensorSource> sources;
  sources.push_back(source_of("q", Tensor(q.data(), DType::kE4M3, {7})));
  sources.push_back(source_of("b", Tensor(b.data(), DType::kBF16, {1, 5})));
  sources.push_back(source_of("a \"x\"", Tensor(a.data(), DType::kF32, {2, 3})));
  sources.push_back(source_of("d", Tensor(d.data(), DType::kF64, {3})));
  sources.push_back(source_of("n", Tensor(n.data(), DType::kI64, {})));
  sources.push_back(source_of("none", Tensor(a.data(), DType::kF32, {0, 4})));
  TensorSource filled{
      .name = "s", .type = StoredType::kF32, .shape = {1}, .data = nullptr, .fill = {}};
  filled.fill = [&](void* out) { std::memcpy(out, s.data(), 4); };
  sources.push_back(filled);
  write_safetensors(dir_ / "m.safetensors", sources);

  const SafetensorsFile file(dir_ / "m.safetensors");
  ASSERT_EQ(file.tensors().size(), 7u);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  const auto same = [&](const char* name, const void* data, size_t bytes) {
    const StoredTensor& t = file.at(name);
    EXPECT_TRUE(t.is_aligned());
    return t.bytes == bytes && std::memcmp(t.data, data, bytes) == 0;
  };
  EXPECT_TRUE(same("a \"x\"", a.data(), 24));
  EXPECT_TRUE(same("b", b.data(), 10));
  EXPECT_TRUE(same("q", q.data(), 7));
  EXPECT_TRUE(same("d", d.data(), 24));
  EXPECT_TRUE(same("n", n.data(), 8));
  EXPECT_TRUE(same("s", s.data(), 4));
  EXPECT_EQ(file.at("a \"x\"").tensor().str(), "f32 [2, 3]");
  EXPECT_EQ(file.at("n").shape, StoredShape{});
  EXPECT_EQ(file.at("none").bytes, 0u);
  EXPECT_EQ(file.find("absent"), nullptr);
  EXPECT_ERROR(file.at("absent"),
               dir_ / "m.safetensors" + ": tensor absent is missing; write the file again with it");
  const std::string bytes = read_file(dir_ / "m.safetensors", 10000);
  EXPECT_EQ(static_cast<uint8_t>(bytes[0]) % 8, 0);
}

TEST_F(Safetensors, EmptyFile) {
  write_safetensors(dir_ / "m.safetensors", {});
  EXPECT_TRUE(SafetensorsFile(dir_ / "m.safetensors").tensors().empty());
}

TEST_F(Safetensors, HeaderLengths) {
  EXPECT_EQ(complaint(""), ": has 0 bytes, too few for a safetensors header");
  EXPECT_EQ(complaint("1234567"), ": has 7 bytes, too few for a safetensors header");
  EXPECT_EQ(complaint(with_length(100'000'001, "{}")),
            ": header of 100000001 bytes; at most 100000000 are allowed");
  EXPECT_EQ(complaint(with_length(~uint64_t{0}, "{}")),
            ": header of 18446744073709551615 bytes; at most 100000000 are allowed");
  EXPECT_EQ(complaint(with_length(200, "{}")), ": header of 200 bytes, but only 2 follow");
  EXPECT_EQ(complaint(with_length(0, "{}")), ": the header does not begin with {");
  EXPECT_EQ(complaint(with_length(2, "[]")), ": the header does not begin with {");
}

TEST_F(Safetensors, CorruptJson) {
  EXPECT_EQ(
      complaint(with_header(R"({"a": })", 0)),
      " (header), line 1, column 7: invalid JSON, unexpected '}'; expected '[', '{', or a literal");
  EXPECT_EQ(complaint(with_header(R"({"a":{},"a":{}})", 0)),
            " (header): the key \"a\" stands twice in one object");
  EXPECT_EQ(complaint(with_header(R"({"a": 3})", 0)), ": tensor \"a\": not described by an object");
  EXPECT_EQ(complaint(with_header(R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4)),
            ": tensor \"a\": dtype is not a string");
  EXPECT_EQ(complaint(with_header(R"({"a":{"dtype":"F4","shape":[1],"data_offsets":[0,4]}})", 4)),
            ": tensor \"a\": dtype \"F4\" is not known; convert the file to F32, BF16 or F8_E4M3");
  EXPECT_EQ(complaint(with_header(R"({"a":{"dtype":"F32","shape":4,"data_offsets":[0,4]}})", 4)),
            ": tensor \"a\": shape is not a list");
  EXPECT_EQ(complaint(with_header(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4)),
            ": tensor \"a\": shape holds something other than integers from 0 to 2^63 - 1");
  EXPECT_EQ(complaint(with_header(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4)),
            ": tensor \"a\": data_offsets has 1 numbers where 2 are needed");
  EXPECT_EQ(
      complaint(with_header(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4)),
      ": tensor \"a\": unknown key \"x\"");
  EXPECT_EQ(complaint(with_header(R"({"__metadata__":3})", 0)), ": __metadata__ is not an object");
  EXPECT_EQ(complaint(with_header(R"({"__metadata__":{"a":3}})", 0)),
            ": __metadata__ holds something other than strings");
}

TEST_F(Safetensors, Ranges) {
  EXPECT_EQ(complaint(with_header(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4)),
            ": tensor \"a\": bytes 0 to 8 lie outside the 4 bytes of data");
  EXPECT_EQ(complaint(with_header(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}})", 8)),
            ": tensor \"a\": bytes 8 to 4 lie outside the 8 bytes of data");
  EXPECT_EQ(complaint(with_header(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4)),
            ": tensor \"a\": F32 [2] takes 8 bytes, but data_offsets give 4");
  EXPECT_EQ(complaint(with_header(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}})", 8)),
            ": tensor \"a\": F32 [1] takes 4 bytes, but data_offsets give 8");
  EXPECT_EQ(complaint(with_header(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                  R"("b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
                                  6)),
            ": tensor \"b\" begins at byte 2 inside the tensor before it, which ends at 4");
  EXPECT_EQ(complaint(with_header(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                  R"("b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}})",
                                  4)),
            ": bytes 1 to 3 of the data belong to no tensor");
  EXPECT_EQ(complaint(with_header(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 4)),
            ": bytes 1 to 4 of the data belong to no tensor");
  EXPECT_EQ(
      complaint(with_header(
          R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0)),
      ": tensor \"a\": shape [4294967296, 4294967296] is too large to count");
  EXPECT_EQ(
      complaint(with_header(
          R"({"a":{"dtype":"F32","shape":[9223372036854775807,2],"data_offsets":[0,0]}})", 0)),
      ": tensor \"a\": shape [9223372036854775807, 2] is too large to count");
}

TEST_F(Safetensors, UnusableTensorsAreListedButNotRead) {
  std::ofstream(dir_ / "m.safetensors", std::ios::binary)
      << with_header(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                     R"("b":{"dtype":"I8","shape":[1,1,1,1,1],"data_offsets":[1,2]},)"
                     R"("c":{"dtype":"F8_E4M3","shape":[1,1,1,1,1],"data_offsets":[2,3]},)"
                     R"("d":{"dtype":"F32","shape":[1],"data_offsets":[3,7]}})",
                     7);
  const std::string path = dir_ / "m.safetensors";
  const SafetensorsFile file(path);
  EXPECT_ERROR(file.at("a").tensor(),
               path + ": tensor a is U8; F64, F32, F16, BF16, F8_E4M3, I32 or I64 is needed");
  EXPECT_ERROR(file.at("c").tensor(), path + ": tensor c has 5 dimensions; at most 4 are read");
}

class Sharded : public Safetensors {
 protected:
  void SetUp() override {
    std::iota(values_.begin(), values_.end(), 0.0f);
    for (size_t i = 0; i < 5; ++i)
      sources_.push_back(
          source_of(concat("t", i), Tensor(values_.data() + 4 * i, DType::kF32, {2, 2})));
  }
  std::vector<float> values_ = std::vector<float>(20);
  std::vector<TensorSource> sources_;
};

TEST_F(Sharded, SplitsAndReadsBack) {
  write_safetensors_dir(dir_.path(), sources_, 1000);
  EXPECT_EQ(SafetensorsDir(dir_.path()).num_files(), 1u);
  EXPECT_TRUE(fs::exists(dir_ / "model.safetensors"));
  write_safetensors_dir(dir_.path(), sources_, 40);
  const SafetensorsDir dir(dir_.path());
  EXPECT_FALSE(fs::exists(dir_ / "model.safetensors"));  // of the earlier save
  EXPECT_TRUE(fs::exists(dir_ / "model-00003-of-00003.safetensors"));
  EXPECT_EQ(dir.num_files(), 3u);
  EXPECT_EQ(dir.num_bytes(), 80u);
  for (size_t i = 0; i < 5; ++i)
    EXPECT_EQ(std::memcmp(dir.find(concat("t", i))->data, values_.data() + 4 * i, 16), 0);
}

TEST_F(Sharded, DamagedDirectories) {
  EXPECT_ERROR(SafetensorsDir(dir_.path()),
               dir_.path() +
                   ": holds neither model.safetensors nor model.safetensors.index.json; give "
                   "the directory of a checkpoint");
  write_safetensors_dir(dir_.path(), sources_, 40);
  const std::string index = dir_ / "model.safetensors.index.json";
  const std::string shard1 = dir_ / "model-00001-of-00003.safetensors";
  const std::string shard2 = dir_ / "model-00002-of-00003.safetensors";
  const std::string good = read_file(index, 10000);
  const auto edit = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    write_file_atomic(index, text);
  };
  edit("\"t0\": \"model-00001", "\"t0\": \"model-00002");
  EXPECT_ERROR(SafetensorsDir(dir_.path()),
               shard2 +
                   ": tensor \"t0\" is missing, but the index says it is in this shard; download "
                   "the shard again");
  edit("\"t0\": \"model-00001-of-00003.safetensors\",", "");
  EXPECT_ERROR(SafetensorsDir(dir_.path()), shard1 + ": tensor \"t0\" is not listed in " + index +
                                                "; download or write the index again");
  edit("model-00001-of", "../model-00001-of");
  EXPECT_ERROR(SafetensorsDir(dir_.path()),
               index +
                   ": tensor \"t0\" is in the shard \"../model-00001-of-00003.safetensors\", which "
                   "is not a file name; correct the index");
  edit("\"weight_map\"", "\"weights\"");
  EXPECT_ERROR(SafetensorsDir(dir_.path()), index + ": weight_map is missing; add it");
  write_file_atomic(index, good);
  fs::remove(shard2);
  EXPECT_ERROR(SafetensorsDir(dir_.path()),
               index + ": the shard " + shard2 + " is missing; download or write it again");
}

TEST_F(Sharded, FullDiskLeavesTheOldFile) {
  write_safetensors_dir(dir_.path(), sources_, 1000);
  const std::string before = read_file(dir_ / "model.safetensors", 10000);
  std::vector<float> large(1 << 20);
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  std::signal(SIGXFSZ, SIG_IGN);
  const rlimit low{1 << 20, limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &low), 0);
  EXPECT_ERROR(
      write_safetensors_dir(
          dir_.path(), {source_of("x", Tensor(large.data(), DType::kF32, {1 << 20}))}, 1 << 30),
      "cannot write " + dir_ / "model.safetensors" +
          ": File too large; nothing was replaced: free space on that disk and try again");
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  EXPECT_EQ(read_file(dir_ / "model.safetensors", 10000), before);
  EXPECT_EQ(std::distance(fs::directory_iterator(dir_.path()), fs::directory_iterator()), 1);
}

TEST_F(Sharded, NamesAreWrittenOnce) {
  sources_.push_back(sources_[0]);
  EXPECT_ERROR(write_safetensors(dir_ / "m.safetensors", sources_),
               dir_ / "m.safetensors" + ": tensor t0 would be written twice");
}

// Random damage: an Error or a file that reads, never a crash.
TEST_F(Sharded, RandomDamageNeverCrashes) {
  const std::string path = dir_ / "m.safetensors";
  write_safetensors(path, sources_);
  const std::string good = read_file(path, 10000);
  const Rng rng(7, stream_id("damage"));
  uint64_t draw = 0;
  int errors = 0, reads = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string bytes = good;
    const uint64_t edits = 1 + rng.u64(draw++) % 3;
    for (uint64_t e = 0; e < edits && !bytes.empty(); ++e) {
      const size_t at = rng.u64(draw++) % std::min<size_t>(bytes.size(), 600);
      switch (rng.u64(draw++) % 5) {
        case 0:
          bytes[at] = static_cast<char>(rng.u64(draw++));
          break;
        case 1:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << rng.u64(draw++) % 8));
          break;
        case 2:
          bytes[at] = "0123456789{}[]\",:-e."[rng.u64(draw++) % 20];
          break;
        case 3:
          bytes.erase(at, 1 + rng.u64(draw++) % 8);
          break;
        default:
          bytes.resize(rng.u64(draw++) % bytes.size());
      }
    }
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    try {
      const SafetensorsFile file(path);
      uint64_t sum = 0;  // touches every byte that an entry covers
      for (const auto& [name, tensor] : file.tensors())
        for (size_t i = 0; i < tensor.bytes; ++i) sum += std::to_integer<uint64_t>(tensor.data[i]);
      EXPECT_GE(sum, 0u);
      ++reads;
    } catch (const Error&) {
      ++errors;
    }
  }
  EXPECT_GT(errors, 1000);
  EXPECT_GT(reads, 10);
}

}  // namespace
}  // namespace hadal::io
