// EventWriter: protobuf by hand, framing and checksums.
// SPDX-License-Identifier: Apache-2.0
#include "train/tensorboard.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "core/check.h"
#include "io/atomic.h"

namespace hadal::train {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78u;  // Castagnoli, bits reversed
constexpr uint32_t kMaskDelta = 0xA282EAD8u;

constexpr std::array<uint32_t, 256> kTable = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value % 2 == 1 ? kPolynomial : 0);
    table[i] = value;
  }
  return table;
}();

// Protobuf wire types.
enum Wire : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

class Message {
 public:
  Message& varint(uint32_t field, uint64_t value) {
    key(field, kVarint);
    append_varint(value);
    return *this;
  }
  Message& fixed(uint32_t field, double value) {
    key(field, kFixed64);
    append(&value, sizeof value);
    return *this;
  }
  Message& fixed(uint32_t field, float value) {
    key(field, kFixed32);
    append(&value, sizeof value);
    return *this;
  }
  Message& bytes(uint32_t field, std::string_view value) {
    key(field, kBytes);
    append_varint(value.size());
    text_ += value;
    return *this;
  }
  std::string_view text() const { return text_; }

 private:
  void key(uint32_t field, Wire wire) { append_varint(field << 3 | wire); }
  void append(const void* data, size_t size) { text_.append(static_cast<const char*>(data), size); }
  void append_varint(uint64_t value) {
    for (; value >= 128; value >>= 7) text_ += static_cast<char>(value % 128 + 128);
    text_ += static_cast<char>(value);
  }
  std::string text_;
};

// Fields of Event, Summary and Summary.Value.
enum Field : uint32_t {
  kEventWallTime = 1,
  kEventStep = 2,
  kEventFileVersion = 3,
  kEventSummary = 5,
  kSummaryValue = 1,
  kValueTag = 1,
  kValueSimple = 2,
};

// (key of the line, tag)
constexpr std::pair<const char*, const char*> kTags[] = {
    {"loss", "loss/train"},
    {"bits_per_byte", "bits_per_byte/train"},
    {"balance_loss", "loss/balance"},
    {"grad_norm", "optimizer/grad_norm"},
    {"lr", "optimizer/lr"},
    {"max_violation", "load/max_violation"},
    {"total_tokens", "data/tokens"},
    {"held_out_loss", "loss/held_out"},
    {"held_out_bits_per_byte", "bits_per_byte/held_out"},
    {"held_out_max_violation", "load/held_out_max_violation"},
};

std::vector<std::pair<std::string, double>> scalars_of(const io::Json& line) {
  std::vector<std::pair<std::string, double>> scalars;
  const auto add = [&](const io::Json& value, const std::string& tag) {
    if (value.is_number()) scalars.emplace_back(tag, value.get<double>());
  };
  for (const auto& [key, tag] : kTags)
    if (line.contains(key)) add(line[key], tag);
  for (const auto& [key, tag] :
       {std::pair{"mtp_loss", "loss/mtp_"}, std::pair{"held_out_mtp_loss", "loss/held_out_mtp_"}})
    if (line.contains(key))
      for (size_t k = 0; k < line[key].size(); ++k) add(line[key][k], tag + std::to_string(k + 1));
  if (line.contains("time") && line["time"].contains("tokens_per_second"))
    add(line["time"]["tokens_per_second"], "speed/tokens_per_second");
  return scalars;
}

std::string little_endian(uint64_t value, size_t size) {
  static_assert(std::endian::native == std::endian::little);
  std::string text(size, '\0');
  std::memcpy(text.data(), &value, size);
  return text;
}

}  // namespace

uint32_t masked_crc32c(std::string_view data) {
  uint32_t crc = 0xFFFFFFFFu;
  for (char c : data) crc = crc >> 8 ^ kTable[(crc ^ static_cast<uint8_t>(c)) & 0xFF];
  crc = ~crc;
  return (crc >> 15 | crc << 17) + kMaskDelta;
}

EventWriter::EventWriter(const std::string& path) : path_(path) {
  const std::string dir = io::parent_dir(path);
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  HADAL_CHECK(!error, "cannot make ", dir, ": ", error.message());
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  HADAL_CHECK(fd_ >= 0, "cannot write ", path, ": ", io::errno_text());
  write_record(
      Message().fixed(kEventWallTime, 0.0).bytes(kEventFileVersion, "brain.Event:2").text());
}

EventWriter::~EventWriter() { close(fd_); }

void EventWriter::add(const io::Json& line) {
  Message summary;
  const auto scalars = scalars_of(line);
  if (scalars.empty()) return;
  for (const auto& [tag, value] : scalars)
    summary.bytes(
        kSummaryValue,
        Message().bytes(kValueTag, tag).fixed(kValueSimple, static_cast<float>(value)).text());
  const double wall = line.contains("time") ? line["time"].value("unix", 0.0) : 0.0;
  write_record(Message()
                   .fixed(kEventWallTime, wall)
                   .varint(kEventStep, line["step"].get<uint64_t>())
                   .bytes(kEventSummary, summary.text())
                   .text());
}

void EventWriter::write_record(std::string_view data) {
  const std::string length = little_endian(data.size(), 8);
  std::string record = length;
  record += little_endian(masked_crc32c(length), 4);
  record += data;
  record += little_endian(masked_crc32c(data), 4);
  HADAL_CHECK(io::write_all(fd_, record.data(), record.size()), "cannot write ", path_, ": ",
              io::errno_text(), "; free some space, then --resume");
}

}  // namespace hadal::train
