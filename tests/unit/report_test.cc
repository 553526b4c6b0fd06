// What a run shows: the TensorBoard file parsed back with its checksums, and the report's data.
// SPDX-License-Identifier: Apache-2.0
#include "train/report.h"

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "io/atomic.h"
#include "tests/unit/expect_error.h"
#include "train/tensorboard.h"

namespace hadal::train {
namespace {

using hadal::testing::TempDir;

template <class T>
T number(const std::string& text, size_t at) {
  T value{};
  EXPECT_LE(at + sizeof value, text.size());
  std::memcpy(&value, text.data() + at, sizeof value);
  return value;
}

// The data of each record; every checksum is compared.
std::vector<std::string> records(const std::string& path) {
  const std::string text = io::read_file(path, 1 << 20);
  std::vector<std::string> all;
  for (size_t at = 0; at < text.size();) {
    const auto size = number<uint64_t>(text, at);
    EXPECT_EQ(number<uint32_t>(text, at + 8), masked_crc32c(text.substr(at, 8)));
    all.push_back(text.substr(at + 12, size));
    EXPECT_EQ(number<uint32_t>(text, at + 12 + size), masked_crc32c(all.back()));
    at += 16 + size;
  }
  return all;
}

// Fields of a message in wire format: number -> bytes of each value, in order.
std::multimap<uint64_t, std::string> fields(const std::string& message) {
  std::multimap<uint64_t, std::string> all;
  size_t at = 0;
  const auto varint = [&] {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<uint8_t>(message.at(at++));
      value |= uint64_t{byte & 127u} << shift;
      if (byte < 128) return value;
    }
  };
  while (at < message.size()) {
    const uint64_t key = varint();
    size_t size = 0;
    if (key % 8 == 0) {
      all.emplace(key / 8, std::to_string(varint()));
      continue;
    }
    if (key % 8 == 1) size = 8;
    if (key % 8 == 5) size = 4;
    if (key % 8 == 2) size = varint();
    all.emplace(key / 8, message.substr(at, size));
    at += size;
  }
  return all;
}

TEST(Crc32c, KnownValue) {
  // CRC-32C of "123456789" is 0xE3069283; masked as TFRecord does.
  const uint32_t crc = 0xE3069283u;
  EXPECT_EQ(masked_crc32c("123456789"), (crc >> 15 | crc << 17) + 0xA282EAD8u);
}

TEST(EventWriter, WritesWhatTensorBoardReads) {
  const TempDir dir;
  const std::string path = dir / "tb/events.out.tfevents.0.hadal";
  {
    EventWriter writer(path);
    writer.add({{"step", 300}, {"loss", 2.5}, {"mtp_loss", {3.5}}, {"time", {{"unix", 1.75e9}}}});
    writer.add({{"step", 301}, {"event", "roll_back"}});
    writer.add({{"step", 302}, {"held_out_loss", 2.25}});
  }
  const std::vector<std::string> all = records(path);
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(fields(all[0]).find(3)->second, "brain.Event:2");
  const auto event = fields(all[1]);
  EXPECT_EQ(number<double>(event.find(1)->second, 0), 1.75e9);
  EXPECT_EQ(event.find(2)->second, "300");
  std::map<std::string, float> values;
  const auto summary = fields(event.find(5)->second);
  for (auto [at, end] = summary.equal_range(1); at != end; ++at) {
    const auto value = fields(at->second);
    values[value.find(1)->second] = number<float>(value.find(2)->second, 0);
  }
  EXPECT_EQ(values, (std::map<std::string, float>{{"loss/train", 2.5f}, {"loss/mtp_1", 3.5f}}));
  EXPECT_EQ(fields(all[2]).find(2)->second, "302");
  EventWriter again(path);  // begins anew
  EXPECT_EQ(records(path).size(), 1u);
}

// A run of 1,000 steps whose loss is the step and whose first expert has all of the load.
void write_run(const TempDir& dir) {
  io::write_json(dir / "run.json",
                 {{"model", {{"hidden_size", 8}}}, {"train", {{"a", "</script>"}}}});
  std::string lines;
  for (int step = 1; step <= 1000; ++step)
    lines += io::Json{{"step", step},
                      {"loss", step},
                      {"mtp_loss", {2 * step}},
                      {"max_violation", 3.0},
                      {"total_tokens", 64 * step},
                      {"expert_counts", {{8, 0, 0, 0}, {2, 2, 2, 2}}},
                      {"time", {{"seconds", step <= 500 ? step : step - 500}}}}
                 .dump() +
             "\n";
  lines += R"({"step": 1000, "held_out_loss": 7.5, "held_out_mtp_loss": [8.5]})"
           "\n";
  lines += R"({"step": 41, "event": "roll_back", "from": 57})"
           "\nhalf a li";
  io::write_file_atomic(dir / "metrics.jsonl", lines);
}

TEST(Report, ThinsCurvesByMeans) {
  const TempDir dir;
  write_run(dir);
  const io::Json data = report_data(dir.path(), 100);
  ASSERT_EQ(data["loss"].size(), 100u);
  EXPECT_EQ(data["loss"][0], io::Json({10, 5.5}));
  EXPECT_EQ(data["loss"][99], io::Json({1000, 995.5}));
  EXPECT_EQ(data["mtp"][0][99], io::Json({1000, 1991.0}));
  EXPECT_EQ(data["held_out"], io::Json::array({{1000, 7.5}}));
  EXPECT_EQ(data["held_out_mtp"][0][0], io::Json({1000, 8.5}));
  EXPECT_EQ(data["seconds"], 1000.0);  // of two processes
  EXPECT_EQ(data["tokens"], 64000.0);
  EXPECT_EQ(data["events"][0]["from"], 57);
  ASSERT_EQ(data["experts"]["maxvio"].size(), 2u);
  EXPECT_EQ(data["experts"]["maxvio"][0].size(), 120u);
  EXPECT_EQ(data["experts"]["maxvio"][0][7], 3.0);
  EXPECT_EQ(data["experts"]["maxvio"][1][7], 0.0);
  EXPECT_EQ(data["experts"]["load"][0], io::Json({4.0, 0.0, 0.0, 0.0}));
}

TEST(Report, IsOnePageWithTheData) {
  const TempDir dir;
  write_run(dir);
  write_report(dir.path());
  const std::string page = io::read_file(dir / "report.html", 1 << 24);
  EXPECT_TRUE(page.starts_with("<!doctype html>"));
  EXPECT_EQ(page.find("/*DATA*/"), std::string::npos);
  EXPECT_NE(page.find("\"held_out\":[[1000,7.5]]"), std::string::npos);
  EXPECT_NE(page.find("<\\/script>"), std::string::npos);  // of the config: it ends no script
  // Nothing is fetched from anywhere.
  for (const char* outside : {"src=", "href=", "@import", "url("})
    EXPECT_EQ(page.find(outside), std::string::npos) << outside;
}

TEST(Report, AMissingRunIsASentence) {
  const TempDir dir;
  EXPECT_ERROR(write_report(dir.path()), "cannot open " + dir / "metrics.jsonl" +
                                             ": No such file or directory; check the path");
}

}  // namespace
}  // namespace hadal::train
