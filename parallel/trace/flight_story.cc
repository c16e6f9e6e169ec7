#include "parallel/trace/flight_story.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

namespace polyreme::trace {
namespace {

// What one rank had reached when its record ends.
struct Reached {
  const FlightRecord* record = nullptr;
  const FlightEvent* waiting = nullptr;  // its last operation, if that is open
  int64_t last_finished_step = -1;
  int64_t last_begun_step = -1;
  int64_t last_passed_step = -1;  // its thread has done all that it does for it
  // Highest sequence begun: of a group's collectives (peer -1), of the messages to and from a peer.
  std::map<std::tuple<FlightGroup, bool, int32_t>, int64_t> begun;
};

bool IsMessage(FlightKind kind) {
  return kind == FlightKind::kSend || kind == FlightKind::kReceive;
}

std::tuple<FlightGroup, bool, int32_t> KeyOf(const FlightEvent& event) {
  return {event.group, event.kind == FlightKind::kReceive, IsMessage(event.kind) ? event.peer : -1};
}

Reached ReachedBy(const FlightRecord& record) {
  Reached reached;
  reached.record = &record;
  for (const FlightEvent& step : record.steps) {
    if (step.epoch != record.epoch) continue;
    reached.last_begun_step = std::max(reached.last_begun_step, step.step.value);
    if (step.is_open()) continue;
    reached.last_passed_step = std::max(reached.last_passed_step, step.step.value);
    if (step.state != FlightState::kFinished) continue;
    reached.last_finished_step = std::max(reached.last_finished_step, step.step.value);
  }
  for (const FlightEvent& operation : record.operations) {
    if (operation.epoch != record.epoch) continue;
    int64_t& begun = reached.begun[KeyOf(operation)];
    begun = std::max(begun, operation.sequence);
    reached.waiting = operation.is_open() ? &operation : nullptr;
  }
  return reached;
}

std::string Describe(const FlightEvent& event) {
  if (event.kind == FlightKind::kStep) {
    return fmt::format("step {} ({} tokens)", event.step.value, event.amount);
  }
  if (event.kind == FlightKind::kAwaitTokens) {
    return fmt::format("await tokens of step {}", event.sequence);
  }
  std::string text = fmt::format("{} #{}", NameOf(event.kind), event.sequence);
  if (event.kind == FlightKind::kSend) text += fmt::format(" to stage {}", event.peer);
  if (event.kind == FlightKind::kReceive) text += fmt::format(" from stage {}", event.peer);
  return text + fmt::format(" ({} bytes, step {})", event.amount, event.step.value);
}

class Judge {
 public:
  explicit Judge(const std::vector<FlightRecord>& records) {
    for (const FlightRecord& record : records) {
      if (record.rank != kCoordinatorRank) ranks_[record.rank] = ReachedBy(record);
    }
  }

  FlightVerdict Decide() {
    if (ranks_.empty()) return {std::nullopt, "there is no record of a rank"};
    std::set<int32_t> victims, blamed;
    for (const auto& [rank, reached] : ranks_) {
      const std::vector<int32_t> late = WaitsFor(rank, reached);
      if (!late.empty()) victims.insert(rank);
      for (const int32_t peer : late) {
        blamed.insert(peer);
        waiters_.emplace(peer, rank);
      }
    }
    std::vector<int32_t> suspects;
    for (const int32_t rank : blamed) {
      if (!victims.contains(rank)) suspects.push_back(rank);
    }
    if (!suspects.empty()) return BlameWaitedFor(suspects);
    return BlameSlowest();
  }

 private:
  // Peers that have not begun what this rank is in. A peer without a record is nobody's fault here.
  std::vector<int32_t> WaitsFor(int32_t rank, const Reached& reached) const {
    if (reached.waiting == nullptr) return {};
    const FlightEvent& event = *reached.waiting;
    const int32_t shards = reached.record->shards;
    const int32_t stage = rank / shards, shard = rank % shards;
    std::vector<int32_t> late;
    const auto look = [&](int32_t peer, const auto& has_begun) {
      const auto found = ranks_.find(peer);
      if (peer != rank && found != ranks_.end() && !has_begun(found->second)) late.push_back(peer);
    };
    if (event.kind == FlightKind::kAwaitTokens) {
      look((reached.record->stages - 1) * shards + shard,
           [&](const Reached& peer) { return peer.last_passed_step >= event.sequence; });
    } else if (IsMessage(event.kind)) {
      // The peer's side of the same message.
      const auto key = std::make_tuple(event.group, event.kind == FlightKind::kSend, stage);
      look(event.peer * shards + shard, [&](const Reached& peer) {
        const auto begun = peer.begun.find(key);
        return begun != peer.begun.end() && begun->second >= event.sequence;
      });
    } else {
      const bool is_tensor = event.group == FlightGroup::kTensor;
      const int32_t size = is_tensor ? shards : reached.record->stages;
      for (int32_t i = 0; i < size; ++i) {
        look(is_tensor ? stage * shards + i : i * shards + shard, [&](const Reached& peer) {
          const auto begun = peer.begun.find(KeyOf(event));
          return begun != peer.begun.end() && begun->second >= event.sequence;
        });
      }
    }
    return late;
  }

  FlightVerdict BlameWaitedFor(const std::vector<int32_t>& suspects) const {
    const int32_t rank = *std::min_element(
        suspects.begin(), suspects.end(),
        [&](int32_t a, int32_t b) { return OrderOf(ranks_.at(a)) < OrderOf(ranks_.at(b)); });
    const int32_t waiter = waiters_.find(rank)->second;
    const FlightEvent& event = *ranks_.at(waiter).waiting;
    return {rank, fmt::format("rank {} fell behind: rank {} waits in {} since {}, which it has not "
                              "begun; it finished step {} and was last heard of at {}",
                              rank, waiter, Describe(event), Clock(event.started),
                              ranks_.at(rank).last_finished_step,
                              Clock(ranks_.at(rank).record->last_sign))};
  }

  FlightVerdict BlameSlowest() const {
    if (ranks_.size() == 1) return {std::nullopt, "one rank's record alone says nothing of others"};
    std::vector<const Reached*> order;
    for (const auto& [rank, reached] : ranks_) order.push_back(&reached);
    std::sort(order.begin(), order.end(),
              [&](const Reached* a, const Reached* b) { return OrderOf(*a) < OrderOf(*b); });
    const Reached& first = *order[0];
    const Reached& second = *order[1];
    if (OrderOf(first) == OrderOf(second)) {
      return {std::nullopt, "all ranks had come equally far and were heard of equally long"};
    }
    const int32_t rank = first.record->rank;
    if (first.last_finished_step < second.last_finished_step) {
      return {rank, fmt::format("rank {} fell behind: it finished step {}, all others step {} or "
                                "later; it was last heard of at {}",
                                rank, first.last_finished_step, second.last_finished_step,
                                Clock(first.record->last_sign))};
    }
    return {rank,
            fmt::format("rank {} fell behind: it was last heard of at {}, all others at {} or "
                        "later; nobody was seen to wait for it",
                        rank, Clock(first.record->last_sign), Clock(second.record->last_sign))};
  }

  // Steps of later stages end later by nature: they are compared only where all stages have ended
  // what they had begun, else by silence alone.
  std::tuple<int64_t, absl::Time> OrderOf(const Reached& reached) const {
    return {reached.record->stages > 1 ? 0 : reached.last_finished_step, reached.record->last_sign};
  }

  static std::string Clock(absl::Time time) {
    return absl::FormatTime("%H:%M:%E3S", time, absl::LocalTimeZone());
  }

  std::map<int32_t, Reached> ranks_;
  std::multimap<int32_t, int32_t> waiters_;  // by whom they wait for
};

std::string NameOfRank(const FlightRecord& record) {
  return record.rank == kCoordinatorRank ? "coordinator" : fmt::format("rank {}", record.rank);
}

std::string Stamp(absl::Time time) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%E6S", time, absl::LocalTimeZone());
}

std::string TellRank(const FlightRecord& record) {
  const Reached reached = ReachedBy(record);
  std::string text =
      fmt::format("  {:<12} {} pid {}: step {} begun, {} finished", NameOfRank(record), record.host,
                  record.pid, reached.last_begun_step, reached.last_finished_step);
  if (reached.waiting != nullptr) {
    text += fmt::format(", {} in {}",
                        reached.waiting->state == FlightState::kFailed ? "thrown out" : "still",
                        Describe(*reached.waiting));
  }
  text += fmt::format(", last sign {}", Stamp(record.last_sign));
  if (record.num_torn > 0) text += fmt::format(", {} entries torn", record.num_torn);
  constexpr std::string_view kSavers[] = {"", "saved by itself", "saved by its successor",
                                          "saved by its agent"};
  const std::string_view saver = kSavers[static_cast<size_t>(record.saved_by)];
  if (!saver.empty()) text += fmt::format("; {}: {}", saver, record.reason);
  return text + "\n";
}

std::string TellEvents(const std::vector<FlightRecord>& records, int num_events) {
  struct Line {
    absl::Time time;
    std::string text;
  };
  std::vector<Line> lines;
  for (const FlightRecord& record : records) {
    for (const auto* events : {&record.steps, &record.operations}) {
      for (const FlightEvent& event : *events) {
        if (event.epoch != record.epoch) continue;
        const std::string text = fmt::format("{:<12} {}", NameOfRank(record), Describe(event));
        lines.push_back({event.started, text + " started"});
        if (event.finished == absl::InfiniteFuture()) continue;
        lines.push_back(
            {event.finished, fmt::format("{} {} after {}", text, NameOf(event.state),
                                         absl::FormatDuration(event.finished - event.started))});
      }
    }
  }
  std::stable_sort(lines.begin(), lines.end(),
                   [](const Line& a, const Line& b) { return a.time < b.time; });
  const size_t first = lines.size() - std::min(lines.size(), static_cast<size_t>(num_events));
  std::string text;
  if (first > 0) text += fmt::format("  ... {} earlier events\n", first);
  for (size_t i = first; i < lines.size(); ++i) {
    text += fmt::format("  {}  {}\n", Stamp(lines[i].time), lines[i].text);
  }
  return text;
}

std::string TellEpoch(const std::vector<FlightRecord>& records, int num_events) {
  const FlightRecord& any = records.front();
  const int32_t world = any.stages * any.shards;
  std::string text = fmt::format("launch {}, epoch {}: {} stages of {} shards\n", any.launch,
                                 any.epoch.value, any.stages, any.shards);
  std::set<int32_t> here;
  for (const FlightRecord& record : records) {
    here.insert(record.rank);
    text += TellRank(record);
  }
  std::vector<int32_t> missing;
  for (int32_t rank = 0; rank < world; ++rank) {
    if (!here.contains(rank)) missing.push_back(rank);
  }
  if (!missing.empty()) {
    text += fmt::format("  no record of rank {}\n", fmt::join(missing, ", "));
  }
  return text + fmt::format("verdict: {}\n", JudgeFlight(records).why) +
         TellEvents(records, num_events);
}

}  // namespace

FlightVerdict JudgeFlight(const std::vector<FlightRecord>& records) {
  return Judge(records).Decide();
}

std::string TellFlights(std::vector<FlightRecord> records, int num_events) {
  // By launch, then epoch; layouts that contradict each other cannot be one story.
  std::map<std::tuple<std::string, int64_t, int32_t, int32_t>, std::map<int32_t, FlightRecord>>
      epochs;
  std::string text;
  for (FlightRecord& record : records) {
    auto& ranks = epochs[{record.launch, record.epoch.value, record.stages, record.shards}];
    const int32_t rank = record.rank;
    const bool is_new = ranks.try_emplace(rank, std::move(record)).second;
    if (!is_new) text += fmt::format("a second record of rank {} is passed over\n", rank);
  }
  for (auto& [key, ranks] : epochs) {
    std::vector<FlightRecord> of_epoch;
    for (auto& [rank, record] : ranks) of_epoch.push_back(std::move(record));
    text += TellEpoch(of_epoch, num_events);
  }
  return text;
}

}  // namespace polyreme::trace
