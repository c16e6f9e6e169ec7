// Limits of the JSON parser that keep what a public client sends from growing in memory.
#include "parallel/base/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace polyreme {
namespace {

using testing::HasSubstr;

TEST(Json, ManySmallValuesAreRefusedByTheirNumber) {
  const Json::ParseOptions four{.values_max = 4};
  EXPECT_TRUE(Json::Parse("[1,2,3]", four).ok());
  EXPECT_TRUE(Json::Parse(R"({"a":{},"b":[[]]})", four).ok());
  for (const char* text : {"[1,2,3,4]", "[[[[[]]]]]", R"({"a":1,"b":2,"c":3,"d":4})"}) {
    const absl::StatusOr<Json> json = Json::Parse(text, four);
    ASSERT_FALSE(json.ok()) << text;
    EXPECT_THAT(Message(json.status()), HasSubstr("more than 4 values"));
  }
}

TEST(Json, ABodyOfSmallNumbersIsRefusedBeforeItFillsTheMemory) {
  std::string body = "[0";
  while (std::ssize(body) < limits::kMaxHttpBodyBytes - 2) body += ",0";
  body += ']';
  const absl::StatusOr<Json> json = Json::Parse(body, {.values_max = limits::kMaxHttpJsonValues});
  ASSERT_FALSE(json.ok());
  EXPECT_THAT(Message(json.status()), HasSubstr("values"));
}

}  // namespace
}  // namespace polyreme
