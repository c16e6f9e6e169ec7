// exp and log with the same bits on every machine, GPUs included.
//
// The C library picks its versions by processor, and two processors may round differently; shards
// that sample alike on different hosts must not. Both are polynomials in plain double arithmetic,
// within a few units of the last place.
#pragma once

#include <cstdint>

#include "worker/backend/host_device.h"

namespace polyreme::backend::cpu {

// sum * x + c, rounded twice.
POLYREME_HOST_DEVICE inline double Step(double sum, double x, double c) {
  return Plus(Multiply(sum, x), c);
}

// e^x for x <= 0; 0 below -700. x may be -infinity.
POLYREME_HOST_DEVICE inline double ExactExp(double x) {
  if (!(x > -700.0)) return 0.0;
  constexpr double kLog2E = 1.4426950408889634;
  constexpr double kLn2High = 0.693147180369123816490;  // low bits are zero: k * kLn2High is exact
  constexpr double kLn2Low = 1.90821492927058770002e-10;
  constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  const double k = Plus(Step(x, kLog2E, kRounder), -kRounder);
  // |r| <= ln(2) / 2
  const double r = Plus(Plus(x, -Multiply(k, kLn2High)), -Multiply(k, kLn2Low));
  double sum = 1.0 / 479001600.0;  // Taylor to r^12: the next term is below 2^-53
  sum = Step(sum, r, 1.0 / 39916800.0);
  sum = Step(sum, r, 1.0 / 3628800.0);
  sum = Step(sum, r, 1.0 / 362880.0);
  sum = Step(sum, r, 1.0 / 40320.0);
  sum = Step(sum, r, 1.0 / 5040.0);
  sum = Step(sum, r, 1.0 / 720.0);
  sum = Step(sum, r, 1.0 / 120.0);
  sum = Step(sum, r, 1.0 / 24.0);
  sum = Step(sum, r, 1.0 / 6.0);
  sum = Step(sum, r, 0.5);
  sum = Step(sum, r, 1.0);
  sum = Step(sum, r, 1.0);
  const auto exponent = static_cast<uint64_t>(static_cast<int64_t>(k) + 1023) << 52;
  return Multiply(sum, BitsAs<double>(exponent));
}

// The natural logarithm of a normal x > 0.
POLYREME_HOST_DEVICE inline double ExactLog(double x) {
  constexpr double kLn2 = 0.693147180559945309417;
  const auto bits = BitsAs<uint64_t>(x);
  int64_t exponent = static_cast<int64_t>(bits >> 52) - 1023;
  auto m = BitsAs<double>((bits & 0x000fffffffffffffu) | 0x3ff0000000000000u);
  if (m > 1.4142135623730951) {
    m = Multiply(m, 0.5);
    ++exponent;
  }
  // log m = 2 artanh f; |f| <= 0.172, so that f^21 is the last term that counts.
  const double f = Plus(m, -1.0) / Plus(m, 1.0);
  const double f2 = Multiply(f, f);
  double sum = 1.0 / 21.0;
  for (int n = 19; n >= 1; n -= 2) sum = Step(sum, f2, 1.0 / n);
  return Plus(Multiply(static_cast<double>(exponent), kLn2), Multiply(Multiply(2.0, f), sum));
}

}  // namespace polyreme::backend::cpu
