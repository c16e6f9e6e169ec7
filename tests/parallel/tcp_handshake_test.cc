// What a listener inside the cluster makes of those who do not belong there.

#include "parallel/comm/tcp_handshake.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "parallel/base/clock.h"
#include "parallel/base/limits.h"
#include "parallel/comm/tcp_socket.h"
#include "parallel/comm/tcp_transport.h"

namespace polyreme::comm {
namespace {

using testing::AllOf;
using testing::HasSubstr;

Hello HelloOf(const DoorKey& key, int from, int to) {
  Hello hello;
  hello.epoch = key.epoch;
  hello.group = key.group;
  hello.from = from;
  hello.to = to;
  hello.nonce = launch::MakeNonce();
  return hello;
}

TEST(TcpHandshake, BothSidesProveTheToken) {
  const DoorKey key = MakeDoorKey(3, "epoch/3/tensor group 0", "token");
  const Hello hello = HelloOf(key, 2, 0);
  const Welcome welcome = Answer(key, hello, 0, Welcome::kWelcome);
  EXPECT_TRUE(CheckWelcome(key, hello, welcome).ok());
  EXPECT_TRUE(IsProven(key, hello, welcome, ProveTo(key, hello, welcome)));
}

TEST(TcpHandshake, AnotherTokenIsSeenOnBothSides) {
  const DoorKey ours = MakeDoorKey(3, "group", "token");
  const DoorKey theirs = MakeDoorKey(3, "group", "guess");
  const Hello hello = HelloOf(theirs, 2, 0);
  const Welcome welcome = Answer(ours, hello, 0, Welcome::kWelcome);
  EXPECT_EQ(CheckWelcome(theirs, hello, welcome).code(), absl::StatusCode::kUnauthenticated);
  EXPECT_FALSE(IsProven(ours, hello, welcome, ProveTo(theirs, hello, welcome)));
}

TEST(TcpHandshake, AProofIsGoodForOneConnectionAndOneSideOnly) {
  const DoorKey key = MakeDoorKey(3, "group", "token");
  const Hello hello = HelloOf(key, 2, 0);
  const Welcome first = Answer(key, hello, 0, Welcome::kWelcome);
  const Welcome second = Answer(key, hello, 0, Welcome::kWelcome);
  EXPECT_FALSE(IsProven(key, hello, second, ProveTo(key, hello, first))) << "played back";
  EXPECT_FALSE(IsProven(key, hello, first, first.proof)) << "thrown back";
  EXPECT_FALSE(CheckWelcome(key, HelloOf(key, 2, 0), first).ok()) << "given to another";
}

TEST(TcpHandshake, AnOldEpochIsToldSo) {
  const DoorKey now = MakeDoorKey(4, "group", "token");
  const DoorKey old = MakeDoorKey(3, "group", "token");
  const Hello hello = HelloOf(old, 2, 0);
  const absl::Status status = CheckWelcome(old, hello, Answer(now, hello, 0, Welcome::kWelcome));
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status.ToString();
  EXPECT_THAT(Message(status), AllOf(HasSubstr("epoch 4"), HasSubstr("epoch 3")));
}

TEST(TcpHandshake, OtherGroupsPlacesAndSecondComersAreTurnedAway) {
  const DoorKey key = MakeDoorKey(3, "group", "token");
  const DoorKey other = MakeDoorKey(3, "another group", "token");
  const auto verdict = [&](const Hello& hello, Welcome::Verdict otherwise = Welcome::kWelcome) {
    return Answer(key, hello, 1, otherwise).verdict;
  };
  EXPECT_EQ(verdict(HelloOf(key, 2, 1)), Welcome::kWelcome);
  EXPECT_EQ(verdict(HelloOf(other, 2, 1)), Welcome::kOtherGroup);
  EXPECT_EQ(verdict(HelloOf(key, 2, 0)), Welcome::kOtherPlace);
  EXPECT_EQ(verdict(HelloOf(key, 1, 1)), Welcome::kOtherPlace);
  EXPECT_EQ(verdict(HelloOf(key, -1, 1)), Welcome::kOtherPlace);
  EXPECT_EQ(verdict(HelloOf(key, 2, 1), Welcome::kTaken), Welcome::kTaken);
}

// A group of two whose rank 0 is met by strangers before rank 1 comes.
class TcpStrangers : public testing::Test {
 protected:
  static GroupSpec SpecOf(int rank) {
    GroupSpec group;
    group.name = "the group";
    group.rank = rank;
    group.members = {Rank{0}, Rank{1}};
    group.patience = absl::Seconds(30);
    group.deadline = MonotonicNow() + group.patience;
    return group;
  }
  absl::StatusOr<std::unique_ptr<Transport>> Join(int rank) {
    return JoinTcp(meet_, "key", SpecOf(rank), {Epoch{1}, "127.0.0.2", "token"});
  }
  UniqueFd Dial() {
    const auto address = ParseSocketAddress(*meet_.Wait("key/address/0", SpecOf(0).deadline));
    absl::StatusOr<UniqueFd> socket = Connect(*address, SpecOf(0).deadline);
    EXPECT_TRUE(socket.ok()) << socket.status().ToString();
    return *std::move(socket);
  }
  static absl::Span<const std::byte> BytesOf(std::string_view text) {
    return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
  }

  launch::InMemoryRendezvous meet_;
};

TEST_F(TcpStrangers, NeitherNoiseNorSilenceNorNumbersKeepARankOut) {
  const auto first = [&] {
    const auto transport = Join(0);
    EXPECT_TRUE(transport.ok()) << transport.status().ToString();
  };
  const std::jthread listener(first);
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 2 * limits::kMaxUnprovenConnections; ++i) silent.push_back(Dial());
  std::vector<UniqueFd> noisy;
  for (int i = 0; i < 8; ++i) {
    noisy.push_back(Dial());
    EXPECT_TRUE(WriteAll(noisy.back(), BytesOf("GET / HTTP/1.1\r\n\r\n"), SpecOf(0).deadline).ok());
    noisy.push_back(Dial());
    EXPECT_TRUE(WriteAll(noisy.back(), BytesOf(std::string(4096, 'x')), SpecOf(0).deadline).ok());
  }
  const auto transport = Join(1);
  EXPECT_TRUE(transport.ok()) << transport.status().ToString();
}

TEST_F(TcpStrangers, AHelloWithoutAProofTakesNobodysPlace) {
  const std::jthread listener([&] {
    const auto transport = Join(0);
    EXPECT_TRUE(transport.ok()) << transport.status().ToString();
  });
  const DoorKey guess = MakeDoorKey(1, "key", "guess");
  const UniqueFd stranger = Dial();
  const Hello hello = HelloOf(guess, 1, 0);
  Welcome welcome;
  const absl::Time deadline = SpecOf(0).deadline;
  ASSERT_TRUE(
      WriteAll(stranger, {reinterpret_cast<const std::byte*>(&hello), sizeof(hello)}, deadline)
          .ok());
  ASSERT_TRUE(
      ReadAll(stranger, {reinterpret_cast<std::byte*>(&welcome), sizeof(welcome)}, deadline).ok());
  const launch::Proof proof = ProveTo(guess, hello, welcome);
  ASSERT_TRUE(WriteAll(stranger, proof, deadline).ok());
  std::byte more;
  EXPECT_TRUE(absl::IsUnavailable(ReadAll(stranger, {&more, 1}, deadline))) << "not shut out";
  const auto transport = Join(1);
  EXPECT_TRUE(transport.ok()) << transport.status().ToString();
}

TEST(TcpSocket, AddressesAreNumericAndErrorsNameThem) {
  SocketAddress bound;
  EXPECT_TRUE(absl::IsInvalidArgument(Listen("no.such.host", bound).status()));
  const auto taken = Listen("203.0.113.9", bound);  // documentation's range: not ours
  EXPECT_TRUE(absl::IsFailedPrecondition(taken.status())) << taken.status().ToString();
  EXPECT_THAT(Message(taken.status()), HasSubstr("203.0.113.9"));
  for (const std::string_view text : {"", "127.0.0.1", "127.0.0.1 ", "127.0.0.1 x", "h 70000"}) {
    EXPECT_FALSE(ParseSocketAddress(text).ok()) << "'" << text << "'";
  }
}

TEST(TcpSocket, NobodyListeningIsUnavailable) {
  SocketAddress bound;
  { const auto listener = Listen("127.0.0.2", bound); }
  const auto socket = Connect(bound, MonotonicNow() + absl::Seconds(20));
  EXPECT_TRUE(absl::IsUnavailable(socket.status())) << socket.status().ToString();
}

}  // namespace
}  // namespace polyreme::comm
