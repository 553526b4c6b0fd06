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

// Elements [begin, begin + count) of what a slice has of a parameter.
struct Piece {
  Slice slice;
  int64_t begin = 0, count = 0;
};

// Calls fn(element of the whole parameter, place in the piece, count) for each run of elements that
// the piece has of [from, to) of the whole.
template <class Fn>
void for_each_run(const Piece& p, int64_t from, int64_t to, Fn fn) {
  const Slice& s = p.slice;
  const auto clipped = [&](int64_t at, int64_t place, int64_t count) {
    const int64_t begin = std::max(at, from), end = std::min(at + count, to);
    if (begin < end) fn(begin, place + begin - at, end - begin);
  };
  if (s.width == s.row) return clipped(s.offset + p.begin, 0, p.count);
  const int64_t first = std::max(p.begin / s.width, from / s.row);
  const int64_t last = std::min((p.begin + p.count - 1) / s.width, (to - 1) / s.row);
  for (int64_t row = first; row <= last; ++row) {
    const int64_t begin = std::max(p.begin, row * s.width);
    const int64_t end = std::min(p.begin + p.count, (row + 1) * s.width);
    clipped(s.whole_of(begin), begin - p.begin, end - begin);
  }
}

// A piece of a parameter's moment in a file.
struct StoredPiece {
  int64_t begin = 0, first_column = 0, num_columns = 0;  // num_columns 0: all
  const io::StoredTensor* tensor = nullptr;
  bool is_whole = false;

  Piece of(const Shape& shape) const {
    const int64_t row = shape[shape.rank - 1];
    return {.slice = {.offset = 0,
                      .row = row,
                      .first = first_column,
                      .width = num_columns == 0 ? row : num_columns},
            .begin = begin,
            .count = tensor->num_elements()};
  }
  bool fits(const Shape& shape) const {
    if (is_whole)
      return tensor->shape == io::StoredShape(shape.dims.begin(), shape.dims.begin() + shape.rank);
    const int64_t n = shape.num_elements(), row = shape[shape.rank - 1];
    const int64_t of_slice = num_columns == 0 ? n : n / row * num_columns;
    return tensor->shape.size() == 1 && first_column + num_columns <= row &&
           begin + tensor->num_elements() <= of_slice;
  }
};

// Two numbers "begin:end" between `open` and ']' at the end of `text`, which are cut off.
bool take_range(std::string& text, const std::string& open, int64_t* begin, int64_t* end) {
  const size_t at = text.rfind('[');
  if (at == std::string::npos || text.back() != ']' || text.compare(at, open.size(), open) != 0)
    return false;
  const char* last = text.data() + text.size();
  const auto first = std::from_chars(text.data() + at + open.size(), last, *begin);
  if (first.ec != std::errc() || *first.ptr != ':') return false;
  const auto second = std::from_chars(first.ptr + 1, last, *end);
  if (second.ec != std::errc() || *second.ptr != ']' || *begin < 0 || *end < *begin) return false;
  text.resize(at);
  return true;
}

// "m.wo[:,8:16][64:192]": the piece, and the name before the brackets.
std::pair<std::string, StoredPiece> parse_key(const std::string& key,
                                              const io::StoredTensor* tensor) {
  StoredPiece piece{.tensor = tensor};
  std::string name = key;
  int64_t end = 0;
  piece.is_whole = !take_range(name, "[", &piece.begin, &end);
  if (!piece.is_whole && take_range(name, "[:,", &piece.first_column, &end))
    piece.num_columns = end - piece.first_column;
  return {name, piece};
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
        const auto [name, piece] = parse_key(key, &tensor);
        pieces_[name].push_back(piece);
      }
    }
  }

  void check_known(const std::set<std::string>& wanted) const {
    for (const auto& [name, pieces] : pieces_)
      HADAL_CHECK(wanted.contains(name), pieces[0].tensor->file, ": tensor ", name,
                  " is not of this run's model", kFix);
  }

  // A piece of `name`, a parameter of `shape`, to the dense tensor `to` [n].
  void read(Context& ctx, const std::string& name, const Shape& shape, const Piece& wanted,
            const Tensor& to) const {
    const auto found = pieces_.find(name);
    if (found == pieces_.end()) files_.front().at(name);  // an Error
    const auto size = static_cast<int64_t>(dtype_size(to.dtype()));
    int64_t read = 0;
    for (const StoredPiece& piece : found->second) {
      check(piece, shape, to.dtype());
      for_each_run(wanted, 0, shape.num_elements(), [&](int64_t at, int64_t place, int64_t count) {
        for_each_run(piece.of(shape), at, at + count, [&](int64_t from, int64_t stored, int64_t n) {
          upload(ctx, piece.tensor->data + stored * size, to.rows(place + from - at, n));
          read += n;
        });
      });
    }
    HADAL_CHECK(read == wanted.count, files_.front().path(), ": of ", name, ", ",
                wanted.count - read,
                " elements are missing or there twice; resume from another checkpoint");
  }

 private:
  static void check(const StoredPiece& piece, const Shape& shape, DType dtype) {
    const io::StoredTensor& t = *piece.tensor;
    HADAL_CHECK(t.type == io::to_stored_type(dtype) && piece.fits(shape), t.file, ": tensor ",
                t.name, " is ", io::stored_type_name(t.type), " ", io::shape_text(t.shape),
                ", this run needs ", dtype_name(dtype), " ", shape.str(), kFix);
  }

  std::list<io::SafetensorsFile> files_;
  std::map<std::string, std::vector<StoredPiece>> pieces_;
};

struct Moment {
  const char* prefix;
  ParamStore& store;
};

// Calls visit(info of the whole model, piece, tensor) for what a rank has of its moments.
template <class Visit>
void for_each_piece(const Config& model, Learner& learner, const ParamStore& store, Visit visit) {
  const Share tensor = learner.team().share().tensor;
  std::map<std::string, ParamInfo> infos;
  for_each_param(model, [&](const ParamInfo& info) { infos.emplace(info.name, info); });
  store.for_each_piece(
      learner.config(), [&](const ParamInfo& held, int64_t begin, const Tensor& data) {
        const ParamInfo& info = infos.at(held.name);
        visit(info,
              Piece{.slice = slice_of(info, tensor), .begin = begin, .count = data.num_elements()},
              data);
      });
}

std::string key_of(const std::string& name, const Piece& piece) {
  const Slice& s = piece.slice;
  const int64_t begin = s.offset + piece.begin;
  const std::string columns =
      s.width == s.row ? "" : concat("[:,", s.first, ":", s.first + s.width, "]");
  return concat(name, columns, "[", begin, ":", begin + piece.count, "]");
}

}  // namespace

OptimizerPart optimizer_part(const Config& model, Learner& learner, HostCopies* copies) {
  Team& team = learner.team();
  OptimizerPart part;
  part.file = io::part_name(kStem, static_cast<size_t>(team.rank()),
                            static_cast<size_t>(team.mesh().num_ranks()));
  for (const Moment& moment :
       {Moment{"m.", learner.first_moment()}, Moment{"v.", learner.second_moment()}})
    for_each_piece(model, learner, moment.store,
                   [&](const ParamInfo& info, const Piece& piece, const Tensor& data) {
                     if (info.name == "embed" && team.embed_is_copy()) return;
                     const Tensor copy =
                         copies == nullptr ? data : copies->keep(learner.context(), data);
                     const std::string name = moment.prefix + info.name;
                     part.tensors.push_back(piece.count == info.shape.num_elements()
                                                ? io::source_of(name, copy.view(info.shape))
                                                : io::source_of(key_of(name, piece), copy));
                   });
  return part;
}

void load_optimizer_state(const std::string& dir, const Config& model, Learner& learner) {
  const Stored stored(dir);
  std::set<std::string> wanted;
  for_each_param(model, [&](const ParamInfo& info) {
    if (!info.trained()) return;
    wanted.insert("m." + info.name);
    wanted.insert("v." + info.name);
  });
  for (const Moment& moment :
       {Moment{"m.", learner.first_moment()}, Moment{"v.", learner.second_moment()}})
    for_each_piece(model, learner, moment.store,
                   [&](const ParamInfo& info, const Piece& piece, const Tensor& data) {
                     stored.read(learner.context(), moment.prefix + info.name, info.shape, piece,
                                 data);
                   });
  stored.check_known(wanted);
}

}  // namespace hadal::train
