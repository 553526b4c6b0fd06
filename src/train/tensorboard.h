// EventWriter: a TensorBoard event file of scalars, made from the lines of metrics.jsonl.
//
// Records in TFRecord framing (length, masked CRC-32C of it, data, masked CRC-32C of that), each an
// Event message of tensorflow/core/util/event.proto with one simple_value per tag. The file is
// written anew at every start from the lines that are kept, so it always tells what metrics.jsonl
// does.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "io/json.h"

namespace hadal::train {

class EventWriter {
 public:
  // Begins PATH; its directory is made.
  explicit EventWriter(const std::string& path);
  EventWriter(const EventWriter&) = delete;
  EventWriter& operator=(const EventWriter&) = delete;
  ~EventWriter();

  // The scalars of a line; lines without any (events of the run) are left out.
  void add(const io::Json& line);

 private:
  void write_record(std::string_view data);

  std::string path_;
  int fd_;
};

// CRC-32C (Castagnoli), as TFRecord masks it.
uint32_t masked_crc32c(std::string_view data);

}  // namespace hadal::train
