// safetensors files: refused with an Error, or every tensor lies inside the file and is readable.
// SPDX-License-Identifier: Apache-2.0
#include "io/safetensors.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hadal;
  const fuzz::InputFile input(fuzz::text_of(data, size));
  fuzz::expect_error_or_nothing([&] {
    const io::SafetensorsFile file(input.path());
    size_t bytes = 0, sum = 0;
    for (const auto& [name, tensor] : file.tensors()) {
      fuzz::expect(file.find(name) == &tensor, "a listed tensor is found");
      fuzz::expect(static_cast<size_t>(tensor.num_elements()) * io::stored_type_size(tensor.type) ==
                       tensor.bytes,
                   "elements and bytes agree");
      for (size_t i = 0; i < tensor.bytes; ++i) sum += std::to_integer<size_t>(tensor.data[i]);
      bytes += tensor.bytes;
      fuzz::expect_error_or_nothing([&] {
        if (!tensor.is_aligned()) return;
        fuzz::expect(static_cast<size_t>(tensor.tensor().num_bytes()) == tensor.bytes,
                     "a view has the bytes of its tensor");
      });
    }
    fuzz::expect(bytes < size && sum < SIZE_MAX, "tensors lie inside the file");
  });
  return 0;
}
