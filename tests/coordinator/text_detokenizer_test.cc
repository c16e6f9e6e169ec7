#include "coordinator/text/detokenizer.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "coordinator/text/utf8.h"
#include "tests/coordinator/text_tiny_tokenizer.h"

namespace polyreme::text {
namespace {

const std::string kDemoModel = POLYREME_SOURCE_DIR "/deploy/demo-model";

std::string Stream(Detokenizer detokenizer, const std::vector<TokenId>& ids) {
  std::string text;
  for (const TokenId id : ids) {
    std::string piece;
    detokenizer.Push(id, piece);
    EXPECT_EQ(FindInvalidUtf8(piece), std::string::npos) << "token " << id;
    text += piece;
  }
  detokenizer.Flush(text);
  return text;
}

TEST(Detokenizer, GivesTheTextOfAllTokensWhateverBytesTheyAre) {
  const auto tokenizer = LoadDirectoryOrDie(kDemoModel);
  constexpr uint32_t kSeed = 20240607;
  std::mt19937 random(kSeed);
  for (int round = 0; round < 400; ++round) {
    // Low ids are special tokens and single bytes, most of them no characters.
    std::uniform_int_distribution<TokenId> draw(-1, round % 2 == 0 ? 260 : tokenizer->vocab_size());
    std::vector<TokenId> ids(random() % 40);
    for (TokenId& id : ids) id = draw(random);
    for (const auto mode : {SpecialTokensInOutput::kKept, SpecialTokensInOutput::kSkipped}) {
      EXPECT_EQ(Stream(Detokenizer(*tokenizer, mode), ids), tokenizer->Decode(ids, mode))
          << "seed " << kSeed << ", round " << round;
    }
  }
}

TEST(Detokenizer, HoldsBackTheBeginningOfACharacterAndNothingElse) {
  const auto tokenizer = LoadOrDie(TinyTokenizerJson());
  Detokenizer detokenizer(*tokenizer, SpecialTokensInOutput::kSkipped);
  std::string text;
  detokenizer.Push('a', text);
  EXPECT_EQ(text, "a");
  for (const TokenId byte : {0xF0, 0x9F, 0x98}) detokenizer.Push(byte, text);
  EXPECT_EQ(text, "a");
  EXPECT_EQ(detokenizer.pending().size(), 3u);
  detokenizer.Push(260, text);  // a skipped special token does not part the bytes around it
  EXPECT_EQ(text, "a");
  detokenizer.Push(0x80, text);
  EXPECT_EQ(text, "a😀");
  EXPECT_EQ(detokenizer.pending(), "");
}

TEST(Detokenizer, ReplacesAMaximalSubpartByOneCharacterAsSoonAsItIsKnownToBeNone) {
  const auto tokenizer = LoadOrDie(TinyTokenizerJson());
  Detokenizer detokenizer(*tokenizer, SpecialTokensInOutput::kKept);
  std::string text;
  for (const TokenId byte : {0xE4, 0xBD}) detokenizer.Push(byte, text);
  EXPECT_EQ(text, "");
  detokenizer.Push('x', text);
  EXPECT_EQ(text, "\uFFFDx");
  detokenizer.Push(0xE4, text);
  detokenizer.Flush(text);
  EXPECT_EQ(text, "\uFFFDx\uFFFD");
  detokenizer.Flush(text);
  EXPECT_EQ(text, "\uFFFDx\uFFFD");
}

TEST(Detokenizer, IsMadeAnewByPushingTheSameTokens) {
  const auto tokenizer = LoadOrDie(TinyTokenizerJson());
  const std::vector<TokenId> ids = {'h', 0xE4, 0xBD, 0xA0, 0xF0, 0x9F, 0x98, 0x80, 'x'};
  for (size_t cut = 0; cut <= ids.size(); ++cut) {
    std::string replayed, text;
    Detokenizer detokenizer(*tokenizer, SpecialTokensInOutput::kKept);
    for (size_t i = 0; i < cut; ++i) detokenizer.Push(ids[i], replayed);
    Detokenizer after(*tokenizer, SpecialTokensInOutput::kKept);
    std::string again;
    for (size_t i = 0; i < cut; ++i) after.Push(ids[i], again);
    EXPECT_EQ(again, replayed);
    for (size_t i = cut; i < ids.size(); ++i) after.Push(ids[i], again);
    EXPECT_EQ(again, "h你😀x");
  }
}

}  // namespace
}  // namespace polyreme::text
