// The communicator's operations over NCCL against their naive definitions, eager and in graphs, by
// plain NCCL and in symmetric windows, with as many ranks as there are GPUs.

#include "parallel/comm/nccl_communicator.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "parallel/base/clock.h"
#include "parallel/comm/nccl_windows.h"
#include "tests/parallel/gpu_ranks.h"

namespace polyreme::comm {
namespace {

float ValueAt(int rank, int64_t i) {
  uint32_t h = static_cast<uint32_t>(rank) * 2654435761u + static_cast<uint32_t>(i) * 40503u + 977u;
  h ^= h >> 15;
  h *= 2246822519u;
  h ^= h >> 13;
  return static_cast<float>(h % 20011u) / 10005.5f - 1.0f;
}

// One element as stored, and back.
uint32_t Stored(DType dtype, float value) {
  uint32_t bits = 0;
  if (dtype == DType::kF32) {
    std::memcpy(&bits, &value, 4);
  } else if (dtype == DType::kF16) {
    const __half half = __float2half(value);
    std::memcpy(&bits, &half, 2);
  } else {
    const __nv_bfloat16 half = __float2bfloat16(value);
    std::memcpy(&bits, &half, 2);
  }
  return bits;
}
float Loaded(DType dtype, const std::byte* from) {
  if (dtype == DType::kF32) {
    float value = 0;
    std::memcpy(&value, from, 4);
    return value;
  }
  if (dtype == DType::kF16) {
    __half half;
    std::memcpy(&half, from, 2);
    return __half2float(half);
  }
  __nv_bfloat16 half;
  std::memcpy(&half, from, 2);
  return __bfloat162float(half);
}
float Rounded(DType dtype, float value) {
  const uint32_t bits = Stored(dtype, value);
  return Loaded(dtype, reinterpret_cast<const std::byte*>(&bits));
}

std::vector<std::byte> Values(DType dtype, int rank, int64_t count) {
  const auto size = static_cast<size_t>(SizeOf(dtype));
  std::vector<std::byte> values(static_cast<size_t>(count) * size);
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = Stored(dtype, ValueAt(rank, i));
    std::memcpy(values.data() + static_cast<size_t>(i) * size, &bits, size);
  }
  return values;
}

double NaiveSum(DType dtype, int size, int64_t i) {
  double sum = 0;
  for (int r = 0; r < size; ++r) sum += Rounded(dtype, ValueAt(r, i));
  return sum;
}
// `size` values of at most 1, added in any order and rounded each time.
double Tolerance(DType dtype, int size) {
  const int bits = dtype == DType::kF32 ? 23 : dtype == DType::kF16 ? 10 : 7;
  return std::ldexp(static_cast<double>(size) * size, -bits);
}

// Device memory of the current GPU; filled and read in the order of the lane's stream.
class Memory {
 public:
  Memory(StreamLane& lane, const std::vector<std::byte>& bytes)
      : lane_(lane), bytes_(static_cast<int64_t>(bytes.size())) {
    EXPECT_EQ(cudaMalloc(&data_, std::max<size_t>(bytes.size(), 16)), cudaSuccess);
    Fill(bytes);
  }
  ~Memory() {
    if (lane_.ok()) (void)cudaFree(data_);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void Fill(const std::vector<std::byte>& bytes) {
    EXPECT_EQ(
        cudaMemcpyAsync(data_, bytes.data(), bytes.size(), cudaMemcpyHostToDevice, lane_.stream()),
        cudaSuccess);
    EXPECT_EQ(lane_.Drain(), absl::OkStatus());
  }
  std::vector<std::byte> Read() const { return Read(lane_, data_, bytes_); }
  static std::vector<std::byte> Read(StreamLane& lane, const void* from, int64_t bytes) {
    std::vector<std::byte> read(static_cast<size_t>(bytes));
    // Drained before, so that a collective that hangs is not waited for in the copy.
    EXPECT_EQ(lane.Drain(), absl::OkStatus());
    if (!lane.ok()) return read;
    EXPECT_EQ(
        cudaMemcpyAsync(read.data(), from, read.size(), cudaMemcpyDeviceToHost, lane.stream()),
        cudaSuccess);
    EXPECT_EQ(lane.Drain(), absl::OkStatus());
    return read;
  }
  TensorView View(DType dtype) const { return {data_, dtype, Shape{bytes_ / SizeOf(dtype)}}; }

 private:
  StreamLane& lane_;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

const std::vector<int64_t>& Counts() {
  static const std::vector<int64_t> counts = {0,    1,    3,     7,     255,   257,    1024,
                                              4095, 4097, 16385, 65536, 65537, 131071, 1048577};
  return counts;
}

void ExpectSums(DType dtype, const std::vector<std::byte>& sums, int size, int64_t first,
                const std::string& what) {
  const int64_t count = static_cast<int64_t>(sums.size()) / SizeOf(dtype);
  int64_t wrong = 0, example = -1;
  for (int64_t i = 0; i < count; ++i) {
    const double got = Loaded(dtype, sums.data() + i * SizeOf(dtype));
    // Written so that NaN is wrong.
    if (!(std::abs(got - NaiveSum(dtype, size, first + i)) <= Tolerance(dtype, size))) {
      ++wrong;
      if (example < 0) example = i;
    }
  }
  EXPECT_EQ(wrong, 0) << what << ", " << NameOf(dtype) << ", of " << count << " elements; first at "
                      << example;
}

constexpr DType kFloats[] = {DType::kF32, DType::kF16, DType::kBF16};

class Nccl : public testing::Test {
 protected:
  void SetUp() override {
    gpus_ = CountGpus();
    if (gpus_ < 2) GTEST_SKIP() << "needs two GPUs, found " << gpus_;
  }
  int ranks() const { return std::min(gpus_, 8); }
  void OnAll(const std::function<void(GpuRank&)>& body) const { ExpectGpuRanksWell(ranks(), body); }

 private:
  int gpus_ = 0;
};

TEST(WindowWins, TakesTheNearestPowerOfTwo) {
  const AllReduceTiming timings[] = {{8192, 7.0, 4.0}, {16384, 7.0, 8.0}, {32768, 9.0, 8.0}};
  EXPECT_TRUE(WindowWins(timings, 16));
  EXPECT_TRUE(WindowWins(timings, 8192));
  EXPECT_TRUE(WindowWins(timings, 12287));
  EXPECT_FALSE(WindowWins(timings, 12288));
  EXPECT_FALSE(WindowWins(timings, 24575));
  EXPECT_TRUE(WindowWins(timings, 24576));
  EXPECT_TRUE(WindowWins(timings, 1 << 30));
}

TEST(WindowWins, NeverWithoutWindowsOrTimings) {
  const AllReduceTiming timings[] = {{8192, 7.0, 0.0}};
  EXPECT_FALSE(WindowWins(timings, 8192));
  EXPECT_FALSE(WindowWins({}, 8192));
}

TEST(OneGpu, NeedsNoPeersAndEndsWhenAborted) {
  if (CountGpus() < 1) GTEST_SKIP() << "needs a GPU, found none";
  ExpectGpuRanksWell(1, [](GpuRank& self) {
    const std::vector<std::byte> values = Values(DType::kF32, 0, 1000);
    const Memory x(*self.lane, values);
    const Memory y(*self.lane, std::vector<std::byte>(values.size()));
    self.group->AllReduceSum(*self.lane, x.View(DType::kF32));
    self.group->Broadcast(*self.lane, x.View(DType::kF32), 0);
    EXPECT_EQ(x.Read(), values);
    self.group->AllGather(*self.lane, x.View(DType::kF32), y.View(DType::kF32));
    EXPECT_EQ(y.Read(), values);
    EXPECT_TRUE(self.group->UseArena(x.View(DType::kU8)).ok());
    StreamLane other;
    self.group->Abort(Cancelled("enough"));
    self.group->AllReduceSum(other, x.View(DType::kF32));
    EXPECT_EQ(other.status().code(), absl::StatusCode::kCancelled);
  });
}

TEST_F(Nccl, AllReduceSumsEachTypeAndSize) {
  OnAll([](GpuRank& self) {
    for (const DType dtype : kFloats) {
      for (const int64_t count : Counts()) {
        const Memory x(*self.lane, Values(dtype, self.rank, count));
        self.group->AllReduceSum(*self.lane, x.View(dtype));
        ExpectSums(dtype, x.Read(), self.size, 0, "all-reduce");
        if (!self.lane->ok()) return;
      }
    }
  });
}

TEST_F(Nccl, ReduceScatterGivesEachRankItsPart) {
  OnAll([](GpuRank& self) {
    for (const DType dtype : kFloats) {
      for (const int64_t count : {int64_t{0}, int64_t{1}, int64_t{257}, int64_t{65537}}) {
        const Memory whole(*self.lane, Values(dtype, self.rank, count * self.size));
        const Memory part(*self.lane,
                          std::vector<std::byte>(static_cast<size_t>(count * SizeOf(dtype))));
        self.group->ReduceScatterSum(*self.lane, whole.View(dtype), part.View(dtype));
        ExpectSums(dtype, part.Read(), self.size, self.rank * count, "reduce-scatter");
      }
    }
  });
}

TEST_F(Nccl, AllGatherLaysPartsOutByRankAlsoInPlace) {
  OnAll([](GpuRank& self) {
    for (const int64_t count : {int64_t{0}, int64_t{1}, int64_t{1001}, int64_t{65537}}) {
      std::vector<std::byte> expected;
      for (int r = 0; r < self.size; ++r) {
        const std::vector<std::byte> theirs = Values(DType::kBF16, r, count);
        expected.insert(expected.end(), theirs.begin(), theirs.end());
      }
      const Memory part(*self.lane, Values(DType::kBF16, self.rank, count));
      const Memory whole(*self.lane, std::vector<std::byte>(expected.size()));
      self.group->AllGather(*self.lane, part.View(DType::kBF16), whole.View(DType::kBF16));
      EXPECT_EQ(whole.Read(), expected) << count;

      std::vector<std::byte> mine(expected.size());
      std::copy_n(expected.begin() + self.rank * count * 2, count * 2,
                  mine.begin() + self.rank * count * 2);
      const Memory in_place(*self.lane, mine);
      const TensorView view = in_place.View(DType::kBF16);
      self.group->AllGather(*self.lane, view.Rows(self.rank * count, (self.rank + 1) * count),
                            view);
      EXPECT_EQ(in_place.Read(), expected) << count << " in place";
    }
  });
}

TEST_F(Nccl, BroadcastGivesAllTheRootsBytes) {
  OnAll([](GpuRank& self) {
    for (const int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{13}, int64_t{262147}}) {
      for (int root = 0; root < self.size; ++root) {
        std::vector<std::byte> values = Values(DType::kF32, self.rank, bytes);
        values.resize(static_cast<size_t>(bytes));
        std::vector<std::byte> expected = Values(DType::kF32, root, bytes);
        expected.resize(static_cast<size_t>(bytes));
        const Memory x(*self.lane, values);
        self.group->Broadcast(*self.lane, x.View(DType::kU8), root);
        EXPECT_EQ(x.Read(), expected) << bytes << " from " << root;
      }
    }
  });
}

TEST_F(Nccl, ExchangeCrossesSeveralMessagesWithEachPeerAndItself) {
  OnAll([](GpuRank& self) {
    const std::vector<int64_t> counts = {100000, 1, 0, 30000};
    std::vector<std::unique_ptr<Memory>> from, to;
    std::vector<Communicator::Outgoing> sends;
    std::vector<Communicator::Incoming> receives;
    for (int peer = 0; peer < self.size; ++peer) {
      for (const int64_t count : counts) {
        const std::vector<std::byte> sent = Values(DType::kF32, self.rank * 100 + peer, count);
        from.push_back(std::make_unique<Memory>(*self.lane, sent));
        to.push_back(std::make_unique<Memory>(*self.lane, std::vector<std::byte>(sent.size())));
        sends.push_back({from.back()->View(DType::kF32), peer});
        receives.push_back({to.back()->View(DType::kF32), peer});
      }
    }
    self.group->Exchange(*self.lane, sends, receives);
    for (size_t i = 0; i < to.size(); ++i) {
      const int peer = static_cast<int>(i / counts.size());
      EXPECT_EQ(to[i]->Read(),
                Values(DType::kF32, peer * 100 + self.rank, counts[i % counts.size()]))
          << "message " << i << " of rank " << self.rank;
    }
  });
}

TEST_F(Nccl, AStageSendsToTheNext) {
  OnAll([](GpuRank& self) {
    const Memory x(*self.lane, Values(DType::kBF16, self.rank, 5120 * 8));
    const TensorView view = x.View(DType::kBF16);
    if (self.rank > 0) {
      const Communicator::Incoming receive{view, self.rank - 1};
      self.group->Exchange(*self.lane, {}, {&receive, 1});
    }
    if (self.rank + 1 < self.size) {
      const Communicator::Outgoing send{view, self.rank + 1};
      self.group->Exchange(*self.lane, {&send, 1}, {});
    }
    EXPECT_EQ(x.Read(), Values(DType::kBF16, 0, 5120 * 8));
  });
}

// Operations as a decode step records them, then three replays on new contents.
void CaptureAndReplay(GpuRank& self, TensorView sum) {
  const int64_t count = sum.num_elements();
  const int next = (self.rank + 1) % self.size;
  const int previous = (self.rank + self.size - 1) % self.size;
  const Memory sent(*self.lane, Values(DType::kF32, self.rank, 777));
  const Memory received(*self.lane, std::vector<std::byte>(777 * 4));
  ASSERT_EQ(cudaStreamBeginCapture(self.lane->stream(), cudaStreamCaptureModeThreadLocal),
            cudaSuccess);
  self.group->AllReduceSum(*self.lane, sum);
  const Communicator::Outgoing send{sent.View(DType::kF32), next};
  const Communicator::Incoming receive{received.View(DType::kF32), previous};
  self.group->Exchange(*self.lane, {&send, 1}, {&receive, 1});
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t ready = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(self.lane->stream(), &graph), cudaSuccess) << self.lane->status();
  ASSERT_EQ(cudaGraphInstantiate(&ready, graph, 0), cudaSuccess);
  ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  const std::vector<std::byte> values = Values(sum.dtype, self.rank, count);
  for (int replay = 0; replay < 3; ++replay) {
    ASSERT_EQ(cudaMemcpyAsync(sum.data, values.data(), values.size(), cudaMemcpyHostToDevice,
                              self.lane->stream()),
              cudaSuccess);
    ASSERT_EQ(cudaGraphLaunch(ready, self.lane->stream()), cudaSuccess);
    ExpectSums(sum.dtype, Memory::Read(*self.lane, sum.data, sum.bytes()), self.size, 0,
               "replayed all-reduce");
    EXPECT_EQ(received.Read(), Values(DType::kF32, previous, 777));
  }
  EXPECT_EQ(cudaGraphExecDestroy(ready), cudaSuccess);
}

TEST_F(Nccl, IsRecordedInAGraphAndReplayed) {
  OnAll([](GpuRank& self) {
    for (const int64_t count : {int64_t{5120}, int64_t{327680}, int64_t{8388608}}) {
      const Memory x(*self.lane, Values(DType::kBF16, self.rank, count));
      CaptureAndReplay(self, x.View(DType::kBF16));
      if (!self.lane->ok()) return;
    }
  });
}

TEST_F(Nccl, SumsInTheArenaBothWaysOnceMeasured) {
  constexpr int64_t kArena = int64_t{32} << 20;
  std::vector<std::vector<AllReduceTiming>> tables(static_cast<size_t>(ranks()));
  OnAll([&](GpuRank& self) {
    absl::StatusOr<Buffer> arena = self.factory->AllocateArena(kArena);
    ASSERT_TRUE(arena.ok()) << arena.status();
    const absl::Time begin = MonotonicNow();
    const absl::Status used = self.group->UseArena({arena->data(), DType::kU8, Shape{kArena}});
    ASSERT_TRUE(used.ok()) << used;
    EXPECT_LT(MonotonicNow() - begin, absl::Seconds(3));
    auto* const nccl = dynamic_cast<NcclCommunicator*>(self.group);
    ASSERT_NE(nccl, nullptr);
    tables[static_cast<size_t>(self.rank)].assign(nccl->timings().begin(), nccl->timings().end());
    for (const DType dtype : kFloats) {
      for (const int64_t count : Counts()) {
        // 4 KiB in: where a step's buffers lie.
        auto* const data = static_cast<std::byte*>(arena->data()) + 4096;
        const TensorView x{data, dtype, Shape{count}};
        const std::vector<std::byte> values = Values(dtype, self.rank, count);
        ASSERT_EQ(cudaMemcpyAsync(data, values.data(), values.size(), cudaMemcpyHostToDevice,
                                  self.lane->stream()),
                  cudaSuccess);
        self.group->AllReduceSum(*self.lane, x);
        ExpectSums(dtype, Memory::Read(*self.lane, data, x.bytes()), self.size, 0, "in the arena");
        if (!self.lane->ok()) return;
      }
    }
    for (const int64_t count : {int64_t{5120}, int64_t{327680}, int64_t{1310720}}) {
      CaptureAndReplay(self, {arena->data(), DType::kBF16, Shape{count}});
    }
  });
  ASSERT_EQ(tables[0].size(), 12u);
  EXPECT_EQ(tables[0].front().bytes, 8 << 10);
  EXPECT_EQ(tables[0].back().bytes, 16 << 20);
  for (const std::vector<AllReduceTiming>& table : tables) {
    ASSERT_EQ(table.size(), tables[0].size());
    for (size_t i = 0; i < table.size(); ++i) {
      EXPECT_GT(table[i].plain_seconds, 0);
      EXPECT_EQ(table[i].plain_seconds, tables[0][i].plain_seconds);
      EXPECT_EQ(table[i].window_seconds, tables[0][i].window_seconds);
    }
  }
  for (const AllReduceTiming& timing : tables[0]) {
    std::printf("all-reduce of %8lld bytes: plain %6.1f us, window %6.1f us\n",
                static_cast<long long>(timing.bytes), timing.plain_seconds * 1e6,
                timing.window_seconds * 1e6);
  }
}

TEST_F(Nccl, CountsItsOperations) {
  OnAll([](GpuRank& self) {
    const Memory x(*self.lane, Values(DType::kF32, self.rank, 1000));
    for (int i = 0; i < 3; ++i) self.group->AllReduceSum(*self.lane, x.View(DType::kF32));
    const CommStats stats = self.group->stats();
    EXPECT_EQ(stats.operations, 3);
    EXPECT_GE(stats.bytes_sent, 3 * 4000);
    EXPECT_GE(stats.bytes_received, 3 * 4000);
  });
}

TEST_F(Nccl, NothingHappensOnALaneThatHasFailed) {
  OnAll([](GpuRank& self) {
    StreamLane failed;
    failed.Fail(Internal("earlier"));
    const Memory x(*self.lane, Values(DType::kF32, self.rank, 100));
    self.group->AllReduceSum(failed, x.View(DType::kF32));
    self.group->Broadcast(failed, x.View(DType::kF32), 0);
    EXPECT_EQ(x.Read(), Values(DType::kF32, self.rank, 100));
    EXPECT_EQ(self.group->stats().operations, 0);
    EXPECT_EQ(Message(failed.status()), "earlier");
  });
}

}  // namespace
}  // namespace polyreme::comm
