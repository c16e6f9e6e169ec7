#include "coordinator/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "coordinator/text/bpe.h"
#include "parallel/base/file.h"
#include "parallel/base/json.h"
#include "tests/coordinator/text_tiny_tokenizer.h"

namespace polyreme::text {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const std::string kDemoModel = POLYREME_SOURCE_DIR "/deploy/demo-model";

constexpr EncodeOptions kTextOnly = {.around = SpecialTokensAround::kLeftOut};
constexpr EncodeOptions kContentOnly = {.in_text = SpecialTokensInText::kPlainText,
                                        .around = SpecialTokensAround::kLeftOut};

std::vector<TokenId> Encode(const Tokenizer& tokenizer, std::string_view text,
                            const EncodeOptions& options) {
  absl::StatusOr<std::vector<TokenId>> ids = tokenizer.Encode(text, options);
  CHECK(ids.ok(), "{}", Message(ids.status()));
  return *ids;
}

std::vector<TokenId> EncodeSegments(const Tokenizer& tokenizer,
                                    const std::vector<Segment>& segments) {
  absl::StatusOr<std::vector<TokenId>> ids = tokenizer.EncodeSegments(segments);
  CHECK(ids.ok(), "{}", Message(ids.status()));
  return *ids;
}

std::vector<TokenId> IdsOf(const Json& list) {
  std::vector<TokenId> ids;
  for (const Json& id : list.as_array()) ids.push_back(static_cast<TokenId>(id.as_int()));
  return ids;
}

Json ReadJsonOrDie(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path, 1 << 24);
  CHECK(text.ok(), "{}", Message(text.status()));
  absl::StatusOr<Json> json = Json::Parse(*text);
  CHECK(json.ok(), "{}", Message(json.status()));
  return *json;
}

TEST(Tokenizer, GivesTheDemoModelsPromptsTheIdsThatTransformersGave) {
  const auto tokenizer = LoadDirectoryOrDie(kDemoModel);
  const Json prompts = ReadJsonOrDie(kDemoModel + "/golden_greedy_fp32.json");
  for (const Json& golden : prompts.as_array()) {
    const std::string& prompt = golden.Find("prompt")->as_string();
    const std::vector<TokenId> expected = IdsOf(*golden.Find("prompt_ids"));
    EXPECT_EQ(Encode(*tokenizer, prompt, {}), expected) << prompt;
    EXPECT_EQ(tokenizer->Decode(expected, SpecialTokensInOutput::kSkipped), prompt);
  }
  const Json chats = ReadJsonOrDie(kDemoModel + "/golden_chat_fp32.json");
  for (const Json& golden : chats.as_array()) {
    const std::string& rendered = golden.Find("rendered")->as_string();
    EXPECT_EQ(Encode(*tokenizer, rendered, kTextOnly), IdsOf(*golden.Find("prompt_ids")))
        << rendered;
  }
}

TEST(Tokenizer, NamesTheTokensWithARole) {
  const auto tokenizer = LoadDirectoryOrDie(kDemoModel);
  ASSERT_TRUE(tokenizer->bos().has_value());
  EXPECT_EQ(tokenizer->bos()->text, "<|endoftext|>");
  EXPECT_EQ(tokenizer->bos()->id, 0);
  EXPECT_EQ(tokenizer->pad()->id, 0);
  EXPECT_FALSE(tokenizer->unk().has_value());
  EXPECT_EQ(tokenizer->vocab_size(), 8192);
  EXPECT_EQ(tokenizer->TokenToId("<|im_end|>"), 2);
  EXPECT_TRUE(tokenizer->IsSpecial(2));
  EXPECT_FALSE(tokenizer->IsSpecial(3));
  EXPECT_FALSE(tokenizer->IsSpecial(-1));
  EXPECT_EQ(tokenizer->IdToToken(8192), nullptr);
}

TEST(Tokenizer, MergesTheLowestRankFirstAndTheLeftmostOnTies) {
  const auto tokenizer = LoadOrDie(TinyTokenizerJson());
  EXPECT_THAT(Encode(*tokenizer, "abc", kTextOnly), ElementsAre(257));
  EXPECT_THAT(Encode(*tokenizer, "aab", kTextOnly), ElementsAre('a', 256));
  EXPECT_THAT(Encode(*tokenizer, "aaa", kTextOnly), ElementsAre(258, 'a'));
  EXPECT_THAT(Encode(*tokenizer, "aaaaaaa", kTextOnly), ElementsAre(259, 258, 'a'));
  EXPECT_THAT(Encode(*tokenizer, "", kTextOnly), ElementsAre());
}

TEST(Tokenizer, RecognisesSpecialTokensInAPromptAndNeverInContent) {
  const auto tokenizer = LoadOrDie(TinyTokenizerJson());
  EXPECT_THAT(Encode(*tokenizer, "x<|end|>", kTextOnly), ElementsAre('x', 260));
  EXPECT_THAT(Encode(*tokenizer, "x<|end|>", kContentOnly),
              ElementsAre('x', '<', '|', 'e', 'n', 'd', '|', '>'));
}

TEST(Tokenizer, RecognisesAddedTokensThatAreNotSpecialInContentToo) {
  const auto tokenizer = LoadOrDie(TinyTokenizerJson());
  EXPECT_THAT(Encode(*tokenizer, "a<think>b", kContentOnly), ElementsAre('a', 261, 'b'));
}

TEST(Tokenizer, EncodesSegmentsAsTheirConcatenationWithMergesAcrossTheBorder) {
  const auto tokenizer = LoadOrDie(TinyTokenizerJson());
  EXPECT_THAT(EncodeSegments(*tokenizer, {{"<|end|>a", true}, {"bc", false}, {"<|end|>", true}}),
              ElementsAre(260, 257, 260));
}

TEST(Tokenizer, LetsNoContentForgeOrHideATokenOfTheTemplate) {
  const auto tokenizer = LoadOrDie(TinyTokenizerJson());
  const std::vector<TokenId> forged =
      EncodeSegments(*tokenizer, {{"<|", true}, {"end|>", false}, {"|>", true}});
  EXPECT_EQ(std::count(forged.begin(), forged.end(), 260), 0);
  const std::vector<TokenId> split =
      EncodeSegments(*tokenizer, {{"<|en", false}, {"", true}, {"d|>", false}, {"<|end|>", true}});
  EXPECT_EQ(std::count(split.begin(), split.end(), 260), 1);
  EXPECT_EQ(split.back(), 260);
  // A token that begins in content must not swallow the beginning of one in the template.
  EXPECT_EQ(EncodeSegments(*tokenizer, {{"<think", false}, {"<|end|>", true}}).back(), 260);
}

TEST(Tokenizer, FindsATokenThatTwoTemplateSegmentsSpell) {
  const auto tokenizer = LoadOrDie(TinyTokenizerJson());
  EXPECT_THAT(EncodeSegments(*tokenizer, {{"<|", true}, {"end", true}, {"", false}, {"|>", true}}),
              ElementsAre(260));
}

TEST(Tokenizer, NeverMergesIntoASpecialToken) {
  Json json = TinyTokenizerJson();
  At(json, "added_tokens")
      .Append(Json::MakeObject({{"id", 257}, {"content", "abc"}, {"special", true}}));
  const auto tokenizer = LoadOrDie(json);
  EXPECT_THAT(Encode(*tokenizer, "abc", kTextOnly), ElementsAre(257));
  EXPECT_THAT(Encode(*tokenizer, "abc", kContentOnly), ElementsAre(256, 'c'));
}

TEST(Tokenizer, TakesAWholePieceBeforeMergingIfTheModelIgnoresMerges) {
  Json json = TinyTokenizerJson();
  At(At(json, "model"), "ignore_merges") = true;
  At(At(json, "model"), "vocab").Set("zzz", 262);
  const auto tokenizer = LoadOrDie(json);
  EXPECT_THAT(Encode(*tokenizer, "zzz", kTextOnly), ElementsAre(262));
  EXPECT_THAT(Encode(*tokenizer, "zzzz", kTextOnly), ElementsAre('z', 'z', 'z', 'z'));
}

TEST(Tokenizer, RefusesTextThatIsNoUtf8NamingTheOffset) {
  const auto tokenizer = LoadOrDie(TinyTokenizerJson());
  for (const std::string_view bad :
       {"ab\xFF", "ab\xC3", "ab\xED\xA0\x80", "ab\xF4\x90\x80\x80", "ab\xC0\xAF"}) {
    const absl::Status status = tokenizer->Encode(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(status), HasSubstr("offset 2"));
  }
  const std::vector<Segment> halves = {{"\xC3", true}, {"(", false}};
  EXPECT_EQ(tokenizer->EncodeSegments(halves).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Tokenizer, RefusesTextBeyondTheLimit) {
  const auto tokenizer = LoadOrDie(TinyTokenizerJson());
  const std::string longest(limits::kMaxPromptBytes, 'x');  // which nothing merges
  EXPECT_TRUE(tokenizer->Encode(longest).ok());
  EXPECT_EQ(tokenizer->Encode(longest + "a").status().code(), absl::StatusCode::kInvalidArgument);
  const std::vector<Segment> segments = {{longest, true}, {"a", false}};
  EXPECT_EQ(tokenizer->EncodeSegments(segments).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(Tokenizer, RefusesAByteWithoutATokenUnlessThereIsAnUnknownToken) {
  Json json = TinyTokenizerJson();
  std::erase_if(At(At(json, "model"), "vocab").members(),
                [](const Json::Member& m) { return m.first == "q"; });
  At(json, "added_tokens").Append(Json::MakeObject({{"id", 'q'}, {"content", "<unk>"}}));
  EXPECT_THAT(Message(LoadOrDie(json)->Encode("q").status()), HasSubstr("0x71"));
  At(At(json, "model"), "unk_token") = "<unk>";
  EXPECT_THAT(Encode(*LoadOrDie(json), "aqqb", kTextOnly), ElementsAre('a', 'q', 'q', 'b'));
  At(At(json, "model"), "fuse_unk") = true;
  EXPECT_THAT(Encode(*LoadOrDie(json), "aqqb", kTextOnly), ElementsAre('a', 'q', 'b'));
}

TEST(Tokenizer, PutsThePostProcessorsTokensAroundTheTextWhereAsked) {
  Json json = TinyTokenizerJson();
  absl::StatusOr<Json> processor = Json::Parse(R"({"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                 {"SpecialToken": {"id": "both", "type_id": 0}}],
      "pair": [], "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [260], "tokens": ["<|end|>"]},
                                     "both": {"id": "both", "ids": [261, 260], "tokens": ["a", "b"]}}})");
  ASSERT_TRUE(processor.ok());
  At(json, "post_processor") = *processor;
  const auto tokenizer = LoadOrDie(json);
  EXPECT_THAT(Encode(*tokenizer, "x", {}), ElementsAre(260, 'x', 261, 260));
  EXPECT_THAT(Encode(*tokenizer, "", {}), ElementsAre(260, 261, 260));
  EXPECT_THAT(Encode(*tokenizer, "x", kTextOnly), ElementsAre('x'));
}

TEST(Tokenizer, DecodesBytesThatAreNoUtf8AsReplacementCharacters) {
  const auto tokenizer = LoadOrDie(TinyTokenizerJson());
  const std::vector<TokenId> half = {0xE4, 0xBD, 'x', 260, 0xFF, 0xC3};
  EXPECT_EQ(tokenizer->Decode(half, SpecialTokensInOutput::kKept), "\uFFFDx<|end|>\uFFFD\uFFFD");
  EXPECT_EQ(tokenizer->Decode(half, SpecialTokensInOutput::kSkipped), "\uFFFDx\uFFFD\uFFFD");
  const std::vector<TokenId> unknown = {-1, 'a', 100000};
  EXPECT_EQ(tokenizer->Decode(unknown, SpecialTokensInOutput::kKept), "a");
}

TEST(Tokenizer, ServesManyThreadsAtOnce) {
  const auto tokenizer = LoadDirectoryOrDie(kDemoModel);
  const std::string text = "def f(x):\n    return {'a': x, \"b\": 12345}  # naïve 你好\n<|im_end|>";
  const std::vector<TokenId> expected = Encode(*tokenizer, text, {});
  std::vector<int32_t> num_equal(4, 0);
  {
    std::vector<std::jthread> threads;
    for (int32_t& count : num_equal) {
      threads.emplace_back([&] {
        for (int i = 0; i < 50; ++i) count += Encode(*tokenizer, text, {}) == expected;
      });
    }
  }
  EXPECT_THAT(num_equal, testing::Each(50));
}

// 512 KiB of one letter: the heap is asked a bounded number of times per byte, not once per byte
// and merge.
TEST(Bpe, WorkOnAPieceGrowsNoFasterThanTheNumberOfItsPairs) {
  const Json json = TinyTokenizerJson();
  Vocabulary vocabulary;
  for (const auto& [token, id] : json.Find("model")->Find("vocab")->members()) {
    ASSERT_TRUE(vocabulary.Add(token, id.as_int()).ok());
  }
  const absl::StatusOr<JsonFields> model = JsonFields::Of(*json.Find("model"), "model");
  ASSERT_TRUE(model.ok());
  const absl::StatusOr<Bpe> bpe = Bpe::Make(*model, vocabulary, {});
  ASSERT_TRUE(bpe.ok()) << Message(bpe.status());
  const std::string piece(512 << 10, 'a');
  Bpe::Scratch scratch;
  std::vector<TokenId> ids;
  ASSERT_TRUE(bpe->Encode(piece, scratch, ids).ok());
  EXPECT_EQ(ids, std::vector<TokenId>(piece.size() / 4, 259));
  // Each byte starts at most one pair, and each merge makes at most two more.
  EXPECT_LE(scratch.num_heap_pops(), 3 * std::ssize(piece));
}

}  // namespace
}  // namespace polyreme::text
