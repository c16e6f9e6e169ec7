#include "parallel/base/clock.h"

#include "absl/time/clock.h"
#include "parallel/base/process_identity.h"

namespace polyreme {
namespace {

// Written by AdoptClockAnchor at most, before anybody asks.
ClockAnchor& Anchor() {
  static ClockAnchor anchor{absl::Now(), std::chrono::steady_clock::now()};
  return anchor;
}

}  // namespace

ClockAnchor GetClockAnchor() { return Anchor(); }
void AdoptClockAnchor(const ClockAnchor& anchor) { Anchor() = anchor; }

absl::Time MonotonicNow() {
  const ClockAnchor& anchor = Anchor();
  return anchor.wall + absl::FromChrono(std::chrono::steady_clock::now() - anchor.steady);
}

std::chrono::steady_clock::time_point ToSteady(absl::Time time) {
  // A year is "for ever" and keeps the arithmetic away from overflow.
  constexpr absl::Duration kFar = absl::Hours(24 * 365);
  absl::Duration ahead = time - MonotonicNow();
  if (ahead > kFar) ahead = kFar;
  if (ahead < -kFar) ahead = -kFar;
  return std::chrono::steady_clock::now() +
         std::chrono::duration_cast<std::chrono::steady_clock::duration>(
             absl::ToChronoNanoseconds(ahead));
}

}  // namespace polyreme
