// What every fuzz target is made of: a function over one input that CHECKs what must hold for any.
//
// A target that returns has passed. Linked with libFuzzer by scripts/fuzz.sh, and with
// replay_main.cc in the plain suite, where each file of tests/fuzz/corpus/<target>/ is one input.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "parallel/base/status.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace polyreme::fuzz {

inline std::string_view AsText(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// A refusal says something, and no more than a line of a log can hold, whatever came in.
inline constexpr size_t kMaxRefusalBytes = 4096;
inline void CheckRefusal(const absl::Status& status) {
  CHECK(!status.ok());
  CHECK(!status.message().empty(), "a refusal without a reason");
  CHECK(status.message().size() <= kMaxRefusalBytes, "a refusal of {} bytes",
        status.message().size());
}

// What comes before the first NUL; `rest` is moved behind it. Inputs of several texts are split so.
inline std::string_view TakeText(std::string_view& rest) {
  const size_t end = rest.find('\0');
  const std::string_view text = rest.substr(0, end);
  rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
  return text;
}

}  // namespace polyreme::fuzz
