// Both filters ask the same: in the order of the header, where does the running sum of a weight (1
// of each token, or its probability) reach a goal? A radix descent over the bits of the value finds
// that place in three passes: weights are added up by the next digit of the value, and the digit in
// which the sum reaches the goal is entered.
#include "worker/backend/cpu/sample_filter.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "worker/backend/cpu/exact_math.h"

namespace polyreme::backend::cpu {
namespace {

constexpr float kDropped = -std::numeric_limits<float>::infinity();

// Grows with the value.
uint32_t KeyOf(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

struct Digit {
  int shift;
  int bits;
};
constexpr std::array<Digit, 3> kDigits = {{{21, 11}, {10, 11}, {0, 10}}};

// Keep what is larger than `key`, and the first `ties` of what is equal.
struct Border {
  uint32_t key = 0;
  int64_t ties = 0;
};

struct Bin {
  double weight = 0;
  int64_t count = 0;
};

template <class WeightOf>
Border FindBorder(absl::Span<const float> x, double goal, WeightOf weight_of) {
  Border border;
  Bin entered;
  double before = 0;  // weight of all that is larger than the bins being looked at
  for (const Digit& digit : kDigits) {
    std::array<Bin, 2048> bins{};
    const uint64_t mask = (uint64_t{1} << digit.bits) - 1;
    const int above = digit.shift + digit.bits;
    for (const float value : x) {
      const uint64_t key = KeyOf(value);
      if (value == kDropped || (key >> above) != (uint64_t{border.key} >> above)) continue;
      Bin& bin = bins[(key >> digit.shift) & mask];
      bin.weight += weight_of(value);
      ++bin.count;
    }
    // Should rounding keep the sum below the goal, the last bin that holds anything is entered.
    entered = Bin{};
    uint64_t place = 0;
    for (uint64_t i = mask + 1;
         i-- > 0 && (entered.count == 0 || before + entered.weight < goal);) {
      if (bins[i].count == 0) continue;
      before += entered.weight;
      entered = bins[i];
      place = i;
    }
    border.key |= static_cast<uint32_t>(place << digit.shift);
  }
  // What was entered last are equal values of equal weight.
  const double weight = entered.weight / static_cast<double>(entered.count);
  const double wanted = weight > 0 ? std::ceil((goal - before) / weight) : 1.0;
  border.ties = entered.count;
  if (wanted < static_cast<double>(entered.count)) {
    border.ties = std::max<int64_t>(1, static_cast<int64_t>(wanted));
  }
  return border;
}

void DropBehind(const Border& border, absl::Span<float> x) {
  int64_t ties = border.ties;
  for (float& value : x) {
    const uint32_t key = KeyOf(value);
    if (key > border.key) continue;
    if (key == border.key && ties > 0) {
      --ties;
      continue;
    }
    value = kDropped;
  }
}

}  // namespace

void KeepTopK(absl::Span<float> x, int64_t k) {
  const int64_t left = std::count_if(x.begin(), x.end(), [](float v) { return v != kDropped; });
  if (left <= k) return;
  DropBehind(FindBorder(x, static_cast<double>(k), [](float) { return 1.0; }), x);
}

void KeepTopP(absl::Span<float> x, double top_p) {
  double total = 0;
  for (const float value : x) total += ExactExp(value);
  DropBehind(FindBorder(x, top_p * total, [](float value) { return ExactExp(value); }), x);
}

}  // namespace polyreme::backend::cpu
