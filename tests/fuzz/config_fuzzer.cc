// config.json of a checkpoint and of a run: refused with an Error, or written back and read alike.
// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "io/hf_config.h"
#include "io/json.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hadal;
  const std::string_view text = fuzz::text_of(data, size);
  fuzz::expect_error_or_nothing(
      [&] { io::model_from_json(io::JsonObject::parse(text, "config")); });
  const fuzz::InputFile input(text);
  fuzz::expect_error_or_nothing([&] {
    const io::HfConfig read = io::read_hf_config(input.path());
    const auto write = [](const io::HfConfig& c) {
      return io::to_text(io::hf_config_to_json(c.config, DType::kBF16, c.quantization));
    };
    const std::string once = write(read);
    const fuzz::InputFile again(once);
    fuzz::expect(write(io::read_hf_config(again.path())) == once, "a written config reads alike");
  });
  return 0;
}
