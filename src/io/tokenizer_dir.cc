// Recognises the files of other tokenizers by their names.
// SPDX-License-Identifier: Apache-2.0
#include "io/tokenizer_dir.h"

#include <algorithm>
#include <filesystem>
#include <vector>

#include "core/check.h"

namespace hadal::io {
namespace {

// What kind of tokenizer a file belongs to; null if to none that is known.
const char* kind_of(const std::string& name) {
  if (name.ends_with(".tiktoken") || name == "tiktoken.model" || name == "tekken.json")
    return "a tiktoken";
  if (name == "tokenizer.model" || name.ends_with(".spm") || name == "spiece.model")
    return "a SentencePiece";
  if (name == "vocab.json" || name == "merges.txt") return "an older byte-pair";
  if (name == "vocab.txt") return "a WordPiece";
  return nullptr;
}

}  // namespace

Tokenizer load_tokenizer_of(const std::string& dir) {
  namespace fs = std::filesystem;
  const std::string path = dir + "/tokenizer.json";
  if (fs::exists(path)) return Tokenizer::load(path);
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(dir))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  for (const std::string& name : names)
    if (const char* kind = kind_of(name))
      HADAL_FAIL(dir, "/", name, " is the file of ", kind,
                 " tokenizer, which hadal does not read; save it as a byte-level BPE "
                 "tokenizer.json with Hugging Face transformers, if it is one, or choose another "
                 "model");
  HADAL_FAIL(path, " is missing; copy it from the model, or train one with hadal tokenizer train");
}

}  // namespace hadal::io
