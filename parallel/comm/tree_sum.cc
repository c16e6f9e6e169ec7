// Works in blocks of a fixed size, so that partial sums stay in the nearest cache.

#include "parallel/comm/tree_sum.h"

#include <array>
#include <bit>
#include <cstring>

#include "parallel/base/limits.h"
#include "parallel/base/status.h"

namespace polyreme::comm {
namespace {

constexpr int64_t kBlock = 256;
constexpr size_t kMaxParts = limits::kMaxRanks;
constexpr size_t kMaxDepth = std::bit_width(kMaxParts);
using Block = std::array<float, kBlock>;

// Four floats of any processor. Spelled out because `out` may be `a`, which keeps compilers from
// it.
using Lanes [[gnu::vector_size(16)]] = float;
void Add(const float* a, const float* b, float* out) {
  for (int64_t i = 0; i < kBlock; i += 4) {
    Lanes x, y;
    std::memcpy(&x, a + i, sizeof(x));
    std::memcpy(&y, b + i, sizeof(y));
    x += y;
    std::memcpy(out + i, &x, sizeof(x));
  }
}

// The sum of one whole block of parts [first, first + width), clipped to those that are there;
// `width` is a power of two. Returns where it is: the part itself, or the scratch block of this
// depth.
const float* SumBlock(absl::Span<const float* const> parts, size_t first, size_t width,
                      int64_t offset, Block* scratch) {
  if (width == 1) return parts[first] + offset;
  const size_t half = width / 2;
  if (first + half >= parts.size()) return SumBlock(parts, first, half, offset, scratch);
  // The left sum keeps scratch[0] while the right one is made in the blocks behind it.
  const float* left = SumBlock(parts, first, half, offset, scratch);
  const float* right = SumBlock(parts, first + half, half, offset, scratch + 1);
  Add(left, right, scratch->data());
  return scratch->data();
}

// The same tree for one element: what the blocks leave over.
float SumOne(absl::Span<const float* const> parts, int64_t i) {
  std::array<float, kMaxParts> sums;
  for (size_t r = 0; r < parts.size(); ++r) sums[r] = parts[r][i];
  for (size_t step = 1; step < parts.size(); step *= 2) {
    for (size_t r = 0; r + step < parts.size(); r += 2 * step) sums[r] += sums[r + step];
  }
  return sums[0];
}

}  // namespace

void TreeSum(absl::Span<const float* const> parts, int64_t count, float* out) {
  CHECK(!parts.empty() && parts.size() <= kMaxParts);
  const size_t width = std::bit_ceil(parts.size());
  std::array<Block, kMaxDepth> scratch;
  int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    const float* const sum = SumBlock(parts, 0, width, i, scratch.data());
    if (sum != out + i) std::memcpy(out + i, sum, sizeof(Block));
  }
  for (; i < count; ++i) out[i] = SumOne(parts, i);
}

}  // namespace polyreme::comm
