// What `bench` asks: the built-in prompts, random ones, traces, and when requests arrive.

#include "deploy/bench/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "deploy/bench/samples.h"

namespace polyreme::bench {
namespace {

using ::testing::HasSubstr;

std::string TextOf(const PromptEntry& entry) {
  return std::get<std::string>(entry.prompt);
}

TEST(BuiltInPrompts, AreFiftyOfEachKindInSixLanguagesOrMoreAndNoTwoAlike) {
  const auto prompts = ReadPrompts(BuiltInPrompts(), 512);
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  std::map<std::string, int> kinds;
  std::map<std::string, int> languages;
  std::map<std::string, std::set<std::string>> languages_of_kind;
  std::set<std::string> texts;
  for (const PromptEntry& entry : *prompts) {
    ++kinds[entry.kind];
    ++languages[entry.language];
    languages_of_kind[entry.kind].insert(entry.language);
    const std::string text = TextOf(entry);
    EXPECT_TRUE(texts.insert(text).second) << "twice: " << text;
    EXPECT_GE(text.size(), 100u) << text;
    EXPECT_LE(text.size(), 2000u) << text;
    EXPECT_EQ(entry.max_tokens, 512);
  }
  EXPECT_EQ(kinds, (std::map<std::string, int>{{"completion", 50},
                                               {"repair", 50},
                                               {"algorithm", 50},
                                               {"api", 50},
                                               {"explanation", 50}}));
  int common = 0;
  for (const auto& [language, count] : languages) common += count >= 10 ? 1 : 0;
  EXPECT_GE(common, 6);
  for (const auto& [kind, of_it] : languages_of_kind) EXPECT_GE(of_it.size(), 6u) << kind;
  // No prompt is the beginning of another: a prefix cache finds no more than it would.
  for (auto it = texts.begin(); std::next(it) != texts.end(); ++it) {
    EXPECT_FALSE(std::next(it)->starts_with(*it)) << *it;
  }
}

TEST(BuiltInPrompts, AnyBeginningHasAllKindsEvenly) {
  const auto prompts = ReadPrompts(BuiltInPrompts(), 512);
  for (size_t begin = 0; begin < prompts->size(); begin += 5) {
    std::set<std::string> kinds;
    for (size_t i = begin; i < begin + 5; ++i) kinds.insert((*prompts)[i].kind);
    EXPECT_EQ(kinds.size(), 5u) << begin;
  }
}

TEST(ReadPrompts, NamesTheLineThatIsNone) {
  EXPECT_THAT(Message(ReadPrompts("{\"prompt\":\"a\"}\n\n{\"prompt\":3}", 8).status()),
              HasSubstr("line 3"));
  EXPECT_FALSE(ReadPrompts("", 8).ok());
  EXPECT_FALSE(ReadPrompts("[1]", 8).ok());
  EXPECT_FALSE(ReadPrompts("{\"prompt\":\"a\",\"max_tokens\":0}", 8).ok());
  EXPECT_EQ((*ReadPrompts("{\"prompt\":\"a\",\"max_tokens\":3}", 8))[0].max_tokens, 3);
}

TEST(DrawRandom, LengthsAndTokensStayInTheirRanges) {
  RandomOptions options;
  options.num_prompts = 500;
  options.input_len = 100;
  options.output_len = 50;
  options.range_ratio = 0.2;
  options.prefix_len = 8;
  options.vocabulary = 1000;
  const auto prompts = DrawRandom(options);
  ASSERT_TRUE(prompts.ok());
  int shortest = 1000, longest = 0;
  for (const PromptEntry& entry : *prompts) {
    const auto& tokens = std::get<std::vector<TokenId>>(entry.prompt);
    EXPECT_EQ(entry.prompt_tokens, static_cast<int32_t>(tokens.size()));
    shortest = std::min(shortest, entry.prompt_tokens);
    longest = std::max(longest, entry.prompt_tokens);
    EXPECT_GE(entry.max_tokens, 40);
    EXPECT_LE(entry.max_tokens, 60);
    for (const TokenId token : tokens) {
      EXPECT_GE(token, 100);
      EXPECT_LT(token, 1000);
    }
    for (size_t i = 0; i < 8; ++i) {
      EXPECT_EQ(tokens[i], std::get<std::vector<TokenId>>((*prompts)[0].prompt)[i]);
    }
  }
  EXPECT_EQ(shortest, 8 + 80);
  EXPECT_EQ(longest, 8 + 120);
  EXPECT_EQ((*DrawRandom(options))[7].prompt, (*prompts)[7].prompt) << "a seed draws the same";
  options.seed = 1;
  EXPECT_NE((*DrawRandom(options))[7].prompt, (*prompts)[7].prompt);
  options.range_ratio = 1;
  EXPECT_FALSE(DrawRandom(options).ok());
}

TEST(ArrivalTimes, ConstantGapsAreExact) {
  const double inf = std::numeric_limits<double>::infinity();
  const std::vector<double> times = ArrivalTimes(5, 4, inf, 0);
  for (size_t i = 0; i < times.size(); ++i) EXPECT_DOUBLE_EQ(times[i], 0.25 * double(i));
  for (const double time : ArrivalTimes(5, inf, 1, 0)) EXPECT_EQ(time, 0);
}

// Mean and deviation of a gamma distribution's gaps: 1 / rate, and that over sqrt(burstiness).
TEST(ArrivalTimes, GapsHaveTheMeanOfTheRateAndTheSpreadOfTheBurstiness) {
  for (const double burstiness : {0.5, 1.0, 4.0}) {
    const std::vector<double> times = ArrivalTimes(100001, 10, burstiness, 3);
    std::vector<double> gaps;
    for (size_t i = 1; i < times.size(); ++i) gaps.push_back(times[i] - times[i - 1]);
    const Samples samples(std::move(gaps));
    EXPECT_NEAR(samples.mean(), 0.1, 0.002);
    EXPECT_NEAR(samples.deviation(), 0.1 / std::sqrt(burstiness), 0.004);
  }
}

TEST(ReadTrace, SortsShiftsAndScales) {
  const auto trace = ReadTrace(
      "{\"timestamp\": 3500, \"input_length\": 7, \"output_length\": 3}\n"
      "{\"timestamp\": 1500, \"input_length\": 5, \"output_length\": 2}\n"
      "{\"time\": 2.5, \"prompt\": \"abc\", \"output_tokens\": 4}\n",
      2.0, 100, 0);
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->size(), 3u);
  EXPECT_DOUBLE_EQ((*trace)[0].seconds, 0);
  EXPECT_DOUBLE_EQ((*trace)[1].seconds, 0.5);
  EXPECT_DOUBLE_EQ((*trace)[2].seconds, 1);
  EXPECT_EQ((*trace)[0].prompt_tokens, 5);
  EXPECT_EQ(TextOf((*trace)[1]), "abc");
  EXPECT_EQ((*trace)[2].max_tokens, 3);
}

TEST(ReadTrace, NamesTheLineThatIsNone) {
  for (const std::string line :
       {"{\"input_length\":1,\"output_length\":1}", "{\"time\":0,\"output_length\":1}",
        "{\"time\":0,\"input_length\":1}",
        "{\"time\":\"x\",\"input_length\":1,\"output_length\":1}",
        "{\"time\":0,\"input_length\":-1,\"output_length\":1}", "x",
        "{\"time\":1e300,\"input_length\":1,\"output_length\":1}"}) {
    EXPECT_THAT(Message(ReadTrace(line, 1, 100, 0).status()), HasSubstr("line 1")) << line;
  }
  EXPECT_FALSE(ReadTrace("\n", 1, 100, 0).ok());
}

}  // namespace
}  // namespace polyreme::bench
