#include "parallel/comm/tree_sum.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "parallel/base/limits.h"

namespace polyreme::comm {
namespace {

using Parts = std::vector<std::vector<float>>;

Parts RandomParts(int size, int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> exponent(-20.0f, 20.0f);
  std::uniform_real_distribution<float> mantissa(-2.0f, 2.0f);
  Parts parts(static_cast<size_t>(size), std::vector<float>(static_cast<size_t>(count)));
  for (std::vector<float>& part : parts) {
    for (float& x : part) x = std::ldexp(mantissa(random), static_cast<int>(exponent(random)));
  }
  return parts;
}

std::vector<const float*> Pointers(const Parts& parts) {
  std::vector<const float*> pointers;
  for (const std::vector<float>& part : parts) pointers.push_back(part.data());
  return pointers;
}

std::vector<float> Sum(const Parts& parts) {
  std::vector<float> out(parts[0].size());
  TreeSum(Pointers(parts), std::ssize(out), out.data());
  return out;
}

uint32_t BitsOf(float x) {
  uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

TEST(TreeSum, AddsAsItsHeaderDrawsIt) {
  const Parts p = RandomParts(8, 1000, 7);
  for (size_t i = 0; i < 1000; ++i) {
    const auto at = [&](size_t r) { return p[r][i]; };
    const auto sum_of = [&](size_t size) { return Sum(Parts(p.begin(), p.begin() + size))[i]; };
    if (i > 3 && i < 997) continue;  // the first and last ones cover both the blocks and the rest
    EXPECT_EQ(BitsOf(sum_of(1)), BitsOf(at(0)));
    EXPECT_EQ(BitsOf(sum_of(2)), BitsOf(at(0) + at(1)));
    EXPECT_EQ(BitsOf(sum_of(3)), BitsOf((at(0) + at(1)) + at(2)));
    EXPECT_EQ(BitsOf(sum_of(4)), BitsOf((at(0) + at(1)) + (at(2) + at(3))));
    EXPECT_EQ(BitsOf(sum_of(5)), BitsOf(((at(0) + at(1)) + (at(2) + at(3))) + at(4)));
    EXPECT_EQ(BitsOf(sum_of(6)), BitsOf(((at(0) + at(1)) + (at(2) + at(3))) + (at(4) + at(5))));
    EXPECT_EQ(BitsOf(sum_of(7)),
              BitsOf(((at(0) + at(1)) + (at(2) + at(3))) + ((at(4) + at(5)) + at(6))));
    EXPECT_EQ(BitsOf(sum_of(8)),
              BitsOf(((at(0) + at(1)) + (at(2) + at(3))) + ((at(4) + at(5)) + (at(6) + at(7)))));
  }
}

TEST(TreeSum, IsNotTheSumFromLeftToRight) {
  const Parts p = RandomParts(8, 1000, 11);
  const std::vector<float> tree = Sum(p);
  int different = 0;
  for (size_t i = 0; i < 1000; ++i) {
    float left_to_right = 0;
    for (const std::vector<float>& part : p) left_to_right += part[i];
    different += BitsOf(left_to_right) != BitsOf(tree[i]);
  }
  EXPECT_GT(different, 100) << "such data could not tell the orders apart";
}

TEST(TreeSum, HalvesAddUpToTheWhole) {
  // Each of two shards holds a branch of the tree of one rank: what makes layouts exact.
  const Parts p = RandomParts(8, 777, 13);
  const Parts halves = {Sum(Parts(p.begin(), p.begin() + 4)), Sum(Parts(p.begin() + 4, p.end()))};
  const std::vector<float> whole = Sum(p);
  const std::vector<float> joined = Sum(halves);
  EXPECT_EQ(std::memcmp(whole.data(), joined.data(), whole.size() * sizeof(float)), 0);
}

TEST(TreeSum, TheBlocksAndTheRestAgreeForAnyNumberOfParts) {
  for (int size = 1; size <= limits::kMaxRanks; size = size < 9 ? size + 1 : size * 2 - 3) {
    const Parts p = RandomParts(size, 300, static_cast<uint32_t>(size));
    const std::vector<float> whole = Sum(p);
    for (const size_t i : {size_t{0}, size_t{255}, size_t{256}, size_t{299}}) {
      Parts column;
      for (const std::vector<float>& part : p) column.push_back({part[i]});
      EXPECT_EQ(BitsOf(Sum(column)[0]), BitsOf(whole[i])) << size << " parts, element " << i;
    }
  }
}

TEST(TreeSum, MayWriteOverOneOfItsParts) {
  Parts p = RandomParts(5, 600, 17);
  const std::vector<float> expected = Sum(p);
  for (size_t r = 0; r < 5; ++r) {
    Parts copy = p;
    TreeSum(Pointers(copy), 600, copy[r].data());
    EXPECT_EQ(copy[r], expected) << "over part " << r;
  }
}

}  // namespace
}  // namespace polyreme::comm
