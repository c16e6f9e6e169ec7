// The links between workers that are processes, through a network that misbehaves: slow and torn
// ones change no stream; what is lost is noticed in time, and the launch goes on over new
// connections or ends named.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cctype>
#include <csignal>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tests/e2e/fault_proxy.h"
#include "tests/e2e/two_hosts.h"

namespace polyreme::e2e {
namespace {

using ::testing::HasSubstr;

// Ranks learn where their peers listen from the coordinator. In what it answers to one of them, the
// host of the others becomes that of a proxy, which listens at the same port.
class PeersBehindProxies {
 public:
  PeersBehindProxies(int32_t coordinator_port, std::string host, std::string proxy_host)
      : host_(std::move(host)),
        proxy_host_(std::move(proxy_host)),
        coordinator_("127.0.0.1", coordinator_port,
                     {.on_answer = [this](std::string& bytes) { Reroute(bytes); }}) {
    CHECK(host_.size() == proxy_host_.size(), "messages keep their lengths");
  }

  // What the rank whose peers are behind proxies is to call the coordinator.
  std::string coordinator() const { return coordinator_.address(); }

  // Of all links between peers that there are; those of another epoch have other ports.
  void Set(const FaultProxy::Link& link) {
    const std::lock_guard lock(mutex_);
    for (const auto& [port, proxy] : proxies_) proxy->Set(link);
  }
  // Of those to come too.
  void SetForGood(const FaultProxy::Link& link) {
    Set(link);
    const std::lock_guard lock(mutex_);
    link_ = link;
  }
  template <class Do>
  void ForEach(Do what) {
    const std::lock_guard lock(mutex_);
    for (const auto& [port, proxy] : proxies_) what(*proxy);
  }
  template <class Figure>
  int64_t Sum(Figure figure) {
    int64_t sum = 0;
    ForEach([&](const FaultProxy& proxy) { sum += (proxy.*figure)(); });
    return sum;
  }

 private:
  // "host port" as the value of a WaitReply: a tag, a length, and the text.
  void Reroute(std::string& bytes) {
    const std::string begin = host_ + " ";
    for (size_t at = bytes.find(begin); at != std::string::npos; at = bytes.find(begin, at + 1)) {
      size_t end = at + begin.size();
      while (end < bytes.size() && std::isdigit(static_cast<unsigned char>(bytes[end])) != 0) ++end;
      const size_t length = at < 2 ? 0 : static_cast<unsigned char>(bytes[at - 1]);
      if (at < 2 || bytes[at - 2] != 0x0a || length <= begin.size() || at + length > end) continue;
      const int32_t port = std::stoi(bytes.substr(at + begin.size(), length - begin.size()));
      bytes.replace(at, host_.size(), proxy_host_);
      const std::lock_guard lock(mutex_);
      std::unique_ptr<FaultProxy>& proxy = proxies_[port];
      if (proxy != nullptr) continue;
      proxy = std::make_unique<FaultProxy>(
          host_, port,
          FaultProxy::Options{.listen = proxy_host_, .listen_port = port, .link = link_});
    }
  }

  const std::string host_;
  const std::string proxy_host_;
  std::mutex mutex_;
  FaultProxy::Link link_;                                   // guarded by mutex_
  std::map<int32_t, std::unique_ptr<FaultProxy>> proxies_;  // guarded by mutex_; by port
  FaultProxy coordinator_;
};

constexpr char kFirstHost[] = "127.0.0.2";
constexpr char kSecondHost[] = "127.0.0.3";
constexpr char kProxyHost[] = "127.0.0.9";

const FaultProxy::Link kTorn{.segment_bytes = 1};
const FaultProxy::Link kSlow{.delay = absl::Milliseconds(2)};
const FaultProxy::Link kBlackHole{.passage = FaultProxy::Passage::kNone};
const FaultProxy::Link kOneWay{.passage = FaultProxy::Passage::kOneWay};

// Two "hosts" on one machine, whose workers reach each other through proxies.
class PeerLinks : public TwoHosts {
 protected:
  void Start(const std::string& layout, const std::string& max_restarts = "10") {
    const int32_t port = FreePort();
    peers_ = std::make_unique<PeersBehindProxies>(port, kFirstHost, kProxyHost);
    first_ = StartRank(0, {.layout = layout,
                           .coordinator = fmt::format("127.0.0.1:{}", port),
                           .address = kFirstHost,
                           .max_restarts = max_restarts});
    second_ = StartRank(1, {.layout = layout,
                            .coordinator = peers_->coordinator(),
                            .address = kSecondHost,
                            .max_restarts = max_restarts});
    ASSERT_NO_FATAL_FAILURE(AwaitServing());
    ASSERT_GT(peers_->Sum(&FaultProxy::bytes_passed), 0) << "the peers do not go by the proxies";
  }

  // The streams are told while `disturb` is done to the links in their middle.
  void ExpectTheSameStreams(const std::function<void()>& disturb) {
    EXPECT_EQ(Tell(cluster_, disturb), want_) << Output();
  }
  // Bytes vanish while both connections stay; the verdict is not that of a deadline.
  void ExpectTheVerdict() {
    EXPECT_TRUE(first_->WaitForLine(": the step stands still: rank ", absl::Seconds(30)))
        << Output();
    EXPECT_GT(peers_->Sum(&FaultProxy::bytes_swallowed), 0);
  }

  std::unique_ptr<PeersBehindProxies> peers_;
};

class PeerLinksOfALayout : public PeerLinks, public testing::WithParamInterface<const char*> {};

// Few tokens: each costs dozens of messages, and these some milliseconds, or a segment for each
// byte.
std::vector<std::string> ShortRequests() {
  std::vector<std::string> requests;
  for (const char* more : {R"("temperature":0)", R"("temperature":0.9,"seed":7)"}) {
    requests.push_back(
        fmt::format(R"({{"model":"demo-model","prompt":"def f(","max_tokens":12,"ignore_eos":true,)"
                    R"("stream":true,{}}})",
                    more));
  }
  return requests;
}

TEST_P(PeerLinksOfALayout, SlowAndTornOnesChangeNoStream) {
  ASSERT_NO_FATAL_FAILURE(Start(GetParam()));
  const std::vector<Story> want = Telling(cluster_, ShortRequests()).Finish();
  peers_->Set(kSlow);
  EXPECT_EQ(Telling(cluster_, ShortRequests()).Finish(), want) << Output();
  const int64_t bytes = peers_->Sum(&FaultProxy::bytes_passed);
  const int64_t segments = peers_->Sum(&FaultProxy::segments);
  peers_->Set(kTorn);
  EXPECT_EQ(Telling(cluster_, ShortRequests()).Finish(), want) << Output();
  EXPECT_GT(peers_->Sum(&FaultProxy::segments) - segments,
            (peers_->Sum(&FaultProxy::bytes_passed) - bytes) / 2);
  EXPECT_EQ(first_->Count("is lost"), 0) << Output();
  peers_->Set({});
  ExpectOrderlyEnd();
}

TEST_P(PeerLinksOfALayout, ResetsAndHalfOpenConnectionsAreRecoveredFrom) {
  ASSERT_NO_FATAL_FAILURE(Start(GetParam()));
  ExpectTheSameStreams([&] { peers_->ForEach([](FaultProxy& proxy) { proxy.Reset(); }); });
  EXPECT_EQ(first_->Count("; waiting for all ranks"), 1) << Output();
  ExpectTheSameStreams([&] { peers_->ForEach([](FaultProxy& proxy) { proxy.HalfOpen(); }); });
  EXPECT_EQ(first_->Count("; waiting for all ranks"), 2) << Output();
  EXPECT_GT(peers_->Sum(&FaultProxy::num_ended), 1);
  ExpectOrderlyEnd();
}

TEST_P(PeerLinksOfALayout, ABlackHoleIsFoundByTheStandstillAndRecoveredFrom) {
  ASSERT_NO_FATAL_FAILURE(Start(GetParam()));
  ExpectTheSameStreams([&] {
    peers_->Set(kBlackHole);
    ExpectTheVerdict();
  });
  EXPECT_EQ(second_->Count("weights: "), 1) << "a link is no reason to load again\n" << Output();
  ExpectOrderlyEnd();
}

INSTANTIATE_TEST_SUITE_P(Layouts, PeerLinksOfALayout, testing::Values("-tp", "-pp"),
                         [](const auto& layout) { return std::string(layout.param).substr(1); });

TEST_F(PeerLinks, BytesThatVanishOneWayAreFoundToo) {
  ASSERT_NO_FATAL_FAILURE(Start("-tp"));
  ExpectTheSameStreams([&] {
    peers_->Set(kOneWay);
    ExpectTheVerdict();
  });
  ExpectOrderlyEnd();
}

TEST_F(PeerLinks, ALinkThatStaysBlackEndsTheLaunchNamed) {
  ASSERT_NO_FATAL_FAILURE(Start("-tp", "1"));
  Telling telling(cluster_, RequestsThatDecode());
  telling.WaitUntilEachAnswers();
  peers_->SetForGood(kBlackHole);
  ExpectTheVerdict();
  EXPECT_EQ(first_->WaitForExit(absl::Seconds(60)), 1) << Output();
  EXPECT_EQ(second_->WaitForExit(absl::Seconds(60)), 1) << Output();
  EXPECT_THAT(first_->output(), HasSubstr("as many as --max-restarts allows")) << Output();
  EXPECT_THAT(first_->output(), HasSubstr(fmt::format("rank 0 at {} ", kProxyHost))) << Output();
}

}  // namespace
}  // namespace polyreme::e2e
