#include "coordinator/text/stop_matcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "parallel/base/limits.h"

namespace polyreme::text {
namespace {

StopMatcher MakeOrDie(std::vector<std::string> stops) {
  absl::StatusOr<StopMatcher> matcher = StopMatcher::Make(std::move(stops));
  CHECK(matcher.ok(), "{}", Message(matcher.status()));
  return *std::move(matcher);
}

// The definition: the stop string that is complete first; of several, the longest.
std::optional<StopMatch> FindNaively(const std::vector<std::string>& stops,
                                     const std::string& text) {
  std::optional<StopMatch> first;
  for (size_t i = 0; i < stops.size(); ++i) {
    const size_t found = text.find(stops[i]);
    if (found == std::string::npos) continue;
    const StopMatch match{static_cast<int32_t>(i), static_cast<int64_t>(found),
                          static_cast<int64_t>(found + stops[i].size())};
    if (!first || match.end < first->end || (match.end == first->end && match.begin < first->begin))
      first = match;
  }
  return first;
}

std::string RandomString(std::mt19937& random, size_t size_min, size_t size_max) {
  std::string s(size_min + random() % (size_max - size_min + 1), 'a');
  for (char& c : s) c = static_cast<char>('a' + random() % 2);
  return s;
}

TEST(StopMatcher, FindsWhatTheDefinitionFindsHoweverTheTextIsCut) {
  constexpr uint32_t kSeed = 5081;
  std::mt19937 random(kSeed);
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops(random() % 4);
    for (std::string& stop : stops) stop = RandomString(random, 1, 6);
    const std::string text = RandomString(random, 0, 24);
    const std::optional<StopMatch> expected = FindNaively(stops, text);
    StopMatcher matcher = MakeOrDie(stops);
    std::optional<StopMatch> match;
    std::string shown;
    for (size_t i = 0; i < text.size() && !match;) {
      const size_t count = 1 + random() % 5;
      match = matcher.Push(text.substr(i, count), shown);
      i += count;
    }
    if (!match) matcher.Flush(shown);
    ASSERT_EQ(match.has_value(), expected.has_value()) << "seed " << kSeed << ", round " << round;
    if (match) {
      EXPECT_EQ(match->begin, expected->begin);
      EXPECT_EQ(match->end, expected->end);
      EXPECT_EQ(stops[match->stop_index], stops[expected->stop_index]);
    }
    EXPECT_EQ(shown, text.substr(0, expected ? expected->begin : text.size())) << "round " << round;
  }
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBecomeAStopString) {
  StopMatcher matcher = MakeOrDie({"END", "\n\n"});
  std::string shown;
  EXPECT_FALSE(matcher.Push("the E", shown));
  EXPECT_EQ(shown, "the ");
  EXPECT_FALSE(matcher.Push("N", shown));
  EXPECT_EQ(shown, "the ");
  EXPECT_FALSE(matcher.Push("\n", shown));
  EXPECT_EQ(shown, "the EN");
  EXPECT_FALSE(matcher.Push("x", shown));
  EXPECT_EQ(shown, "the EN\nx");
  const std::optional<StopMatch> match = matcher.Push("yENDz", shown);
  ASSERT_TRUE(match.has_value());
  EXPECT_EQ(shown, "the EN\nxy");
  EXPECT_EQ(match->stop_index, 0);
  EXPECT_EQ(match->begin, 9);
  EXPECT_EQ(match->end, 12);
}

TEST(StopMatcher, HoldsBackNoHalfCharacter) {
  StopMatcher matcher = MakeOrDie({"é!"});
  std::string shown;
  EXPECT_FALSE(matcher.Push("èé", shown));  // è and é begin with the same byte
  EXPECT_EQ(shown, "è");
  EXPECT_FALSE(matcher.Push("ê", shown));
  EXPECT_EQ(shown, "èéê");
}

TEST(StopMatcher, MatchesNothingThatIsCompleteWhileNoStopMayBe) {
  StopMatcher matcher = MakeOrDie({"aa"});
  std::string shown;
  matcher.PushUnmatched("aaa", shown);
  EXPECT_EQ(shown, "aa");
  const std::optional<StopMatch> match = matcher.Push("ab", shown);
  ASSERT_TRUE(match.has_value());
  EXPECT_EQ(match->begin, 2);
  EXPECT_EQ(shown, "aa");
}

TEST(StopMatcher, PassesEverythingThroughWithoutStopStrings) {
  StopMatcher matcher = MakeOrDie({});
  std::string shown;
  EXPECT_FALSE(matcher.Push("anything", shown));
  EXPECT_EQ(shown, "anything");
}

TEST(StopMatcher, RefusesStopStringsBeyondTheLimits) {
  const std::vector<std::vector<std::string>> bad = {
      {""},
      {"ok", ""},
      {std::string(limits::kMaxStopStringBytes + 1, 'x')},
      {"\xFF"},
      std::vector<std::string>(limits::kMaxStopStrings + 1, "x"),
  };
  for (const std::vector<std::string>& stops : bad) {
    EXPECT_EQ(StopMatcher::Make(stops).status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_TRUE(StopMatcher::Make(std::vector<std::string>(limits::kMaxStopStrings, "x")).ok());
}

}  // namespace
}  // namespace polyreme::text
