// One suite for each kind of communicator, 1 to 8 ranks, against the naive definition of each
// operation.

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <tuple>

#include "tests/parallel/ranks.h"

namespace polyreme::comm {
namespace {

using Kind = ProcessGroup::Kind;

// What rank r holds at place i: small fractions and huge numbers side by side, so that another
// order of adding shows.
float ValueAt(int rank, int64_t i) {
  uint32_t h = static_cast<uint32_t>(rank) * 2654435761u + static_cast<uint32_t>(i) * 40503u + 977u;
  h ^= h >> 15;
  h *= 2246822519u;
  h ^= h >> 13;
  const float fraction = static_cast<float>(h % 20011u) / 7.0f - 1400.0f;
  return h % 5 == 0 ? fraction * 65536.0f : fraction;
}

std::vector<float> Values(int rank, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i)] = ValueAt(rank, i);
  return values;
}

// The tree, as its definition reads: halves of the next power of two, an empty right half adds
// nothing.
float NaiveTree(int first, int width, int size, int64_t i) {
  if (width == 1) return ValueAt(first, i);
  const float left = NaiveTree(first, width / 2, size, i);
  if (first + width / 2 >= size) return left;
  return left + NaiveTree(first + width / 2, width / 2, size, i);
}
float NaiveSum(int size, int64_t i) {
  int width = 1;
  while (width < size) width *= 2;
  return NaiveTree(0, width, size, i);
}
double DoubleSum(int size, int64_t i) {
  double sum = 0;
  for (int r = 0; r < size; ++r) sum += ValueAt(r, i);
  return sum;
}

bool SameBits(float a, float b) {
  return std::memcmp(&a, &b, sizeof(a)) == 0;
}

template <class T>
TensorView View(std::vector<T>& values, DType dtype) {
  return {values.data(), dtype, Shape{std::ssize(values)}};
}
TensorView View(std::vector<float>& values) {
  return View(values, DType::kF32);
}
template <class T>
TensorView Bytes(std::vector<T>& values) {
  return {values.data(), DType::kU8, Shape{static_cast<int64_t>(values.size() * sizeof(T))}};
}

// Counts around the edges of blocks, rings, slots and the size table.
const std::vector<int64_t>& Counts() {
  static const std::vector<int64_t> counts = {
      0, 1, 3, 7, 255, 257, 384, 1024, 4095, 4096, 4097, 16385, 65536, 65537, 131071, 262147};
  return counts;
}

// Where each rank holds the parts of all: enough for several chunks, whatever the size.
constexpr int64_t kMostElements = 600'000;

class Conformance : public testing::TestWithParam<std::tuple<Kind, int>> {
 protected:
  Kind kind() const { return std::get<0>(GetParam()); }
  int size() const { return std::get<1>(GetParam()); }
  RanksOptions options() const {
    RanksOptions options;
    options.kind = kind();
    options.shards = size();
    return options;
  }
  void OnAll(const std::function<void(Communicator&, Lane&)>& body) const {
    ExpectAllWell(options(), [&](ProcessGroup& group, Lane& lane) { body(group.tensor(), lane); });
  }
};

TEST_P(Conformance, KnowsItsPlace) {
  OnAll([&](Communicator& group, Lane&) {
    EXPECT_EQ(group.size(), size());
    EXPECT_GE(group.rank(), 0);
    EXPECT_LT(group.rank(), size());
  });
}

TEST_P(Conformance, AllReduceAddsInTheOneTreeOnEachRank) {
  OnAll([&](Communicator& group, Lane& lane) {
    for (const int64_t count : Counts()) {
      std::vector<float> x = Values(group.rank(), count);
      group.AllReduceSum(lane, View(x));
      int64_t wrong = 0;
      for (int64_t i = 0; i < count; ++i) {
        wrong += !SameBits(x[static_cast<size_t>(i)], NaiveSum(size(), i));
        // The tree itself is a sum: not far from the exact one.
        ASSERT_NEAR(x[static_cast<size_t>(i)], DoubleSum(size(), i), 64.0);
      }
      EXPECT_EQ(wrong, 0) << "of " << count << " on rank " << group.rank();
    }
  });
}

TEST_P(Conformance, ReduceScatterGivesEachRankItsPartOfTheSum) {
  OnAll([&](Communicator& group, Lane& lane) {
    for (const int64_t count : Counts()) {
      if (count * size() > kMostElements) continue;
      std::vector<float> whole = Values(group.rank(), count * size());
      std::vector<float> part(static_cast<size_t>(count));
      group.ReduceScatterSum(lane, View(whole), View(part));
      int64_t wrong = 0;
      for (int64_t i = 0; i < count; ++i) {
        wrong +=
            !SameBits(part[static_cast<size_t>(i)], NaiveSum(size(), group.rank() * count + i));
      }
      EXPECT_EQ(wrong, 0) << "of " << count << " on rank " << group.rank();
    }
  });
}

TEST_P(Conformance, AllGatherLaysThePartsOutByRank) {
  OnAll([&](Communicator& group, Lane& lane) {
    for (const int64_t count : Counts()) {
      if (count * size() > kMostElements) continue;
      std::vector<float> part = Values(group.rank(), count);
      std::vector<float> whole(static_cast<size_t>(count * size()), -1.0f);
      group.AllGather(lane, View(part), View(whole));
      int64_t wrong = 0;
      for (int r = 0; r < size(); ++r) {
        for (int64_t i = 0; i < count; ++i) {
          wrong += whole[static_cast<size_t>(r * count + i)] != ValueAt(r, i);
        }
      }
      EXPECT_EQ(wrong, 0) << "of " << count << " on rank " << group.rank();
    }
  });
}

TEST_P(Conformance, AllGatherWorksInPlaceAndOnAnyDType) {
  OnAll([&](Communicator& group, Lane& lane) {
    const int64_t count = 1001;
    std::vector<uint16_t> whole(static_cast<size_t>(count * size()));
    uint16_t* const mine = whole.data() + group.rank() * count;
    for (int64_t i = 0; i < count; ++i) mine[i] = static_cast<uint16_t>(group.rank() * 7 + i);
    group.AllGather(lane, {mine, DType::kBF16, Shape{count}}, View(whole, DType::kBF16));
    for (int r = 0; r < size(); ++r) {
      for (int64_t i = 0; i < count; ++i) {
        ASSERT_EQ(whole[static_cast<size_t>(r * count + i)], static_cast<uint16_t>(r * 7 + i));
      }
    }
  });
}

TEST_P(Conformance, BroadcastGivesAllTheRootsBytesFromEachRoot) {
  OnAll([&](Communicator& group, Lane& lane) {
    for (const int64_t count : Counts()) {
      for (int root = 0; root < size(); ++root) {
        std::vector<float> x = Values(group.rank(), count);
        group.Broadcast(lane, Bytes(x), root);
        EXPECT_EQ(x, Values(root, count)) << count << " from " << root;
        if (count > 70000) break;
      }
    }
  });
}

TEST_P(Conformance, ExchangePassesRoundARingOfAnySize) {
  OnAll([&](Communicator& group, Lane& lane) {
    const int next = (group.rank() + 1) % size();
    const int previous = (group.rank() + size() - 1) % size();
    for (const int64_t count : Counts()) {
      std::vector<float> from = Values(group.rank(), count);
      std::vector<float> to(static_cast<size_t>(count));
      const Communicator::Outgoing send{View(from), next};
      const Communicator::Incoming receive{View(to), previous};
      group.Exchange(lane, {&send, 1}, {&receive, 1});
      EXPECT_EQ(to, Values(previous, count));
    }
  });
}

TEST_P(Conformance, ExchangeCrossesSeveralMessagesWithEachPeerInOrder) {
  OnAll([&](Communicator& group, Lane& lane) {
    const std::vector<int64_t> counts = {100000, 1, 30000};
    std::vector<std::vector<float>> from, to;
    std::vector<Communicator::Outgoing> sends;
    std::vector<Communicator::Incoming> receives;
    for (int peer = 0; peer < size(); ++peer) {
      for (const int64_t count : counts) {
        from.push_back(Values(group.rank() * 100 + peer, count));
        to.emplace_back(static_cast<size_t>(count));
      }
    }
    for (size_t i = 0; i < from.size(); ++i) {
      const int peer = static_cast<int>(i / counts.size());
      sends.push_back({View(from[i]), peer});
      receives.push_back({View(to[i]), peer});
    }
    group.Exchange(lane, sends, receives);
    for (size_t i = 0; i < to.size(); ++i) {
      const int peer = static_cast<int>(i / counts.size());
      EXPECT_EQ(to[i], Values(peer * 100 + group.rank(), counts[i % counts.size()]));
    }
  });
}

TEST_P(Conformance, ManySmallOperationsInARowStayInStep) {
  OnAll([&](Communicator& group, Lane& lane) {
    for (int round = 0; round < 300; ++round) {
      std::vector<float> x(1 + static_cast<size_t>(round % 50),
                           static_cast<float>(group.rank() + round));
      group.AllReduceSum(lane, View(x));
      const int ranks = size();
      ASSERT_EQ(x.back(), static_cast<float>(ranks * (ranks - 1) / 2 + ranks * round));
      int32_t token = group.rank() == round % ranks ? round : -1;
      group.Broadcast(lane, {&token, DType::kI32, Shape{1}}, round % ranks);
      ASSERT_EQ(token, round);
    }
  });
}

TEST_P(Conformance, CountsItsOperations) {
  OnAll([&](Communicator& group, Lane& lane) {
    std::vector<float> x(1000, 1.0f);
    for (int i = 0; i < 3; ++i) group.AllReduceSum(lane, View(x));
    const CommStats stats = group.stats();
    EXPECT_EQ(stats.operations, 3);
    if (size() > 1) {
      EXPECT_GE(stats.bytes_sent, 3 * 4000);
      EXPECT_GE(stats.bytes_received, 3 * 4000);
    }
    EXPECT_GE(stats.waiting, absl::ZeroDuration());
  });
}

TEST_P(Conformance, NothingHappensOnALaneThatHasFailed) {
  OnAll([&](Communicator& group, Lane&) {
    TestLane failed;
    failed.Fail(Internal("earlier"));
    std::vector<float> x = Values(group.rank(), 100);
    group.AllReduceSum(failed, View(x));
    group.Broadcast(failed, View(x), 0);
    EXPECT_EQ(x, Values(group.rank(), 100));
    EXPECT_EQ(group.stats().operations, 0);
    EXPECT_EQ(Message(failed.status()), "earlier");
  });
}

std::string NameOfInstance(const testing::TestParamInfo<std::tuple<Kind, int>>& instance) {
  return NameOf(std::get<0>(instance.param)) + std::to_string(std::get<1>(instance.param));
}

INSTANTIATE_TEST_SUITE_P(All, Conformance,
                         testing::Combine(testing::Values(Kind::kThreads, Kind::kSharedMemory,
                                                          Kind::kTcp),
                                          testing::Values(1, 2, 3, 4, 5, 6, 7, 8)),
                         NameOfInstance);

}  // namespace
}  // namespace polyreme::comm
