// The link between the coordinator and a worker, through a network that misbehaves: a slow or torn
// one changes no stream; one that is lost is noticed in time, and the launch recovers or ends
// named.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "parallel/base/clock.h"
#include "tests/e2e/fault_proxy.h"
#include "tests/e2e/two_hosts.h"

namespace polyreme::e2e {
namespace {

using ::testing::HasSubstr;

// Two "hosts" on one machine; the second reaches the coordinator through the proxy.
class ProxiedLink : public TwoHosts {
 protected:
  void SetUp() override {
    const int32_t port = FreePort();
    proxy_ = std::make_unique<FaultProxy>("127.0.0.1", port);
    first_ = Start(0, fmt::format("127.0.0.1:{}", port));
    second_ = Start(1, proxy_->address());
    ASSERT_NO_FATAL_FAILURE(AwaitServing());
    ASSERT_GT(proxy_->bytes_passed(), 0);
  }
  static std::unique_ptr<Program> Start(int rank, const std::string& coordinator) {
    return StartRank(rank, {.coordinator = coordinator,
                            .address = fmt::format("127.0.0.{}", rank + 2),
                            .join_timeout = "15"});
  }

  // The link is lost in the middle of streams, and found to be within the keep-alive's 10 s.
  void ExpectRecoveredOrEndedNamed(const std::function<void()>& lose) {
    Telling telling(cluster_, RequestsThatDecode());
    telling.WaitUntilEachAnswers();
    lose();
    ASSERT_TRUE(first_->WaitForLine("epoch 1 is lost: ", absl::Seconds(20)).has_value())
        << Output();
    EXPECT_THAT(first_->output(), HasSubstr("rank 1"));
    proxy_->Set({});  // the network heals
    const bool is_back = first_->WaitForLine(" serves, after ", absl::Seconds(40)).has_value();
    if (is_back) {
      EXPECT_EQ(telling.Finish(), want_) << Output();
      return ExpectOrderlyEnd();
    }
    const std::optional<int> first = first_->WaitForExit(absl::Seconds(30));
    const std::optional<int> second = second_->WaitForExit(absl::Seconds(30));
    ASSERT_TRUE(first.has_value() && second.has_value()) << "neither back nor ended\n" << Output();
    EXPECT_EQ(*first, 1) << Output();
    EXPECT_EQ(*second, 1) << Output();
    EXPECT_THAT(first_->output(), HasSubstr("rank 1")) << Output();
  }

  std::unique_ptr<FaultProxy> proxy_;
};

TEST_F(ProxiedLink, ASlowOrTornOneChangesNoStream) {
  proxy_->Set({.delay = absl::Milliseconds(2)});
  EXPECT_EQ(Tell(cluster_), want_) << Output();
  const int64_t bytes = proxy_->bytes_passed();
  const int64_t segments = proxy_->segments();
  proxy_->Set({.segment_bytes = 1});
  EXPECT_EQ(Tell(cluster_), want_) << Output();
  // Bytes that were taken in before count as one segment.
  EXPECT_GT(proxy_->segments() - segments, (proxy_->bytes_passed() - bytes) / 2);
  EXPECT_EQ(first_->Count("is lost"), 0) << Output();
  ExpectOrderlyEnd();
}

TEST_F(ProxiedLink, AResetIsRecoveredFromOrEndsTheLaunchNamed) {
  ExpectRecoveredOrEndedNamed([&] {
    proxy_->Reset();
    EXPECT_TRUE(WaitUntil(absl::Seconds(5), [&] { return proxy_->num_ended() > 0; }));
  });
}

TEST_F(ProxiedLink, ABlackHoleIsRecoveredFromOrEndsTheLaunchNamed) {
  ExpectRecoveredOrEndedNamed([&] {
    proxy_->Set({.passage = FaultProxy::Passage::kNone});
    EXPECT_TRUE(WaitUntil(absl::Seconds(5), [&] { return proxy_->bytes_swallowed() > 0; }));
  });
}

TEST_F(ProxiedLink, AHalfOpenConnectionIsRecoveredFromOrEndsTheLaunchNamed) {
  ExpectRecoveredOrEndedNamed([&] {
    proxy_->HalfOpen();
    EXPECT_TRUE(WaitUntil(absl::Seconds(5), [&] { return proxy_->num_ended() > 0; }));
  });
}

}  // namespace
}  // namespace polyreme::e2e
