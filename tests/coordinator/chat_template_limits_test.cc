// No template and no message makes rendering hang, overflow the stack or eat the memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/text/chat_template.h"
#include "parallel/base/limits.h"

namespace polyreme::text {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

std::string Repeat(std::string_view text, int64_t times) {
  std::string all;
  for (int64_t i = 0; i < times; ++i) all += text;
  return all;
}

// The error of parsing or rendering, empty if there is none.
std::string Error(std::string_view source, const Json& messages = Json::MakeArray()) {
  const auto chat = ChatTemplate::Parse(source, {});
  if (!chat.ok()) return Message(chat.status());
  return Message(chat->Render(messages, {}).status());
}

TEST(ChatTemplateLimits, StepsRunOut) {
  const std::string loops = Repeat("{% for a in range(1000) %}", 4) + Repeat("{% endfor %}", 4);
  EXPECT_THAT(Error(loops), HasSubstr("steps of evaluation"));
  EXPECT_THAT(Error("{{ range(1000000000000) }}"), HasSubstr("range too big"));
  EXPECT_THAT(Error("{{ range(-9223372036854775807, 9223372036854775807) }}"),
              HasSubstr("range too big"));
  EXPECT_THAT(Error("{% for i in range(100000) %}{% set x = [0] * 1000000 %}{% endfor %}"),
              HasSubstr("steps of evaluation"));
  EXPECT_THAT(Error("{{ [0] * 1000000000000 }}"), HasSubstr("steps of evaluation"));
  EXPECT_THAT(Error("{{ '' * 9223372036854775807 }}"), "");
}

TEST(ChatTemplateLimits, TextRunsOut) {
  EXPECT_THAT(Error("{{ 'x' * 1000000000000 }}"), HasSubstr("steps"));
  EXPECT_THAT(Error("{{ ('x' * 1000000) * 1000000000000 }}"), HasSubstr("bytes"));
  EXPECT_THAT(Error("{% set ns = namespace(x='ab') %}{% for i in range(60) %}"
                    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}"),
              HasSubstr("bytes"));
  EXPECT_THAT(Error("{% for i in range(100000) %}{{ ('x' * 10) * 20 }}{% endfor %}"),
              HasSubstr("bytes"));
  EXPECT_THAT(Error("{% for i in range(1000) %}{% set x = ('x' * 1000) * 1000 %}{% endfor %}"),
              HasSubstr("intermediate text"));
  EXPECT_THAT(Error("{{ ('x' * 1000000).replace('x', 'y' * 1000) }}"), HasSubstr("bytes"));
  EXPECT_THAT(Error("{{ 'x'.center(99999999999) }}"), HasSubstr("steps"));
  EXPECT_THAT(Error("{{ ('x' * 100000) | join('y' * 100000) }}"), HasSubstr("bytes"));
  EXPECT_THAT(Error("{{ 'a' | indent(9999999999) }}"), HasSubstr("steps"));
  EXPECT_THAT(Error("{{ [1] | tojson(indent=1000000) }}"), HasSubstr("indent"));
  EXPECT_THAT(Error("{{ '%.999999999f' % 1.0 }}"), "");
}

TEST(ChatTemplateLimits, SourceNestsOnlySoDeep) {
  const int64_t deep = 50000;
  EXPECT_THAT(Error("{{ " + Repeat("(", deep) + "1" + Repeat(")", deep) + " }}"),
              HasSubstr("deep"));
  EXPECT_THAT(Error("{{ " + Repeat("[", deep) + Repeat("]", deep) + " }}"), HasSubstr("deep"));
  EXPECT_THAT(Error("{{ " + Repeat("{1:", deep) + "1" + Repeat("}", deep) + " }}"),
              HasSubstr("deep"));
  EXPECT_THAT(Error("{{ " + Repeat("not ", deep) + "1 }}"), HasSubstr("deep"));
  EXPECT_THAT(Error("{{ " + Repeat("-", deep) + "1 }}"), HasSubstr("deep"));
  EXPECT_THAT(Error("{{ a" + Repeat(".a", deep) + " }}"), HasSubstr("deep"));
  EXPECT_THAT(Error("{{ a" + Repeat("|upper", deep) + " }}"), HasSubstr("deep"));
  EXPECT_THAT(Error("{{ 1" + Repeat(" + 1", deep) + " }}"), HasSubstr("deep"));
  EXPECT_THAT(Error("{{ " + Repeat("1 if 1 else ", deep) + "1 }}"), HasSubstr("deep"));
  EXPECT_THAT(Error("{{ a" + Repeat("[a", deep) + Repeat("]", deep) + " }}"), HasSubstr("deep"));
  EXPECT_THAT(Error(Repeat("{% if 1 %}", deep)), HasSubstr("deep"));
  EXPECT_THAT(Error(Repeat("{% for a in b %}", deep)), HasSubstr("deep"));
  EXPECT_THAT(Error("{% set " + Repeat("(", deep) + Repeat(")", deep) + " %}"), HasSubstr("deep"));
  EXPECT_THAT(Error(std::string(limits::kMaxTemplateBytes + 1, 'x')), HasSubstr("at most"));
}

TEST(ChatTemplateLimits, LongButFlatIsFine) {
  EXPECT_EQ(Error("{{ 1" + Repeat(" ~ 1", 10000) + " }}"), "");
  EXPECT_EQ(Error("{{ [" + Repeat("1, ", 10000) + "] | sum }}"), "");
  EXPECT_EQ(Error("{% if a %}" + Repeat("{% elif a %}", 10000) + "{% endif %}"), "");
  EXPECT_EQ(Error(Repeat("{% set x = 1 %}", 10000)), "");
  EXPECT_EQ(Error("{{ 1" + Repeat(" + 1", 150) + " }}"), "");
}

TEST(ChatTemplateLimits, MacrosRecurseOnlySoDeep) {
  EXPECT_THAT(Error("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), HasSubstr("deep"));
  EXPECT_THAT(Error("{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}"
                    "{{ a() }}"),
              HasSubstr("deep"));
  EXPECT_THAT(Error("{% macro m(x) %}{{ m(m) }}{{ m(m) }}{% endmacro %}{{ m(1) }}"),
              HasSubstr("deep"));
  EXPECT_THAT(Error("{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}"
                    "{% endmacro %}{{ m(40) }}"),
              HasSubstr("steps"));
  EXPECT_EQ(Error("{% macro m(n) %}{% if n > 0 %}{{ m(n - 1) }}{% endif %}{% endmacro %}"
                  "{{ m(100) }}"),
            "");
}

TEST(ChatTemplateLimits, ValuesNestOnlySoDeep) {
  EXPECT_THAT(Error("{% set ns = namespace(x=[]) %}{% for i in range(100000) %}"
                    "{% set ns.x = [ns.x] %}{% endfor %}"),
              HasSubstr("value nested"));
  EXPECT_THAT(Error("{% set ns = namespace(x={}) %}{% for i in range(100000) %}"
                    "{% set ns.x = dict(a=ns.x) %}{% endfor %}"),
              HasSubstr("value nested"));
  EXPECT_THAT(Error("{% set ns = namespace(x={}) %}{% for i in range(100000) %}"
                    "{% set ns.x = {'a': ns.x}.get %}{% endfor %}"),
              HasSubstr("value nested"));
}

TEST(ChatTemplateLimits, SharedValuesDoNotExplode) {
  const std::string doubled =
      "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(100) %}"
      "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}";
  EXPECT_THAT(Error(doubled + "{{ ns.x }}"), AnyOf(HasSubstr("steps"), HasSubstr("bytes")));
  EXPECT_THAT(Error(doubled + "{{ ns.x | tojson }}"),
              AnyOf(HasSubstr("steps"), HasSubstr("bytes")));
  EXPECT_THAT(Error(doubled + "{{ ns.x == ns.y }}"), HasSubstr("steps"));
  EXPECT_THAT(Error(doubled + "{{ ns.x < ns.y }}"), HasSubstr("steps"));
}

TEST(ChatTemplateLimits, NothingOwnsItself) {
  EXPECT_THAT(Error("{% set a = namespace() %}{% set a.x = a %}"), HasSubstr("namespace"));
  EXPECT_THAT(Error("{% set a = namespace() %}{% set a.x = [{'k': a}] %}"), HasSubstr("namespace"));
  EXPECT_THAT(Error("{% set a = namespace() %}{% for i in [a] %}{% set a.x = loop %}{% endfor %}"),
              HasSubstr("namespace"));
  EXPECT_THAT(Error("{% set a = namespace() %}{% for i in [a] %}{% set a.x = loop.cycle %}"
                    "{% endfor %}"),
              HasSubstr("namespace"));
  EXPECT_THAT(
      Error("{% set a = namespace() %}{% for i in [1] %}{% macro m() %}{{ i }}{% endmacro %}"
            "{% set a.m = m %}{% endfor %}{{ a.m() }}"),
      HasSubstr("outside the block"));
}

TEST(ChatTemplateLimits, ArithmeticNeverWraps) {
  EXPECT_THAT(Error("{{ 9223372036854775807 + 1 }}"), HasSubstr("64 bits"));
  EXPECT_THAT(Error("{{ 2 ** 64 }}"), HasSubstr("64 bits"));
  EXPECT_THAT(Error("{{ 10 ** 1000000000000 }}"), HasSubstr("64 bits"));
  EXPECT_THAT(Error("{{ (-9223372036854775807 - 1) // -1 }}"), HasSubstr("64 bits"));
  EXPECT_THAT(Error("{{ -(-9223372036854775807 - 1) }}"), HasSubstr("64 bits"));
  EXPECT_THAT(Error("{{ (-9223372036854775807 - 1) | abs }}"), HasSubstr("64 bits"));
  EXPECT_THAT(Error("{{ 1e22 | int }}"), HasSubstr("64 bits"));
  EXPECT_THAT(Error("{{ '99999999999999999999' | int }}"), HasSubstr("64 bits"));
  EXPECT_EQ(Error("{{ (-9223372036854775807 - 1) % -1 }}"), "");
  EXPECT_EQ(Error("{{ 'abc'[9223372036854775807:] }}{{ 'abc'[-9223372036854775807:] }}"
                  "{{ [1,2][::9223372036854775807] }}{{ [1,2][::-9223372036854775807] }}"
                  "{{ [1,2][9223372036854775807] }}{{ 'ab'[-9223372036854775807] }}"),
            "");
}

TEST(ChatTemplateLimits, LargeContentPasses) {
  Json::Array messages;
  const std::string text =
      Repeat("A paragraph of <|content|>, ünïcode and </think> marks.\n", 100000);
  messages.push_back(Json::MakeObject({{"role", "user"}, {"content", text}}));
  const auto chat = ChatTemplate::Parse(
      "{% for m in messages %}{% set c = m.content.strip() %}{% if '</tool>' in c %}x{% endif %}"
      "{% set c = c.split('</think>')[-1].lstrip('\n') ~ c %}{{ '<|im_start|>' ~ c ~ (c | length) "
      "}}"
      "{% endfor %}",
      {});
  ASSERT_TRUE(chat.ok());
  const auto rendered = chat->Render(Json(messages), {});
  ASSERT_TRUE(rendered.ok()) << rendered.status();
  EXPECT_GT(rendered->Concat().size(), text.size());
}

TEST(ChatTemplateLimits, DeepMessagesCanBeWalked) {
  std::string deep = Repeat(R"({"type": "array", "items": )", 60) + "1" + Repeat("}", 60);
  const Json messages = *Json::Parse(R"([{"role": "user", "schema": )" + deep + "}]");
  const std::string walk =
      "{% macro walk(s) %}{% if s is mapping %}{% for k, v in s.items() %}{% if k == 'items' %}"
      "({{ walk(v) | trim }}){% endif %}{% endfor %}{% else %}{{ s }}{% endif %}{% endmacro %}"
      "{{ walk(messages[0].schema) }}";
  const auto chat = ChatTemplate::Parse(walk, {});
  ASSERT_TRUE(chat.ok());
  const auto rendered = chat->Render(messages, {});
  ASSERT_TRUE(rendered.ok()) << rendered.status();
  EXPECT_EQ(rendered->Concat(), Repeat("(", 60) + "1" + Repeat(")", 60));
}

}  // namespace
}  // namespace polyreme::text
