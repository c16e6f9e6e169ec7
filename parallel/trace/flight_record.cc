#include "parallel/trace/flight_record.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace polyreme::trace {
namespace {

// Within some 290 years of 1970, so that no sum of a time and an offset overflows.
constexpr int64_t kMaxNanos = std::numeric_limits<int64_t>::max() / 2;

template <class T>
T Load(std::string_view bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

// Texts are shown on terminals.
std::string TextAt(std::string_view bytes, size_t at, size_t room) {
  std::string text(bytes.substr(at, room));
  text.resize(std::min(text.find('\0'), text.size()));
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') c = ' ';
  }
  return text;
}

absl::Status CheckHeader(std::string_view bytes) {
  if (bytes.size() < sizeof(FlightHeader)) {
    return DataLoss("expected a flight record of at least {} bytes, got {}", sizeof(FlightHeader),
                    bytes.size());
  }
  if (bytes.substr(0, kFlightMagic.size()) !=
      std::string_view(kFlightMagic.data(), kFlightMagic.size())) {
    return DataLoss("this is no flight record: it begins with other bytes");
  }
  const auto version = Load<uint32_t>(bytes, offsetof(FlightHeader, version));
  if (version != kFlightVersion) {
    return DataLoss("expected a flight record of version {}, got {}", kFlightVersion, version);
  }
  const auto entry_bytes = Load<uint32_t>(bytes, offsetof(FlightHeader, entry_bytes));
  const auto num_steps = Load<uint32_t>(bytes, offsetof(FlightHeader, num_steps));
  const auto num_operations = Load<uint32_t>(bytes, offsetof(FlightHeader, num_operations));
  if (entry_bytes != sizeof(FlightEntry) || num_steps == 0 || num_steps > kMaxFlightEntries ||
      num_operations == 0 || num_operations > kMaxFlightEntries) {
    return DataLoss("expected 1 to {} entries of {} bytes, got {} and {} of {}", kMaxFlightEntries,
                    sizeof(FlightEntry), num_steps, num_operations, entry_bytes);
  }
  if (bytes.size() != FlightBytes(num_steps, num_operations)) {
    return DataLoss("expected a flight record of {} bytes, got {}",
                    FlightBytes(num_steps, num_operations), bytes.size());
  }
  const auto stages = Load<int32_t>(bytes, offsetof(FlightHeader, stages));
  const auto shards = Load<int32_t>(bytes, offsetof(FlightHeader, shards));
  const auto rank = Load<int32_t>(bytes, offsetof(FlightHeader, rank));
  constexpr int32_t kMost = 1 << 12;  // of either
  if (stages < 1 || stages > kMost || shards < 1 || shards > kMost || rank < kCoordinatorRank ||
      rank >= stages * shards) {
    return DataLoss("rank {} of {} stages of {} shards is impossible", rank, stages, shards);
  }
  for (const size_t at : {offsetof(FlightHeader, wall_offset_ns), offsetof(FlightHeader, saved_ns),
                          offsetof(FlightHeader, last_sign_ns)}) {
    const auto nanos = Load<int64_t>(bytes, at);
    if (nanos < -kMaxNanos || nanos > kMaxNanos) return DataLoss("a time in the header is wild");
  }
  if (Load<uint32_t>(bytes, offsetof(FlightHeader, saved_by)) >= kNumFlightSavers) {
    return DataLoss("the header names no known saver");
  }
  const auto epoch = Load<int64_t>(bytes, offsetof(FlightHeader, epoch));
  if (epoch < 0 || epoch > std::numeric_limits<uint32_t>::max()) {
    return DataLoss("epoch {} is impossible", epoch);
  }
  return absl::OkStatus();
}

absl::StatusOr<FlightEvent> ParseEntry(std::string_view bytes, bool is_step, int64_t offset) {
  const auto word = [&](size_t at) { return Load<int64_t>(bytes, at); };
  const auto what = static_cast<uint64_t>(word(offsetof(FlightEntry, what)));
  const auto state = static_cast<uint64_t>(word(offsetof(FlightEntry, state)));
  const int64_t started = word(offsetof(FlightEntry, started_ns));
  const int64_t finished = word(offsetof(FlightEntry, finished_ns));
  const auto kind = static_cast<uint8_t>(what & 0xff);
  const auto group = static_cast<uint8_t>(what >> 8 & 0xff);
  FlightEvent event;
  event.peer = static_cast<int32_t>(what >> 16 & 0xffff) - 1;
  event.epoch = Epoch{static_cast<int64_t>(what >> 32)};
  event.step = StepId{word(offsetof(FlightEntry, step))};
  event.sequence = word(offsetof(FlightEntry, sequence));
  event.amount = word(offsetof(FlightEntry, amount));
  const bool is_sound = kind < kNumFlightKinds && group < kNumFlightGroups &&
                        state < kNumFlightStates && is_step == (kind == 0) &&
                        (kind != 0 || group == 0) && event.step.value >= -1 &&
                        event.sequence >= 0 && event.amount >= 0 && started >= 0 &&
                        started <= kMaxNanos && finished >= 0 && finished <= kMaxNanos;
  if (!is_sound) return DataLoss("no ring writes such an entry");
  event.kind = FlightKind{kind};
  event.group = FlightGroup{group};
  event.state = FlightState{static_cast<uint8_t>(state)};
  event.started = absl::FromUnixNanos(started + offset);
  // The state is set last: without it the end has not been.
  if (finished != 0 && event.state != FlightState::kStarted) {
    event.finished = absl::FromUnixNanos(finished + offset);
  }
  return event;
}

// The entries of one kind, which begin at `at`.
absl::Status ParseEntries(std::string_view bytes, size_t at, uint32_t capacity, bool is_step,
                          uint64_t begun, FlightRecord& record) {
  const auto offset = Load<int64_t>(bytes, offsetof(FlightHeader, wall_offset_ns));
  std::vector<std::pair<uint64_t, FlightEvent>> found;
  for (uint64_t slot = 0; slot < capacity; ++slot) {
    const std::string_view entry =
        bytes.substr(at + slot * sizeof(FlightEntry), sizeof(FlightEntry));
    const auto ticket = Load<uint64_t>(entry, offsetof(FlightEntry, ticket));
    // The last of this slot that the counter knows; 0: none. One that began while the ring was
    // copied may be newer.
    const uint64_t last = begun > slot ? (begun - 1 - slot) / capacity * capacity + slot + 1 : 0;
    if (ticket == 0 || ticket < last) {
      record.num_torn += last != 0 ? 1 : 0;
      continue;
    }
    const char* const name = is_step ? "step" : "operation";
    if ((ticket - 1) % capacity != slot || ticket - last > capacity) {
      return DataLoss("{} entry {}: ticket {} is impossible", name, slot, ticket);
    }
    absl::StatusOr<FlightEvent> event = ParseEntry(entry, is_step, offset);
    if (!event.ok()) return Annotate(event.status(), fmt::format("{} entry {}", name, slot));
    found.emplace_back(ticket, *event);
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<FlightEvent>& events = is_step ? record.steps : record.operations;
  for (const auto& [ticket, event] : found) events.push_back(event);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<FlightRecord> ParseFlightRecord(std::string_view bytes) {
  RETURN_IF_ERROR(CheckHeader(bytes));
  FlightRecord record;
  record.launch = TextAt(bytes, offsetof(FlightHeader, launch), sizeof(FlightHeader::launch));
  record.host = TextAt(bytes, offsetof(FlightHeader, host), sizeof(FlightHeader::host));
  record.reason = TextAt(bytes, offsetof(FlightHeader, reason), sizeof(FlightHeader::reason));
  record.saved_by = FlightSaver{Load<uint32_t>(bytes, offsetof(FlightHeader, saved_by))};
  record.saved = absl::FromUnixNanos(Load<int64_t>(bytes, offsetof(FlightHeader, saved_ns)));
  record.last_sign =
      absl::FromUnixNanos(Load<int64_t>(bytes, offsetof(FlightHeader, last_sign_ns)) +
                          Load<int64_t>(bytes, offsetof(FlightHeader, wall_offset_ns)));
  if (record.saved_by == FlightSaver::kItself) record.last_sign = record.saved;
  record.rank = Load<int32_t>(bytes, offsetof(FlightHeader, rank));
  record.stages = Load<int32_t>(bytes, offsetof(FlightHeader, stages));
  record.shards = Load<int32_t>(bytes, offsetof(FlightHeader, shards));
  record.pid = Load<int32_t>(bytes, offsetof(FlightHeader, pid));
  record.epoch = Epoch{Load<int64_t>(bytes, offsetof(FlightHeader, epoch))};
  record.steps_begun = Load<uint64_t>(bytes, offsetof(FlightHeader, steps_begun));
  record.operations_begun = Load<uint64_t>(bytes, offsetof(FlightHeader, operations_begun));
  const auto num_steps = Load<uint32_t>(bytes, offsetof(FlightHeader, num_steps));
  const auto num_operations = Load<uint32_t>(bytes, offsetof(FlightHeader, num_operations));
  const size_t first = sizeof(FlightHeader);
  RETURN_IF_ERROR(
      ParseEntries(bytes, first, num_steps, /*is_step=*/true, record.steps_begun, record));
  RETURN_IF_ERROR(ParseEntries(bytes, first + num_steps * sizeof(FlightEntry), num_operations,
                               /*is_step=*/false, record.operations_begun, record));
  return record;
}

}  // namespace polyreme::trace
