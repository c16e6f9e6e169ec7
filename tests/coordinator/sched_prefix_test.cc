// The parts of the prefix cache: keys, the index, blocks nobody refers to; and admission's horizon.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "coordinator/sched/block_allocator.h"
#include "coordinator/sched/block_key.h"
#include "coordinator/sched/growth_horizon.h"
#include "coordinator/sched/prefix_index.h"

namespace polyreme::sched {
namespace {

using ::testing::ElementsAre;

constexpr SipHash128::Secret kSecret = {1, 2};

TEST(SipHash128, IsTheOneThatOthersHave) {
  // What `openssl mac SIPHASH` with 16 bytes of output says of the bytes 0, 1, 2, ... under the key
  // 0, 1, ... 15.
  const SipHash128::Secret secret = {0x0706050403020100u, 0x0f0e0d0c0b0a0908u};
  const std::array<SipHash128::Digest, 4> want = {{
      {0xe6a825ba047f81a3u, 0x930255c71472f66du},
      {0x61f55862baa9623bu, 0xb49714f364e2830fu},
      {0xbb54b067caa4e26eu, 0x77052385bf1533fdu},
      {0xd850bd78ae79b42du, 0xad32618a178a2a88u},
  }};
  for (size_t num_words = 0; num_words < want.size(); ++num_words) {
    SipHash128 hash(secret);
    for (size_t i = 0; i < num_words; ++i) hash.Add(0x0706050403020100u + i * 0x0808080808080808u);
    EXPECT_EQ(hash.Finish(), want[num_words]) << num_words << " words";
  }
}

TEST(BlockKeys, NameAllTokensUpToTheBlocksEndAndTheScope) {
  // Blocks of two tokens from an alphabet of three, three blocks long, in scopes that could be
  // confused if texts ran together.
  const std::vector<CacheScope> scopes = {{},
                                          {1, "", ""},
                                          {0, "a", ""},
                                          {0, "", "a"},
                                          {0, "a", "b"},
                                          {0, "ab", ""},
                                          {0, "", "ab"},
                                          {0, "", std::string("a\0", 2)}};
  std::set<std::pair<uint64_t, uint64_t>> seen;
  size_t num_keys = 0;
  const KeyMaker keys(kSecret, 2);
  const auto note = [&](const BlockKey& key) {
    seen.insert({key.low, key.high});
    ++num_keys;
  };
  for (const CacheScope& scope : scopes) {
    std::vector<BlockKey> level = {keys.Root(scope)};
    note(level[0]);
    for (int depth = 0; depth < 3; ++depth) {
      std::vector<BlockKey> next;
      for (const BlockKey& previous : level) {
        for (TokenId a = 0; a < 3; ++a) {
          for (TokenId b = 0; b < 3; ++b) {
            next.push_back(keys.Next(previous, {a, b}));
            EXPECT_EQ(next.back(), keys.Next(previous, {a, b}));
            note(next.back());
          }
        }
      }
      level = std::move(next);
    }
  }
  EXPECT_EQ(seen.size(), num_keys);
}

TEST(BlockKeys, AnotherSecretGivesOtherKeys) {
  const KeyMaker a(kSecret, 1);
  const KeyMaker b({1, 3}, 1);
  EXPECT_FALSE(a.Root({}) == b.Root({}));
  EXPECT_FALSE(a.Next(a.Root({}), {7}) == b.Next(a.Root({}), {7}));
  const SipHash128::Secret one = KeyMaker::DrawSecret();
  const SipHash128::Secret other = KeyMaker::DrawSecret();
  EXPECT_TRUE(one.k0 != other.k0 && one.k1 != other.k1);
}

TEST(BlockKeys, EachBitOfATokenChangesHalfOfTheKeysBits) {
  const KeyMaker keys(kSecret, 3);
  const BlockKey base = keys.Next(keys.Root({}), {5, 6, 7});
  int changed = 0;
  for (int i = 0; i < 3 * 32; ++i) {
    std::vector<TokenId> tokens = {5, 6, 7};
    uint32_t& word = reinterpret_cast<uint32_t&>(tokens[static_cast<size_t>(i / 32)]);
    word ^= 1u << (i % 32);
    const BlockKey key = keys.Next(keys.Root({}), tokens);
    changed += std::popcount(key.low ^ base.low) + std::popcount(key.high ^ base.high);
  }
  EXPECT_NEAR(changed, 96 * 64, 400);
}

// Keys that share their low bits, so that places in the table are fought for.
TEST(PrefixIndex, DoesWhatAMapWouldDoWhateverCollides) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    std::mt19937_64 random(seed);
    const int32_t num_blocks = 1 + static_cast<int32_t>(random() % 12);
    PrefixIndex index(num_blocks);
    std::map<std::pair<uint64_t, uint64_t>, int32_t> want;
    std::map<int32_t, std::pair<uint64_t, uint64_t>> key_of;
    for (int turn = 0; turn < 400; ++turn) {
      const BlockId block{static_cast<int32_t>(random() % static_cast<uint64_t>(num_blocks))};
      const BlockKey key = {random() % 5 + random() % 2 * 29, random() % 3};
      if (key_of.contains(block.value)) {
        ASSERT_TRUE(index.Contains(block));
        want.erase(key_of[block.value]);
        key_of.erase(block.value);
        index.Remove(block);
      } else {
        const bool is_new = !want.contains({key.low, key.high});
        ASSERT_EQ(index.Insert(key, block), is_new) << "seed " << seed;
        if (is_new) {
          want[{key.low, key.high}] = block.value;
          key_of[block.value] = {key.low, key.high};
        }
      }
      ASSERT_EQ(index.size(), std::ssize(want));
      for (uint64_t low = 0; low < 40; ++low) {
        for (uint64_t high = 0; high < 3; ++high) {
          const auto found = want.find({low, high});
          const std::optional<BlockId> got = index.Find({low, high});
          ASSERT_EQ(got.has_value(), found != want.end()) << "seed " << seed;
          if (got.has_value()) {
            ASSERT_EQ(got->value, found->second);
          }
        }
      }
    }
  }
}

BlockKey Key(uint64_t number) {
  return {number * 0x9e3779b97f4a7c15u, number};
}

class CachedBlocks : public ::testing::Test {
 protected:
  // Takes blocks 0 to 3; publishes each under its number.
  CachedBlocks() : blocks_(4, 16) {
    for (int32_t i = 0; i < 4; ++i) {
      EXPECT_EQ(blocks_.Take(), BlockId{i});
      blocks_.Publish(Key(static_cast<uint64_t>(i)), BlockId{i});
    }
  }
  std::vector<int32_t> TakeAll() {
    std::vector<int32_t> taken;
    while (const std::optional<BlockId> block = blocks_.Take()) taken.push_back(block->value);
    return taken;
  }
  BlockAllocator blocks_;
};

TEST_F(CachedBlocks, AreFoundWhileReferredToAndAfter) {
  EXPECT_EQ(blocks_.Find(Key(2)), BlockId{2});
  EXPECT_EQ(blocks_.Find(Key(7)), std::nullopt);
  EXPECT_EQ(blocks_.num_free(), 0);
  blocks_.Release(BlockId{2});
  EXPECT_EQ(blocks_.num_free(), 1);
  EXPECT_EQ(blocks_.num_cached(), 1);
  EXPECT_EQ(blocks_.Find(Key(2)), BlockId{2});
  blocks_.Share(BlockId{2});
  EXPECT_EQ(blocks_.references(BlockId{2}), 1);
  EXPECT_EQ(blocks_.num_free(), 0);
  EXPECT_EQ(blocks_.Take(), std::nullopt);
}

TEST_F(CachedBlocks, AreTakenOldestFirstAndAreThenNotFound) {
  for (const int32_t i : {2, 0, 3, 1}) blocks_.Release(BlockId{i});
  blocks_.Share(BlockId{0});  // used once more: the youngest
  blocks_.Release(BlockId{0});
  EXPECT_EQ(blocks_.Take(), BlockId{2});
  EXPECT_EQ(blocks_.Find(Key(2)), std::nullopt);
  EXPECT_EQ(blocks_.Find(Key(0)), BlockId{0});
  EXPECT_THAT(TakeAll(), ElementsAre(3, 1, 0));
  EXPECT_EQ(blocks_.Find(Key(0)), std::nullopt);
}

TEST_F(CachedBlocks, AreTakenOnlyWhenNoOtherIsFree) {
  blocks_.Release(BlockId{0});
  blocks_.Forget(BlockId{3});
  blocks_.Release(BlockId{3});
  EXPECT_EQ(blocks_.num_cached(), 1);
  EXPECT_THAT(TakeAll(), ElementsAre(3, 0));
}

TEST_F(CachedBlocks, ForgottenOnesAreJustFree) {
  blocks_.Release(BlockId{1});
  blocks_.Release(BlockId{0});
  blocks_.Forget(BlockId{1});
  blocks_.Forget(BlockId{1});
  EXPECT_EQ(blocks_.num_free(), 2);
  EXPECT_EQ(blocks_.num_cached(), 1);
  blocks_.ForgetAll();
  EXPECT_EQ(blocks_.num_free(), 2);
  EXPECT_EQ(blocks_.num_cached(), 0);
  for (uint64_t i = 0; i < 4; ++i) EXPECT_EQ(blocks_.Find(Key(i)), std::nullopt);
  blocks_.Release(BlockId{2});
  EXPECT_EQ(blocks_.num_cached(), 0);
  EXPECT_THAT(TakeAll(), ElementsAre(2, 0, 1));
}

TEST_F(CachedBlocks, AKeyNamesItsFirstBlockOnly) {
  blocks_.Forget(BlockId{1});
  blocks_.Publish(Key(0), BlockId{1});  // the same tokens, computed twice
  EXPECT_EQ(blocks_.Find(Key(0)), BlockId{0});
  blocks_.Release(BlockId{1});
  EXPECT_EQ(blocks_.num_cached(), 0);
  blocks_.Publish(Key(9), BlockId{0});  // it has a name
  EXPECT_EQ(blocks_.Find(Key(9)), std::nullopt);
}

// Against a list that is kept the slow way.
TEST(BlockAllocatorProperty, LeastRecentlyUsedFirstAndNothingIsLost) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    std::mt19937_64 random(seed);
    const int32_t num_blocks = 1 + static_cast<int32_t>(random() % 9);
    BlockAllocator blocks(num_blocks, 4);
    std::vector<int32_t> cached;  // oldest first
    std::map<int32_t, uint64_t> key_of;
    std::vector<int32_t> held(static_cast<size_t>(num_blocks), 0);
    uint64_t next_key = 0;
    for (int turn = 0; turn < 500; ++turn) {
      const BlockId block{static_cast<int32_t>(random() % static_cast<uint64_t>(num_blocks))};
      int32_t& references = held[static_cast<size_t>(block.value)];
      switch (random() % 4) {
        case 0: {
          const std::optional<BlockId> taken = blocks.Take();
          const auto num_held =
              std::count_if(held.begin(), held.end(), [](int32_t r) { return r > 0; });
          ASSERT_EQ(taken.has_value(), num_held < num_blocks);
          if (!taken.has_value()) break;
          if (num_held + std::ssize(cached) == num_blocks) {
            ASSERT_EQ(taken->value, cached.front()) << "seed " << seed;
            cached.erase(cached.begin());
            key_of.erase(taken->value);
          } else {
            ASSERT_FALSE(key_of.contains(taken->value)) << "a cached one, while others are free";
          }
          held[static_cast<size_t>(taken->value)] = 1;
          break;
        }
        case 1:
          if (references == 0 && !key_of.contains(block.value)) break;
          if (references++ == 0) std::erase(cached, block.value);
          blocks.Share(block);
          break;
        case 2:
          if (references == 0) break;
          if (--references == 0 && key_of.contains(block.value)) cached.push_back(block.value);
          blocks.Release(block);
          break;
        default:
          if (references == 0 || key_of.contains(block.value)) break;
          blocks.Publish(Key(next_key), block);
          key_of[block.value] = next_key++;
      }
      ASSERT_EQ(blocks.num_cached(), std::ssize(cached)) << "seed " << seed;
      for (const auto& [number, key] : key_of) ASSERT_EQ(blocks.Find(Key(key)), BlockId{number});
      ASSERT_EQ(blocks.num_free() +
                    std::count_if(held.begin(), held.end(), [](int32_t r) { return r > 0; }),
                num_blocks);
    }
  }
}

TEST(GrowthHorizon, DoublesOncePerBurstAndFallsAgain) {
  GrowthHorizon horizon(16, 100);
  for (int i = 0; i < 1000; ++i) horizon.NoteStep();
  EXPECT_EQ(horizon.tokens(), 16);
  horizon.NotePreemption();
  EXPECT_EQ(horizon.tokens(), 32);
  for (int i = 0; i < 15; ++i) {
    horizon.NoteStep();
    horizon.NotePreemption();
  }
  EXPECT_EQ(horizon.tokens(), 32) << "of the same burst";
  horizon.NoteStep();
  horizon.NotePreemption();
  EXPECT_EQ(horizon.tokens(), 64);
  for (int i = 0; i < 63; ++i) horizon.NoteStep();
  EXPECT_EQ(horizon.tokens(), 64);
  horizon.NoteStep();
  EXPECT_EQ(horizon.tokens(), 56);
  horizon.NotePreemption();
  EXPECT_EQ(horizon.tokens(), 100) << "and no further";
  for (int i = 0; i < 2000; ++i) horizon.NoteStep();
  EXPECT_EQ(horizon.tokens(), 16);
}

}  // namespace
}  // namespace polyreme::sched
