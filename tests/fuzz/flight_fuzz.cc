// Flight records as they lie in files: whatever is read can be judged and told.
#include "parallel/trace/flight_story.h"
#include "tests/fuzz/fuzz.h"

namespace polyreme::trace {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  absl::StatusOr<FlightRecord> record = ParseFlightRecord(fuzz::AsText(data, size));
  if (!record.ok()) {
    fuzz::CheckRefusal(record.status());
    return 0;
  }
  CHECK(record->rank >= kCoordinatorRank && record->rank < record->stages * record->shards);
  CHECK(record->steps.size() + record->operations.size() <= size / sizeof(FlightEntry));
  for (const FlightEvent& step : record->steps) CHECK(step.kind == FlightKind::kStep);
  for (const FlightEvent& operation : record->operations) {
    CHECK(operation.kind != FlightKind::kStep && operation.amount >= 0);
  }
  // A peer that has done nothing, so that there is somebody to compare with.
  FlightRecord peer = *record;
  peer.rank = record->rank == 0 ? record->stages * record->shards - 1 : 0;
  peer.operations.clear();
  const FlightVerdict verdict = JudgeFlight({*record, peer});
  CHECK(!verdict.why.empty());
  CHECK(!verdict.rank.has_value() || *verdict.rank == record->rank || *verdict.rank == peer.rank);
  CHECK(!TellFlights({*std::move(record), std::move(peer)}, /*num_events=*/10).empty());
  return 0;
}

}  // namespace polyreme::trace
