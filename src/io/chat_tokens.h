// The tokens that the DeepSeek-V3 family writes conversations with.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

namespace hadal::io::chat_tokens {

inline constexpr std::string_view kBos = "<\uFF5Cbegin\u2581of\u2581sentence\uFF5C>";
inline constexpr std::string_view kEos = "<\uFF5Cend\u2581of\u2581sentence\uFF5C>";
inline constexpr std::string_view kUser = "<\uFF5CUser\uFF5C>",
                                  kAssistant = "<\uFF5CAssistant\uFF5C>";
inline constexpr std::string_view kCalls = "<\uFF5Ctool\u2581calls\u2581begin\uFF5C>";
inline constexpr std::string_view kCallsEnd = "<\uFF5Ctool\u2581calls\u2581end\uFF5C>";
inline constexpr std::string_view kCall = "<\uFF5Ctool\u2581call\u2581begin\uFF5C>";
inline constexpr std::string_view kCallEnd = "<\uFF5Ctool\u2581call\u2581end\uFF5C>";
inline constexpr std::string_view kSep = "<\uFF5Ctool\u2581sep\uFF5C>";
inline constexpr std::string_view kOutputs = "<\uFF5Ctool\u2581outputs\u2581begin\uFF5C>";
inline constexpr std::string_view kOutputsEnd = "<\uFF5Ctool\u2581outputs\u2581end\uFF5C>";
inline constexpr std::string_view kOutput = "<\uFF5Ctool\u2581output\u2581begin\uFF5C>";
inline constexpr std::string_view kOutputEnd = "<\uFF5Ctool\u2581output\u2581end\uFF5C>";
inline constexpr std::string_view kThink = "<think>", kThinkEnd = "</think>";

}  // namespace hadal::io::chat_tokens
