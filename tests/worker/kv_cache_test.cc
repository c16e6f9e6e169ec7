#include "worker/kv/kv_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "worker/backend/backend.h"

namespace polyreme::kv {
namespace {

using ::testing::HasSubstr;

constexpr KvLayout kLayout = {
    .num_layers = 3, .tokens_per_block = 4, .kv_heads = 2, .head_dim = 6, .dtype = DType::kF32};

class KvCacheTest : public ::testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<backend::Backend>> made = backend::MakeBackend("cpu", {});
    ASSERT_TRUE(made.ok()) << made.status();
    backend_ = *std::move(made);
  }
  std::unique_ptr<backend::Backend> backend_;
};

TEST_F(KvCacheTest, LayersAreApartAndFillThePool) {
  EXPECT_EQ(kLayout.bytes_per_block(), 2 * 3 * 4 * 2 * 6 * 4);
  const absl::StatusOr<KvCache> cache = KvCache::Make(backend_->device(), kLayout, 5);
  ASSERT_TRUE(cache.ok()) << cache.status();
  EXPECT_EQ(cache->bytes(), 5 * kLayout.bytes_per_block());
  int64_t bytes = 0;
  const std::byte* end = nullptr;
  for (int64_t i = 0; i < kLayout.num_layers; ++i) {
    for (const TensorView& part : {cache->Layer(i).keys, cache->Layer(i).values}) {
      EXPECT_EQ(part.shape, Shape({5, 4, 2, 6}));
      if (end != nullptr) {
        EXPECT_EQ(part.data, end);
      }
      end = static_cast<const std::byte*>(part.data) + part.bytes();
      bytes += part.bytes();
    }
  }
  EXPECT_EQ(bytes, cache->bytes());
}

TEST_F(KvCacheTest, CopyMovesWholeBlocksInEveryLayer) {
  const absl::StatusOr<KvCache> cache = KvCache::Make(backend_->device(), kLayout, 5);
  ASSERT_TRUE(cache.ok()) << cache.status();
  float value = 0;
  for (int64_t i = 0; i < kLayout.num_layers; ++i) {
    for (const TensorView& part : {cache->Layer(i).keys, cache->Layer(i).values}) {
      for (int64_t e = 0; e < part.num_elements(); ++e) part.As<float>()[e] = value++;
    }
  }
  const std::vector<ops::BlockMove> moves = {{1, 3}, {1, 0}};
  const absl::StatusOr<std::unique_ptr<Lane>> lane = backend_->device().MakeLane(4096);
  ASSERT_TRUE(lane.ok()) << lane.status();
  cache->Copy(**lane, backend_->ops(), moves.data(), 2);
  const int64_t block = 4 * 2 * 6;
  float first = 0;
  for (int64_t i = 0; i < kLayout.num_layers; ++i) {
    for (const TensorView& part : {cache->Layer(i).keys, cache->Layer(i).values}) {
      const float* x = part.As<float>();
      for (int64_t e = 0; e < block; ++e) {
        const float moved = first + static_cast<float>(block + e);
        ASSERT_EQ(x[0 * block + e], moved);
        ASSERT_EQ(x[1 * block + e], moved);
        ASSERT_EQ(x[2 * block + e], first + static_cast<float>(2 * block + e));
        ASSERT_EQ(x[3 * block + e], moved);
        ASSERT_EQ(x[4 * block + e], first + static_cast<float>(4 * block + e));
      }
      first += static_cast<float>(part.num_elements());
    }
  }
}

TEST_F(KvCacheTest, ACacheThatDoesNotFitSaysWhatWasAskedFor) {
  KvLayout huge = kLayout;
  huge.head_dim = int64_t{1} << 40;
  const absl::StatusOr<KvCache> cache = KvCache::Make(backend_->device(), huge, 5);
  EXPECT_EQ(cache.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(cache.status()), HasSubstr("cache of 5 blocks of"));
}

}  // namespace
}  // namespace polyreme::kv
