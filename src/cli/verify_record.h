// Recording: a golden file in the making, filled by the calls that compare with one.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "io/safetensors.h"

namespace hadal::cli {

class Recording {
 public:
  // Random ids [sequences, tokens], and the start of a greedy continuation [1, tokens]. REQUIRES:
  // more tokens than a prompt of a golden has.
  Recording(int64_t sequences, int64_t tokens, int64_t vocab_size, uint64_t seed);
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  const io::StoredTensor* find(const std::string& key) const;
  // The first tensor of a name is kept, and takes the place of what there was at the start.
  void add(const std::string& key, const Tensor& tensor);
  void write(const std::string& path) const;

 private:
  struct Entry {
    std::vector<std::byte> bytes;
    io::StoredTensor tensor;
    bool is_result;
  };
  void put(const std::string& key, const Tensor& tensor, bool is_result);

  std::map<std::string, Entry> entries_;
};

}  // namespace hadal::cli
