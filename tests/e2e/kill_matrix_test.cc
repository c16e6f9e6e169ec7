// Each rank, killed or stopped in each phase of its life. Every strike is verified: that the
// process is gone or stands, that the phase was the one meant, and that another process took its
// place.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "parallel/base/clock.h"
#include "tests/e2e/launched_cluster.h"
#include "tests/e2e/stories.h"

namespace polyreme::e2e {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct Layout {
  std::string name;
  std::vector<std::string> arguments;
  int world;
};
const Layout kTwoShards{"tp2", {"-tp", "2"}, 2};
const Layout kTwoStages{"pp2", {"-pp", "2"}, 2};
const Layout kGrid{"tp2pp2", {"-tp", "2", "-pp", "2"}, 4};

std::string NameOfSignal(int signal) {
  return signal == SIGSTOP ? "stopped" : "killed";
}

// Before all have been ready: the launch ends.

enum class Beginning { kJoining, kLoading };

struct BeginningCase {
  Layout layout;
  Beginning phase;
  int signal;
};

void PrintTo(const BeginningCase& c, std::ostream* out) {
  *out << c.layout.name << (c.phase == Beginning::kJoining ? "_joining_" : "_loading_")
       << NameOfSignal(c.signal);
}

// Of weights that take a moment to make, so that loading is a phase that can be hit.
void MakeSlowModel(const std::string& directory) {
  std::filesystem::create_directory(directory);
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}) {
    std::filesystem::copy(std::string(kDemoModel) + "/" + name, directory);
  }
  std::ifstream in(std::string(kDemoModel) + "/config.json");
  std::ostringstream text;
  text << in.rdbuf();
  std::string config = text.str();
  const auto set = [&](const std::string& key, const std::string& from, const std::string& to) {
    const std::string old = fmt::format("\"{}\": {}", key, from);
    const size_t at = config.find(old);
    ASSERT_NE(at, std::string::npos) << key;
    config.replace(at, old.size(), fmt::format("\"{}\": {}", key, to));
  };
  set("hidden_size", "384", "1024");
  set("intermediate_size", "1024", "8192");
  std::ofstream(directory + "/config.json") << config;
}

ptrdiff_t NumThreads(pid_t pid) {
  std::error_code error;
  const std::filesystem::directory_iterator tasks(fmt::format("/proc/{}/task", pid), error);
  return error ? 0 : std::distance(begin(tasks), end(tasks));
}

class StruckLaunch {
 public:
  StruckLaunch(const BeginningCase& c, int rank) : rank_(rank) {
    model_ = traces_.directory() + "-model";
    MakeSlowModel(model_);
    std::vector<std::string> line = {POLYREME_BINARY,
                                     "serve",
                                     model_,
                                     "--load-format",
                                     "dummy",
                                     "--port",
                                     "0",
                                     "--join-timeout",
                                     c.phase == Beginning::kJoining ? "10" : "60"};
    line.insert(line.end(), c.layout.arguments.begin(), c.layout.arguments.end());
    program_ = Program::Start(line, traces_.environment());
    if (c.phase == Beginning::kJoining) {
      // Nobody can join while the coordinator stands still.
      const pid_t coordinator = Coordinator();
      Strike(coordinator, SIGSTOP);
      StrikeRank(c.signal, "ranks have joined");
      kill(coordinator, SIGCONT);
    } else {
      EXPECT_TRUE(program_->WaitForLine("ranks have joined", absl::Seconds(30)).has_value())
          << program_->output();
      StrikeRank(c.signal, "have loaded their weights");
    }
  }
  ~StruckLaunch() { std::filesystem::remove_all(model_); }

  // Within the verdict on a hang or the join timeout, 10 s each, and the agent's patience.
  void ExpectEnd() {
    const std::optional<int> exit = program_->WaitForExit(absl::Seconds(25));
    ASSERT_TRUE(exit.has_value()) << "still running:\n" << program_->output();
    EXPECT_EQ(*exit, 1) << program_->output();
    EXPECT_THAT(program_->output(), HasSubstr(fmt::format("rank {}", rank_)));
    EXPECT_EQ(program_->Count("ready: serving"), 0);
    EXPECT_EQ(FirstAlive(family_, absl::Seconds(5)), std::nullopt) << program_->output();
    EXPECT_THAT(traces_.Left(), IsEmpty());
  }

 private:
  pid_t Coordinator() {
    std::vector<pid_t> found;
    WaitUntil(absl::Seconds(10), [&] {
      found = program_->Descendants("polyreme coordinator");
      return !found.empty();
    });
    EXPECT_EQ(found.size(), 1u) << program_->output();
    return found.empty() ? -1 : found[0];
  }

  // `next`: the line with which the phase ends.
  void StrikeRank(int signal, const std::string& next) {
    const pid_t pid = WorkerOf(*program_, rank_);
    // One that beats, or is about to: who never began is the join timeout's business.
    EXPECT_TRUE(WaitUntil(absl::Seconds(10), [&] { return NumThreads(pid) > 1; }));
    Strike(pid, signal);
    EXPECT_EQ(program_->Count(next), 0) << "the strike missed its phase\n" << program_->output();
    family_ = program_->Descendants("polyreme");
  }

  const int rank_;
  const Traces traces_;
  std::string model_;
  std::unique_ptr<Program> program_;
  std::vector<pid_t> family_;
};

class BeginningMatrix : public testing::TestWithParam<BeginningCase> {};

TEST_P(BeginningMatrix, ARankStruckBeforeAllWereReadyEndsTheLaunchWholeAndNamed) {
  // A verdict on a hang takes seconds, which several launches spend together.
  std::vector<std::unique_ptr<StruckLaunch>> launches;
  for (int rank = 0; rank < GetParam().layout.world; ++rank) {
    launches.push_back(std::make_unique<StruckLaunch>(GetParam(), rank));
  }
  for (const auto& launch : launches) launch->ExpectEnd();
}

INSTANTIATE_TEST_SUITE_P(KillMatrix, BeginningMatrix,
                         testing::Values(BeginningCase{kTwoShards, Beginning::kJoining, SIGKILL},
                                         BeginningCase{kTwoShards, Beginning::kJoining, SIGSTOP},
                                         BeginningCase{kTwoShards, Beginning::kLoading, SIGKILL},
                                         BeginningCase{kTwoShards, Beginning::kLoading, SIGSTOP},
                                         BeginningCase{kTwoStages, Beginning::kJoining, SIGKILL},
                                         BeginningCase{kTwoStages, Beginning::kJoining, SIGSTOP},
                                         BeginningCase{kTwoStages, Beginning::kLoading, SIGKILL},
                                         BeginningCase{kTwoStages, Beginning::kLoading, SIGSTOP}),
                         testing::PrintToStringParamName());

// Once all have served: no stream is any different.

struct ServingCase {
  Layout layout;
  int signal;
  std::vector<int> ranks;
};

void PrintTo(const ServingCase& c, std::ostream* out) {
  *out << c.layout.name << "_" << NameOfSignal(c.signal);
}

class ServingMatrix : public testing::TestWithParam<ServingCase> {
 protected:
  void SetUp() override {
    // Small steps make a prompt's phase wide; found blocks would make it short.
    std::vector<std::string> arguments = {"--max-restarts", "100", "--max-num-batched-tokens", "32",
                                          "--no-enable-prefix-caching"};
    const std::vector<std::string>& layout = GetParam().layout.arguments;
    arguments.insert(arguments.end(), layout.begin(), layout.end());
    cluster_ = StartCluster({}, arguments);
    ASSERT_NE(cluster_.port, 0);
    decoded_ = Tell(cluster_);
    prefilled_ = Telling(cluster_, RequestsThatPrefill()).Finish();
    ASSERT_EQ(decoded_.size(), 3u);
    ASSERT_EQ(decoded_[2].size(), 2u);
  }

  // Strikes the process of the rank that lives now; another takes its place.
  void StrikeRank(int rank) { StrikeProcess(rank, WorkerOf(*cluster_.program, rank)); }
  void StrikeProcess(int rank, pid_t pid) {
    Strike(pid, GetParam().signal);
    struck_.emplace_back(rank, pid);
  }

  int64_t Steps() const {
    const std::string metrics = cluster_.Get("/metrics");
    const std::string name = "\npolyreme_steps_total{model_name=\"demo-model\"} ";
    const size_t at = metrics.find(name);
    return at == std::string::npos ? 0 : std::atoll(metrics.c_str() + at + name.size());
  }

  void StrikeInPrefill(int rank) {
    const int64_t before = Steps();
    Telling telling(cluster_, RequestsThatPrefill());
    EXPECT_TRUE(WaitUntil(absl::Seconds(20), [&] { return Steps() >= before + 2; }));
    StrikeRank(rank);
    EXPECT_EQ(telling.num_answering(), 0) << "the strike missed its phase";
    EXPECT_EQ(telling.Finish(), prefilled_);
  }

  void StrikeInDecode(int rank) {
    Telling telling(cluster_, RequestsThatDecode());
    telling.WaitUntilEachAnswers();
    StrikeRank(rank);
    EXPECT_EQ(telling.num_ended(), 0) << "the strike missed its phase";
    EXPECT_EQ(telling.Finish(), decoded_);
  }

  // The process that takes the lost one's place; on a grid, that of another rank.
  void StrikeInRecovery(int rank) {
    Telling telling(cluster_, RequestsThatDecode());
    telling.WaitUntilEachAnswers();
    const int served = cluster_.program->Count(" serves, after ");
    const int lost = cluster_.program->Count(" is lost: ");
    const int first = GetParam().layout.world > 2 ? (rank + 1) % GetParam().layout.world : rank;
    // Looked up before, because a recovery is a matter of a tenth of a second.
    const pid_t survivor = first == rank ? -1 : WorkerOf(*cluster_.program, rank);
    Strike(WorkerOf(*cluster_.program, first), SIGKILL);
    EXPECT_TRUE(WaitUntil(absl::Seconds(10), [&] {
      return cluster_.program->Count(" is lost: ") > lost;
    })) << cluster_.program->output();
    survivor > 0 ? StrikeProcess(rank, survivor) : StrikeRank(rank);
    EXPECT_EQ(cluster_.program->Count(" serves, after "), served) << "the strike missed its phase";
    EXPECT_EQ(telling.Finish(), decoded_);
  }

  void ExpectReplacedAndNamed() const {
    for (const auto& [rank, pid] : struck_) {
      EXPECT_NE(WorkerOf(*cluster_.program, rank), pid);
      EXPECT_FALSE(IsAlive(pid));
      const std::string who = fmt::format("worker rank {} (pid {}) ", rank, pid);
      EXPECT_THAT(cluster_.program->output(),
                  HasSubstr(who + "was killed by signal 9 (Killed); started again as pid "));
      if (GetParam().signal == SIGSTOP) {
        EXPECT_THAT(cluster_.program->output(), HasSubstr(who + "hangs"));
      }
    }
    // Nobody else was blamed.
    EXPECT_EQ(cluster_.program->Count(" hangs: "),
              GetParam().signal == SIGSTOP ? std::ssize(struck_) : 0);
  }

  Cluster cluster_;
  std::vector<Story> decoded_;
  std::vector<Story> prefilled_;
  std::vector<std::pair<int, pid_t>> struck_;
};

TEST_P(ServingMatrix, ARankStruckInPrefillDecodeOrRecoveryChangesNoStream) {
  ASSERT_NE(cluster_.port, 0);
  for (const int rank : GetParam().ranks) {
    SCOPED_TRACE(fmt::format("rank {}", rank));
    StrikeInPrefill(rank);
    StrikeInDecode(rank);
    StrikeInRecovery(rank);
    ASSERT_FALSE(HasFailure()) << cluster_.program->output();
  }
  ExpectReplacedAndNamed();
  EXPECT_THAT(cluster_.Get("/health"), HasSubstr("ok"));
  EXPECT_EQ(cluster_.Stop(), 0) << cluster_.program->output();
}

INSTANTIATE_TEST_SUITE_P(KillMatrix, ServingMatrix,
                         testing::Values(ServingCase{kTwoShards, SIGKILL, {0, 1}},
                                         ServingCase{kTwoShards, SIGSTOP, {0, 1}},
                                         ServingCase{kTwoStages, SIGKILL, {0, 1}},
                                         ServingCase{kTwoStages, SIGSTOP, {0, 1}},
                                         ServingCase{kGrid, SIGKILL, {0, 1, 2, 3}},
                                         ServingCase{kGrid, SIGSTOP, {3}}),
                         testing::PrintToStringParamName());

}  // namespace
}  // namespace polyreme::e2e
