// The tokenizer of a model directory, and why there is none that hadal reads.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "io/tokenizer.h"

namespace hadal::io {

// DIR/tokenizer.json. An Error for a tokenizer of another kind says what to do.
Tokenizer load_tokenizer_of(const std::string& dir);

}  // namespace hadal::io
