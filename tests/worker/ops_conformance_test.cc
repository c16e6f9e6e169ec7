// One list of cases for each backend of the build, against the naive forms in
// tests/support/naive_ops.h.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "tests/worker/ops_harness.h"

namespace polyreme::ops {
namespace {

using naive::Matrix;
using naive::Vector;

constexpr uint32_t kSeed = 20261122;
constexpr float kEpsilon = 1e-5f;
constexpr DType kFloats[] = {DType::kF32, DType::kF16, DType::kBF16};

// Relative error that an op may have, by the type of its activations or, where it reads one, of the
// cache.
double ToleranceOf(DType dtype) {
  return dtype == DType::kF32 ? 1e-5 : dtype == DType::kF16 ? 2e-3 : 1.6e-2;
}

class OpsConformance : public testing::TestWithParam<BackendCase> {
 protected:
  static void SetUpTestSuite() {
    std::string names;
    for (const BackendCase& each : BackendCases()) names += " " + each.name;
    std::printf("Backends that run:%s; seed %u\n", names.c_str(), kSeed);
    if (const absl::Status gpu = GpuAvailable(); !gpu.ok()) {
      std::printf("CUDA does not run: %s\n", Message(gpu).c_str());
    }
  }

  // For outputs: what an op leaves unwritten is noticed.
  DeviceTensor EmptyActivations(int64_t rows, int64_t cols) {
    return harness_.Poisoned(harness_.activation_dtype(), Shape({rows, cols}));
  }
  bool OnGpu() const { return GetParam().name.starts_with("cuda"); }
  double Tolerance() { return ToleranceOf(harness_.activation_dtype()); }
  void CheckMatMul(int64_t tokens, Matrix w, DType dtype, const std::vector<int64_t>& segment_ends);
  void CheckAttention(std::vector<TestRow> rows, const HeadLayout& heads, int32_t tokens_per_block,
                      DType cache_dtype);

  OpsHarness harness_{GetParam().make()};
  std::mt19937 random_{kSeed};
};

INSTANTIATE_TEST_SUITE_P(Backends, OpsConformance, testing::ValuesIn(BackendCases()),
                         [](const auto& each) { return each.param.name; });

void OpsConformance::CheckMatMul(int64_t tokens, Matrix w, DType dtype,
                                 const std::vector<int64_t>& segment_ends) {
  SCOPED_TRACE(fmt::format("T {} N {} K {} {} segments {}", tokens, w.rows, w.cols, NameOf(dtype),
                           segment_ends.size()));
  Matrix x = RandomMatrix(random_, tokens, w.cols);
  const DeviceTensor in = harness_.Activations(x);
  const weights::Weight weight = harness_.Pack(w, dtype, segment_ends);
  const Matrix want = naive::MatMul(x, w);
  for (const DType out_dtype : {DType::kF32, harness_.activation_dtype()}) {
    const DeviceTensor out = harness_.Poisoned(out_dtype, Shape({tokens, w.rows}));
    harness_.ops().MatMul(harness_.lane(), in.view, weight, out.view);
    ExpectClose(harness_.Download(out.view), want, Tolerance());
  }
}

TEST_P(OpsConformance, MatMulAtAndAroundTheEdgesOfTiles) {
  for (const int64_t tokens :
       {1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 16, 17, 24, 25, 33, 64, 65, 97, 128, 129, 200, 1000}) {
    CheckMatMul(tokens, RandomMatrix(random_, 83, 67), DType::kBF16, {});
  }
  // Of whole 16-byte words, for which a GPU has other kernels, and around its tiles.
  for (const int64_t tokens : {1, 2, 3, 5, 8, 16, 17, 64, 65, 128, 129}) {
    CheckMatMul(tokens, RandomMatrix(random_, 136, 72), DType::kBF16, {});
    CheckMatMul(tokens, RandomMatrix(random_, 256, 512), DType::kBF16, {});
  }
  for (const int64_t outputs : {1, 2, 15, 16, 17, 31, 48, 65, 127, 129, 144, 272}) {
    for (const int64_t tokens : {1, 3, 14}) {
      CheckMatMul(tokens, RandomMatrix(random_, outputs, 24), DType::kBF16, {});
    }
  }
}

TEST_P(OpsConformance, MatMulOfEachStorageAndAnyDepth) {
  for (const DType dtype : kFloats) {
    for (const int64_t depth : {1, 2, 3, 8, 31, 64, 255, 256, 257, 600}) {
      for (const int64_t tokens : {1, 12, 40}) {
        CheckMatMul(tokens, RandomMatrix(random_, 50, depth), dtype, {});
      }
    }
  }
}

TEST_P(OpsConformance, MatMulOfSegmentsEvenUnevenAndEmpty) {
  const std::vector<std::vector<int64_t>> evens = {
      {64, 128}, {32, 64, 96, 128}, {16, 32, 48, 64, 80, 96, 112, 128}};
  const std::vector<std::vector<int64_t>> others = {{1, 128},
                                                    {40, 41, 128},
                                                    {0, 0, 3, 5, 5, 100, 128, 128},
                                                    {10, 20, 30, 40, 128},
                                                    {0, 128, 128}};
  for (const auto& list : {evens, others}) {
    for (const std::vector<int64_t>& segment_ends : list) {
      for (const int64_t tokens : {1, 8, 30}) {
        CheckMatMul(tokens, RandomMatrix(random_, 40, 128), DType::kBF16, segment_ends);
      }
    }
  }
}

TEST_P(OpsConformance, MatMulOfStackedBlocksOfAnyStrideAndAlignment) {
  for (const DType dtype : kFloats) {
    Matrix w = RandomMatrix(random_, 40, 30);
    for (double& value : w.values) value = naive::RoundTo(dtype, value);
    for (int64_t n = 20; n < 27; ++n) {
      for (int64_t k = 0; k < w.cols; ++k) w.at(n, k) = 0;  // the block of zeros
    }
    const int64_t stride = 30 * SizeOf(dtype) + 7;
    const std::vector<std::byte> bytes = naive::ToBytes(dtype, w.values);
    std::vector<std::byte> file(static_cast<size_t>(40 * stride + 1));
    for (int64_t n = 0; n < 40; ++n) {
      std::copy_n(bytes.begin() + n * 30 * SizeOf(dtype), 30 * SizeOf(dtype),
                  file.begin() + 1 + n * stride);
    }
    weights::WeightSource source;
    source.blocks = {{file.data() + 1, 20, stride},
                     {nullptr, 7, 0},
                     {file.data() + 1 + 27 * stride, 13, stride}};
    source.cols = 30;
    source.dtype = dtype;
    const weights::Weight weight = harness_.Pack(source);
    Matrix x = RandomMatrix(random_, 3, 30);
    const DeviceTensor in = harness_.Activations(x);
    const DeviceTensor out = harness_.Empty(DType::kF32, Shape({3, 40}));
    harness_.ops().MatMul(harness_.lane(), in.view, weight, out.view);
    ExpectClose(harness_.Download(out.view), naive::MatMul(x, w), Tolerance());
  }
}

TEST_P(OpsConformance, EmbedGivesZerosForTokensHeldElsewhere) {
  const std::vector<int32_t> tokens = {100, 99, 136, 137, 0, 118, 100};
  for (const DType dtype : kFloats) {
    Matrix table = RandomMatrix(random_, 37, 19);
    const weights::Weight weight = harness_.Pack(table, dtype);
    const DeviceTensor ids = harness_.Ints(tokens);
    const DeviceTensor y = EmptyActivations(7, 19);
    StepBatch batch;
    batch.num_tokens = 7;
    batch.tokens = ids.view.As<int32_t>();
    harness_.ops().Embed(harness_.lane(), batch, weight, 100, y.view);
    ExpectClose(harness_.Download(y.view), naive::Embed(tokens, table, 100), Tolerance());
  }
}

TEST_P(OpsConformance, NormsAndSums) {
  for (const int64_t cols : {1, 7, 16, 33, 384, 1000, 5120, 8200}) {
    for (const int64_t rows : {1, 3, 40, 1000}) {
      if (rows * cols > 500000) continue;
      SCOPED_TRACE(fmt::format("[{}, {}]", rows, cols));
      Matrix x = RandomMatrix(random_, rows, cols, 3);
      Matrix delta = RandomMatrix(random_, rows, cols);
      Vector gain = RandomVector(random_, cols);
      const DeviceTensor device_x = harness_.Activations(x);
      const DeviceTensor device_delta = harness_.Activations(delta);
      const DeviceTensor device_gain = harness_.Floats(gain);
      const DeviceTensor y = EmptyActivations(rows, cols);
      harness_.ops().RmsNorm(harness_.lane(), device_x.view, device_gain.view, kEpsilon, y.view);
      ExpectClose(harness_.Download(y.view), naive::RmsNorm(x, gain, kEpsilon), Tolerance());
      harness_.ops().AddRmsNorm(harness_.lane(), device_delta.view, device_x.view, device_gain.view,
                                kEpsilon, y.view);
      const Matrix sum = naive::Add(x, delta);
      ExpectClose(harness_.Download(device_x.view), sum, Tolerance());
      ExpectClose(harness_.Download(y.view), naive::RmsNorm(sum, gain, kEpsilon), Tolerance());
      harness_.ops().Add(harness_.lane(), device_delta.view, device_x.view);
      harness_.ops().AddBias(harness_.lane(), device_gain.view, device_x.view);
      ExpectClose(harness_.Download(device_x.view), naive::AddBias(naive::Add(sum, delta), gain),
                  Tolerance());
    }
  }
}

TEST_P(OpsConformance, NormOfZerosIsZero) {
  Matrix x(2, 20);
  Vector gain(20, 2.0);
  const DeviceTensor device_x = harness_.Activations(x);
  const DeviceTensor device_gain = harness_.Floats(gain);
  const DeviceTensor y = EmptyActivations(2, 20);
  harness_.ops().RmsNorm(harness_.lane(), device_x.view, device_gain.view, kEpsilon, y.view);
  EXPECT_EQ(harness_.Download(y.view).values, x.values);
}

TEST_P(OpsConformance, SiluGateFromSmallestToLargest) {
  for (const int64_t cols : {1, 15, 16, 50, 1024, 13832}) {
    SCOPED_TRACE(cols);
    Matrix x = RandomMatrix(random_, 5, 2 * cols, 4);
    x.at(0, 0) = -200;
    x.at(1, 0) = 200;
    x.at(2, 0) = 0;
    x.at(3, 0) = -87.3;
    x.at(4, 0) = 1e-30;
    const DeviceTensor in = harness_.Activations(x);
    const DeviceTensor y = EmptyActivations(5, cols);
    harness_.ops().SiluGate(harness_.lane(), in.view, y.view);
    ExpectClose(harness_.Download(y.view), naive::SiluGate(x), Tolerance());
  }
}

TEST_P(OpsConformance, GatherRowsInAnyOrderWithRepeats) {
  const std::vector<int32_t> rows = {4, 0, 4, 2};
  Matrix x = RandomMatrix(random_, 5, 21);
  const DeviceTensor in = harness_.Activations(x);
  const DeviceTensor ids = harness_.Ints(rows);
  const DeviceTensor y = EmptyActivations(4, 21);
  harness_.ops().GatherRows(harness_.lane(), in.view, ids.view.As<int32_t>(), y.view);
  EXPECT_EQ(harness_.Download(y.view).values, naive::GatherRows(x, rows).values);
}

TEST_P(OpsConformance, NormHeadsLeavesValuesAlone) {
  for (const int64_t width : {2, 16, 20, 32, 64, 80, 128, 256}) {
    SCOPED_TRACE(width);
    const HeadLayout heads{4, 2, width};
    Matrix qkv = RandomMatrix(random_, 65, heads.columns());
    Vector q_gain = RandomVector(random_, width);
    Vector k_gain = RandomVector(random_, width);
    const DeviceTensor device_q = harness_.Floats(q_gain);
    const DeviceTensor device_k = harness_.Floats(k_gain);
    const DeviceTensor device_qkv = harness_.Activations(qkv);
    harness_.ops().NormHeads(harness_.lane(), heads, device_q.view, device_k.view, kEpsilon,
                             device_qkv.view);
    ExpectClose(harness_.Download(device_qkv.view),
                naive::NormHeads(qkv, heads, q_gain, k_gain, kEpsilon), Tolerance());
  }
}

TEST_P(OpsConformance, RotateAndStorePutsEachTokenInItsPlace) {
  for (const int64_t width : {2, 16, 32, 64, 80, 128}) {
    for (const DType cache_dtype : kFloats) {
      SCOPED_TRACE(fmt::format("D {} cache {}", width, NameOf(cache_dtype)));
      const HeadLayout heads{4, 2, width};
      const TestStep step(harness_, {{2, 30, 5}, {0, 0, 17}, {1, 15, 1}, {1, 16, 0}}, 3, 16, 3);
      Matrix qkv = RandomMatrix(random_, step.batch().num_tokens, heads.columns());
      Matrix table = RandomMatrix(random_, 40, width);
      const DeviceTensor device_qkv = harness_.Activations(qkv);
      const DeviceTensor rope = harness_.From(DType::kF32, Shape({40, width}), table.values);
      const Shape pool({step.num_blocks(), 16, 2, width});
      const DeviceTensor keys = harness_.Empty(cache_dtype, pool);
      const DeviceTensor values = harness_.Empty(cache_dtype, pool);
      harness_.ops().RotateAndStore(harness_.lane(), step.batch(), heads, {rope.view},
                                    device_qkv.view, {keys.view, values.view});

      const Matrix want = naive::Rotate(qkv, step.positions(), heads, table);
      const Matrix got = harness_.Download(device_qkv.view);
      ExpectClose(got, want, Tolerance());
      Matrix want_keys(int64_t{step.num_blocks()} * 16, 2 * width);
      Matrix want_values = want_keys;
      const int32_t slots[] = {2, 0, 1};
      for (int64_t t = 0; t < want.rows; ++t) {
        const int32_t slot = slots[t < 5 ? 0 : t < 22 ? 1 : 2];
        const int64_t place = step.PlaceOf(slot, step.positions()[static_cast<size_t>(t)]);
        for (int64_t c = 0; c < 2 * width; ++c) {
          want_keys.at(place, c) = naive::RoundTo(cache_dtype, got.at(t, 4 * width + c));
          want_values.at(place, c) = naive::RoundTo(cache_dtype, got.at(t, 6 * width + c));
        }
      }
      // A GPU may store a key before it is rounded to the activations' type.
      Matrix got_keys = want_keys;
      got_keys.values = harness_.Download(keys.view).values;
      ExpectClose(got_keys, want_keys, OnGpu() ? Tolerance() : 0);
      EXPECT_EQ(harness_.Download(values.view).values, want_values.values);
    }
  }
}

TEST_P(OpsConformance, NothingIsStoredForPaddingRows) {
  const HeadLayout heads{4, 2, 64};
  const TestStep step(harness_, {{1, 3, 1}, {0, -1, 1}, {0, -1, 1}}, 2, 16, 1);
  Matrix qkv = RandomMatrix(random_, 3, heads.columns());
  Matrix table = RandomMatrix(random_, 16, 64);
  const DeviceTensor device_qkv = harness_.Activations(qkv);
  const DeviceTensor rope = harness_.From(DType::kF32, Shape({16, 64}), table.values);
  const Shape pool({step.num_blocks(), 16, 2, 64});
  const DeviceTensor keys = harness_.Empty(harness_.activation_dtype(), pool);
  const DeviceTensor values = harness_.Empty(harness_.activation_dtype(), pool);
  harness_.ops().RotateAndStore(harness_.lane(), step.batch(), heads, {rope.view}, device_qkv.view,
                                {keys.view, values.view});
  Matrix stored(int64_t{step.num_blocks()} * 16, 128);
  for (int64_t c = 0; c < 128; ++c) stored.at(step.PlaceOf(1, 3), c) = qkv.at(0, 6 * 64 + c);
  EXPECT_EQ(harness_.Download(values.view).values, stored.values);
  const Matrix got = harness_.Download(keys.view);
  for (int64_t place = 0; place < stored.rows; ++place) {
    if (place == step.PlaceOf(1, 3)) continue;
    for (int64_t c = 0; c < 128; ++c)
      ASSERT_EQ(got.values[static_cast<size_t>(place * 128 + c)], 0);
  }
}

void OpsConformance::CheckAttention(std::vector<TestRow> rows, const HeadLayout& heads,
                                    int32_t tokens_per_block, DType cache_dtype) {
  SCOPED_TRACE(fmt::format("H {} G {} D {} P {} cache {}, {} rows, the first at {} of {} tokens",
                           heads.query_heads, heads.kv_heads, heads.head_dim, tokens_per_block,
                           NameOf(cache_dtype), rows.size(), rows[0].first_position,
                           rows[0].num_tokens));
  int32_t num_slots = 0;
  int32_t longest = 0;
  for (const TestRow& row : rows) {
    num_slots = std::max(num_slots, row.slot + 1);
    longest = std::max(longest, row.first_position + row.num_tokens);
  }
  const TestStep step(harness_, rows, num_slots, tokens_per_block, longest / tokens_per_block + 1);
  const int64_t width = heads.kv_heads * heads.head_dim;
  Matrix qkv = RandomMatrix(random_, step.batch().num_tokens, heads.columns());
  // The pool starts as NaN, so that a place no token wrote would be noticed.
  Matrix keys(int64_t{step.num_blocks()} * tokens_per_block, width);
  std::fill(keys.values.begin(), keys.values.end(), std::nan(""));
  Matrix values = keys;
  Matrix want(step.batch().num_tokens, heads.query_heads * heads.head_dim);
  const DeviceTensor device_qkv = harness_.Activations(qkv);
  int64_t token = 0;
  for (const TestRow& row : rows) {
    if (row.first_position < 0) {  // padding: zeros
      token += row.num_tokens;
      continue;
    }
    const int64_t length = row.first_position + row.num_tokens;
    Matrix k = RandomMatrix(random_, length, width, 2);
    Matrix v = RandomMatrix(random_, length, width);
    for (int64_t j = 0; j < length; ++j) {
      const int64_t place = step.PlaceOf(row.slot, j);
      for (int64_t c = 0; c < width; ++c) {
        keys.at(place, c) = k.at(j, c) = naive::RoundTo(cache_dtype, k.at(j, c));
        values.at(place, c) = v.at(j, c) = naive::RoundTo(cache_dtype, v.at(j, c));
      }
    }
    Matrix queries(row.num_tokens, heads.columns());
    for (int64_t t = 0; t < row.num_tokens; ++t) {
      for (int64_t c = 0; c < heads.columns(); ++c) queries.at(t, c) = qkv.at(token + t, c);
    }
    const double scale = 1 / std::sqrt(static_cast<double>(heads.head_dim));
    const Matrix y = naive::Attend(queries, row.first_position, heads, k, v, scale);
    std::copy(y.values.begin(), y.values.end(), want.values.begin() + token * want.cols);
    token += row.num_tokens;
  }
  const Shape pool({step.num_blocks(), tokens_per_block, heads.kv_heads, heads.head_dim});
  const DeviceTensor device_keys = harness_.From(cache_dtype, pool, keys.values);
  const DeviceTensor device_values = harness_.From(cache_dtype, pool, values.values);
  const DeviceTensor y = EmptyActivations(want.rows, want.cols);
  harness_.ops().PrepareAttention(harness_.lane(), step.batch(), heads);
  harness_.ops().Attend(harness_.lane(), step.batch(), heads, device_qkv.view,
                        {device_keys.view, device_values.view},
                        1.0f / std::sqrt(static_cast<float>(heads.head_dim)), y.view);
  ExpectClose(harness_.Download(y.view), want, Tolerance());
}

TEST_P(OpsConformance, AttendOfRaggedRowsForEachGroupAndWidth) {
  const std::vector<TestRow> rows = {{0, 0, 1}, {3, 63, 1}, {1, 0, 70},
                                     {4, 0, 0}, {2, 60, 9}, {5, 64, 1}};
  for (const int64_t group : {1, 2, 4, 5, 8})
    CheckAttention(rows, {2 * group, 2, 16}, 16, DType::kF32);
  for (const int64_t width : {2, 24, 64, 80, 128, 256})
    CheckAttention(rows, {2, 1, width}, 16, DType::kF32);
  for (const int32_t tokens_per_block : {1, 7, 64, 100}) {
    CheckAttention(rows, {4, 2, 32}, tokens_per_block, DType::kF32);
  }
  for (const DType dtype : kFloats) CheckAttention(rows, {4, 2, 24}, 16, dtype);
  CheckAttention(rows, {100, 1, 16}, 16, DType::kF32);  // more heads than one task takes
}

TEST_P(OpsConformance, AttendOverALongContext) {
  CheckAttention({{0, 1500, 1}, {1, 1000, 40}}, {4, 2, 64}, 16, DType::kF32);
}

// What the fast kernels of a GPU take: the cache in the activations' type, heads of common widths
// and groups; decode rows alone, prompt rows alone, both together, and padding.
TEST_P(OpsConformance, AttendInTheActivationsType) {
  const DType dtype = harness_.activation_dtype();
  const std::vector<TestRow> decode = {{0, 0, 1}, {3, 63, 1}, {1, 16, 1}, {2, 200, 1}, {4, 127, 1}};
  const std::vector<TestRow> prompt = {{0, 0, 5}, {2, 0, 65}, {1, 17, 64}, {3, 100, 17}};
  const std::vector<TestRow> mixed = {{0, 0, 1},  {3, 63, 1}, {1, 0, 128}, {4, 0, 0},
                                      {2, 60, 9}, {5, 64, 1}, {6, 0, 2},   {7, 31, 3}};
  const std::vector<TestRow> padded = {{1, 40, 1}, {2, 0, 1}, {0, -1, 1}, {0, -1, 1}};
  for (const std::vector<TestRow>& rows : {decode, prompt, mixed, padded}) {
    CheckAttention(rows, {10, 2, 64}, 16, dtype);
    if (!OnGpu()) continue;
    for (const int64_t width : {32, 64, 80, 128}) CheckAttention(rows, {4, 2, width}, 16, dtype);
    for (const int64_t group : {1, 2, 5, 8}) {
      CheckAttention(rows, {2 * group, 2, 128}, 16, dtype);
      CheckAttention(rows, {group, 1, 64}, 16, dtype);
    }
    CheckAttention(rows, {10, 2, 128}, 32, dtype);
    CheckAttention(rows, {10, 2, 128}, 64, dtype);
  }
}

TEST_P(OpsConformance, AttendOverContextsThatAreSplit) {
  const DType dtype = harness_.activation_dtype();
  const int32_t longest = OnGpu() ? 33000 : 2000;
  CheckAttention({{0, longest, 1}}, {5, 1, 128}, 16, dtype);
  CheckAttention({{0, longest / 2, 1}, {1, 0, 1}, {2, 1023, 1}, {3, 1024, 1}, {4, 1025, 1}},
                 {10, 2, 128}, 16, dtype);
  CheckAttention({{0, longest / 4, 3}, {1, longest / 4, 1}, {2, 0, 129}}, {4, 1, 64}, 16, dtype);
  if (OnGpu()) CheckAttention({{0, 0, 1000}, {1, 1500, 300}}, {5, 1, 128}, 16, dtype);
}

// A decode step that was recorded computes other rows at other positions from what lies in device
// memory, also where fewer of its rows are real.
TEST_P(OpsConformance, AttendReplayedForOtherRows) {
  const HeadLayout heads{10, 2, 128};
  constexpr int32_t kRows = 8;
  const DType dtype = harness_.activation_dtype();
  const std::vector<std::vector<int32_t>> steps = {{0, 15, 16, 63, 64, 65, 700, -1},
                                                   {2500, -1, -1, -1, -1, -1, -1, -1},
                                                   {1, 2, 1000, 17, 128, 127, 0, 2047}};
  const TestStep first(harness_, std::vector<TestRow>(kRows, {0, 0, 1}), kRows, 16, 2512 / 16);
  Matrix keys = RandomMatrix(random_, int64_t{first.num_blocks()} * 16, 256, 2);
  Matrix values = RandomMatrix(random_, keys.rows, 256);
  for (Matrix* m : {&keys, &values}) {
    for (double& value : m->values) value = naive::RoundTo(dtype, value);
  }
  const Shape pool({first.num_blocks(), 16, 2, 128});
  const DeviceTensor device_keys = harness_.From(dtype, pool, keys.values);
  const DeviceTensor device_values = harness_.From(dtype, pool, values.values);
  // What is recorded stays where it is only when all memory has been taken before.
  Workload workload;
  workload.max_tokens = workload.max_rows = kRows;
  workload.max_model_len = 2512;
  workload.tokens_per_block = 16;
  workload.heads = heads;
  workload.kv_dtype = dtype;
  const absl::Status prepared = harness_.ops().Prepare(harness_.lane(), workload);
  ASSERT_TRUE(prepared.ok()) << Message(prepared);
  const std::vector<int32_t> slots = {5, 0, 3, 1, 7, 2, 4, 6};
  const DeviceTensor device_positions = harness_.Ints(steps[0]);
  const DeviceTensor device_slots = harness_.Ints(slots);
  StepBatch batch = first.batch();
  batch.positions = device_positions.view.As<int32_t>();
  batch.row_slots = device_slots.view.As<int32_t>();
  const DeviceTensor y = EmptyActivations(kRows, 1280);
  Matrix qkv = RandomMatrix(random_, kRows, heads.columns());
  const DeviceTensor device_qkv = harness_.Activations(qkv);
  for (const std::vector<int32_t>& positions : steps) {
    SCOPED_TRACE(fmt::format("positions from {}", positions[0]));
    harness_.device().Upload(harness_.lane(), positions.data(), kRows * 4,
                             device_positions.view.data);
    batch.host_row_first_positions = positions;
    harness_.ops().PrepareAttention(harness_.lane(), batch, heads);
    harness_.lane().Replay({kRows, 0, true}, [&] {
      harness_.ops().Attend(harness_.lane(), batch, heads, device_qkv.view,
                            {device_keys.view, device_values.view}, 0.09f, y.view);
    });
    const Matrix got = harness_.Download(y.view);
    Matrix want(kRows, 1280);
    for (int32_t r = 0; r < kRows; ++r) {
      const int32_t position = positions[static_cast<size_t>(r)];
      if (position < 0) continue;
      Matrix k(position + 1, 256);
      Matrix v = k;
      for (int32_t j = 0; j <= position; ++j) {
        const int64_t place = first.PlaceOf(slots[static_cast<size_t>(r)], j) * 256;
        std::copy_n(keys.values.begin() + place, 256, k.values.begin() + j * 256);
        std::copy_n(values.values.begin() + place, 256, v.values.begin() + j * 256);
      }
      Matrix query(1, heads.columns());
      std::copy_n(qkv.values.begin() + r * query.cols, query.cols, query.values.begin());
      const Matrix row = naive::Attend(query, position, heads, k, v, 0.09);
      std::copy_n(row.values.begin(), 1280, want.values.begin() + r * 1280);
    }
    // Some thousand values of either sign have been added up to little.
    ExpectClose(got, want, 4 * Tolerance());
  }
}

TEST_P(OpsConformance, AnEmptyStepIsNoWork) {
  const HeadLayout heads{2, 1, 16};
  const TestStep step(harness_, {}, 1, 16, 1);
  const DeviceTensor qkv = EmptyActivations(0, heads.columns());
  const DeviceTensor y = EmptyActivations(0, 32);
  const DeviceTensor pool = harness_.Empty(DType::kF32, Shape({1, 16, 1, 16}));
  const DeviceTensor rope = harness_.Empty(DType::kF32, Shape({4, 16}));
  Matrix w = RandomMatrix(random_, 8, 32);
  const weights::Weight weight = harness_.Pack(w, DType::kBF16);
  const DeviceTensor logits = harness_.Empty(DType::kF32, Shape({0, 8}));
  harness_.ops().RotateAndStore(harness_.lane(), step.batch(), heads, {rope.view}, qkv.view,
                                {pool.view, pool.view});
  harness_.ops().PrepareAttention(harness_.lane(), step.batch(), heads);
  harness_.ops().Attend(harness_.lane(), step.batch(), heads, qkv.view, {pool.view, pool.view}, 1,
                        y.view);
  harness_.ops().MatMul(harness_.lane(), y.view, weight, logits.view);
  EXPECT_TRUE(harness_.lane().ok());
}

TEST_P(OpsConformance, CopyBlocksCopiesKeysAndValues) {
  const Shape pool({5, 4, 2, 6});
  Matrix k = RandomMatrix(random_, 5, 48);
  Matrix v = RandomMatrix(random_, 5, 48);
  for (Matrix* m : {&k, &v}) {
    for (double& value : m->values) value = naive::RoundTo(DType::kF32, value);
  }
  const DeviceTensor keys = harness_.From(DType::kF32, pool, k.values);
  const DeviceTensor values = harness_.From(DType::kF32, pool, v.values);
  const DeviceTensor moves = harness_.Ints({0, 3, 2, 4});  // pairs of from, to
  harness_.ops().CopyBlocks(harness_.lane(), {keys.view, values.view},
                            static_cast<const BlockMove*>(moves.view.data), 2);
  for (Matrix* m : {&k, &v}) *m = naive::GatherRows(*m, {0, 1, 2, 0, 2});
  EXPECT_EQ(harness_.Download(keys.view).values, k.values);
  EXPECT_EQ(harness_.Download(values.view).values, v.values);
}

TEST_P(OpsConformance, AFailedLaneMakesCallsFallThrough) {
  Matrix x = RandomMatrix(random_, 2, 8);
  const DeviceTensor device_x = harness_.Activations(x);
  harness_.lane().Fail(Unavailable("a peer is gone"));
  harness_.ops().Add(harness_.lane(), device_x.view, device_x.view);
  harness_.lane().Fail(Internal("a second error"));
  EXPECT_EQ(Message(harness_.lane().Wait(harness_.lane().Mark(), absl::InfiniteFuture())),
            "a peer is gone");
  std::vector<std::byte> bytes(static_cast<size_t>(device_x.view.bytes()));
  ASSERT_TRUE(
      harness_.device().CopyToHost(device_x.view.data, device_x.view.bytes(), bytes.data()).ok());
  EXPECT_EQ(naive::FromBytes(harness_.activation_dtype(), bytes), x.values);
}

}  // namespace
}  // namespace polyreme::ops
