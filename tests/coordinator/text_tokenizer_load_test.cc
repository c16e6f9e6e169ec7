#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "coordinator/text/tokenizer.h"
#include "parallel/base/json.h"
#include "tests/coordinator/text_tiny_tokenizer.h"

namespace polyreme::text {
namespace {

using testing::HasSubstr;

Json ParseOrDie(std::string_view text) {
  absl::StatusOr<Json> json = Json::Parse(text);
  CHECK(json.ok(), "{}: {}", text, Message(json.status()));
  return *json;
}

struct Refusal {
  std::string what;
  std::function<void(Json&)> change;
  std::vector<std::string> message_parts;
};

// Sets a part of the file to JSON text.
std::function<void(Json&)> Set(std::string key, std::string_view text) {
  return [key, value = ParseOrDie(text)](Json& json) { At(json, key) = value; };
}

std::function<void(Json&)> SetModel(std::string key, std::string_view text) {
  return [key, value = ParseOrDie(text)](Json& json) { At(At(json, "model"), key) = value; };
}

std::function<void(Json&)> SetVocab(std::string token, std::string_view text) {
  return [token, value = ParseOrDie(text)](Json& json) {
    At(At(json, "model"), "vocab").Set(token, value);
  };
}

std::function<void(Json&)> AddMerge(std::string_view text) {
  return [value = ParseOrDie(text)](Json& json) { At(At(json, "model"), "merges").Append(value); };
}

std::function<void(Json&)> AddToken(std::string_view text) {
  return [value = ParseOrDie(text)](Json& json) { At(json, "added_tokens").Append(value); };
}

std::vector<Refusal> ModelRefusals() {
  return {
      {"no model", Set("model", "null"), {"tokenizer.json: model", "an object"}},
      {"another model", SetModel("type", R"("Unigram")"), {"model.type", "Unigram"}},
      {"dropout", SetModel("dropout", "0.1"), {"model.dropout"}},
      {"prefix",
       SetModel("continuing_subword_prefix", R"("##")"),
       {"model.continuing_subword_prefix", "##"}},
      {"suffix", SetModel("end_of_word_suffix", R"("</w>")"), {"model.end_of_word_suffix"}},
      {"byte fallback", SetModel("byte_fallback", "true"), {"model.byte_fallback"}},
      {"byte fallback of a wrong type",
       SetModel("byte_fallback", "1"),
       {"model.byte_fallback", "a boolean"}},
      {"unknown key", SetModel("magic", "1"), {"model", "magic"}},
      {"unknown unk_token", SetModel("unk_token", R"("<nope>")"), {"model.unk_token", "<nope>"}},
      {"no vocabulary", SetModel("vocab", "{}"), {"model.vocab", "none"}},
      {"vocabulary as a list", SetModel("vocab", "[]"), {"model.vocab", "an object"}},
      {"not byte-level", SetModel("vocab", R"({"hello world": 0})"), {"model.vocab", "byte-level"}},
      {"negative id", SetVocab("new", "-1"), {"model.vocab", "new", "-1"}},
      {"huge id", SetVocab("new", "4000000000"), {"model.vocab", "new", "4000000000"}},
      {"id that is no number", SetVocab("new", R"("7")"), {"model.vocab", "new", "an integer"}},
      {"fractional id", SetVocab("new", "262.5"), {"model.vocab", "new", "an integer"}},
      {"duplicate id", SetVocab("new", "97"), {"model.vocab", "\"a\" and \"new\"", "97"}},
      {"sparse ids", SetVocab("new", "900"), {"model.vocab", "no token has id 262"}},
      {"no merges", SetModel("merges", "null"), {"model.merges", "an array"}},
      {"merge of one", AddMerge(R"("a")"), {"model.merges[4]", "two tokens"}},
      {"merge of three", AddMerge(R"("a b c")"), {"model.merges[4]", "two tokens"}},
      {"merge list of three", AddMerge(R"(["a", "b", "c"])"), {"model.merges[4]", "two tokens"}},
      {"merge of numbers", AddMerge("[1, 2]"), {"model.merges[4]", "two tokens"}},
      {"merge of no token", AddMerge(R"("a ßß")"), {"model.merges[4]", "ßß"}},
      {"merge without result", AddMerge(R"("c c")"), {"model.merges[4]", "\"cc\""}},
  };
}

std::vector<Refusal> PartRefusals() {
  return {
      {"unknown key", Set("magic", "1"), {"tokenizer.json", "magic"}},
      {"normalizer", Set("normalizer", R"({"type": "Lowercase"})"), {"normalizer", "Lowercase"}},
      {"normalizer in a sequence",
       Set("normalizer",
           R"({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]})"),
       {"normalizer.normalizers[1]", "Strip"}},
      {"no pre-tokenizer", Set("pre_tokenizer", "null"), {"pre_tokenizer", "ByteLevel"}},
      {"pre-tokenizer",
       Set("pre_tokenizer", R"({"type": "Metaspace"})"),
       {"pre_tokenizer", "Metaspace"}},
      {"step behind ByteLevel",
       Set("pre_tokenizer",
           R"({"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, {"type": "Digits"}]})"),
       {"pre_tokenizer.pretokenizers[1]", "Digits"}},
      {"behaviour",
       Set("pre_tokenizer",
           R"({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Sideways"})"),
       {"pre_tokenizer.behavior", "Sideways"}},
      {"pattern",
       Set("pre_tokenizer",
           R"({"type": "Split", "pattern": {"Glob": "a"}, "behavior": "Isolated"})"),
       {"pre_tokenizer.pattern", "Glob"}},
      {"broken regex",
       Set("pre_tokenizer",
           R"({"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated"})"),
       {"pre_tokenizer.pattern.Regex", "(a"}},
      {"regex that PCRE2 reads differently",
       Set("pre_tokenizer",
           R"({"type": "Split", "pattern": {"Regex": "\\w+"}, "behavior": "Isolated"})"),
       {"pre_tokenizer.pattern.Regex", "\\w"}},
      {"post-processor",
       Set("post_processor", R"({"type": "BertProcessing"})"),
       {"post_processor", "BertProcessing"}},
      {"template without text",
       Set("post_processor",
           R"({"type": "TemplateProcessing", "single": [], "special_tokens": {}})"),
       {"post_processor.single", "0 times"}},
      {"template with an unknown token",
       Set("post_processor", R"({"type": "TemplateProcessing",
          "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}], "special_tokens": {}})"),
       {"post_processor.special_tokens.<s>"}},
      {"template with an id that no token has",
       Set("post_processor", R"({"type": "TemplateProcessing",
          "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
          "special_tokens": {"<s>": {"ids": [5000]}}})"),
       {"post_processor.special_tokens.<s>.ids[0]", "5000"}},
      {"no decoder", Set("decoder", "null"), {"decoder", "an object"}},
      {"decoder", Set("decoder", R"({"type": "Metaspace"})"), {"decoder", "Metaspace"}},
      {"decoder without bytes", Set("decoder", R"({"type": "Fuse"})"), {"decoder", "ByteLevel"}},
      {"added token without content", AddToken(R"({"id": 262})"), {"added_tokens[2].content"}},
      {"added token without characters",
       AddToken(R"({"id": 262, "content": ""})"),
       {"added_tokens[2].content"}},
      {"added token without id", AddToken(R"({"content": "<x>"})"), {"added_tokens[2].id"}},
      {"added token with a negative id",
       AddToken(R"({"id": -3, "content": "<x>"})"),
       {"added_tokens[2]", "-3"}},
      {"added token with a taken id",
       AddToken(R"({"id": 97, "content": "<x>"})"),
       {"added_tokens[2]", "<x>", "97"}},
      {"added token with another id",
       AddToken(R"({"id": 262, "content": "ab"})"),
       {"added_tokens[2]", "two ids"}},
      {"added token with an unknown key",
       AddToken(R"({"id": 262, "content": "<x>", "glow": 1})"),
       {"added_tokens[2]", "glow"}},
  };
}

void ExpectRefused(const Refusal& refusal) {
  Json json = TinyTokenizerJson();
  refusal.change(json);
  const absl::Status status = Tokenizer::LoadFromText(json.Dump()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << refusal.what;
  for (const std::string& part : refusal.message_parts) {
    EXPECT_THAT(Message(status), HasSubstr(part)) << refusal.what;
  }
}

TEST(TokenizerLoad, RefusesAModelThatDoesNotFitNamingTheKey) {
  for (const Refusal& refusal : ModelRefusals()) ExpectRefused(refusal);
}

TEST(TokenizerLoad, RefusesWhatItDoesNotKnowNamingTheKey) {
  for (const Refusal& refusal : PartRefusals()) ExpectRefused(refusal);
}

TEST(TokenizerLoad, RefusesTextThatIsNoJsonOrHasAKeyTwice) {
  const std::string whole = TinyTokenizerJson().Dump();
  for (const size_t size : {size_t{0}, size_t{1}, whole.size() / 2, whole.size() - 1}) {
    EXPECT_THAT(Message(Tokenizer::LoadFromText(whole.substr(0, size)).status()),
                HasSubstr("tokenizer.json"));
  }
  EXPECT_THAT(
      Message(Tokenizer::LoadFromText(R"({"model": {"vocab": {"a": 0, "a": 1}}})").status()),
      HasSubstr("tokenizer.json"));
}

TEST(TokenizerLoad, NamesTheDirectoryThatHasNoTokenizer) {
  const absl::Status status = Tokenizer::Load("/nonexistent").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(status), HasSubstr("/nonexistent/tokenizer.json"));
}

TEST(TokenizerLoad, TakesBothSpellingsOfMergesAndEmptyAffixes) {
  Json json = TinyTokenizerJson();
  AddMerge(R"(["a", "abc"])")(json);
  SetVocab("aabc", "262")(json);
  SetModel("continuing_subword_prefix", R"("")")(json);
  SetModel("end_of_word_suffix", R"("")")(json);
  const auto tokenizer = LoadOrDie(json);
  EXPECT_EQ(*tokenizer->Encode("aabc"), std::vector<TokenId>{262});
}

TEST(TokenizerLoad, LetsAddedTokensLeaveHoles) {
  Json json = TinyTokenizerJson();
  AddToken(R"({"id": 300, "content": "<far>"})")(json);
  const auto tokenizer = LoadOrDie(json);
  EXPECT_EQ(tokenizer->vocab_size(), 301);
  EXPECT_EQ(tokenizer->IdToToken(299), nullptr);
  std::string bytes;
  tokenizer->AppendBytes(299, bytes);
  EXPECT_EQ(bytes, "");
  tokenizer->AppendBytes(300, bytes);
  EXPECT_EQ(bytes, "<far>");
}

TEST(TokenizerLoad, AddsWhatTheConfigurationNames) {
  const auto tokenizer = LoadOrDie(TinyTokenizerJson(), R"({
      "bos_token": null, "eos_token": {"__type": "AddedToken", "content": "<|end|>"}, "pad_token": "<pad>",
      "unk_token": "abc", "extra_special_tokens": {"image": "<image>"}, "chat_template": "{{ x }}",
      "added_tokens_decoder": {"262": {"content": "<tool>", "special": false, "normalized": false}}})");
  EXPECT_FALSE(tokenizer->bos().has_value());
  EXPECT_EQ(tokenizer->eos()->id, 260);
  EXPECT_EQ(tokenizer->pad()->id, 263);
  EXPECT_EQ(tokenizer->unk()->id, 257);
  EXPECT_TRUE(tokenizer->IsSpecial(257));
  EXPECT_EQ(*tokenizer->Encode("a<tool><pad><image>"), (std::vector<TokenId>{'a', 262, 263, 264}));
  EXPECT_FALSE(tokenizer->IsSpecial(262));
  EXPECT_TRUE(tokenizer->IsSpecial(264));
}

TEST(TokenizerLoad, RefusesAConfigurationThatDoesNotFitNamingTheKey) {
  const struct {
    std::string config, part;
  } kCases[] = {
      {"[]", "tokenizer_config.json"},
      {"{", "tokenizer_config.json"},
      {R"({"eos_token": 3})", "tokenizer_config.json: eos_token"},
      {R"({"eos_token": ""})", "tokenizer_config.json: eos_token"},
      {R"({"split_special_tokens": true})", "split_special_tokens"},
      {R"({"extra_special_tokens": "x"})", "extra_special_tokens"},
      {R"({"added_tokens_decoder": {"x": {"content": "y"}}})", "added_tokens_decoder"},
      {R"({"added_tokens_decoder": {"97": {"content": "y"}}})", "added_tokens_decoder"},
      {R"({"added_tokens_decoder": {"300": {"content": "ab"}}})", "two ids"},
  };
  for (const auto& [config, part] : kCases) {
    const absl::Status status =
        Tokenizer::LoadFromText(TinyTokenizerJson().Dump(), config).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << config;
    EXPECT_THAT(Message(status), HasSubstr(part)) << config;
  }
}

}  // namespace
}  // namespace polyreme::text
