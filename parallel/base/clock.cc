#include "parallel/base/clock.h"

#include "absl/time/clock.h"

namespace polyreme {
namespace {

struct Anchor {
  absl::Time wall = absl::Now();
  std::chrono::steady_clock::time_point steady = std::chrono::steady_clock::now();
};
const Anchor& GetAnchor() {
  static const Anchor anchor;
  return anchor;
}

}  // namespace

absl::Time MonotonicNow() {
  const Anchor& anchor = GetAnchor();
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
