// JSON texts: what parses is written and read again as the same value, in bounded size.
#include "parallel/base/json.h"

#include "tests/fuzz/fuzz.h"

namespace polyreme {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text = polyreme::fuzz::AsText(data, size);
  const Json::ParseOptions options{.depth_max = 64, .bytes_max = 1 << 20, .values_max = 4096};
  const absl::StatusOr<Json> json = Json::Parse(text, options);
  if (!json.ok()) {
    polyreme::fuzz::CheckRefusal(json.status());
    return 0;
  }
  for (const Json::Style style : {Json::Style::kCompact, Json::Style::kPython}) {
    const std::string dumped = json->Dump(style);
    CHECK(dumped.size() <= 16 * size + 64, "{} bytes from {}", dumped.size(), size);
    const absl::StatusOr<Json> again = Json::Parse(dumped, options);
    CHECK(again.ok(), "{} in {}", polyreme::Message(again.status()), dumped);
    CHECK(*again == *json, "{} reads as {}", dumped, again->Dump());
    CHECK(again->Dump(style) == dumped);
  }
  return 0;
}

}  // namespace polyreme
