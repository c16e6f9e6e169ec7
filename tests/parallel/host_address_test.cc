#include "parallel/launch/host_address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace polyreme::launch {
namespace {

TEST(HostAddress, TowardsThisHostItIsALoopback) {
  const absl::StatusOr<std::string> address = OwnAddressTowards("127.0.0.1");
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_EQ(*address, "127.0.0.1");
  EXPECT_TRUE(IsLoopbackAddress(*address));
}

TEST(HostAddress, ANameThatDoesNotResolveIsNamed) {
  const absl::StatusOr<std::string> address = OwnAddressTowards("no-such-host.invalid");
  EXPECT_TRUE(absl::IsNotFound(address.status())) << address.status();
  EXPECT_THAT(Message(address.status()), testing::HasSubstr("'no-such-host.invalid'"));
}

TEST(HostAddress, OnlyLoopbacksAreLoopbacks) {
  EXPECT_TRUE(IsLoopbackAddress("127.0.1.1"));
  EXPECT_TRUE(IsLoopbackAddress("::1"));
  EXPECT_FALSE(IsLoopbackAddress("10.127.0.1"));
  EXPECT_FALSE(IsLoopbackAddress("fe80::1"));
}

}  // namespace
}  // namespace polyreme::launch
