// No lost request, no wrong, missing or doubled token, no leaked block, no standstill: whatever
// processes, network and clients do. A failing seed says how it is replayed alone:
//   POLYREME_SIM_SEED=17 build/.../cluster_sim_test --gtest_filter=...
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>

#include "parallel/base/clock.h"
#include "tests/sim/sim_story.h"

namespace polyreme::sim {
namespace {

constexpr uint64_t kSeedsPerShard = 500;
constexpr int kShards = 20;
constexpr uint64_t kFreshSeeds = 300;
constexpr uint64_t kEightBlockSeeds = 500;
// Each planted mistake is found within so many seeds.
constexpr uint64_t kPlantSeeds = 300;

// A CHECK in the product ends the process: these words still have to be said.
char last_words[512] = "";

void SayLastWords(int signal) {
  if (write(STDERR_FILENO, last_words, std::strlen(last_words)) < 0) last_words[0] = 0;
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

std::string ReplayLine(uint64_t seed) {
  const testing::TestInfo& test = *testing::UnitTest::GetInstance()->current_test_info();
  return fmt::format("POLYREME_SIM_SEED={} cluster_sim_test --gtest_filter={}.{}", seed,
                     test.test_suite_name(), test.name());
}

StoryEnd Tell(uint64_t seed, const StoryOptions& options) {
  const std::string line = fmt::format("replay with: {}\n", ReplayLine(seed));
  std::strncpy(last_words, line.c_str(), sizeof(last_words) - 1);
  std::signal(SIGABRT, SayLastWords);
  std::signal(SIGSEGV, SayLastWords);
  StoryEnd end = RunStory(seed, options);
  std::signal(SIGABRT, SIG_DFL);
  std::signal(SIGSEGV, SIG_DFL);
  return end;
}

// Runs a seed that must go well; if it does not, says how it came to that.
StoryEnd RunWell(uint64_t seed, StoryOptions options) {
  StoryEnd end = Tell(seed, options);
  if (end.failure.empty()) return end;
  options.traces = true;
  const StoryEnd again = Tell(seed, options);
  std::string trace;
  for (const std::string& line : again.trace) trace += line + "\n";
  ADD_FAILURE() << "seed " << seed << ": " << end.failure << "\nthe last of what happened:\n"
                << trace << "replay with: " << ReplayLine(seed);
  return end;
}

// The seeds of a test: `count` from `first` on, or the one that is to be replayed.
std::vector<uint64_t> Seeds(uint64_t first, uint64_t count) {
  if (const char* one = std::getenv("POLYREME_SIM_SEED")) {
    return {std::strtoull(one, nullptr, 10)};
  }
  std::vector<uint64_t> seeds;
  for (uint64_t i = 0; i < count; ++i) seeds.push_back(first + i);
  return seeds;
}

StoryEnd RunSeeds(const std::vector<uint64_t>& seeds) {
  StoryEnd sum;
  for (const uint64_t seed : seeds) {
    sum += RunWell(seed, {});
    if (testing::Test::HasFailure()) return sum;
  }
  fmt::print(
      "{} seeds: {} steps, {} losses, {} takeovers, {} preemptions, {} prefixes reused; "
      "requests: {} complete, {} cancelled, {} out of time, {} too slow, {} quarantined, {} ended "
      "with the cluster, {} broken with the coordinator\n",
      seeds.size(), sum.num_steps, sum.num_losses, sum.num_takeovers, sum.num_preemptions,
      sum.num_reused, sum.num_ok, sum.num_cancelled, sum.num_late, sum.num_slow,
      sum.num_quarantined, sum.num_unavailable, sum.num_broken);
  return sum;
}

// Of seeds that are always the same: with others it would be a matter of luck.
void ExpectVariety(const StoryEnd& sum, int64_t count) {
  EXPECT_GT(sum.num_losses, count) << "hardly anything failed";
  EXPECT_GT(sum.num_takeovers, count / 10) << "the coordinator hardly ever died";
  EXPECT_GT(sum.num_broken, count / 10) << "the coordinator died when nobody asked for anything";
  EXPECT_GT(sum.num_preemptions, count / 2) << "blocks were hardly ever short";
  EXPECT_GT(sum.num_reused, count) << "hardly anything was reused";
  EXPECT_GT(sum.num_ok, 2 * count);
  for (const int32_t kind :
       {sum.num_cancelled, sum.num_late, sum.num_slow, sum.num_quarantined, sum.num_unavailable}) {
    EXPECT_GT(kind, count / 20) << "an end that hardly ever comes";
  }
}

class ClusterSimShard : public testing::TestWithParam<int> {};

TEST_P(ClusterSimShard, NothingIsLostWrongDoubledOrStuckWhateverFails) {
  const std::vector<uint64_t> seeds =
      Seeds(1 + static_cast<uint64_t>(GetParam()) * kSeedsPerShard, kSeedsPerShard);
  const StoryEnd sum = RunSeeds(seeds);
  // Fewer are a replay.
  if (seeds.size() == kSeedsPerShard && !HasFailure()) ExpectVariety(sum, kSeedsPerShard);
}

INSTANTIATE_TEST_SUITE_P(Seeds, ClusterSimShard, testing::Range(0, kShards));

TEST(ClusterSim, NorWithSeedsThatNobodyHasTried) {
  const auto now = static_cast<uint64_t>(absl::ToUnixMicros(MonotonicNow()));
  fmt::print("seeds from {} on\n", now);
  RunSeeds(Seeds(now, kFreshSeeds));
}

TEST(ClusterSim, ASeedIsReplayedExactly) {
  for (const uint64_t seed : Seeds(1, 200)) {
    const StoryEnd first = Tell(seed, {});
    const StoryEnd again = Tell(seed, {.traces = true});
    ASSERT_EQ(first.digest, again.digest) << "seed " << seed;
    ASSERT_EQ(first.num_events, again.num_events) << "seed " << seed;
  }
}

TEST(ClusterSim, EightBlocksGiveWhatPlentyOfBlocksGive) {
  StoryEnd sum;
  int64_t num_compared = 0;
  int64_t num_choices = 0;
  for (const uint64_t seed : Seeds(1, kEightBlockSeeds)) {
    const StoryEnd few = RunWell(seed, {.faults = false, .eight_blocks = true});
    const StoryEnd many = RunWell(seed, {.faults = false, .eight_blocks = true, .plenty = true});
    for (const auto& [client, choices] : few.outputs) {
      const auto found = many.outputs.find(client);
      if (found == many.outputs.end()) continue;  // cancelled sooner or later
      EXPECT_EQ(choices, found->second) << "client " << client << ", " << ReplayLine(seed);
      ++num_compared;
      num_choices += std::ssize(choices);
    }
    EXPECT_EQ(many.num_preemptions, 0) << ReplayLine(seed);
    if (HasFailure()) return;
    sum += few;
  }
  fmt::print("{} preemptions, {} prefixes reused, {} cancelled; {} requests, {} choices compared\n",
             sum.num_preemptions, sum.num_reused, sum.num_cancelled, num_compared, num_choices);
  if (std::getenv("POLYREME_SIM_SEED") != nullptr) return;
  EXPECT_GT(sum.num_preemptions, 3 * static_cast<int64_t>(kEightBlockSeeds));
  EXPECT_GT(sum.num_reused, 4 * static_cast<int64_t>(kEightBlockSeeds));
  EXPECT_GT(sum.num_cancelled, static_cast<int64_t>(kEightBlockSeeds));
  EXPECT_GT(num_choices, num_compared);
}

class PlantedMistake : public testing::TestWithParam<PlantName> {};

TEST_P(PlantedMistake, IsFound) {
  for (const uint64_t seed : Seeds(1, kPlantSeeds)) {
    const StoryEnd end = Tell(seed, {.plant = GetParam().plant});
    if (end.failure.empty()) continue;
    fmt::print("found with seed {}: {}\n", seed, end.failure);
    return;
  }
  ADD_FAILURE() << "not found within " << kPlantSeeds << " seeds";
}

INSTANTIATE_TEST_SUITE_P(Plants, PlantedMistake, testing::ValuesIn(kPlants),
                         [](const auto& plant) { return std::string(plant.param.name); });

}  // namespace
}  // namespace polyreme::sim
