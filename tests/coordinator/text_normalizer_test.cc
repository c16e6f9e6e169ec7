#include "coordinator/text/normalizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "coordinator/text/text_run.h"
#include "parallel/base/json.h"

namespace polyreme::text {
namespace {

Normalizer MakeOrDie(std::string_view type) {
  const Json json = Json::MakeObject({{"type", type}});
  absl::StatusOr<Normalizer> normalizer = Normalizer::Make(&json, "normalizer");
  CHECK(normalizer.ok(), "{}", Message(normalizer.status()));
  return *std::move(normalizer);
}

RunText Runs(const std::vector<std::pair<std::string, TextKind>>& parts) {
  RunText text;
  for (const auto& [part, kind] : parts) text.Append(part, kind);
  return text;
}

// "a|b": runs parted by a bar; those of content in brackets.
std::string Show(const RunText& text) {
  std::string shown;
  size_t begin = 0;
  for (const RunText::Run& run : text.runs) {
    const std::string part = text.text.substr(begin, run.end - begin);
    shown +=
        (shown.empty() ? "" : "|") + (run.kind == TextKind::kContent ? "[" + part + "]" : part);
    begin = run.end;
  }
  return shown;
}

constexpr TextKind kTemplate = TextKind::kTemplate;
constexpr TextKind kContent = TextKind::kContent;

TEST(Normalizer, KeepsTheKindOfEachCharacter) {
  const Normalizer nfc = MakeOrDie("NFC");
  EXPECT_EQ(Show(nfc.Normalize(Runs({{"a", kTemplate}, {"e\u0301x", kContent}, {"y", kTemplate}}))),
            "a|[éx]|y");
  EXPECT_EQ(Show(nfc.Normalize(Runs({{"中", kTemplate}, {"文", kContent}, {"", kTemplate}}))),
            "中|[文]");
  EXPECT_EQ(Show(nfc.Normalize(Runs({}))), "");
}

TEST(Normalizer, TakesWhatMeltsOverABorderForContent) {
  const Normalizer nfc = MakeOrDie("NFC");
  EXPECT_EQ(Show(nfc.Normalize(Runs({{"xe", kTemplate}, {"\u0301y", kContent}}))), "x|[éy]");
  EXPECT_EQ(Show(nfc.Normalize(Runs({{"xe", kContent}, {"\u0301y", kTemplate}}))), "[xé]|y");
}

TEST(Normalizer, ComposesAndSortsMarks) {
  EXPECT_EQ(MakeOrDie("NFC").Normalize(Runs({{"q\u0307\u0323", kTemplate}})).text, "q\u0323\u0307");
  EXPECT_EQ(MakeOrDie("NFC").Normalize(Runs({{"\u1100\u1161\u11a8", kTemplate}})).text, "각");
  EXPECT_EQ(MakeOrDie("NFD").Normalize(Runs({{"é각", kTemplate}})).text,
            "e\u0301\u1100\u1161\u11a8");
  EXPECT_EQ(MakeOrDie("NFKC").Normalize(Runs({{"ﬁ²Å", kTemplate}})).text, "fi2Å");
  EXPECT_EQ(MakeOrDie("NFC").Normalize(Runs({{"\u0958", kTemplate}})).text,
            "\u0915\u093C");  // not recomposed
}

// A million marks on one letter are sorted, not bubbled: this test would not end otherwise.
TEST(Normalizer, SortsALongRunOfMarks) {
  std::string marks, sorted;
  constexpr int kPairs = 500000;
  for (int i = 0; i < kPairs; ++i) marks += "\u0308\u0323";
  for (int i = 0; i < kPairs; ++i) sorted += "\u0323";
  for (int i = 0; i < kPairs; ++i) sorted += "\u0308";
  EXPECT_TRUE(MakeOrDie("NFD").Normalize(Runs({{"x" + marks, kTemplate}})).text == "x" + sorted);
}

}  // namespace
}  // namespace polyreme::text
