// Equality with Transformers and tokenizers, on what scripts/make_tokenizer_reference.py had them
// compute.
#include <gtest/gtest.h>

#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "coordinator/text/detokenizer.h"
#include "coordinator/text/tokenizer.h"
#include "parallel/base/file.h"
#include "parallel/base/json.h"
#include "tests/coordinator/text_tiny_tokenizer.h"

namespace polyreme::text {
namespace {

const std::string kData = POLYREME_SOURCE_DIR "/tests/data/tokenizer/";

Json ReadJsonOrDie(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path, 1 << 24);
  CHECK(text.ok(), "{}", Message(text.status()));
  absl::StatusOr<Json> json = Json::Parse(*text);
  CHECK(json.ok(), "{}: {}", path, Message(json.status()));
  return *json;
}

std::vector<TokenId> IdsOf(const Json& list) {
  std::vector<TokenId> ids;
  for (const Json& id : list.as_array()) ids.push_back(static_cast<TokenId>(id.as_int()));
  return ids;
}

std::vector<std::string> Texts() {
  std::vector<std::string> texts;
  const Json list = ReadJsonOrDie(kData + "texts.json");
  for (const Json& text : list.as_array()) texts.push_back(text.as_string());
  return texts;
}

std::vector<TokenId> Encode(const Tokenizer& tokenizer, std::string_view text,
                            const EncodeOptions& options) {
  absl::StatusOr<std::vector<TokenId>> ids = tokenizer.Encode(text, options);
  CHECK(ids.ok(), "{}", Message(ids.status()));
  return *ids;
}

struct Style {
  std::string name;
  std::string directory;
  std::string reference;
};

void PrintTo(const Style& style, std::ostream* out) {
  *out << style.name;
}

class TokenizerReference : public testing::TestWithParam<Style> {
 protected:
  TokenizerReference()
      : tokenizer_(LoadDirectoryOrDie(GetParam().directory)),
        reference_(ReadJsonOrDie(GetParam().reference)) {}

  std::unique_ptr<const Tokenizer> tokenizer_;
  Json reference_;
};

TEST_P(TokenizerReference, GivesEachPromptTheSameIds) {
  const std::vector<std::string> texts = Texts();
  const Json::Array& expected = reference_.Find("ids")->as_array();
  ASSERT_EQ(texts.size(), expected.size());
  ASSERT_GT(texts.size(), 300u);
  for (size_t i = 0; i < texts.size(); ++i) {
    EXPECT_EQ(Encode(*tokenizer_, texts[i], {}), IdsOf(expected[i]))
        << "text " << i << ": " << Json(texts[i]).Dump();
  }
}

TEST_P(TokenizerReference, GivesPlainTextTheSameIdsAndNoneThatIsSpecial) {
  const std::vector<std::string> texts = Texts();
  const Json& differing = *reference_.Find("plain");
  for (size_t i = 0; i < texts.size(); ++i) {
    EncodeOptions options = {.around = SpecialTokensAround::kLeftOut};
    const std::vector<TokenId> recognised = Encode(*tokenizer_, texts[i], options);
    options.in_text = SpecialTokensInText::kPlainText;
    const std::vector<TokenId> plain = Encode(*tokenizer_, texts[i], options);
    const Json* differs = differing.Find(std::to_string(i));
    EXPECT_EQ(plain, differs != nullptr ? IdsOf(*differs) : recognised) << "text " << i;
    for (const TokenId id : plain) EXPECT_FALSE(tokenizer_->IsSpecial(id)) << "text " << i;
  }
}

TEST_P(TokenizerReference, GivesRandomIdsTheSameTextAtOnceAndPieceByPiece) {
  for (const Json& sample : reference_.Find("decoded")->as_array()) {
    const std::vector<TokenId> ids = IdsOf(sample.as_array()[0]);
    for (const auto mode : {SpecialTokensInOutput::kKept, SpecialTokensInOutput::kSkipped}) {
      const std::string& expected =
          sample.as_array()[mode == SpecialTokensInOutput::kKept ? 1 : 2].as_string();
      EXPECT_EQ(tokenizer_->Decode(ids, mode), expected) << sample.as_array()[0].Dump();
      Detokenizer detokenizer(*tokenizer_, mode);
      std::string streamed;
      for (const TokenId id : ids) detokenizer.Push(id, streamed);
      detokenizer.Flush(streamed);
      EXPECT_EQ(streamed, expected) << sample.as_array()[0].Dump();
    }
  }
}

// A message's content between parts of a template is encoded as if all were one text, unless it
// spells a special token; then that stays text.
TEST_P(TokenizerReference, EncodesAChatAsItsTextButForForgedTokens) {
  const EncodeOptions text_only = {.around = SpecialTokensAround::kLeftOut};
  const std::string special = tokenizer_->eos()->text;
  int32_t num_equal = 0;
  for (const std::string& content : Texts()) {
    const std::vector<Segment> segments = {
        {special + "user", true}, {content, false}, {"\n" + special, true}};
    const absl::StatusOr<std::vector<TokenId>> ids = tokenizer_->EncodeSegments(segments);
    ASSERT_TRUE(ids.ok()) << Message(ids.status());
    int32_t num_special = 0;
    for (const TokenId id : *ids) num_special += tokenizer_->IsSpecial(id);
    EXPECT_EQ(num_special, 2) << content;
    const std::vector<TokenId> whole =
        Encode(*tokenizer_, special + "user" + content + "\n" + special, text_only);
    int32_t num_special_in_whole = 0;
    for (const TokenId id : whole) num_special_in_whole += tokenizer_->IsSpecial(id);
    if (num_special_in_whole > 2) continue;
    EXPECT_EQ(*ids, whole) << Json(content).Dump();
    ++num_equal;
  }
  EXPECT_GT(num_equal, 200);
}

INSTANTIATE_TEST_SUITE_P(
    Styles, TokenizerReference,
    testing::Values(Style{"gpt2", kData + "gpt2", kData + "gpt2/reference.json"},
                    Style{"flags", kData + "flags", kData + "flags/reference.json"},
                    Style{"llama3", kData + "llama3", kData + "llama3/reference.json"},
                    Style{"qwen2", kData + "qwen2", kData + "qwen2/reference.json"},
                    Style{"deepseek_coder", kData + "deepseek_coder",
                          kData + "deepseek_coder/reference.json"},
                    Style{"demo_model", POLYREME_SOURCE_DIR "/deploy/demo-model",
                          kData + "demo_model_reference.json"}),
    [](const testing::TestParamInfo<Style>& style) { return style.param.name; });

TEST(TokenizerVariants, CutAndNormaliseTextAsTheReferenceDoes) {
  const std::vector<std::string> texts = Texts();
  const Json base = ReadJsonOrDie(kData + "gpt2/tokenizer.json");
  const Json variants = ReadJsonOrDie(kData + "variants.json");
  EXPECT_GT(variants.as_array().size(), 30u);
  for (const Json& variant : variants.as_array()) {
    Json json = base;
    for (const auto& [key, value] : variant.Find("patch")->members()) At(json, key) = value;
    const auto tokenizer = LoadOrDie(json);
    const Json::Array& expected = variant.Find("ids")->as_array();
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(Encode(*tokenizer, texts[3 * i], {}), IdsOf(expected[i]))
          << variant.Find("patch")->Dump() << " on " << Json(texts[3 * i]).Dump();
    }
  }
}

}  // namespace
}  // namespace polyreme::text
