// Stored floats as float32: for the vectors of a checkpoint (norms, biases), which every backend
// holds in float32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "parallel/tensor/tensor.h"

namespace polyreme::weights {

// Appends `count` elements of type F32, F16 or BF16 at `data`, which need not be aligned. Exact.
void AppendAsFloats(DType dtype, const std::byte* data, int64_t count, std::vector<float>& out);

}  // namespace polyreme::weights
