// Time of each op on the GPU.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "ops/cuda/profile.h"

namespace hadal::ops::cuda {
namespace {

class Profile {
 public:
  ~Profile() {
    flush();
    std::vector<std::pair<std::string, Total>> rows(totals_.begin(), totals_.end());
    std::sort(rows.begin(), rows.end(),
              [](const auto& a, const auto& b) { return a.second.ms > b.second.ms; });
    std::fprintf(stderr, "%10s %9s %10s  op\n", "ms", "launches", "us each");
    for (const auto& [op, total] : rows)
      std::fprintf(stderr, "%10.3f %9ld %10.2f  %s\n", total.ms, total.count,
                   1e3 * total.ms / static_cast<double>(total.count), op.c_str());
  }

  void mark(const char* op, cudaStream_t stream) {
    if (marks_.empty()) marks_.push_back({"", stream, record(stream)});
    marks_.push_back({op, stream, record(stream)});
    if (marks_.size() > kMost) flush();
  }

 private:
  static constexpr size_t kMost = 4096;
  struct Mark {
    const char* op;
    cudaStream_t stream;
    cudaEvent_t event;
  };
  struct Total {
    double ms = 0;
    long count = 0;
  };

  static cudaEvent_t record(cudaStream_t stream) {
    cudaEvent_t event = nullptr;
    cudaEventCreate(&event);
    cudaEventRecord(event, stream);
    return event;
  }
  void flush() {
    for (size_t i = 1; i < marks_.size(); ++i) {
      float ms = 0;
      cudaEventSynchronize(marks_[i].event);
      if (cudaEventElapsedTime(&ms, marks_[i - 1].event, marks_[i].event) != cudaSuccess) continue;
      Total& total = totals_[marks_[i].op];
      total.ms += static_cast<double>(ms);
      ++total.count;
    }
    for (const Mark& mark : marks_) cudaEventDestroy(mark.event);
    marks_.clear();
  }

  std::vector<Mark> marks_;
  std::map<std::string, Total> totals_;
};

}  // namespace

void profile_launch(const char* op, cudaStream_t stream) {
  static Profile profile;
  profile.mark(op, stream);
}

}  // namespace hadal::ops::cuda
