// The flight recorder's ring and its parser.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "parallel/base/clock.h"
#include "parallel/trace/flight_record.h"
#include "parallel/trace/flight_ring.h"

namespace polyreme::trace {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<FlightRing> MakeRing(const FlightOwner& owner = {1, 1, 2, "job", "host"}) {
  const absl::StatusOr<int> fd = FlightRing::MakeFile(owner);
  EXPECT_TRUE(fd.ok()) << fd.status();
  absl::StatusOr<std::unique_ptr<FlightRing>> ring = FlightRing::Map(*fd);
  EXPECT_TRUE(ring.ok()) << ring.status();
  close(*fd);
  (*ring)->Claim(4711);
  return *std::move(ring);
}

FlightRecord Parse(const FlightRing& ring) {
  absl::StatusOr<FlightRecord> record =
      ParseFlightRecord(ring.Snapshot(FlightSaver::kItself, "because\n\x1b[1m"));
  EXPECT_TRUE(record.ok()) << record.status();
  return record.ok() ? *std::move(record) : FlightRecord();
}

TEST(FlightRing, TellsWhatWasWritten) {
  const std::unique_ptr<FlightRing> ring = MakeRing();
  const absl::Time begin = MonotonicNow();
  ring->BeginEpoch(Epoch{7});
  const uint64_t step = ring->BeginStep(StepId{3}, 12);
  const uint64_t sum = ring->BeginOperation(
      {FlightKind::kAllReduce, FlightGroup::kTensor, /*peer=*/-1, /*sequence=*/5, /*bytes=*/4096});
  ring->MarkOperation(sum, FlightState::kFinished);
  ring->BeginOperation({FlightKind::kSend, FlightGroup::kPipeline, 1, 2, 64});
  ring->MarkStep(step, FlightState::kEnqueued);
  const absl::Time end = MonotonicNow();

  const FlightRecord record = Parse(*ring);
  EXPECT_EQ(record.launch, "job");
  EXPECT_EQ(record.host, "host");
  EXPECT_EQ(record.reason, "because  [1m") << "control characters do not reach a terminal";
  EXPECT_EQ(record.saved_by, FlightSaver::kItself);
  EXPECT_EQ(record.rank, 1);
  EXPECT_EQ(record.shards, 2);
  EXPECT_EQ(record.pid, 4711);
  EXPECT_EQ(record.epoch, Epoch{7});
  EXPECT_EQ(record.num_torn, 0);
  ASSERT_EQ(record.steps.size(), 1u);
  EXPECT_EQ(record.steps[0].step, StepId{3});
  EXPECT_EQ(record.steps[0].amount, 12);
  EXPECT_EQ(record.steps[0].state, FlightState::kEnqueued);
  ASSERT_EQ(record.operations.size(), 2u);
  const FlightEvent& first = record.operations[0];
  EXPECT_EQ(first.kind, FlightKind::kAllReduce);
  EXPECT_EQ(first.group, FlightGroup::kTensor);
  EXPECT_EQ(first.peer, -1);
  EXPECT_EQ(first.sequence, 5);
  EXPECT_EQ(first.amount, 4096);
  EXPECT_EQ(first.step, StepId{3});
  EXPECT_EQ(first.epoch, Epoch{7});
  EXPECT_EQ(first.state, FlightState::kFinished);
  EXPECT_GE(first.started, begin);
  EXPECT_LE(first.started, first.finished);
  EXPECT_LE(first.finished, end);
  const FlightEvent& second = record.operations[1];
  EXPECT_EQ(second.peer, 1);
  EXPECT_TRUE(second.is_open());
  EXPECT_EQ(second.finished, absl::InfiniteFuture());
}

TEST(FlightRing, KeepsTheLastOnesWhenItWraps) {
  const std::unique_ptr<FlightRing> ring = MakeRing();
  constexpr int64_t kSteps = 2 * kFlightSteps + 5, kOperations = 3 * kFlightOperations + 7;
  uint64_t first = 0;
  for (int64_t i = 0; i < kSteps; ++i) {
    const uint64_t ticket = ring->BeginStep(StepId{i}, 1);
    if (i == 0) first = ticket;
  }
  for (int64_t i = 0; i < kOperations; ++i) {
    ring->BeginOperation({FlightKind::kAllGather, FlightGroup::kTensor, -1, i, 1});
  }
  ring->MarkStep(first, FlightState::kFinished);  // long overwritten
  const FlightRecord record = Parse(*ring);
  EXPECT_EQ(record.steps_begun, kSteps);
  ASSERT_EQ(record.steps.size(), kFlightSteps);
  ASSERT_EQ(record.operations.size(), kFlightOperations);
  EXPECT_EQ(record.num_torn, 0);
  for (uint32_t i = 0; i < kFlightSteps; ++i) {
    EXPECT_EQ(record.steps[i].step.value, kSteps - kFlightSteps + i);
    EXPECT_EQ(record.steps[i].state, FlightState::kStarted);
  }
  EXPECT_EQ(record.operations.front().sequence, kOperations - kFlightOperations);
  EXPECT_EQ(record.operations.back().sequence, kOperations - 1);
}

TEST(FlightRing, AnEntryTornByDeathIsLeftOutAndCounted) {
  const std::unique_ptr<FlightRing> ring = MakeRing();
  for (int64_t i = 0; i < 5; ++i) ring->BeginStep(StepId{i}, 1);
  std::string bytes = ring->Snapshot(FlightSaver::kAgent, "");
  // As if the process had died between taking a number and writing the ticket.
  std::memset(bytes.data() + sizeof(FlightHeader) + 4 * sizeof(FlightEntry), 0, sizeof(uint64_t));
  const absl::StatusOr<FlightRecord> record = ParseFlightRecord(bytes);
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(record->num_torn, 1);
  ASSERT_EQ(record->steps.size(), 4u);
  EXPECT_EQ(record->steps.back().step, StepId{3});
}

TEST(FlightRing, SurvivesItsProcessKilledInMidWriting) {
  const absl::StatusOr<int> fd = FlightRing::MakeFile({0, 1, 1, "job", "host"});
  ASSERT_TRUE(fd.ok()) << fd.status();
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t pid = fork();
  if (pid == 0) {
    const absl::StatusOr<std::unique_ptr<FlightRing>> ring = FlightRing::Map(*fd);
    if (!ring.ok()) _exit(1);
    (*ring)->Claim(getpid());
    (*ring)->BeginEpoch(Epoch{1});
    for (int64_t i = 0;; ++i) {
      const uint64_t ticket = (*ring)->BeginStep(StepId{i}, 1);
      (*ring)->MarkStep(ticket, FlightState::kFinished);
      if (i == 5000 && write(ready[1], "x", 1) != 1) _exit(1);
    }
  }
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  ASSERT_EQ(kill(pid, SIGKILL), 0);
  int status = 0;
  ASSERT_EQ(waitpid(pid, &status, 0), pid);
  ASSERT_TRUE(WIFSIGNALED(status));

  const absl::StatusOr<std::unique_ptr<FlightRing>> ring = FlightRing::Map(*fd);
  ASSERT_TRUE(ring.ok()) << ring.status();
  EXPECT_TRUE((*ring)->IsOrphaned());
  const FlightRecord record = Parse(**ring);
  EXPECT_EQ(record.pid, pid);
  EXPECT_LE(record.num_torn, 1);
  ASSERT_GE(record.steps.size(), size_t{kFlightSteps} - 1);
  EXPECT_GE(record.steps.back().step.value, 5000);
  for (size_t i = 1; i < record.steps.size(); ++i) {
    EXPECT_EQ(record.steps[i].step.value, record.steps[i - 1].step.value + 1);
  }
  (*ring)->Claim(getpid());
  EXPECT_TRUE(Parse(**ring).steps.empty()) << "a successor begins anew";
  (*ring)->Close();
  EXPECT_FALSE((*ring)->IsOrphaned());
  for (const int end : {ready[0], ready[1], *fd}) close(end);
}

TEST(FlightRing, MayBeWrittenAndCopiedByManyThreads) {
  const std::unique_ptr<FlightRing> ring = MakeRing();
  std::vector<std::thread> writers;
  for (int t = 0; t < 3; ++t) {
    writers.emplace_back([&, t] {
      for (int64_t i = 0; i < 20000; ++i) {
        const uint64_t ticket =
            ring->BeginOperation({FlightKind::kSend, FlightGroup::kPipeline, t, i, 1000 + t});
        ring->MarkOperation(ticket, FlightState::kFinished);
      }
    });
  }
  for (int i = 0; i < 50; ++i) {
    for (const FlightEvent& event : Parse(*ring).operations) {
      ASSERT_EQ(event.amount, 1000 + event.peer) << "an entry of two writers";
    }
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(Parse(*ring).operations_begun, 60000u);
}

TEST(FlightRecord, WhatIsNoRecordIsRefusedByName) {
  const std::unique_ptr<FlightRing> ring = MakeRing();
  ring->BeginStep(StepId{0}, 1);
  const std::string good = ring->Snapshot(FlightSaver::kItself, "");
  const auto refusal = [&](size_t at, std::string_view bytes) {
    std::string bad = good;
    bad.replace(at, bytes.size(), bytes);
    const absl::StatusOr<FlightRecord> record = ParseFlightRecord(bad);
    EXPECT_EQ(record.status().code(), absl::StatusCode::kDataLoss) << at;
    return Message(record.status());
  };
  EXPECT_THAT(refusal(0, "x"), HasSubstr("no flight record"));
  EXPECT_THAT(refusal(offsetof(FlightHeader, version), "\x09"), HasSubstr("version 1, got 9"));
  EXPECT_THAT(refusal(offsetof(FlightHeader, entry_bytes), "\x09"), HasSubstr("of 9"));
  EXPECT_THAT(refusal(offsetof(FlightHeader, rank), "\x02"), HasSubstr("rank 2 of 1 stages"));
  EXPECT_THAT(refusal(offsetof(FlightHeader, saved_by), "\x09"), HasSubstr("saver"));
  const size_t entry = sizeof(FlightHeader);
  EXPECT_THAT(refusal(entry, "\x02"), HasSubstr("step entry 0: ticket 2"));
  EXPECT_THAT(refusal(entry + offsetof(FlightEntry, what), "\x63"), HasSubstr("step entry 0"));
  EXPECT_THAT(refusal(entry + offsetof(FlightEntry, state), "\x09"), HasSubstr("step entry 0"));
  EXPECT_THAT(Message(ParseFlightRecord(good.substr(0, good.size() - 1)).status()),
              HasSubstr("bytes, got"));
  EXPECT_THAT(Message(ParseFlightRecord("").status()), HasSubstr("got 0"));
}

TEST(FlightRecord, AnyBytesAreReadOrRefused) {
  const std::unique_ptr<FlightRing> ring = MakeRing();
  for (int64_t i = 0; i < 100; ++i) ring->BeginStep(StepId{i}, 1);
  const std::string good = ring->Snapshot(FlightSaver::kItself, "");
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937_64 random(seed);
  for (int i = 0; i < 2000; ++i) {
    std::string bad = good;
    for (int k = 0; k < 3; ++k) {
      char& byte = bad[random() % (i % 2 == 0 ? 8192 : bad.size())];
      byte = static_cast<char>(byte ^ 1 << random() % 8);
    }
    const absl::StatusOr<FlightRecord> record = ParseFlightRecord(bad);
    if (!record.ok()) {
      EXPECT_EQ(record.status().code(), absl::StatusCode::kDataLoss);
    }
  }
}

// Not a test of speed, but a generous bound on it: a collective takes microseconds.
TEST(FlightRing, AnEntryCostsFarLessThanACollective) {
  const std::unique_ptr<FlightRing> ring = MakeRing();
  constexpr int kEntries = 200000;
  const absl::Time begin = MonotonicNow();
  for (int i = 0; i < kEntries; ++i) {
    ring->MarkOperation(
        ring->BeginOperation({FlightKind::kAllReduce, FlightGroup::kTensor, -1, i, 4096}),
        FlightState::kFinished);
  }
  const double nanos = absl::ToDoubleNanoseconds(MonotonicNow() - begin) / kEntries;
  RecordProperty("nanoseconds", static_cast<int>(nanos));
  std::printf("an operation's entry takes %.0f ns\n", nanos);
  EXPECT_LT(nanos, 20000);
}

}  // namespace
}  // namespace polyreme::trace
