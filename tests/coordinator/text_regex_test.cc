#include "coordinator/text/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "coordinator/text/regex_syntax.h"

namespace polyreme::text {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// The parts of a text, matches in angle brackets.
std::vector<std::string> Parts(const Regex& regex, std::string_view text) {
  RegexScratch scratch;
  std::vector<RegexSpan> spans;
  const absl::Status status = regex.Split(text, scratch, spans);
  CHECK(status.ok(), "{}", Message(status));
  std::vector<std::string> parts;
  for (const RegexSpan& span : spans) {
    const std::string part(text.substr(span.begin, span.end - span.begin));
    parts.push_back(span.is_match ? "<" + part + ">" : part);
  }
  return parts;
}

std::vector<std::string> Parts(std::string_view pattern, std::string_view text) {
  absl::StatusOr<Regex> regex = Regex::Compile(pattern);
  CHECK(regex.ok(), "{}", Message(regex.status()));
  return Parts(*regex, text);
}

TEST(Regex, GivesMatchesAndWhatLiesBetween) {
  EXPECT_THAT(Parts("b+", "abbcb"), ElementsAre("a", "<bb>", "c", "<b>"));
  EXPECT_THAT(Parts("x", "abc"), ElementsAre("abc"));
  EXPECT_THAT(Parts("x", ""), ElementsAre());
  EXPECT_THAT(Parts(R"(\p{L}+)", "é中1"), ElementsAre("<é中>", "1"));
}

TEST(Regex, GoesOnBehindEmptyMatchesByWholeCharacters) {
  EXPECT_THAT(Parts("x*", "éxx"), ElementsAre("<>", "é", "<xx>"));
  EXPECT_THAT(Parts("(?=é)", "éé"), ElementsAre("<>", "é", "<>", "é"));
}

TEST(Regex, ReadsWhatOnigurumaReadsDifferently) {
  EXPECT_THAT(Parts("^b", "a\nb"), ElementsAre("a\n", "<b>"));
  EXPECT_THAT(Parts("a$", "ba\nc"), ElementsAre("b", "<a>", "\nc"));
  EXPECT_THAT(Parts(R"(\v)", "a\x0b\n"), ElementsAre("a", "<\x0b>", "\n"));
  EXPECT_THAT(Parts(R"(\u00e9)", "aé"), ElementsAre("a", "<é>"));
  // U+180E is no white space; U+0085 and U+2028 are.
  EXPECT_THAT(Parts(R"(\s+)", "a\u180E\u0085\u2028b"),
              ElementsAre("a\u180E", "<\u0085\u2028>", "b"));
  EXPECT_THAT(Parts(R"(\S+)", "a\u180E\u2028"), ElementsAre("<a\u180E>", "\u2028"));
  EXPECT_THAT(Parts(R"([^\S\n]+)", "a\u180E \t\n"), ElementsAre("a\u180E", "< \t>", "\n"));
  EXPECT_THAT(Parts("(?i:'s)", "'S'ſ"), ElementsAre("<'S>", "<'ſ>"));
}

TEST(Regex, RefusesWhatItMightReadDifferentlyNamingIt) {
  for (const std::string_view pattern :
       {R"(\w+)", R"(a\b)", R"(\h)", R"(\R)", R"((a)\1)", R"(\pL)", "[a[b]]", "[a&&b]", "a{2}+",
        "a{2,3}+", "a{2}?", "a{,3}", "(?m:a)", "(?P<x>a)", "(*FAIL)", R"(\u12)"}) {
    const absl::StatusOr<std::string> translated = TranslateRegex(pattern);
    EXPECT_EQ(translated.status().code(), absl::StatusCode::kInvalidArgument) << pattern;
    EXPECT_THAT(Message(translated.status()), HasSubstr("is not supported")) << pattern;
  }
  for (const std::string_view pattern : {"[a", "[]a]", "a\\", "x{", R"(\p{Klingon})", "(a", "a)"}) {
    EXPECT_EQ(Regex::Compile(pattern).status().code(), absl::StatusCode::kInvalidArgument)
        << pattern;
  }
  EXPECT_EQ(Regex::Compile(std::string(1 << 20, 'a')).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(Regex, MatchesLiteralTextAsItIs) {
  absl::StatusOr<Regex> regex = Regex::CompileLiteral("a.");
  ASSERT_TRUE(regex.ok());
  EXPECT_THAT(Parts(*regex, "aba.b"), ElementsAre("ab", "<a.>", "b"));
  EXPECT_EQ(Regex::CompileLiteral("").status().code(), absl::StatusCode::kInvalidArgument);
}

// The stack of compiled code is bounded; the interpreter takes over where it ends.
TEST(Regex, MatchesALongRunThatNeedsMoreThanTheStackOfCompiledCode) {
  const std::string run(1 << 18, 'a');
  EXPECT_THAT(Parts("(a|b)*", run), ElementsAre("<" + run + ">"));
}

TEST(Regex, GivesUpOnAnExpressionThatBacktracksWithoutEnd) {
  absl::StatusOr<Regex> regex = Regex::Compile("(?:a+)+$");
  ASSERT_TRUE(regex.ok());
  RegexScratch scratch;
  std::vector<RegexSpan> spans;
  const absl::Status status = regex->Split(std::string(60, 'a') + "b", scratch, spans);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(regex->Split("aaa", scratch, spans).ok()) << "the scratch can be used again";
}

}  // namespace
}  // namespace polyreme::text
