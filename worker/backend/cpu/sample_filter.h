// Which tokens of a row may be drawn: top-k and top-p without sorting.
#pragma once

#include <cstdint>

#include "absl/types/span.h"

namespace polyreme::backend::cpu {

// Tokens are ordered by value, larger first, and at equal values by id, smaller first. Each filter
// replaces the values that it drops by -infinity; a value of -infinity is dropped already. x holds
// no NaN, no +infinity and no -0.

// Keeps the k first. k >= 1.
void KeepTopK(absl::Span<float> x, int64_t k);
// Keeps the shortest beginning whose probabilities, softmax over what is left in x, add up to
// top_p, and at least one token. The largest value is 0. 0 < top_p < 1.
void KeepTopP(absl::Span<float> x, double top_p);

}  // namespace polyreme::backend::cpu
