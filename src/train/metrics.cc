// Metrics: JSON lines and the progress bar.
// SPDX-License-Identifier: Apache-2.0
#include "train/metrics.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <numbers>

#include "core/check.h"
#include "io/atomic.h"

namespace hadal::train {
namespace {

constexpr double kSmooth = 0.05;      // weight of the newest step in the average step time
constexpr double kShowEvery = 0.25;   // seconds between redraws of the bar
constexpr double kPlainEvery = 10.0;  // seconds between lines where stdout is not a terminal

std::string duration(double seconds) {
  const auto s = static_cast<int64_t>(seconds + 0.5);
  return s >= 3600 ? fmt::format("{}h{:02}m", s / 3600, s / 60 % 60)
                   : fmt::format("{}m{:02}s", s / 60, s % 60);
}

// Keeps the lines whose "step" is at most last_step; a damaged last line (from a crash) goes too.
void cut_after(const std::string& path, int64_t last_step) {
  if (!std::filesystem::exists(path)) return;
  const std::string text = io::read_file(path, std::numeric_limits<size_t>::max());
  std::string kept;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;
    const auto line = io::Json::parse(text.substr(begin, end - begin), nullptr, false);
    if (line.is_object() && line.contains("step") && line["step"].is_number_integer() &&
        line["step"].get<int64_t>() <= last_step)
      kept.append(text, begin, end + 1 - begin);
    begin = end + 1;
  }
  io::write_file_atomic(path, kept);
}

}  // namespace

Metrics::Metrics(std::string path, int64_t last_step, int64_t num_steps)
    : path_(std::move(path)),
      first_step_(last_step),
      num_steps_(num_steps),
      terminal_(isatty(STDOUT_FILENO) != 0) {
  cut_after(path_, last_step);
  fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  HADAL_CHECK(fd_ >= 0, "cannot write ", path_, ": ", io::errno_text());
}

Metrics::~Metrics() {
  end_line();
  close(fd_);
}

void Metrics::write(const io::Json& line) {
  const std::string text = line.dump() + "\n";
  HADAL_CHECK(io::write_all(fd_, text.data(), text.size()), "cannot write ", path_, ": ",
              io::errno_text(), "; free some space, then --resume");
}

void Metrics::step(int64_t step, const StepResult& r, const Recipe& recipe, int64_t tokens,
                   double bytes_per_token) {
  const double seconds = since_last_.seconds();
  since_last_ = Timer();
  average_step_seconds_ = average_step_seconds_ == 0.0
                              ? seconds
                              : (1.0 - kSmooth) * average_step_seconds_ + kSmooth * seconds;
  const double bits = r.main / std::numbers::ln2 / bytes_per_token;
  io::Json line = {{"step", step},
                   {"loss", r.main},
                   {"bits_per_byte", bits},
                   {"mtp_loss", r.mtp},
                   {"balance_loss", r.balance},
                   {"grad_norm", r.grad_norm},
                   {"lr", recipe.lr},
                   {"max_violation", r.max_violation()},
                   {"tokens", tokens},
                   {"expert_counts", r.counts},
                   {"time",
                    {{"seconds", run_.seconds()},
                     {"tokens_per_second", static_cast<double>(tokens) / seconds}}}};
  write(line);
  show(step, r, bits, static_cast<double>(tokens) / average_step_seconds_);
}

void Metrics::show(int64_t step, const StepResult& r, double bits_per_byte,
                   double tokens_per_second) {
  const double now = run_.seconds();
  const bool last = step == num_steps_;
  if (!last && now - last_shown_ < (terminal_ ? kShowEvery : kPlainEvery)) return;
  last_shown_ = now;
  const double eta = average_step_seconds_ * static_cast<double>(num_steps_ - step);
  const std::string text = fmt::format(
      "step {}/{}  loss {:.3f}  bits/byte {:.3f}  MaxVio {:.2f}  {:.0f} tokens/s  {} left", step,
      num_steps_, r.main, bits_per_byte, r.max_violation(), tokens_per_second, duration(eta));
  if (terminal_) {
    constexpr int64_t kWidth = 24;
    const int64_t full = kWidth * step / std::max<int64_t>(1, num_steps_);
    fmt::print("\r[{}{}] {}\x1b[K", std::string(static_cast<size_t>(full), '#'),
               std::string(static_cast<size_t>(kWidth - full), '.'), text);
    line_open_ = true;
  } else {
    fmt::print("{}\n", text);
  }
  std::fflush(stdout);
}

void Metrics::evaluation(int64_t step, double loss, double bits_per_byte,
                         const std::vector<double>& mtp, double max_violation) {
  write({{"step", step},
         {"held_out_loss", loss},
         {"held_out_bits_per_byte", bits_per_byte},
         {"held_out_mtp_loss", mtp},
         {"held_out_max_violation", max_violation}});
  end_line();
  fmt::print("step {}: held out: loss {:.4f}, {:.4f} bits per byte, MaxVio {:.2f}\n", step, loss,
             bits_per_byte, max_violation);
  std::fflush(stdout);
}

void Metrics::end_line() {
  if (line_open_) fmt::print("\n");
  line_open_ = false;
}

}  // namespace hadal::train
