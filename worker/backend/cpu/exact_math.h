// exp and log with the same bits on every machine.
//
// The C library picks its versions by processor, and two processors may round differently; shards
// that sample alike on different hosts must not. Both are polynomials in plain double arithmetic,
// within a few units of the last place.
#pragma once

#include <bit>
#include <cstdint>

namespace polyreme::backend::cpu {

// e^x for x <= 0; 0 below -700. x may be -infinity.
inline double ExactExp(double x) {
  if (!(x > -700.0)) return 0.0;
  constexpr double kLog2E = 1.4426950408889634;
  constexpr double kLn2High = 0.693147180369123816490;  // low bits are zero: k * kLn2High is exact
  constexpr double kLn2Low = 1.90821492927058770002e-10;
  constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  const double k = (x * kLog2E + kRounder) - kRounder;
  const double r = (x - k * kLn2High) - k * kLn2Low;  // |r| <= ln(2) / 2
  double sum = 1.0 / 479001600.0;  // Taylor to r^12: the next term is below 2^-53
  sum = sum * r + 1.0 / 39916800.0;
  sum = sum * r + 1.0 / 3628800.0;
  sum = sum * r + 1.0 / 362880.0;
  sum = sum * r + 1.0 / 40320.0;
  sum = sum * r + 1.0 / 5040.0;
  sum = sum * r + 1.0 / 720.0;
  sum = sum * r + 1.0 / 120.0;
  sum = sum * r + 1.0 / 24.0;
  sum = sum * r + 1.0 / 6.0;
  sum = sum * r + 0.5;
  sum = sum * r + 1.0;
  sum = sum * r + 1.0;
  const auto exponent = static_cast<uint64_t>(static_cast<int64_t>(k) + 1023) << 52;
  return sum * std::bit_cast<double>(exponent);
}

// The natural logarithm of a normal x > 0.
inline double ExactLog(double x) {
  constexpr double kLn2 = 0.693147180559945309417;
  const auto bits = std::bit_cast<uint64_t>(x);
  int64_t exponent = static_cast<int64_t>(bits >> 52) - 1023;
  double m = std::bit_cast<double>((bits & 0x000fffffffffffffu) | 0x3ff0000000000000u);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    ++exponent;
  }
  // log m = 2 artanh f; |f| <= 0.172, so that f^21 is the last term that counts.
  const double f = (m - 1.0) / (m + 1.0);
  const double f2 = f * f;
  double sum = 1.0 / 21.0;
  for (int n = 19; n >= 1; n -= 2) sum = sum * f2 + 1.0 / n;
  return static_cast<double>(exponent) * kLn2 + 2.0 * f * sum;
}

}  // namespace polyreme::backend::cpu
