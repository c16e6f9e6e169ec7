#include "parallel/trace/flight_format.h"

namespace polyreme::trace {

std::string_view NameOf(FlightKind kind) {
  constexpr std::array<std::string_view, kNumFlightKinds> kNames = {
      "step", "all-reduce", "reduce-scatter", "all-gather",  "broadcast",
      "send", "receive",    "exchange",       "await tokens"};
  return kNames[static_cast<size_t>(kind)];
}

std::string_view NameOf(FlightState state) {
  constexpr std::array<std::string_view, kNumFlightStates> kNames = {"started", "enqueued",
                                                                     "finished", "failed"};
  return kNames[static_cast<size_t>(state)];
}

}  // namespace polyreme::trace
