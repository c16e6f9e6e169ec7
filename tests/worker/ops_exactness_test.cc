// On CPU the bits of a row depend on nothing but the row: not on T, on the company, on threads, on
// the instruction set, nor on how many shards its sums are spread over.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <utility>

#include "tests/worker/ops_harness.h"

namespace polyreme::ops {
namespace {

using backend::cpu::Isa;
using naive::Matrix;
using naive::Vector;
using Bytes = std::vector<std::byte>;

constexpr uint32_t kSeed = 20261123;
constexpr DType kFloats[] = {DType::kF32, DType::kF16, DType::kBF16};
const std::vector<int64_t> kOneSegment = {320};
const std::vector<int64_t> kEightSegments = {40, 80, 120, 160, 200, 240, 280, 320};

OpsHarness MakeHarness(Isa isa, int32_t num_threads) {
  return OpsHarness(backend::MakeCpuBackend({.num_threads = num_threads, .isa = isa}));
}

Matrix Part(const Matrix& m, std::pair<int64_t, int64_t> rows, std::pair<int64_t, int64_t> cols) {
  Matrix part(rows.second - rows.first, cols.second - cols.first);
  for (int64_t r = 0; r < part.rows; ++r) {
    for (int64_t c = 0; c < part.cols; ++c) part.at(r, c) = m.at(rows.first + r, cols.first + c);
  }
  return part;
}

// float32 values, exactly, and equal only if no bit differs (no NaN is compared here).
Matrix FloatsOf(const Bytes& bytes, int64_t rows) {
  Matrix m(rows, static_cast<int64_t>(bytes.size()) / 4 / rows);
  m.values = naive::FromBytes(DType::kF32, bytes);
  return m;
}

TEST(OpsExactness, ARowOfAProductDoesNotDependOnItsCompany) {
  std::mt19937 random(kSeed);
  for (const Isa isa : SupportedIsas()) {
    OpsHarness harness = MakeHarness(isa, 1);
    for (const DType dtype : kFloats) {
      for (const auto& segment_ends : {kOneSegment, kEightSegments}) {
        Matrix w = RandomMatrix(random, 150, 320);
        const weights::Weight weight = harness.Pack(w, dtype, segment_ends);
        const Matrix x = RandomMatrix(random, 100, 320);
        const Matrix whole = FloatsOf(harness.MatMulBytes(x, weight), 100);
        const std::pair<int64_t, int64_t> parts[] = {{0, 1},   {57, 58}, {99, 100}, {3, 5},
                                                     {10, 15}, {20, 32}, {20, 33},  {0, 64}};
        for (const auto& rows : parts) {
          const Bytes part = harness.MatMulBytes(Part(x, rows, {0, 320}), weight);
          EXPECT_EQ(FloatsOf(part, rows.second - rows.first).values,
                    Part(whole, rows, {0, 150}).values)
              << NameOf(isa) << " " << NameOf(dtype) << " from row " << rows.first;
        }
      }
    }
  }
}

TEST(OpsExactness, AColumnOfAProductDoesNotDependOnTheShardThatHoldsIt) {
  std::mt19937 random(kSeed);
  OpsHarness harness = MakeHarness(backend::cpu::BestIsa(), 2);
  Matrix w = RandomMatrix(random, 96, 320);
  const Matrix x = RandomMatrix(random, 5, 320);
  const Matrix whole = FloatsOf(harness.MatMulBytes(x, harness.Pack(w, DType::kBF16)), 5);
  for (const auto& rows : {std::pair<int64_t, int64_t>{0, 48}, {48, 96}, {31, 32}}) {
    Matrix shard = Part(w, rows, {0, 320});
    const Bytes part = harness.MatMulBytes(x, harness.Pack(shard, DType::kBF16));
    EXPECT_EQ(FloatsOf(part, 5).values, Part(whole, {0, 5}, rows).values);
  }
}

TEST(OpsExactness, EightSegmentsOnOneRankEqualTheTreeOfTheShardsSums) {
  std::mt19937 random(kSeed);
  OpsHarness harness = MakeHarness(backend::cpu::BestIsa(), 1);
  Matrix w = RandomMatrix(random, 70, 320);
  for (const int64_t tokens : {1, 30}) {
    const Matrix x = RandomMatrix(random, tokens, 320);
    const weights::Weight weight = harness.Pack(w, DType::kBF16, kEightSegments);
    const Matrix whole = FloatsOf(harness.MatMulBytes(x, weight), tokens);
    for (const int64_t shards : {2, 4, 8}) {
      std::vector<Matrix> sums;
      const int64_t width = 320 / shards;
      for (int64_t s = 0; s < shards; ++s) {
        const std::pair<int64_t, int64_t> cols = {s * width, (s + 1) * width};
        Matrix shard = Part(w, {0, 70}, cols);
        std::vector<int64_t> segment_ends;
        for (int64_t end = 40; end <= width; end += 40) segment_ends.push_back(end);
        const weights::Weight local = harness.Pack(shard, DType::kBF16, segment_ends);
        sums.push_back(FloatsOf(harness.MatMulBytes(Part(x, {0, tokens}, cols), local), tokens));
      }
      for (; sums.size() > 1; sums.resize(sums.size() / 2)) {
        for (size_t i = 0; i < sums.size() / 2; ++i) {
          Matrix sum = naive::Add(sums[2 * i], sums[2 * i + 1]);
          for (double& value : sum.values) value = naive::RoundTo(DType::kF32, value);
          sums[i] = sum;
        }
      }
      EXPECT_EQ(sums[0].values, whole.values) << shards << " shards, " << tokens << " tokens";
    }
  }
}

// Keys and values of some sequences in a pool that is NaN elsewhere.
struct Cache {
  DeviceTensor keys;
  DeviceTensor values;
};

constexpr HeadLayout kHeads = {.query_heads = 6, .kv_heads = 2, .head_dim = 40};
constexpr int32_t kTokensPerBlock = 16;
constexpr int32_t kTableStride = 12;

Cache MakeCache(OpsHarness& harness, DType dtype) {
  const Shape pool({4 * kTableStride, kTokensPerBlock, kHeads.kv_heads, kHeads.head_dim});
  const Vector nans(static_cast<size_t>(pool.num_elements()), std::nan(""));
  return {harness.From(dtype, pool, nans), harness.From(dtype, pool, nans)};
}

// One step that stores its keys and values and attends. qkv: a row per token.
Matrix StoreAndAttend(OpsHarness& harness, const Cache& cache, std::vector<TestRow> rows,
                      Matrix qkv) {
  const TestStep step(harness, std::move(rows), 4, kTokensPerBlock, kTableStride);
  std::mt19937 random(kSeed);
  Matrix table = RandomMatrix(random, kTableStride * kTokensPerBlock, kHeads.head_dim);
  const DeviceTensor rope =
      harness.From(DType::kF32, Shape({table.rows, table.cols}), table.values);
  const DeviceTensor device_qkv = harness.Activations(qkv);
  const DeviceTensor y =
      harness.Empty(DType::kF32, Shape({qkv.rows, kHeads.query_heads * kHeads.head_dim}));
  const LayerKv kv{cache.keys.view, cache.values.view};
  harness.ops().RotateAndStore(harness.lane(), step.batch(), kHeads, {rope.view}, device_qkv.view,
                               kv);
  harness.ops().PrepareAttention(harness.lane(), step.batch(), kHeads);
  harness.ops().Attend(harness.lane(), step.batch(), kHeads, device_qkv.view, kv, 0.3f, y.view);
  return FloatsOf(harness.DownloadBytes(y.view), std::max<int64_t>(1, qkv.rows));
}

TEST(OpsExactness, AttentionOfARowIsTheSameInAnyChunkAndAnyCompany) {
  constexpr int32_t kLength = 150;
  std::mt19937 random(kSeed);
  const Matrix qkv = RandomMatrix(random, kLength, kHeads.columns());
  for (const Isa isa : SupportedIsas()) {
    for (const DType dtype : kFloats) {
      OpsHarness harness = MakeHarness(isa, 2);
      const Cache alone = MakeCache(harness, dtype);
      const Matrix want = StoreAndAttend(harness, alone, {{1, 0, kLength}}, qkv);
      for (const int32_t chunk : {1, 7, 64}) {
        const Cache cache = MakeCache(harness, dtype);
        for (int32_t begin = 0; begin < kLength; begin += chunk) {
          const int32_t end = std::min(kLength, begin + chunk);
          // In company of another sequence, before it.
          Matrix tokens = RandomMatrix(random, 3 + end - begin, kHeads.columns());
          std::copy(qkv.values.begin() + begin * qkv.cols, qkv.values.begin() + end * qkv.cols,
                    tokens.values.begin() + 3 * qkv.cols);
          const Matrix got =
              StoreAndAttend(harness, cache, {{0, 0, 3}, {1, begin, end - begin}}, tokens);
          ASSERT_EQ(Part(got, {3, got.rows}, {0, got.cols}).values,
                    Part(want, {begin, end}, {0, want.cols}).values)
              << NameOf(isa) << " " << NameOf(dtype) << " chunk of " << chunk << " at " << begin;
        }
      }
    }
  }
}

// All ops on one set of inputs, their outputs one after another.
Bytes RunAll(OpsHarness harness) {
  std::mt19937 random(kSeed);
  Bytes all;
  const auto keep = [&](const Bytes& bytes) { all.insert(all.end(), bytes.begin(), bytes.end()); };
  for (const DType dtype : kFloats) {
    for (const int64_t tokens : {1, 2, 5, 13, 30}) {
      Matrix w = RandomMatrix(random, 83, 320);
      const Matrix x = RandomMatrix(random, tokens, 320);
      keep(harness.MatMulBytes(x, harness.Pack(w, dtype, kOneSegment)));
      keep(harness.MatMulBytes(x, harness.Pack(w, dtype, kEightSegments)));
    }
    const Cache cache = MakeCache(harness, dtype);
    const Matrix y = StoreAndAttend(harness, cache, {{0, 0, 100}, {2, 0, 5}},
                                    RandomMatrix(random, 105, kHeads.columns()));
    keep(naive::ToBytes(DType::kF32, y.values));
    for (const TensorView& pool : {cache.keys.view, cache.values.view}) {
      keep(harness.DownloadBytes(pool));
    }
  }
  Matrix x = RandomMatrix(random, 700, 94, 5);
  Matrix delta = RandomMatrix(random, 700, 94);
  Vector gain = RandomVector(random, 94);
  const DeviceTensor device_x = harness.Activations(x);
  const DeviceTensor device_delta = harness.Activations(delta);
  const DeviceTensor device_gain = harness.Floats(gain);
  const DeviceTensor y = harness.Empty(DType::kF32, Shape({700, 94}));
  harness.ops().AddRmsNorm(harness.lane(), device_delta.view, device_x.view, device_gain.view,
                           1e-6f, y.view);
  keep(harness.DownloadBytes(y.view));
  const DeviceTensor gated = harness.Empty(DType::kF32, Shape({700, 47}));
  harness.ops().SiluGate(harness.lane(), y.view, gated.view);
  keep(harness.DownloadBytes(gated.view));
  return all;
}

TEST(OpsExactness, EachInstructionSetAndAnyNumberOfThreadsGiveTheSameBits) {
  const Bytes want = RunAll(MakeHarness(Isa::kScalar, 1));
  for (const Isa isa : SupportedIsas()) {
    for (const int32_t threads : {1, 3}) {
      EXPECT_TRUE(RunAll(MakeHarness(isa, threads)) == want)
          << NameOf(isa) << " with " << threads << " threads";
    }
  }
}

// Pins the exponential, on which the gate and attention stand.
TEST(OpsExactness, SiluIsRightToAFewUnitsInTheLastPlace) {
  OpsHarness harness = MakeHarness(backend::cpu::BestIsa(), 1);
  constexpr int64_t kSteps = 40000;
  Matrix x(1, 2 * kSteps);
  for (int64_t i = 0; i < kSteps; ++i) {
    x.at(0, i) = -86.0 + 172.0 * static_cast<double>(i) / kSteps;
    x.at(0, kSteps + i) = 1;
  }
  const DeviceTensor in = harness.Activations(x);
  const DeviceTensor out = harness.Empty(DType::kF32, Shape({1, kSteps}));
  harness.ops().SiluGate(harness.lane(), in.view, out.view);
  const Matrix got = harness.Download(out.view);
  const Matrix want = naive::SiluGate(x);
  for (int64_t i = 0; i < kSteps; ++i) {
    ASSERT_LE(std::abs(got.at(0, i) - want.at(0, i)), 4 * 0x1p-24 * std::abs(want.at(0, i)))
        << "x " << x.at(0, i);
  }
}

}  // namespace
}  // namespace polyreme::ops
