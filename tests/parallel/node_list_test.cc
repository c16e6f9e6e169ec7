#include "parallel/launch/node_list.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace polyreme::launch {
namespace {

using testing::ElementsAre;

TEST(NodeList, ExpandsRangesInOrderAndKeepsLeadingZeros) {
  EXPECT_THAT(*ParseNodeList("n[01-04,7],x"), ElementsAre("n01", "n02", "n03", "n04", "n7", "x"));
  EXPECT_THAT(*ParseNodeList("one"), ElementsAre("one"));
  EXPECT_THAT(*ParseNodeList("n[098-101]"), ElementsAre("n098", "n099", "n100", "n101"));
  EXPECT_THAT(*ParseNodeList("r[1-2]n[0-1]-ib"),
              ElementsAre("r1n0-ib", "r1n1-ib", "r2n0-ib", "r2n1-ib"));
  EXPECT_THAT(*ParseNodeList("a-b,c.d"), ElementsAre("a-b", "c.d"));
}

TEST(NodeList, ReachesTheLargestNumber) {
  const absl::StatusOr<std::vector<std::string>> nodes = ParseNodeList("n[2147483646-2147483647]");
  ASSERT_TRUE(nodes.ok()) << nodes.status();
  EXPECT_EQ(*nodes, (std::vector<std::string>{"n2147483646", "n2147483647"}));
}

TEST(NodeList, RefusesWhatItDoesNotUnderstand) {
  for (const std::string_view text :
       {"", ",", "a,", ",a", "a,,b", "n[", "n]", "n[1-", "n[]", "n[1,]", "n[3-1]", "n[a-b]",
        "n[1-2-3]", "n[[1]]", "n[-1]", "n[99999999999]"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseNodeList(text).status())) << "'" << text << "'";
  }
}

TEST(NodeList, IsBounded) {
  EXPECT_EQ(ParseNodeList("n[1-256]")->size(), 256u);
  EXPECT_FALSE(ParseNodeList("n[1-257]").ok());
  EXPECT_FALSE(ParseNodeList("n[0-2147483647]").ok());
  EXPECT_FALSE(ParseNodeList("a[1-200]b[1-200]").ok());
  EXPECT_FALSE(ParseNodeList("a[1-200],b[1-200]").ok());
}

TEST(TasksPerNode, ExpandsRepeats) {
  EXPECT_THAT(*ParseTasksPerNode("3,1"), ElementsAre(3, 1));
  EXPECT_THAT(*ParseTasksPerNode("2(x2)"), ElementsAre(2, 2));
  EXPECT_THAT(*ParseTasksPerNode("2(x3),1"), ElementsAre(2, 2, 2, 1));
  for (const std::string_view text :
       {"", "a", "2(x)", "2(x2", "2(3)", "(x2)", "2(x1000000000)", "-1"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseTasksPerNode(text).status())) << "'" << text << "'";
  }
}

}  // namespace
}  // namespace polyreme::launch
