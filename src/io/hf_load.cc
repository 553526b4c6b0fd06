// Opening of a checkpoint directory, and loading and decoding of its weights.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <optional>
#include <set>
#include <utility>

#include "core/bulk_upload.h"
#include "core/check.h"
#include "core/panels.h"
#include "core/transfer.h"
#include "io/drop_pages.h"
#include "io/fp8.h"
#include "io/hf.h"
#include "io/hf_names.h"
#include "io/hf_part.h"
#include "io/int_weights.h"

namespace hadal::io {

namespace {

constexpr int64_t kTaskElements = int64_t{1} << 20;  // decoded by one task
constexpr const char* kFix = "; correct config.json, or use the files that belong to it";

StoredShape stored(const Shape& shape) {
  return {shape.dims.begin(), shape.dims.begin() + shape.rank};
}

void check_shape(const StoredTensor& tensor, const Shape& shape) {
  HADAL_CHECK(tensor.shape == stored(shape), tensor.file, ": tensor ", tensor.name,
              " has the shape ", shape_text(tensor.shape), "; config.json asks for ", shape.str(),
              kFix);
}

// A matrix of integers (int_weights.h) that takes the place of `name`, or none.
std::optional<HfParam> find_int_param(const HfCheckpoint& checkpoint, const std::string& name,
                                      const ParamInfo& info,
                                      std::set<std::string, std::less<>>& used) {
  if (info.shape.rank != 2 || !name.ends_with(".weight")) return std::nullopt;
  const StoredTensor* packed = checkpoint.files.find(name + "_packed");
  if (packed == nullptr) return std::nullopt;
  const auto part = [&](const char* suffix, StoredType type) {
    const StoredTensor* tensor = checkpoint.files.find(name + suffix);
    HADAL_CHECK(tensor != nullptr, packed->file, ": tensor ", packed->name, " is there, but ", name,
                suffix, " is missing; convert the checkpoint again");
    HADAL_CHECK(tensor->type == type && tensor->is_aligned(), tensor->file, ": tensor ",
                tensor->name, " is ", stored_type_name(tensor->type), "; aligned ",
                stored_type_name(type), " is needed");
    used.insert(tensor->name);
    return tensor;
  };
  const StoredTensor *scale = part("_scale", StoredType::kBF16),
                     *shape = part("_shape", StoredType::kI64);
  part("_packed", StoredType::kI32);
  check_shape(*scale, int_scale_shape(info.shape));
  check_shape(*shape, {2});
  int64_t dims[2];
  std::memcpy(dims, shape->data, sizeof(dims));
  HADAL_CHECK(dims[0] == info.shape[0] && dims[1] == info.shape[1], shape->file, ": tensor ",
              shape->name, " says [", dims[0], ", ", dims[1], "]; config.json asks for ",
              info.shape.str(), kFix);
  if (packed->shape != stored(packed_shape(info.shape, 8)))
    check_shape(*packed, packed_shape(info.shape, 4));
  return HfParam{info, packed, scale};
}

bool is_int(const HfParam& param) { return param.data->type == StoredType::kI32; }

// Finds a parameter and its scales.
HfParam find_param(const HfCheckpoint& checkpoint, const std::string& dir, ParamInfo info,
                   std::set<std::string, std::less<>>& used) {
  const std::string name = hf_name(checkpoint.config, info.name);
  const StoredTensor* data = checkpoint.files.find(name);
  if (data == nullptr)
    if (std::optional<HfParam> param = find_int_param(checkpoint, name, info, used)) return *param;
  HADAL_CHECK(data != nullptr, dir, ": tensor ", name, " ", info.shape.str(),
              " is missing; download the checkpoint again, or correct config.json");
  used.insert(name);
  check_shape(*data, info.shape);
  HfParam param{std::move(info), data, nullptr};
  const StoredType type = data->type;
  if (type == StoredType::kE4M3) {
    HADAL_CHECK(checkpoint.quantization.fp8 && param.info.shape.rank == 2, data->file, ": tensor ",
                name, " is F8_E4M3, but config.json has no quantization_config for it; add it");
    const std::string scale_name = name + "_scale_inv";
    param.scale = checkpoint.files.find(scale_name);
    HADAL_CHECK(param.scale != nullptr, data->file, ": tensor ", name, " is F8_E4M3, but ",
                scale_name, " is missing; download the checkpoint again");
    used.insert(scale_name);
    check_shape(*param.scale, scale_shape(param.info.shape));
    HADAL_CHECK(param.scale->type == StoredType::kF32, param.scale->file, ": tensor ", scale_name,
                " is ", stored_type_name(param.scale->type), "; F32 is needed");
    return param;
  }
  HADAL_CHECK(type == StoredType::kF32 || type == StoredType::kBF16 || type == StoredType::kF16 ||
                  type == StoredType::kF64,
              data->file, ": tensor ", name, " is ", stored_type_name(type),
              "; F32, BF16, F16, F64 or F8_E4M3 is needed");
  return param;
}

// A tensor that repeats another: same type and bytes, or absent.
void check_copy(const HfCheckpoint& checkpoint, const std::string& name,
                const std::string& original, std::set<std::string, std::less<>>& used) {
  const StoredTensor* copy = checkpoint.files.find(name);
  const StoredTensor* shared = checkpoint.files.find(original);
  if (copy == nullptr || shared == nullptr) return;
  used.insert(name);
  HADAL_CHECK(
      copy->type == shared->type && copy->shape == shared->shape &&
          std::memcmp(copy->data, shared->data, copy->bytes) == 0,
      copy->file, ": tensor ", name, " differs from ", original,
      ", which the model shares with it; hadal needs them equal: choose another checkpoint");
}

void check_copies(const HfCheckpoint& checkpoint, std::set<std::string, std::less<>>& used) {
  const Config& config = checkpoint.config;
  const std::string embed = hf_name(config, "embed"), lm_head = hf_name(config, "head");
  const std::string& head = config.tie_word_embeddings ? embed : lm_head;
  if (config.tie_word_embeddings) check_copy(checkpoint, lm_head, embed, used);
  for (int64_t k = 0; k < config.num_nextn_predict_layers; ++k) {
    check_copy(checkpoint, hf_mtp_embed_name(config, k), embed, used);
    check_copy(checkpoint, hf_mtp_head_name(config, k), head, used);
  }
}

bool starts_with_any(const std::string& name, const std::vector<std::string>& prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&](const std::string& prefix) { return name.starts_with(prefix); });
}

// Every MTP module of the config has tensors; names the way out where none has.
void check_mtp_present(const HfCheckpoint& checkpoint, const std::string& dir) {
  const Config& config = checkpoint.config;
  for (int64_t k = 0; k < config.num_nextn_predict_layers; ++k) {
    const std::string prefix = hf_mtp_prefix(config, k);
    const auto it = checkpoint.files.tensors().lower_bound(prefix);
    HADAL_CHECK(it != checkpoint.files.tensors().end() && it->first.starts_with(prefix), dir,
                ": config.json has num_nextn_predict_layers = ", config.num_nextn_predict_layers,
                ", but the files hold no ", prefix, "* tensors; set num_nextn_predict_layers to ",
                k, " to load the checkpoint without that MTP module");
  }
}

// Tensors that belong to nothing. Modules past those loaded are skipped.
void check_no_extra(const HfCheckpoint& checkpoint, int64_t num_mtp_in_file,
                    const std::set<std::string, std::less<>>& used) {
  const Config& config = checkpoint.config;
  std::vector<std::string> skipped;
  for (int64_t k = config.num_nextn_predict_layers; k < num_mtp_in_file; ++k)
    skipped.push_back(hf_mtp_prefix(config, k));
  for (const auto& [name, tensor] : checkpoint.files.tensors()) {
    if (used.contains(name) || starts_with_any(name, skipped)) continue;
    if (name.ends_with("rotary_emb.inv_freq")) continue;  // a constant that old files repeat
    const bool is_mtp = name.starts_with(hf_mtp_prefix(config, num_mtp_in_file));
    HADAL_CHECK(
        !is_mtp, tensor->file, ": tensor ", name, " belongs to an MTP module, but config.json has ",
        "num_nextn_predict_layers = ", num_mtp_in_file, "; correct num_nextn_predict_layers");
    HADAL_FAIL(tensor->file, ": tensor ", name, " ", shape_text(tensor->shape),
               " does not belong to the model of config.json", kFix);
  }
}

// The type that a parameter takes in memory.
DType target_type(const HfParam& param, WeightFormat format) {
  if (format == WeightFormat::kF64) return DType::kF64;
  const bool is_gate = param.info.name.ends_with("ffn.gate.weight");
  if (param.info.kind == ParamKind::kNorm || param.info.kind == ParamKind::kBuffer || is_gate)
    return DType::kF32;
  switch (format) {
    case WeightFormat::kF32:
    case WeightFormat::kF64:
      return DType::kF32;
    case WeightFormat::kBF16:
      return DType::kBF16;
    case WeightFormat::kKeep:
      if (is_int(param)) return DType::kI32;
      // Only product matrices may stay FP8.
      if (param.scale != nullptr && param.info.kind != ParamKind::kMatrix) return DType::kF32;
      return *to_dtype(param.data->type);
  }
  HADAL_UNREACHABLE("unknown weight format");
}

// A tied head is also the embedding, which is read row by row.
void check_usable(const Context& ctx, const HfCheckpoint& checkpoint, const HfParam& param,
                  DType dtype) {
  if (dtype != DType::kI32) return;
  HADAL_CHECK(ctx.device.kind == DeviceKind::kCpu, param.data->file,
              ": INT8 and INT4 weights run on the CPU only; use --device cpu, or --dtype bf16");
  HADAL_CHECK(param.info.name != "embed" && !param.info.name.ends_with("wkv_b") &&
                  !(checkpoint.config.tie_word_embeddings && param.info.name == "head"),
              param.data->file, ": tensor ", param.data->name,
              " is of integers, which hadal reads for other matrices only; use --dtype bf16");
}

// Integers are packed into panels, so they are read once and kept in other memory.
bool is_usable_in_place(const Context& ctx, const HfParam& param, DType dtype) {
  return ctx.device.kind == DeviceKind::kCpu && to_dtype(param.data->type) == dtype &&
         dtype != DType::kI32 && param.data->is_aligned() &&
         (param.scale == nullptr || param.scale->is_aligned());
}

// Copies bytes of a file, which may be unaligned.
template <class T>
std::vector<T> aligned_copy(const std::byte* from, int64_t count) {
  std::vector<T> copy(static_cast<size_t>(count));
  std::memcpy(copy.data(), from, copy.size() * sizeof(T));
  return copy;
}

// Rows [begin, begin + count) of a part that is not quantised.
void decode_plain(const HfParam& param, const ParamPart& part, const Tensor& out, int64_t begin,
                  int64_t count) {
  const DType type = *to_dtype(param.data->type);
  const size_t size = dtype_size(type), out_size = dtype_size(out.dtype());
  const auto some = [&](int64_t from_element, int64_t to_element, int64_t n) {
    const std::byte* from = param.data->data + static_cast<size_t>(from_element) * size;
    auto* to = static_cast<std::byte*>(out.raw()) + static_cast<size_t>(to_element) * out_size;
    if (param.data->is_aligned()) return convert(from, type, to, out.dtype(), n);
    const auto copy = aligned_copy<std::byte>(from, n * static_cast<int64_t>(size));
    convert(copy.data(), type, to, out.dtype(), n);
  };
  if (part.has_all_columns())
    return some((part.row + begin) * part.cols, begin * part.cols, count * part.cols);
  for (int64_t r = begin; r < begin + count; ++r)
    some((part.row + r) * part.all_cols + part.col, r * part.cols, part.cols);
}

int stored_bits(const HfParam& param) {
  return param.data->shape[1] == packed_shape(param.info.shape, 8)[1] ? 8 : 4;
}

// A part of an integer matrix in panels, in memory of `block`.
Operand pack_int(Context& ctx, const HfParam& param, const ParamPart& part, Block& block) {
  const int bits = stored_bits(param);
  const Shape shape{part.rows, part.cols};
  const Operand to = int_operand(shape, block.tensor(DType::kI32, int_words_shape(shape, bits)),
                                 block.tensor(DType::kBF16, int_scales_shape(shape)));
  const auto columns_of = [&](const Tensor& stored, int64_t each) {
    const Tensor rows = stored.rows(part.row, part.rows);
    return part.has_all_columns() ? rows : rows.cols(part.col / each, part.cols / each);
  };
  const Tensor words = columns_of(param.data->tensor(), 32 / bits);
  pack_int_panels(ctx, part.cols, words, columns_of(param.scale->tensor(), kIntGroup), to);
  // The file's pages would be a second copy in memory.
  drop_pages(static_cast<const std::byte*>(words.raw()),
             static_cast<size_t>(part.rows * words.stride(0)) * sizeof(int32_t));
  return to;
}

// Columns of a decoded row that a part has, into its row r.
void put_row(const std::vector<float>& row, const ParamPart& part, const Tensor& out, int64_t r) {
  convert(row.data() + part.col, DType::kF32,
          static_cast<std::byte*>(out.raw()) +
              static_cast<size_t>(r * part.cols) * dtype_size(out.dtype()),
          out.dtype(), part.cols);
}

// Rows [begin, begin + count) of a part of an integer matrix.
void decode_int(const HfParam& param, const ParamPart& part, const Tensor& out, int64_t begin,
                int64_t count) {
  const int64_t K = param.info.shape[1], words = param.data->shape[1];
  const int64_t groups = param.scale->shape[1];
  const int bits = stored_bits(param);
  const auto* packed = reinterpret_cast<const int32_t*>(param.data->data);
  const auto* scale = reinterpret_cast<const bf16*>(param.scale->data);
  std::vector<float> row(static_cast<size_t>(K));
  for (int64_t r = begin; r < begin + count; ++r) {
    const int64_t n = part.row + r;
    dequantise_int_row(packed + n * words, scale + n * groups, K, bits, row.data());
    put_row(row, part, out, r);
  }
}

// Rows [begin, begin + count) of a part of a block FP8 matrix: element * scale in f32, then rounded
// once.
void decode_fp8(const HfParam& param, const ParamPart& part, const Tensor& out, int64_t begin,
                int64_t count) {
  const int64_t K = param.info.shape[1], blocks = scale_shape(param.info.shape)[1];
  const auto* q = reinterpret_cast<const e4m3*>(param.data->data);
  std::vector<float> row(static_cast<size_t>(K));
  for (int64_t r = begin; r < begin + count; ++r) {
    const int64_t n = part.row + r;
    const std::byte* scale = param.scale->data + 4 * (n / kScaleBlock * blocks);
    block_dequantise_row(q + n * K, aligned_copy<float>(scale, blocks).data(), K, row.data());
    put_row(row, part, out, r);
  }
}

struct Decoding {
  const HfParam* param;
  ParamPart part;
  Tensor out;
  int64_t begin, count;  // rows of the part
};

void decode(const Decoding& d, const Tensor& out) {
  if (is_int(*d.param))
    decode_int(*d.param, d.part, out, d.begin, d.count);
  else if (d.param->scale != nullptr)
    decode_fp8(*d.param, d.part, out, d.begin, d.count);
  else
    decode_plain(*d.param, d.part, out, d.begin, d.count);
}

void add_decodings(const HfParam& param, const ParamPart& part, const Tensor& out,
                   std::vector<Decoding>& list) {
  const int64_t step = std::max<int64_t>(1, kTaskElements / part.all_cols);
  for (int64_t begin = 0; begin < part.rows; begin += step)
    list.push_back({&param, part, out, begin, std::min(step, part.rows - begin)});
}

// Decoded on the host; on a GPU parameter by parameter, in host memory of that one's size.
void run(Context& ctx, const std::vector<Decoding>& list) {
  if (ctx.device.kind != DeviceKind::kCpu) {
    for (size_t i = 0, end = 0; i < list.size(); i = end) {
      HostWrite values(ctx, list[i].out);
      while (end < list.size() && list[end].param == list[i].param) ++end;
      ctx.threads.parallel_for(static_cast<int64_t>(end - i), [&](int64_t task, int) {
        decode(list[i + static_cast<size_t>(task)], values.tensor());
      });
      values.finish();
    }
    return;
  }
  ctx.threads.parallel_for(static_cast<int64_t>(list.size()), [&](int64_t task, int) {
    const Decoding& d = list[static_cast<size_t>(task)];
    decode(d, d.out);
  });
}

}  // namespace

HfCheckpoint open_checkpoint(const std::string& dir, int64_t num_mtp) {
  HfConfig parsed = read_hf_config(dir + "/config.json");
  const int64_t num_mtp_in_file = parsed.config.num_nextn_predict_layers;
  HADAL_CHECK(num_mtp == kAllMtp || (num_mtp >= 0 && num_mtp <= num_mtp_in_file), dir, ": ",
              num_mtp,
              " MTP modules asked for; allowed: 0 to num_nextn_predict_layers = ", num_mtp_in_file);
  if (num_mtp != kAllMtp) parsed.config.num_nextn_predict_layers = num_mtp;
  HfCheckpoint checkpoint{std::move(parsed.config),
                          parsed.quantization,
                          std::move(parsed.ignored),
                          SafetensorsDir(dir),
                          {}};
  check_mtp_present(checkpoint, dir);
  std::set<std::string, std::less<>> used;
  for_each_param(checkpoint.config, [&](const ParamInfo& info) {
    checkpoint.params.push_back(find_param(checkpoint, dir, info, used));
  });
  check_copies(checkpoint, used);
  check_no_extra(checkpoint, num_mtp_in_file, used);
  return checkpoint;
}

namespace {

// A parameter and what this rank loads of it, in the type that it takes.
struct Target {
  const HfParam& param;
  ParamPart part;
  DType dtype;
  bool in_place;  // mapped memory is used as it is: all columns of some rows

  Shape shape() const { return part.shape(param.info.shape.rank); }
  Shape scale_shape() const { return io::scale_shape(shape()); }
};

size_t bytes_of(const Target& t) {
  if (t.dtype == DType::kI32)
    return tensor_bytes(t.dtype, int_words_shape(t.shape(), stored_bits(t.param))) +
           tensor_bytes(DType::kBF16, int_scales_shape(t.shape()));
  if (t.in_place) return 0;
  return tensor_bytes(t.dtype, t.shape()) +
         (t.dtype == DType::kE4M3 ? tensor_bytes(DType::kF32, t.scale_shape()) : 0);
}

Tensor rows_in_place(const StoredTensor& stored, int64_t begin, int64_t count) {
  return stored.shape.size() == 1 ? stored.tensor() : stored.tensor().rows(begin, count);
}

// Blocks of a part's rows and columns.
ParamPart scale_part(const ParamPart& part) {
  const auto blocks = [](int64_t n) { return (n + kScaleBlock - 1) / kScaleBlock; };
  return {.row = part.row / kScaleBlock,
          .rows = blocks(part.rows),
          .col = part.col / kScaleBlock,
          .cols = blocks(part.cols),
          .all_cols = blocks(part.all_cols)};
}

// The bytes of a part of what is stored, in one piece on the host, to a tensor of the same type.
void copy_part(Context& ctx, const StoredTensor& stored, const ParamPart& part, const Tensor& to,
               std::optional<BulkUpload>& link) {
  const size_t size = stored_type_size(stored.type);
  const std::byte* from = stored.data + static_cast<size_t>(part.row * part.all_cols) * size;
  std::vector<std::byte> packed;
  if (!part.has_all_columns()) {
    const auto width = static_cast<size_t>(part.cols) * size;
    packed.resize(static_cast<size_t>(part.rows) * width);
    for (int64_t r = 0; r < part.rows; ++r)
      std::memcpy(packed.data() + static_cast<size_t>(r) * width,
                  from + static_cast<size_t>(r * part.all_cols + part.col) * size, width);
    from = packed.data();
  }
  link ? link->put(from, to) : upload(ctx, from, to);
}

}  // namespace

Block load_weights(Context& ctx, const HfCheckpoint& checkpoint, WeightFormat format, Weights& out,
                   const RankShare& share) {
  const auto target_of = [&](const HfParam& param) {
    const ParamPart part = part_of(param.info, share);
    const DType dtype = target_type(param, format);
    return Target{param, part, dtype,
                  part.has_all_columns() && is_usable_in_place(ctx, param, dtype)};
  };
  const auto is_held = [&](const HfParam& p) { return !share.holds || share.holds(p.info); };
  size_t bytes = 0;
  for (const HfParam& param : checkpoint.params)
    if (is_held(param)) bytes += bytes_of(target_of(param));
  Block block = ctx.memory.take(bytes);
  std::optional<BulkUpload> link;
  if (ctx.device.kind != DeviceKind::kCpu) link.emplace(ctx);
  std::vector<Decoding> decodings;
  const auto load = [&](const HfParam& param, Operand& leaf) {
    const Target t = target_of(param);
    check_usable(ctx, checkpoint, param, t.dtype);
    if (t.dtype == DType::kI32) {
      leaf = pack_int(ctx, param, t.part, block);
      return;
    }
    if (t.in_place) {
      leaf = Operand(rows_in_place(*param.data, t.part.row, t.part.rows));
      const ParamPart blocks = scale_part(t.part);
      if (param.scale != nullptr) leaf.scale = rows_in_place(*param.scale, blocks.row, blocks.rows);
      return;
    }
    leaf = Operand(block.tensor(t.dtype, t.shape()));
    if (t.dtype == DType::kE4M3) {
      leaf.scale = block.tensor(DType::kF32, t.scale_shape());
      copy_part(ctx, *param.data, t.part, leaf.data, link);
      copy_part(ctx, *param.scale, scale_part(t.part), leaf.scale, link);
    } else if (link && to_dtype(param.data->type) == t.dtype && param.scale == nullptr) {
      copy_part(ctx, *param.data, t.part, leaf.data, link);
    } else {
      add_decodings(param, t.part, leaf.data, decodings);
    }
  };
  auto param = checkpoint.params.begin();
  resize(checkpoint.config, out);
  for_each_param(
      checkpoint.config,
      [&](const ParamInfo&, Operand& leaf) {
        if (is_held(*param)) load(*param, leaf);
        ++param;
      },
      out);
  run(ctx, decodings);
  return block;
}

void read_weights(Context& ctx, const HfCheckpoint& checkpoint, ModelParams<Tensor>& tree) {
  std::vector<Decoding> decodings;
  auto param = checkpoint.params.begin();
  for_each_param(
      checkpoint.config,
      [&](const ParamInfo& info, Tensor& leaf) {
        const HfParam& from = *param++;
        if (leaf.empty()) return;
        HADAL_CHECK(leaf.shape() == info.shape && leaf.is_dense(), "tensor for ", info.name, " is ",
                    leaf.str(), "; a dense ", info.shape.str(), " is needed");
        add_decodings(from, part_of(from.info, {}), leaf, decodings);
      },
      tree);
  run(ctx, decodings);
}

}  // namespace hadal::io
