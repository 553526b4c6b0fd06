// Optimizer state: pieces of parameters to files, and pieces of other cuts back.
// SPDX-License-Identifier: Apache-2.0
#include "train/optimizer_state.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <list>
#include <map>
#include <set>
#include <vector>

#include "core/check.h"
#include "core/transfer.h"
#include "io/safetensors.h"

namespace hadal::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kStem = "optimizer";
constexpr const char* kFix = "; resume with the config that wrote it";

// Elements [begin, begin + count) of a parameter's moment, in a file.
struct StoredPiece {
  int64_t begin = 0;
  const io::StoredTensor* tensor = nullptr;
  int64_t end() const { return begin + tensor->num_elements(); }
};

// "m.embed[64:192]": the name before the bracket, and 64; 0 and the whole name without one.
std::pair<std::string, int64_t> parse_key(const std::string& key) {
  const size_t open = key.rfind('[');
  if (open == std::string::npos || key.back() != ']') return {key, 0};
  int64_t begin = 0;
  const auto [end, error] = std::from_chars(key.data() + open + 1, key.data() + key.size(), begin);
  if (error != std::errc() || *end != ':') return {key, 0};
  return {key.substr(0, open), begin};
}

class Stored {
 public:
  explicit Stored(const std::string& dir) {
    std::vector<std::string> paths;
    for (const auto& entry : fs::directory_iterator(dir)) {
      const std::string name = entry.path().filename();
      if (name.starts_with(kStem) && name.ends_with(".safetensors")) paths.push_back(entry.path());
    }
    std::sort(paths.begin(), paths.end());
    if (paths.empty()) paths.push_back(dir + "/" + io::part_name(kStem, 0, 1));
    for (const std::string& path : paths) {
      const io::SafetensorsFile& file = files_.emplace_back(path);
      for (const auto& [key, tensor] : file.tensors()) {
        const auto [name, begin] = parse_key(key);
        pieces_[name].push_back({.begin = begin, .tensor = &tensor});
      }
    }
  }

  void check_known(const std::set<std::string>& wanted) const {
    for (const auto& [name, pieces] : pieces_)
      HADAL_CHECK(wanted.contains(name), pieces[0].tensor->file, ": tensor ", name,
                  " is not of this run's model", kFix);
  }

  // Elements [begin, begin + n) of `name`, a parameter of `shape`, to the dense tensor `to` [n].
  void read(Context& ctx, const std::string& name, const Shape& shape, int64_t begin,
            const Tensor& to) const {
    const auto found = pieces_.find(name);
    if (found == pieces_.end()) files_.front().at(name);  // an Error
    const int64_t count = to.num_elements();
    int64_t read = 0;
    for (const StoredPiece& piece : found->second) {
      check(piece, name, shape, to.dtype());
      const FlatRange part = intersect({.begin = begin, .count = count},
                                       {.begin = piece.begin, .count = piece.end() - piece.begin});
      if (part.count == 0) continue;
      const auto size = static_cast<int64_t>(dtype_size(to.dtype()));
      upload(ctx, piece.tensor->data + (part.begin - piece.begin) * size,
             to.rows(part.begin - begin, part.count));
      read += part.count;
    }
    HADAL_CHECK(read == count, files_.front().path(), ": of ", name, ", ", count - read,
                " elements are missing or there twice; resume from another checkpoint");
  }

 private:
  static void check(const StoredPiece& piece, const std::string& name, const Shape& shape,
                    DType dtype) {
    const io::StoredTensor& t = *piece.tensor;
    const bool whole = t.name == name;
    const io::StoredShape want(shape.dims.begin(), shape.dims.begin() + shape.rank);
    HADAL_CHECK(
        t.type == io::to_stored_type(dtype) &&
            (whole ? t.shape == want : t.shape.size() == 1 && piece.end() <= shape.num_elements()),
        t.file, ": tensor ", t.name, " is ", io::stored_type_name(t.type), " ",
        io::shape_text(t.shape), ", this run needs ", dtype_name(dtype), " ", shape.str(), kFix);
  }

  std::list<io::SafetensorsFile> files_;
  std::map<std::string, std::vector<StoredPiece>> pieces_;
};

struct Moment {
  const char* prefix;
  ParamStore& store;
};

}  // namespace

void save_optimizer_state(const std::string& dir, Learner& learner) {
  Team& team = learner.team();
  std::list<HostRead> copies;
  std::vector<io::TensorSource> tensors;
  for (const Moment& moment :
       {Moment{"m.", learner.first_moment()}, Moment{"v.", learner.second_moment()}})
    moment.store.for_each_piece(learner.config(), [&](const ParamInfo& info, int64_t begin,
                                                      const Tensor& piece) {
      if (info.name == "embed" && team.embed_is_copy()) return;
      const HostRead& host = copies.emplace_back(learner.context(), piece);
      const int64_t n = piece.num_elements();
      if (n == info.shape.num_elements())
        tensors.push_back(io::source_of(moment.prefix + info.name, host.tensor().view(info.shape)));
      else
        tensors.push_back(io::source_of(
            concat(moment.prefix, info.name, "[", begin, ":", begin + n, "]"), host.tensor()));
    });
  const auto rank = static_cast<size_t>(team.rank());
  const auto num_ranks = static_cast<size_t>(team.mesh().num_ranks());
  io::write_safetensors(dir + "/" + io::part_name(kStem, rank, num_ranks), std::move(tensors));
}

void load_optimizer_state(const std::string& dir, Learner& learner) {
  const Stored stored(dir);
  std::set<std::string> wanted;
  for_each_param(learner.config(), [&](const ParamInfo& info) {
    if (!info.trained()) return;
    wanted.insert("m." + info.name);
    wanted.insert("v." + info.name);
  });
  for (const Moment& moment :
       {Moment{"m.", learner.first_moment()}, Moment{"v.", learner.second_moment()}})
    moment.store.for_each_piece(
        learner.config(), [&](const ParamInfo& info, int64_t begin, const Tensor& piece) {
          stored.read(learner.context(), moment.prefix + info.name, info.shape, begin, piece);
        });
  stored.check_known(wanted);
}

}  // namespace hadal::train
