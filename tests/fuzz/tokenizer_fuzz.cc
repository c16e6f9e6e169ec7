// tokenizer.json, tokenizer_config.json and a text, each up to a NUL. What loads can encode and
// decode.
#include "coordinator/text/tokenizer.h"
#include "tests/fuzz/fuzz.h"

namespace polyreme::text {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view rest = fuzz::AsText(data, size);
  const std::string_view tokenizer_json = fuzz::TakeText(rest);
  const std::string_view config = fuzz::TakeText(rest);
  const absl::StatusOr<std::unique_ptr<const Tokenizer>> loaded =
      Tokenizer::LoadFromText(tokenizer_json, config.empty() ? "{}" : config);
  if (!loaded.ok()) {
    fuzz::CheckRefusal(loaded.status());
    return 0;
  }
  const Tokenizer& tokenizer = **loaded;
  CHECK(tokenizer.vocab_size() >= 0);
  for (const auto in_text :
       {text::SpecialTokensInText::kRecognised, text::SpecialTokensInText::kPlainText}) {
    const absl::StatusOr<std::vector<TokenId>> ids = tokenizer.Encode(rest, {.in_text = in_text});
    if (!ids.ok()) {
      fuzz::CheckRefusal(ids.status());
      continue;
    }
    for (const TokenId id : *ids) CHECK(id >= 0 && id < tokenizer.vocab_size(), "id {}", id);
    tokenizer.Decode(*ids, text::SpecialTokensInOutput::kSkipped);
  }
  const TokenId odd[] = {-1, 0, tokenizer.vocab_size(), INT32_MAX, INT32_MIN};
  tokenizer.Decode(odd, text::SpecialTokensInOutput::kKept);
  return 0;
}

}  // namespace polyreme::text
