// Hugging Face checkpoints: the goldens load whole, what we save reads back bit for bit, and every
// kind of damage is one sentence.
// SPDX-License-Identifier: Apache-2.0
#include "io/hf.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "core/rng.h"
#include "io/atomic.h"
#include "io/fp8.h"
#include "tests/unit/expect_error.h"

namespace hadal::io {
namespace {

using hadal::testing::TempDir;
namespace fs = std::filesystem;

const std::string kGoldens = "tests/goldens/";

class Hf : public ::testing::Test {
 protected:
  ThreadPool threads_{2};
  Pool pool_;
  Context ctx_{Device{}, Stream{}, threads_, pool_};
  TempDir dir_;

  // A copy of a golden checkpoint whose tensors and config can be changed.
  std::string edited(
      const std::string& golden, const std::function<void(std::vector<TensorSource>&)>& change,
      const std::function<void(Json&)>& change_config = [](Json&) {}) {
    const SafetensorsFile file(kGoldens + golden + "/model.safetensors");
    std::vector<TensorSource> sources;
    for (const auto& [name, tensor] : file.tensors()) {
      TensorSource source{.name = name,
                          .type = tensor.type,
                          .shape = tensor.shape,
                          .data = tensor.data,
                          .fill = {}};
      sources.push_back(source);
    }
    change(sources);
    Json config = read_json(kGoldens + golden + "/config.json");
    change_config(config);
    write_safetensors_dir(dir_.path(), sources, size_t{1} << 40);
    write_json(dir_ / "config.json", config);
    return dir_.path();
  }

  static TensorSource& named(std::vector<TensorSource>& sources, const std::string& name) {
    for (TensorSource& source : sources)
      if (source.name == name) return source;
    HADAL_FAIL("test: no tensor ", name);
  }
  static void erase(std::vector<TensorSource>& sources, const std::string& name) {
    std::erase_if(sources, [&](const TensorSource& source) { return source.name == name; });
  }
};

void write_json_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

void expect_same_file(const SafetensorsFile& a, const SafetensorsFile& b) {
  ASSERT_EQ(a.tensors().size(), b.tensors().size());
  for (const auto& [name, tensor] : a.tensors()) {
    const StoredTensor& other = b.at(name);
    EXPECT_EQ(tensor.type, other.type) << name;
    EXPECT_EQ(tensor.shape, other.shape) << name;
    ASSERT_EQ(tensor.bytes, other.bytes) << name;
    EXPECT_EQ(std::memcmp(tensor.data, other.data, tensor.bytes), 0) << name;
  }
}

TEST_F(Hf, GoldensLoadWhole) {
  for (const char* name : {"base", "odd", "v3_heads"}) {
    const HfCheckpoint checkpoint = open_checkpoint(kGoldens + name);
    EXPECT_TRUE(checkpoint.ignored.empty()) << name;
    EXPECT_EQ(checkpoint.config.num_nextn_predict_layers, 1);
    Weights weights;
    const Block block = load_weights(ctx_, checkpoint, WeightFormat::kKeep, weights);
    EXPECT_EQ(block.size(), 0u) << name;  // all of it used in place
    EXPECT_EQ(weights.embed.data.shape(),
              (Shape{checkpoint.config.vocab_size, checkpoint.config.hidden_size}));
    EXPECT_EQ(weights.head.empty(), checkpoint.config.tie_word_embeddings);
  }
}

// Random damage to a config or an index: an Error or a config, never a crash.
TEST_F(Hf, RandomDamageNeverCrashes) {
  const HfCheckpoint base = open_checkpoint(kGoldens + "base");
  Weights weights;
  const Block block = load_weights(ctx_, base, WeightFormat::kKeep, weights);
  save_checkpoint(dir_.path(), base.config, weights, {.max_shard_bytes = 1'000'000});
  const Rng rng(11, stream_id("damage"));
  uint64_t draw = 0;
  int errors = 0, reads = 0;
  for (const char* name : {"config.json", "model.safetensors.index.json"}) {
    const std::string good = read_file(dir_ / name, 1 << 20);
    for (int round = 0; round < 300; ++round) {
      std::string text = good;
      const size_t at = rng.u64(draw++) % text.size();
      switch (rng.u64(draw++) % 4) {
        case 0:
          text[at] = static_cast<char>(rng.u64(draw++));
          break;
        case 1:
          text[at] = "0123456789{}[]\",:-e."[rng.u64(draw++) % 20];
          break;
        case 2:
          text.erase(at, 1 + rng.u64(draw++) % 20);
          break;
        default:
          text.insert(at, text.substr(rng.u64(draw++) % text.size(), 9));
      }
      write_json_text(dir_ / name, text);
      try {
        open_checkpoint(dir_.path());
        ++reads;
      } catch (const Error&) {
        ++errors;
      }
    }
    write_json_text(dir_ / name, good);
  }
  EXPECT_GT(errors, 300);
  EXPECT_GT(reads, 10);
}

TEST_F(Hf, SavedGoldensAreBitIdentical) {
  for (const char* name : {"base", "odd", "v3_heads"}) {
    const HfCheckpoint checkpoint = open_checkpoint(kGoldens + name);
    Weights weights;
    const Block block = load_weights(ctx_, checkpoint, WeightFormat::kKeep, weights);
    const TempDir out;
    save_checkpoint(out.path(), checkpoint.config, weights,
                    {.dtype = DType::kF32, .quantization = checkpoint.quantization});
    expect_same_file(SafetensorsFile(kGoldens + name + "/model.safetensors"),
                     SafetensorsFile(out / "model.safetensors"));
    EXPECT_TRUE(read_file(kGoldens + name + "/model.safetensors", 1 << 24) ==
                read_file(out / "model.safetensors", 1 << 24))
        << name;
    EXPECT_EQ(read_json(out / "config.json"), read_json(kGoldens + name + "/config.json"));
  }
}

// The sizes, types and names of a model that is trained here, through a tree of owned tensors.
TEST_F(Hf, TrainedTreeRoundTrip) {
  const HfCheckpoint checkpoint = open_checkpoint(kGoldens + "base");
  ModelParams<Tensor> tree;
  resize(checkpoint.config, tree);
  std::vector<Block> blocks;
  for_each_param(
      checkpoint.config,
      [&](const ParamInfo& info, Tensor& leaf) {
        blocks.push_back(pool_.take_tensor(DType::kF32, info.shape, &leaf));
      },
      tree);
  read_weights(ctx_, checkpoint, tree);
  save_checkpoint(dir_.path(), checkpoint.config, tree, {.max_shard_bytes = 300'000});
  const HfCheckpoint again = open_checkpoint(dir_.path());
  EXPECT_GE(again.files.num_files(), 7u);
  const SafetensorsFile before(kGoldens + "base/model.safetensors");
  ASSERT_EQ(again.files.tensors().size(), before.tensors().size());
  for (const auto& [name, tensor] : again.files.tensors())
    EXPECT_EQ(std::memcmp(tensor->data, before.at(name).data, tensor->bytes), 0) << name;
  blocks.clear();
}

TEST_F(Hf, Bf16KeepsBiasesInF32) {
  const HfCheckpoint checkpoint = open_checkpoint(kGoldens + "base");
  Weights weights;
  const Block block = load_weights(ctx_, checkpoint, WeightFormat::kF32, weights);
  save_checkpoint(dir_.path(), checkpoint.config, weights, {.dtype = DType::kBF16});
  EXPECT_EQ(read_json(dir_ / "config.json")["dtype"], "bfloat16");
  const HfCheckpoint half = open_checkpoint(dir_.path());
  for (const HfParam& param : half.params)
    EXPECT_EQ(param.data->type,
              param.info.kind == ParamKind::kBuffer ? StoredType::kF32 : StoredType::kBF16);

  Weights as_bf16, as_f32, as_f64, original;
  const Block b0 = load_weights(ctx_, half, WeightFormat::kBF16, as_bf16);
  const Block b1 = load_weights(ctx_, half, WeightFormat::kF32, as_f32);
  const Block b2 = load_weights(ctx_, half, WeightFormat::kF64, as_f64);
  const Block b3 = load_weights(ctx_, checkpoint, WeightFormat::kF32, original);
  for_each_param(
      half.config,
      [&](const ParamInfo& info, Operand& h, Operand& f, Operand& d, Operand& o) {
        const bool exact = info.kind == ParamKind::kNorm || info.kind == ParamKind::kBuffer ||
                           info.name.ends_with("gate.weight");
        EXPECT_EQ(h.data.dtype(), exact ? DType::kF32 : DType::kBF16) << info.name;
        EXPECT_EQ(f.data.dtype(), DType::kF32);
        EXPECT_EQ(d.data.dtype(), DType::kF64);
        for (int64_t i = 0; i < f.data.num_elements(); ++i) {
          const float source = o.data.data<float>()[i];
          const float want = info.kind == ParamKind::kBuffer ? source : to_f32(to_bf16(source));
          ASSERT_EQ(f.data.data<float>()[i], want) << info.name;
          ASSERT_EQ(d.data.data<double>()[i], static_cast<double>(want)) << info.name;
          ASSERT_EQ(load_element(h.data.raw(), h.data.dtype(), i), static_cast<double>(want));
        }
      },
      as_bf16, as_f32, as_f64, original);
}

TEST_F(Hf, Fp8Decodes) {
  const HfCheckpoint checkpoint = open_checkpoint(kGoldens + "v3_heads");
  Weights kept, decoded, bf16_weights;
  const Block b0 = load_weights(ctx_, checkpoint, WeightFormat::kKeep, kept);
  const Block b1 = load_weights(ctx_, checkpoint, WeightFormat::kF32, decoded);
  const Block b2 = load_weights(ctx_, checkpoint, WeightFormat::kBF16, bf16_weights);
  int quantised = 0;
  for_each_param(
      checkpoint.config,
      [&](const ParamInfo& info, Operand& q, Operand& f, Operand& h) {
        EXPECT_EQ(!q.scale.empty(), info.kind == ParamKind::kMatrix) << info.name;
        if (q.scale.empty()) return;
        ++quantised;
        const int64_t N = info.shape[0], K = info.shape[1];
        for (int64_t n = 0; n < N; ++n)
          for (int64_t k = 0; k < K; ++k) {
            const float scale = q.scale.data<float>()[n / 128 * q.scale.dim(1) + k / 128];
            const float want = to_f32(q.data.data<e4m3>()[n * K + k]) * scale;
            ASSERT_EQ(f.data.data<float>()[n * K + k], want) << info.name;
            ASSERT_EQ(h.data.data<bf16>()[n * K + k].bits, to_bf16(want).bits) << info.name;
          }
      },
      kept, decoded, bf16_weights);
  EXPECT_EQ(quantised, 8 + 2 * (5 + 17 * 3));
}

// Decoded weights, quantised again, are what they were: the largest element of a block is 448.
TEST_F(Hf, Fp8SavesWhatItDecodesTo) {
  const HfCheckpoint checkpoint = open_checkpoint(kGoldens + "v3_heads");
  Weights decoded;
  const Block b0 = load_weights(ctx_, checkpoint, WeightFormat::kF32, decoded);
  for (ScaleFormat format : {ScaleFormat::kF32, ScaleFormat::kPowerOfTwo}) {
    const TempDir out;
    const Quantization quantization{.fp8 = true, .scale_format = format};
    save_checkpoint(out.path(), checkpoint.config, decoded, {.quantization = quantization});
    const HfCheckpoint saved = open_checkpoint(out.path());
    EXPECT_EQ(saved.quantization.scale_format, format);
    Weights again;
    const Block b1 = load_weights(ctx_, saved, WeightFormat::kF32, again);
    for (const HfParam& param : saved.params) {
      if (param.scale == nullptr) continue;
      const auto* scale = reinterpret_cast<const float*>(param.scale->data);
      for (size_t i = 0; i < param.scale->bytes / 4; ++i)
        EXPECT_TRUE(format == ScaleFormat::kF32 || is_power_of_two(scale[i]));
    }
    for_each_param(
        saved.config,
        [&](const ParamInfo& info, Operand& a, Operand& b) {
          for (int64_t i = 0; i < a.data.num_elements(); ++i) {
            const float x = a.data.data<float>()[i], y = b.data.data<float>()[i];
            const float bound =
                info.kind != ParamKind::kMatrix ? 0.0f : std::fabs(x) / 16.0f + 1e-4f;
            ASSERT_LE(std::fabs(x - y), bound) << info.name;
          }
        },
        decoded, again);
    // A second trip changes nothing.
    const TempDir twice;
    save_checkpoint(twice.path(), saved.config, again, {.quantization = quantization});
    if (format == ScaleFormat::kPowerOfTwo) continue;
    Weights third;
    const HfCheckpoint saved_twice = open_checkpoint(twice.path());
    const Block b2 = load_weights(ctx_, saved_twice, WeightFormat::kF32, third);
    for_each_param(
        saved.config,
        [&](const ParamInfo& info, Operand& a, Operand& b) {
          for (int64_t i = 0; i < a.data.num_elements(); ++i)
            ASSERT_NEAR(a.data.data<float>()[i], b.data.data<float>()[i],
                        1e-6f * std::fabs(a.data.data<float>()[i]))
                << info.name;
        },
        again, third);
  }
}

TEST_F(Hf, UnalignedTensorsAreCopied) {
  // A header of a length that is no multiple of 4 puts every f32 at an odd address.
  std::string bytes = read_file(kGoldens + "base/model.safetensors", 1 << 24);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  ++length;
  std::memcpy(bytes.data(), &length, 8);
  bytes.insert(7 + length, 1, ' ');
  write_file_atomic(dir_ / "model.safetensors", bytes);
  fs::copy(kGoldens + "base/config.json", dir_ / "config.json");
  const HfCheckpoint moved = open_checkpoint(dir_.path()),
                     base = open_checkpoint(kGoldens + "base");
  Weights a, b;
  const Block b0 = load_weights(ctx_, moved, WeightFormat::kF32, a);
  const Block b1 = load_weights(ctx_, base, WeightFormat::kF32, b);
  EXPECT_GT(b0.size(), 1'000'000u);
  for_each_param(
      base.config,
      [&](const ParamInfo& info, Operand& x, Operand& y) {
        EXPECT_EQ(std::memcmp(x.data.raw(), y.data.raw(), static_cast<size_t>(x.data.num_bytes())),
                  0)
            << info.name;
      },
      a, b);
}

TEST_F(Hf, MtpModulesCanBeLeftOut) {
  const HfCheckpoint without = open_checkpoint(kGoldens + "base", 0);
  EXPECT_EQ(without.config.num_nextn_predict_layers, 0);
  EXPECT_ERROR(
      open_checkpoint(kGoldens + "base", 2),
      kGoldens + "base: 2 MTP modules asked for; allowed: 0 to num_nextn_predict_layers = 1");
  const std::string dir = edited("base", [](std::vector<TensorSource>& sources) {
    std::erase_if(sources,
                  [](const TensorSource& s) { return s.name.starts_with("model.layers.4."); });
  });
  EXPECT_ERROR(open_checkpoint(dir),
               dir +
                   ": config.json has num_nextn_predict_layers = 1, but the files hold no "
                   "model.layers.4.* tensors; set num_nextn_predict_layers to 0 to load the "
                   "checkpoint without that MTP module");
  EXPECT_EQ(open_checkpoint(dir, 0).config.num_nextn_predict_layers, 0);
}

TEST_F(Hf, MissingExtraAndMisshapenTensors) {
  const std::string file = dir_ / "model.safetensors";
  const std::string o_proj = "model.layers.3.self_attn.o_proj.weight";
  std::string dir = edited("base", [&](auto& sources) { erase(sources, o_proj); });
  EXPECT_ERROR(open_checkpoint(dir), dir + ": tensor " + o_proj +
                                         " [64, 48] is missing; download the checkpoint again, or "
                                         "correct config.json");
  edited("base", [&](auto& sources) { named(sources, o_proj).shape = {48, 64}; });
  EXPECT_ERROR(
      open_checkpoint(dir),
      file + ": tensor " + o_proj +
          " has the shape [48, 64]; config.json asks for [64, 48]; correct config.json, or use "
          "the files that belong to it");
  edited("base", [&](auto& sources) { named(sources, o_proj).type = StoredType::kI32; });
  EXPECT_ERROR(open_checkpoint(dir),
               file + ": tensor " + o_proj + " is I32; F32, BF16, F16, F64 or F8_E4M3 is needed");
  edited("base", [&](auto& sources) {
    sources.push_back(named(sources, o_proj));
    sources.back().name = "model.layers.3.self_attn.o_proj.bias";
  });
  EXPECT_ERROR(open_checkpoint(dir),
               file +
                   ": tensor model.layers.3.self_attn.o_proj.bias [64, 48] does not belong to the "
                   "model of config.json; correct config.json, or use the files that belong to it");
  edited(
      "base", [](auto&) {}, [](Json& config) { config.erase("num_nextn_predict_layers"); });
  EXPECT_ERROR(
      open_checkpoint(dir),
      file +
          ": tensor model.layers.4.eh_proj.weight belongs to an MTP module, but config.json "
          "has num_nextn_predict_layers = 0; correct num_nextn_predict_layers");
  edited("base", [&](auto& sources) {
    sources.push_back(named(sources, "model.norm.weight"));
    sources.back().name = "model.layers.0.self_attn.rotary_emb.inv_freq";
  });
  EXPECT_EQ(open_checkpoint(dir).params.size(), open_checkpoint(kGoldens + "base").params.size());
}

TEST_F(Hf, CopiesMustBeEqual) {
  std::vector<float> other(320 * 64, 1.0f);
  const std::string file = dir_ / "model.safetensors";
  for (const char* part : {"embed_tokens", "shared_head.head"}) {
    const std::string name = concat("model.layers.4.", part, ".weight");
    const std::string shared = part[0] == 'e' ? "model.embed_tokens.weight" : "lm_head.weight";
    edited("base", [&](auto& sources) { named(sources, name).data = other.data(); });
    EXPECT_ERROR(open_checkpoint(dir_.path()),
                 file + ": tensor " + name + " differs from " + shared +
                     ", which the model shares with it; hadal needs them equal: choose another "
                     "checkpoint");
    edited("base", [&](auto& sources) { erase(sources, name); });
    EXPECT_NO_THROW(open_checkpoint(dir_.path()));
  }
  edited("odd", [&](auto& sources) {
    sources.push_back(named(sources, "model.embed_tokens.weight"));
    sources.back().name = "lm_head.weight";
  });
  EXPECT_NO_THROW(open_checkpoint(dir_.path()));
}

TEST_F(Hf, Fp8NeedsScalesAndAConfig) {
  const std::string name = "model.layers.1.mlp.experts.3.up_proj.weight";
  const std::string file = dir_ / "model.safetensors";
  edited("v3_heads", [&](auto& sources) { erase(sources, name + "_scale_inv"); });
  EXPECT_ERROR(open_checkpoint(dir_.path()),
               file + ": tensor " + name + " is F8_E4M3, but " + name +
                   "_scale_inv is missing; download the checkpoint again");
  edited("v3_heads", [&](auto& sources) { named(sources, name + "_scale_inv").shape = {2, 1}; });
  EXPECT_ERROR(
      open_checkpoint(dir_.path()),
      file + ": tensor " + name +
          "_scale_inv has the shape [2, 1]; config.json asks for [1, 2]; correct config.json, "
          "or use the files that belong to it");
  edited("v3_heads",
         [&](auto& sources) { named(sources, name + "_scale_inv").type = StoredType::kI32; });
  EXPECT_ERROR(open_checkpoint(dir_.path()),
               file + ": tensor " + name + "_scale_inv is I32; F32 is needed");
  edited(
      "v3_heads", [](auto&) {}, [](Json& config) { config.erase("quantization_config"); });
  EXPECT_ERROR(open_checkpoint(dir_.path()),
               file +
                   ": tensor model.layers.0.self_attn.q_a_proj.weight is F8_E4M3, but config.json "
                   "has no quantization_config for it; add it");
}

TEST_F(Hf, NoCheckpointThere) {
  EXPECT_ERROR(open_checkpoint(dir_.path()),
               "cannot open " + dir_.path() +
                   "/config.json: No such file or directory; check the "
                   "path");
}

}  // namespace
}  // namespace hadal::io
