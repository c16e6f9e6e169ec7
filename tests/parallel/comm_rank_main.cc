// One rank as a process of its own, for process_test.cc:
//   comm_rank SOCKET KIND STAGES SHARDS RANK VICTIM
// Joins, runs some of each collective, and reports a digest of all that it computed. VICTIM kills
// itself half way.

#include <signal.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "parallel/base/clock.h"
#include "parallel/comm/process_group.h"
#include "tests/parallel/socket_rendezvous.h"
#include "tests/parallel/test_lane.h"

namespace polyreme::comm {
namespace {

// FNV-1a over bytes.
class Digest {
 public:
  void Add(const std::vector<float>& values) {
    for (const float value : values) {
      uint32_t bits = 0;
      std::memcpy(&bits, &value, sizeof(bits));
      hash_ = (hash_ ^ bits) * 1099511628211u;
    }
  }
  std::string Text() const { return fmt::format("{:016x}", hash_); }

 private:
  uint64_t hash_ = 14695981039346656037u;
};

TensorView View(std::vector<float>& values) {
  return {values.data(), DType::kF32, Shape{std::ssize(values)}};
}

struct Arguments {
  int socket, kind, stages, shards, rank, victim;
};

// What all ranks of a stage end up with is equal; the stages differ.
absl::StatusOr<std::string> Work(ProcessGroup& group, const Arguments& arguments) {
  TestLane lane;
  lane.SetFailureHook([&](const absl::Status& why) { group.Abort(why); });
  Digest digest;
  const plan::Place place = group.place();
  for (int round = 0; round < 40 && lane.ok(); ++round) {
    if (round == 20 && arguments.rank == arguments.victim) ::kill(::getpid(), SIGKILL);
    std::vector<float> x(static_cast<size_t>(1 + round * round * 97));
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = 1.0f / static_cast<float>(3 + place.shard * 7 + round + static_cast<int>(i % 1000));
    }
    group.tensor().AllReduceSum(lane, View(x));
    digest.Add(x);
    std::vector<float> whole(x.size() * static_cast<size_t>(arguments.shards));
    group.tensor().AllGather(lane, View(x), View(whole));
    digest.Add(whole);
    // Down the pipeline and back.
    if (place.stage > 0) {
      const Communicator::Incoming receive{View(x), place.stage - 1};
      group.pipeline().Exchange(lane, {}, {&receive, 1});
    }
    if (place.stage + 1 < arguments.stages) {
      const Communicator::Outgoing send{View(x), place.stage + 1};
      group.pipeline().Exchange(lane, {&send, 1}, {});
    }
    if (!group.has_feedback() || !lane.ok()) continue;
    const absl::Time deadline = MonotonicNow() + absl::Seconds(30);
    int32_t token = round;
    const absl::Span<std::byte> bytes(reinterpret_cast<std::byte*>(&token), sizeof(token));
    RETURN_IF_ERROR(place.stage == 0 ? group.feedback().Receive(1, bytes, deadline)
                                     : group.feedback().Send(0, bytes, deadline));
    if (token != round) return Internal("expected token {}, got {}", round, token);
  }
  RETURN_IF_ERROR(lane.status());
  return digest.Text();
}

absl::StatusOr<std::string> Run(launch::Rendezvous& meet, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const plan::Topology topology,
                   plan::Topology::Make(arguments.stages, arguments.shards));
  ProcessGroup::Options join;
  join.kind = static_cast<ProcessGroup::Kind>(arguments.kind);
  join.self = Rank{arguments.rank};
  join.epoch = Epoch{5};
  join.deadline = MonotonicNow() + absl::Seconds(30);
  join.job_token = "the token of this test";
  join.listen_address = "127.0.0.3";
  ASSIGN_OR_RETURN(const std::unique_ptr<ProcessGroup> group,
                   ProcessGroup::Join(topology, meet, join));
  return Work(*group, arguments);
}

}  // namespace
}  // namespace polyreme::comm

int main(int argc, char** argv) {
  CHECK(argc == 7);
  const polyreme::comm::Arguments arguments = {std::stoi(argv[1]), std::stoi(argv[2]),
                                               std::stoi(argv[3]), std::stoi(argv[4]),
                                               std::stoi(argv[5]), std::stoi(argv[6])};
  polyreme::launch::SocketRendezvous meet(arguments.socket);
  const absl::StatusOr<std::string> result = polyreme::comm::Run(meet, arguments);
  meet.Report(result.status(), result.value_or(""));
  return result.ok() ? 0 : 3;
}
