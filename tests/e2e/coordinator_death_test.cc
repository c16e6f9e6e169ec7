// The coordinator dies or hangs: its agent starts another at the same addresses, the workers keep
// their processes, weights and cache pools, and what cannot be recovered ends named.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "parallel/base/clock.h"
#include "tests/coordinator/api/raw_client.h"
#include "tests/e2e/launched_cluster.h"

namespace polyreme::e2e {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr absl::Duration kBackAgain = absl::Seconds(30);
constexpr char kRejoined[] = "of the coordinator, with the weights that are here";

std::string Request(int num_tokens, const std::string& more) {
  return fmt::format(R"({{"model":"demo-model","prompt":"def f(","max_tokens":{},)"
                     R"("ignore_eos":true,{}}})",
                     num_tokens, more);
}

// What the cluster says to a greedy, a seeded and a twofold request.
std::vector<std::string> Answers(const Cluster& cluster) {
  std::vector<std::string> texts;
  for (const char* more : {R"("temperature":0)", R"("temperature":0.9,"seed":7)",
                           R"("temperature":0.8,"seed":11,"n":2)"}) {
    const absl::StatusOr<Json> request = Json::Parse(Request(80, more));
    EXPECT_TRUE(request.ok());
    const Json answer = cluster.Post("/v1/completions", *request);
    const Json* const choices = answer.Find("choices");
    if (choices == nullptr) {
      ADD_FAILURE() << "no choices";
      continue;
    }
    for (const Json& choice : choices->as_array()) {
      texts.push_back(choice.Find("text")->as_string());
    }
  }
  return texts;
}

size_t CountOf(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

std::vector<pid_t> Living(const Cluster& cluster, const std::string& command) {
  std::vector<pid_t> pids = cluster.program->Descendants("polyreme " + command);
  std::erase_if(pids, [](pid_t pid) { return !IsAlive(pid); });
  std::sort(pids.begin(), pids.end());
  return pids;
}

// The one coordinator there is, once it is there.
pid_t CoordinatorOf(const Cluster& cluster) {
  const absl::Time deadline = MonotonicNow() + absl::Seconds(10);
  while (MonotonicNow() < deadline) {
    const std::vector<pid_t> found = Living(cluster, "coordinator");
    if (found.size() == 1) return found.front();
    poll(nullptr, 0, 10);
  }
  ADD_FAILURE() << "no coordinator\n" << cluster.program->output();
  return -1;
}

void Kill(pid_t pid) {
  ASSERT_GT(pid, 1);
  ASSERT_EQ(kill(pid, SIGKILL), 0);
  EXPECT_EQ(FirstAlive({pid}, absl::Seconds(5)), std::nullopt);
}

// Waits until incarnation `number` of the coordinator serves at the port of the first.
void ExpectIncarnation(const Cluster& cluster, int number) {
  const absl::Time deadline = MonotonicNow() + kBackAgain;
  const std::string ready =
      fmt::format("ready: serving demo-model at http://127.0.0.1:{}", cluster.port);
  while (CountOf(cluster.program->output(), ready) < static_cast<size_t>(number) &&
         MonotonicNow() < deadline && !cluster.program->WaitForExit(absl::ZeroDuration())) {
    poll(nullptr, 0, 10);
  }
  ASSERT_EQ(CountOf(cluster.program->output(), ready), static_cast<size_t>(number))
      << cluster.program->output();
  EXPECT_THAT(cluster.Get("/health"), HasSubstr("ok"));
}

// The epochs that were served, in order of the log.
std::vector<int> EpochsServed(const std::string& log) {
  std::vector<int> epochs;
  const std::string serves = " serves, after";
  for (size_t at = log.find(serves); at != std::string::npos; at = log.find(serves, at + 1)) {
    epochs.push_back(std::stoi(log.substr(log.rfind(' ', at - 1) + 1)));
  }
  return epochs;
}

class CoordinatorDeath : public testing::Test {
 protected:
  void Start(const std::vector<std::string>& launcher, std::vector<std::string> arguments,
             int world) {
    arguments.insert(arguments.end(), {"--max-restarts", "10"});
    cluster_ = StartCluster(launcher, arguments);
    ASSERT_NE(cluster_.port, 0);
    Look(world);
  }

  // Two shards at a port that is known beforehand.
  void StartAt(int32_t port, int max_restarts) {
    cluster_ = {};
    cluster_.program =
        Program::Start({POLYREME_BINARY, "serve", kDemoModel, "-tp", "2", "--port",
                        std::to_string(port), "--max-restarts", std::to_string(max_restarts)});
    ASSERT_TRUE(
        cluster_.program->WaitForLine("at http://127.0.0.1:", absl::Seconds(60)).has_value())
        << log();
    cluster_.port = port;
    Look(2);
  }

  void Look(int world) {
    want_ = Answers(cluster_);
    ASSERT_EQ(want_.size(), 4u);
    workers_ = Living(cluster_, "worker");
    ASSERT_EQ(std::ssize(workers_), world);
  }

  // Everybody who was there still is, has loaded once, and says what it said.
  void ExpectUnchanged(int times_rejoined) {
    EXPECT_EQ(Answers(cluster_), want_) << log();
    EXPECT_EQ(Living(cluster_, "worker"), workers_);
    EXPECT_EQ(CountOf(log(), "weights: "), workers_.size()) << log();
    EXPECT_EQ(CountOf(log(), kRejoined), workers_.size() * static_cast<size_t>(times_rejoined))
        << log();
  }

  // One in the middle of a stream, one while nobody asks anything.
  void KillInAStreamAndIdle() {
    api::RawClient stream(cluster_.port);
    stream.Send(api::PostJson("/v1/completions", Request(400, R"("temperature":0,"stream":true)")));
    ASSERT_THAT(stream.ReadUntil("data: "), HasSubstr("data: "));
    Kill(CoordinatorOf(cluster_));
    EXPECT_THAT(stream.ReadUntil("data: [DONE]"), Not(HasSubstr("data: [DONE]")));
    ExpectIncarnation(cluster_, 2);
    ExpectUnchanged(1);
    Kill(CoordinatorOf(cluster_));
    ExpectIncarnation(cluster_, 3);
    ExpectUnchanged(2);
    const std::vector<int> epochs = EpochsServed(log());
    EXPECT_EQ(epochs, (std::vector<int>{2, 3})) << log();
  }

  std::string log() const { return cluster_.program->output(); }

  Cluster cluster_;
  std::vector<std::string> want_;
  std::vector<pid_t> workers_;
};

TEST_F(CoordinatorDeath, TwoShardsKeepTheirWeights) {
  ASSERT_NO_FATAL_FAILURE(Start({}, {"-tp", "2"}, 2));
  KillInAStreamAndIdle();
  EXPECT_EQ(cluster_.Stop(), 0) << log();
}
TEST_F(CoordinatorDeath, TwoStagesKeepTheirWeights) {
  ASSERT_NO_FATAL_FAILURE(Start({}, {"-pp", "2"}, 2));
  KillInAStreamAndIdle();
  EXPECT_EQ(cluster_.Stop(), 0) << log();
}
TEST_F(CoordinatorDeath, ShardsThatMeetOverTcpKeepTheirWeights) {
  ASSERT_NO_FATAL_FAILURE(Start({}, {"-tp", "2", "--transport", "tcp"}, 2));
  KillInAStreamAndIdle();
  EXPECT_EQ(cluster_.Stop(), 0) << log();
}
TEST_F(CoordinatorDeath, UnderMpirunTheOtherAgentsNeedNoWord) {
  ASSERT_NO_FATAL_FAILURE(Start(Mpirun(2), {"-tp", "2"}, 2));
  KillInAStreamAndIdle();
  cluster_.program->Signal(SIGUSR2);
  EXPECT_EQ(cluster_.program->WaitForExit(absl::Seconds(20)), 0) << log();
}

TEST_F(CoordinatorDeath, AKeyRunsItsRequestAgainAndIsAnsweredTheSame) {
  ASSERT_NO_FATAL_FAILURE(Start({}, {"-tp", "2"}, 2));
  const auto ask = [&] {
    return api::Exchange(cluster_.port, api::PostJson("/v1/completions",
                                                      Request(40, R"("temperature":0.9,"seed":3)"),
                                                      "Idempotency-Key: k\r\n"));
  };
  const auto text_of = [](const api::RawResponse& response) {
    const absl::StatusOr<Json> body = Json::Parse(response.body);
    const Json* const choices = body.ok() ? body->Find("choices") : nullptr;
    return choices == nullptr ? response.body : choices->Dump();
  };
  const api::RawResponse first = ask();
  const api::RawResponse replayed = ask();
  EXPECT_EQ(replayed.Header("idempotent-replayed"), "true");
  EXPECT_EQ(replayed.body, first.body);
  Kill(CoordinatorOf(cluster_));
  ExpectIncarnation(cluster_, 2);
  const api::RawResponse again = ask();
  EXPECT_EQ(again.Header("idempotent-replayed"), "") << "what was kept is gone";
  EXPECT_EQ(text_of(again), text_of(first));
  EXPECT_EQ(cluster_.Stop(), 0) << log();
}

TEST_F(CoordinatorDeath, OneThatStandsStillIsKilledAndReplaced) {
  ASSERT_NO_FATAL_FAILURE(Start({}, {"-tp", "2"}, 2));
  const pid_t pid = CoordinatorOf(cluster_);
  ASSERT_EQ(kill(pid, SIGSTOP), 0);
  ASSERT_TRUE(cluster_.program
                  ->WaitForLine(fmt::format("coordinator (pid {}) hangs", pid), absl::Seconds(20))
                  .has_value())
      << log();
  EXPECT_EQ(FirstAlive({pid}, absl::Seconds(5)), std::nullopt);
  ExpectIncarnation(cluster_, 2);
  ExpectUnchanged(1);
  EXPECT_EQ(cluster_.Stop(), 0) << log();
}

TEST_F(CoordinatorDeath, AWorkerThatDiesWithItIsOneMoreRecovery) {
  ASSERT_NO_FATAL_FAILURE(Start({}, {"-tp", "2"}, 2));
  const pid_t coordinator = CoordinatorOf(cluster_);
  ASSERT_EQ(kill(workers_[1], SIGKILL), 0);
  ASSERT_EQ(kill(coordinator, SIGKILL), 0);
  EXPECT_EQ(FirstAlive({workers_[1], coordinator}, absl::Seconds(5)), std::nullopt);
  ExpectIncarnation(cluster_, 2);
  EXPECT_EQ(Answers(cluster_), want_) << log();
  EXPECT_EQ(CountOf(log(), "weights: "), 3u) << "one more rank had to load\n" << log();
  const std::vector<pid_t> now = Living(cluster_, "worker");
  ASSERT_EQ(now.size(), 2u);
  EXPECT_NE(std::find(now.begin(), now.end(), workers_[0]), now.end());
  EXPECT_EQ(cluster_.Stop(), 0) << log();
}

TEST_F(CoordinatorDeath, DuringARecoveryAndAgainBeforeItIsBackIsOneMoreRecoveryEach) {
  ASSERT_NO_FATAL_FAILURE(Start({}, {"-tp", "2"}, 2));
  // A rank that stands still holds up the recovery until it goes on.
  ASSERT_EQ(kill(workers_[0], SIGSTOP), 0);
  ASSERT_EQ(kill(workers_[1], SIGKILL), 0);
  int32_t code = 200;
  for (int i = 0; i < 300 && code != 503; ++i) {
    code = api::Exchange(cluster_.port, api::Get("/health")).code;
    poll(nullptr, 0, 5);
  }
  EXPECT_EQ(code, 503);
  const pid_t first = CoordinatorOf(cluster_);
  Kill(first);
  const pid_t second = CoordinatorOf(cluster_);
  EXPECT_NE(second, first);
  // The replaced rank has joined it, and it waits for the one that stands still.
  ASSERT_TRUE(cluster_.program->WaitForLine("joined incarnation 2", absl::Seconds(20)).has_value())
      << log();
  Kill(second);
  ASSERT_EQ(kill(workers_[0], SIGCONT), 0);
  ExpectIncarnation(cluster_, 2);  // the second one never served
  EXPECT_THAT(log(), HasSubstr("incarnation 3 of the coordinator"));
  EXPECT_EQ(Answers(cluster_), want_) << log();
  EXPECT_EQ(cluster_.Stop(), 0) << log();
}

TEST_F(CoordinatorDeath, MoreThanAllowedEndTheLaunchNamedAndItStartsAgainAtOnce) {
  const int32_t port = FreePort();
  ASSERT_NO_FATAL_FAILURE(StartAt(port, 1));
  Kill(CoordinatorOf(cluster_));
  ExpectIncarnation(cluster_, 2);
  ExpectUnchanged(1);
  const std::vector<pid_t> family = cluster_.program->Descendants("polyreme");
  const pid_t last = CoordinatorOf(cluster_);
  Kill(last);
  ASSERT_EQ(cluster_.program->WaitForExit(absl::Seconds(20)), 1) << log();
  EXPECT_THAT(log(), HasSubstr("--max-restarts"));
  EXPECT_THAT(log(), HasSubstr(fmt::format(
                         "polyreme serve: coordinator (pid {}) was killed by signal 9", last)));
  EXPECT_EQ(FirstAlive(family, absl::Seconds(5)), std::nullopt);
  const std::vector<std::string> want = want_;
  ASSERT_NO_FATAL_FAILURE(StartAt(port, 1));
  EXPECT_EQ(want_, want);
  EXPECT_EQ(cluster_.Stop(), 0) << log();
}

TEST(CoordinatorDeathBeforeServing, EndsTheLaunchNamed) {
  // One rank of two: its coordinator waits for the other.
  const auto program = Program::Start(
      {POLYREME_BINARY, "serve", kDemoModel, "--port", "0", "-tp", "2", "--rank", "0",
       "--world-size", "2", "--coordinator", fmt::format("127.0.0.1:{}", FreePort())},
      {{"POLYREME_JOB_TOKEN", "a-token-of-this-test-0123456789"}});
  std::vector<pid_t> found;
  for (int i = 0; i < 1000 && found.empty(); ++i) {
    found = program->Descendants("polyreme coordinator");
    poll(nullptr, 0, 10);
  }
  ASSERT_EQ(found.size(), 1u) << program->output();
  const std::vector<pid_t> family = program->Descendants("polyreme");
  Kill(found.front());
  EXPECT_EQ(program->WaitForExit(absl::Seconds(20)), 1) << program->output();
  EXPECT_THAT(program->output(),
              HasSubstr(fmt::format("polyreme serve: coordinator (pid {}) was killed by signal 9",
                                    found.front())));
  EXPECT_EQ(FirstAlive(family, absl::Seconds(5)), std::nullopt);
}

TEST(CoordinatorDeathWithoutRestarts, EndsTheLaunchNamed) {
  Cluster cluster = StartCluster({}, {"-tp", "2", "--max-restarts", "0"});
  ASSERT_NE(cluster.port, 0);
  const std::vector<pid_t> family = cluster.program->Descendants("polyreme");
  const pid_t pid = CoordinatorOf(cluster);
  Kill(pid);
  EXPECT_EQ(cluster.program->WaitForExit(absl::Seconds(20)), 1);
  EXPECT_THAT(cluster.program->output(),
              HasSubstr(fmt::format("polyreme serve: coordinator (pid {}) was killed", pid)));
  EXPECT_EQ(FirstAlive(family, absl::Seconds(5)), std::nullopt);
}

}  // namespace
}  // namespace polyreme::e2e
