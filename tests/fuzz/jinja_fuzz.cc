// A chat template and messages, each up to a NUL: bounded work, bounded text, and content stays
// content.
#include "coordinator/text/chat_template.h"
#include "parallel/base/limits.h"
#include "tests/fuzz/fuzz.h"

namespace polyreme::text {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view rest = fuzz::AsText(data, size);
  const absl::StatusOr<ChatTemplate> chat =
      ChatTemplate::Parse(fuzz::TakeText(rest), {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
  if (!chat.ok()) {
    fuzz::CheckRefusal(chat.status());
    return 0;
  }
  static const Json kMessages = *Json::Parse(
      R"([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <b>, é"}])");
  const absl::StatusOr<Json> parsed = Json::Parse(rest);
  const Json& messages = parsed.ok() && parsed->is_array() ? *parsed : kMessages;
  const Json tools = Json::MakeArray();
  ChatTemplate::Options options;
  options.tools = &tools;
  const absl::StatusOr<text::RenderedChat> rendered = chat->Render(messages, options);
  if (!rendered.ok()) {
    CHECK(!rendered.status().message().empty());
    CHECK(rendered.status().message().size() <= size_t{limits::kMaxTemplateOutputBytes});
    return 0;
  }
  size_t bytes = 0;
  for (const text::Segment& segment : rendered->segments) {
    CHECK(!segment.text.empty());
    bytes += segment.text.size();
  }
  CHECK(bytes <= size_t{limits::kMaxTemplateOutputBytes}, "{} bytes", bytes);
  CHECK(rendered->Concat().size() == bytes);
  return 0;
}

}  // namespace polyreme::text
