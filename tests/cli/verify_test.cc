// hadal verify notices one changed value, and files that do not belong to the model.
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>

#include "io/safetensors.h"
#include "tests/cli/run.h"

namespace hadal::test {
namespace {

using Edit = std::function<void(std::vector<io::TensorSource>& tensors)>;

// Writes the tensors of FROM, edited, to TO.
void rewrite(const std::string& from, const std::string& to, const Edit& edit) {
  const io::SafetensorsFile file(from);
  std::vector<io::TensorSource> tensors;
  for (const auto& [name, t] : file.tensors())
    tensors.push_back({.name = name, .type = t.type, .shape = t.shape, .data = t.data});
  edit(tensors);
  io::write_safetensors(to, tensors);
}

io::TensorSource& find(std::vector<io::TensorSource>& tensors, const std::string& name) {
  for (io::TensorSource& t : tensors)
    if (t.name == name) return t;
  HADAL_FAIL("no tensor ", name);
}

// One value of a tensor changed: a float by a tenth of the largest, an integer by one.
std::vector<std::byte> changed(const io::TensorSource& t) {
  std::vector<std::byte> bytes(t.bytes());
  std::memcpy(bytes.data(), t.data, bytes.size());
  const auto at = static_cast<int64_t>(bytes.size() / io::stored_type_size(t.type)) / 2;
  const DType dtype = io::to_dtype(t.type).value();
  double largest = 0.0;
  for (int64_t i = 0; i <= 2 * at - (at > 0 ? 1 : 0); ++i)
    largest = std::max(largest, std::fabs(load_element(bytes.data(), dtype, i)));
  const double step = is_float(dtype) ? 0.1 * largest : 1.0;
  store_element(bytes.data(), dtype, at, load_element(bytes.data(), dtype, at) + step);
  return bytes;
}

Result verify(const std::string& golden, const std::string& dtype = "f32") {
  return run({"verify", "--model", "tests/goldens/base", "--golden", golden, "--dtype", dtype});
}

struct Case {
  const char *file, *tensor, *kind;  // kind: the row of the table that must fail
};

class OneValue : public ::testing::TestWithParam<Case> {};

TEST_P(OneValue, Fails) {
  const TempDir dir;
  const std::string golden = dir / "golden.safetensors";
  std::vector<std::byte> bytes;
  rewrite(concat("tests/goldens/base/", GetParam().file), golden, [&](auto& tensors) {
    io::TensorSource& t = find(tensors, GetParam().tensor);
    bytes = changed(t);
    t.data = bytes.data();
  });
  for (const char* dtype : {"f32", "f64"}) {
    const Result r = verify(golden, dtype);
    EXPECT_EQ(r.status, 1);
    EXPECT_EQ(r.err, concat("hadal: verification failed: ", golden, " in ", dtype,
                            " differs from what this model computes; the rows marked FAILED say "
                            "where\n"));
    bool found = false;
    for (size_t begin = 0; begin < r.out.size();) {
      const size_t end = r.out.find('\n', begin);
      const std::string row = r.out.substr(begin, end - begin);
      if (row.starts_with(concat(GetParam().kind, "  "))) {
        found = true;
        EXPECT_TRUE(row.ends_with("  FAILED")) << row;
      }
      begin = end + 1;
    }
    EXPECT_TRUE(found) << r.out;
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, OneValue,
    ::testing::Values(
        Case{"golden.safetensors", "hidden.2", "hidden"},
        Case{"golden.safetensors", "logits", "logits"},
        Case{"golden.safetensors", "topk.1", "topk"}, Case{"golden.safetensors", "gate.2", "gate"},
        Case{"golden.safetensors", "load.3", "load"},
        Case{"golden.safetensors", "mtp.hidden", "mtp.hidden"},
        Case{"golden.safetensors", "mtp.logits", "mtp.logits"},
        Case{"golden.safetensors", "loss", "loss"}, Case{"golden.safetensors", "mtp.loss", "loss"},
        Case{"golden.safetensors", "grad.model.layers.1.self_attn.kv_b_proj.weight", "grad"},
        Case{"golden.safetensors", "grad.model.layers.2.mlp.gate.weight", "grad"},
        Case{"golden.safetensors", "grad.model.embed_tokens.weight", "grad"},
        Case{"golden.safetensors", "greedy", "greedy"},
        Case{"train.safetensors", "train.main", "train.main"},
        Case{"train.safetensors", "train.mtp", "train.mtp"},
        Case{"train.safetensors", "train.balance", "train.balance"},
        Case{"train.safetensors", "train.grad_norm", "train.grad_norm"},
        Case{"train.safetensors", "train.bias.2", "train.bias"},
        Case{"train.safetensors", "final.model.layers.1.self_attn.o_proj.weight", "final weights"}),
    [](const auto& info) {
      std::string name = info.param.tensor;
      for (char& c : name)
        if (c == '.') c = '_';
      return name;
    });

TEST(Verify, PassesARewrittenGolden) {
  const TempDir dir;
  rewrite("tests/goldens/base/golden.safetensors", dir / "golden.safetensors", [](auto&) {});
  const Result r = verify(dir / "golden.safetensors");
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.out.find("verified: "), std::string::npos);
}

TEST(Verify, RefusesTensorsThatAreMissingLeftOverOrMisshapen) {
  const TempDir dir;
  const std::string golden = dir / "golden.safetensors";
  const auto expect = [&](const std::string& message, const Edit& edit) {
    rewrite("tests/goldens/base/golden.safetensors", golden, edit);
    const Result r = verify(golden);
    EXPECT_EQ(r.status, 1);
    EXPECT_EQ(r.err, "hadal: " + golden + message + "\n");
  };
  expect(" has no tensor gate.2; it does not belong to this model or is incomplete",
         [](auto& tensors) {
           std::erase_if(tensors, [](const auto& t) { return t.name == "gate.2"; });
         });
  expect(": tensor extra has no counterpart in this model; the file belongs to another model",
         [](auto& tensors) {
           io::TensorSource extra = find(tensors, "loss");
           extra.name = "extra";
           tensors.push_back(extra);
         });
  expect(": tensor topk.1 has shape [4, 192], this model gives [192, 4]", [](auto& tensors) {
    find(tensors, "topk.1").shape = {4, 192};
  });
}

TEST(Verify, RefusesTheGoldenOfAnotherModel) {
  const std::string golden = "tests/goldens/base/golden.safetensors";
  const Result r = run({"verify", "--model", "tests/goldens/odd", "--golden", golden});
  EXPECT_EQ(r.status, 1);
  EXPECT_EQ(r.err,
            "hadal: " + golden + ": tensor topk.1 has shape [192, 4], this model gives [192, 6]\n");
  expect_refused({"verify", "--model", "tests/goldens/base", "--golden", "/absent"},
                 "cannot open /absent: No such file or directory; check the path");
}

TEST(Verify, PassesItsOwnRecordInAnotherType) {
  const TempDir dir;
  const std::string golden = dir / "golden.safetensors";
  const std::vector<std::string> record = {"verify",   "--model",     "tests/goldens/v3_heads",
                                           "--dtype",  "f64",         "--record",
                                           golden,     "--sequences", "3",
                                           "--tokens", "21",          "--seed"};
  const auto with_seed = [&](const char* seed) {
    std::vector<std::string> args = record;
    args.push_back(seed);
    return run(args);
  };
  ASSERT_EQ(with_seed("1").status, 0);
  const io::SafetensorsFile file(golden);
  ASSERT_NE(file.find("input_ids"), nullptr);
  EXPECT_EQ(file.find("input_ids")->shape, (io::StoredShape{3, 21}));
  ASSERT_NE(file.find("logits"), nullptr);
  EXPECT_EQ(file.find("logits")->type, io::StoredType::kF64);
  const auto verify_record = [&](const std::string& path) {
    return run({"verify", "--model", "tests/goldens/v3_heads", "--golden", path});
  };
  EXPECT_EQ(verify_record(golden).status, 0);
  // With one value changed it does not.
  const std::string edited = dir / "edited.safetensors";
  std::vector<std::byte> bytes;
  rewrite(golden, edited, [&](auto& tensors) {
    io::TensorSource& t = find(tensors, "logits");
    bytes = changed(t);
    t.data = bytes.data();
  });
  EXPECT_EQ(verify_record(edited).status, 1);
}

TEST(Verify, RefusesARecordThatIsTooShort) {
  const TempDir dir;
  expect_refused(
      {"verify", "--model", "tests/goldens/base", "--record", dir / "g", "--tokens", "17"},
      "--sequences 2 --tokens 17: a golden has at least one sequence of 18 tokens and at "
      "most 1048576 tokens in all");
  expect_refused({"verify", "--model", "tests/goldens/base"},
                 "hadal verify needs --golden FILE to compare with, or --record FILE to write");
}

// What goes over an FP8 cache is off by what its elements are, and nothing else is.
TEST(Verify, ChecksAnFp8Cache) {
  for (const char* dtype : {"f64", "f32"}) {
    const Result r = run({"verify", "--model", "tests/goldens/base", "--golden",
                          "tests/goldens/base/golden.safetensors", "--dtype", dtype, "--kv-cache",
                          "fp8", "--json"});
    EXPECT_EQ(r.status, 0) << r.err;
    const auto kinds = nlohmann::json::parse(r.out)["kinds"];
    const auto error = [&](const char* kind) {
      return kinds[kind]["worst_relative_l2"].get<double>();
    };
    EXPECT_LT(error("logits"), 1e-5);
    EXPECT_GT(error("logits by decode"), 1e-4);
  }
  expect_refused(
      {"verify", "--model", "tests/goldens/base", "--golden",
       "tests/goldens/base/train.safetensors", "--kv-cache", "fp8"},
      "--kv-cache is fp8, but tests/goldens/base/train.safetensors holds training steps, "
      "which have no cache; leave it out");
  expect_refused({"verify", "--model", "tests/goldens/base", "--golden",
                  "tests/goldens/base/golden.safetensors", "--kv-cache", "bf16"},
                 "--kv-cache is bf16, but this model computes in f32 and keeps its cache in that; "
                 "use --dtype bf16, or --kv-cache auto or fp8");
}

TEST(Verify, PrintsJson) {
  const Result r = run({"verify", "--model", "tests/goldens/base", "--golden",
                        "tests/goldens/base/golden.safetensors", "--json"});
  EXPECT_EQ(r.status, 0);
  EXPECT_NE(r.out.find("\"passed\": true"), std::string::npos);
}

}  // namespace
}  // namespace hadal::test
