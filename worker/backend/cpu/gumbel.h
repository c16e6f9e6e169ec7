// Noise that is a function of (seed, choice, position, token) and of nothing else.
//
// Source: Philox4x32-10, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". The
// seed is the key; the counter is {token / 4, position, choice, 0}, and token % 4 picks one of its
// four words, so that a device can make the noise of any token by itself.
#pragma once

#include <cstddef>
#include <cstdint>

#include "worker/backend/cpu/exact_math.h"

namespace polyreme::backend::cpu {

struct PhiloxWords {
  uint32_t words[4];
  POLYREME_HOST_DEVICE uint32_t operator[](size_t i) const { return words[i]; }
  friend bool operator==(const PhiloxWords& a, const PhiloxWords& b) {
    return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
  }
};

POLYREME_HOST_DEVICE inline PhiloxWords Philox(PhiloxWords counter, uint64_t key) {
  auto key0 = static_cast<uint32_t>(key);
  auto key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {{static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key0, static_cast<uint32_t>(b),
                static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key1, static_cast<uint32_t>(a)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// -log(-log(u)), u = (word + 1/2) / 2^32: standard Gumbel, between -3.14 and kMaxGumbel.
POLYREME_HOST_DEVICE inline double GumbelOf(uint32_t word) {
  const double u = Multiply(Plus(static_cast<double>(word), 0.5), 0x1p-32);
  return -ExactLog(-ExactLog(u));
}
inline constexpr double kMaxGumbel = 22.88;

// The noise words of tokens [4 * group, 4 * group + 4).
struct NoiseKey {
  uint64_t seed = 0;
  uint32_t choice = 0;
  uint32_t position = 0;

  POLYREME_HOST_DEVICE PhiloxWords WordsOf(int64_t group) const {
    return Philox({{static_cast<uint32_t>(group), position, choice, 0}}, seed);
  }
};

}  // namespace polyreme::backend::cpu
