// The one order in which ranks' parts are added on the CPU, so that sums have the same bits on each
// rank, transport and algorithm.
#pragma once

#include <cstdint>

#include "absl/types/span.h"

namespace polyreme::comm {

// out[i] <- the sum of parts[r][i] over r, added as neighbours in rounds:
//
//   8 parts: ((r0+r1)+(r2+r3)) + ((r4+r5)+(r6+r7))
//   3 parts: (r0+r1)+r2        5: ((r0+r1)+(r2+r3))+r4        6: ((r0+r1)+(r2+r3))+(r4+r5)
//
// that is, in round k = 1, 2, 4, ... part i takes in part i + k for each i that 2k divides, if
// there is a part i + k. parts  at least one pointer to `count` floats; out may be one of them.
void TreeSum(absl::Span<const float* const> parts, int64_t count, float* out);

}  // namespace polyreme::comm
