// DecoderCall: to words and back.
// SPDX-License-Identifier: Apache-2.0
#include "model/decoder_call.h"

#include <limits>
#include <utility>

#include "core/check.h"

namespace hadal {

void WordWriter::put(int64_t value) {
  HADAL_CHECK(
      value >= std::numeric_limits<int32_t>::min() && value <= std::numeric_limits<int32_t>::max(),
      "internal error: ", value, " does not fit a word for other ranks");
  words_.push_back(static_cast<int32_t>(value));
}
void WordWriter::put64(uint64_t value) {
  words_.push_back(static_cast<int32_t>(value >> 32));
  words_.push_back(static_cast<int32_t>(value));
}
void WordWriter::put_list(const std::vector<int64_t>& values) {
  put(static_cast<int64_t>(values.size()));
  for (const int64_t value : values) put(value);
}
void WordWriter::put_list(const std::vector<int32_t>& values) {
  put(static_cast<int64_t>(values.size()));
  words_.insert(words_.end(), values.begin(), values.end());
}

int64_t WordReader::get() {
  HADAL_CHECK(next_ < words_.size(), "internal error: what a rank announced ends after ",
              words_.size(), " words");
  return words_[next_++];
}
uint64_t WordReader::get64() {
  const auto high = static_cast<uint32_t>(get()), low = static_cast<uint32_t>(get());
  return uint64_t{high} << 32 | low;
}
size_t WordReader::count() {
  const int64_t n = get();
  HADAL_CHECK(n >= 0 && static_cast<size_t>(n) <= words_.size() - next_,
              "internal error: a list of ", n, " in an announcement of ", words_.size(), " words");
  return static_cast<size_t>(n);
}
void WordReader::check_end() const {
  HADAL_CHECK(next_ == words_.size(), "internal error: ", words_.size() - next_,
              " words too many in what a rank announced");
}

std::vector<int32_t> DecoderCall::words() const {
  WordWriter out;
  out.put(static_cast<int64_t>(kind));
  for (const int64_t value :
       {limits.max_seqs, limits.max_tokens, limits.max_step_tokens, limits.num_mtp,
        limits.num_pages, static_cast<int64_t>(limits.cache), module, num_rows, from, to, home})
    out.put(value);
  out.put_list(ids);
  out.put_list(starts);
  out.put_list(lengths);
  for (const auto& list : pages) out.put_list(list);
  out.put_list(homes);
  return out.take();
}

DecoderCall DecoderCall::of(const std::vector<int32_t>& words) {
  WordReader in(words);
  DecoderCall call;
  const int64_t kind = in.get();
  HADAL_CHECK(kind >= 0 && kind < static_cast<int64_t>(DecoderCallKind::kFirstOther),
              "internal error: a rank announced ", kind, ", which is no call of a decoder");
  call.kind = static_cast<DecoderCallKind>(kind);
  DecoderLimits& l = call.limits;
  for (int64_t* value : {&l.max_seqs, &l.max_tokens, &l.max_step_tokens, &l.num_mtp, &l.num_pages})
    *value = in.get();
  l.cache = static_cast<CacheFormat>(in.get());
  for (int64_t* value : {&call.module, &call.num_rows, &call.from, &call.to, &call.home})
    *value = in.get();
  call.ids = in.get_list<int32_t>();
  call.starts = in.get_list<int64_t>();
  call.lengths = in.get_list<int64_t>();
  for (size_t s = 0; s < call.starts.size(); ++s) call.pages.push_back(in.get_list<int64_t>());
  call.homes = in.get_list<int64_t>();
  in.check_end();
  return call;
}

}  // namespace hadal
