// Each path of attention on a GPU by itself, at the sizes of real models, against the naive form on
// sampled tokens. What is not of a row's context is NaN: places behind its last position, and the
// blocks that its table names further on.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "tests/worker/ops_harness.h"

namespace polyreme::ops {
namespace {

using backend::AttentionChoice;
using naive::Matrix;

constexpr uint32_t kSeed = 20261122;
constexpr int32_t kSharedBlocks = 48;  // that long contexts are made of, again and again

struct PathCase {
  std::string name;
  DType dtype;
  AttentionChoice choice;
  bool fa2;  // FlashInfer's FA2 path where the Hopper path would serve
};

// A step over a pool in which the blocks of a context, but its last, are shared by all of them.
class LongStep {
 public:
  LongStep(OpsHarness& harness, std::mt19937& random, const std::vector<TestRow>& rows,
           const HeadLayout& heads, int32_t tokens_per_block, DType dtype);
  const StepBatch& batch() const { return batch_; }
  LayerKv kv() const { return {keys_.view, values_.view}; }
  // Keys or values of one head of a row's context up to `length`.
  Matrix Context(const Matrix& pool, int32_t row, int32_t length, int64_t kv_head) const;

  std::vector<TestRow> rows;
  HeadLayout heads;
  int32_t tokens_per_block;
  std::vector<int32_t> positions, token_rows, row_begins{0}, row_slots, first_positions, table;
  int32_t table_stride = 0;
  Matrix keys, values;  // [blocks P, G D]

 private:
  void DealBlocks(std::mt19937& random);
  void Poison(int64_t place);

  std::vector<DeviceTensor> arrays_;
  DeviceTensor keys_, values_;
  StepBatch batch_;
};

LongStep::LongStep(OpsHarness& harness, std::mt19937& random, const std::vector<TestRow>& of_rows,
                   const HeadLayout& of_heads, int32_t of_tokens_per_block, DType dtype)
    : rows(of_rows), heads(of_heads), tokens_per_block(of_tokens_per_block) {
  for (size_t r = 0; r < rows.size(); ++r) {
    for (int32_t i = 0; i < rows[r].num_tokens; ++i) {
      positions.push_back(rows[r].first_position + i);
      token_rows.push_back(static_cast<int32_t>(r));
    }
    row_begins.push_back(static_cast<int32_t>(positions.size()));
    row_slots.push_back(static_cast<int32_t>(rows.size() - 1 - r));
    first_positions.push_back(rows[r].first_position);
  }
  const auto num_blocks = kSharedBlocks + static_cast<int32_t>(rows.size()) + 1;
  const int64_t width = heads.kv_heads * heads.head_dim;
  keys = RandomMatrix(random, int64_t{num_blocks} * tokens_per_block, width, 2);
  values = RandomMatrix(random, keys.rows, width);
  for (Matrix* m : {&keys, &values}) {
    for (double& value : m->values) value = naive::RoundTo(dtype, value);
  }
  DealBlocks(random);
  const Shape pool({num_blocks, tokens_per_block, heads.kv_heads, heads.head_dim});
  keys_ = harness.From(dtype, pool, keys.values);
  values_ = harness.From(dtype, pool, values.values);
  for (const auto* array : {&positions, &token_rows, &row_begins, &row_slots, &table}) {
    arrays_.push_back(harness.Ints(*array));
  }
  batch_.num_tokens = row_begins.back();
  batch_.num_rows = static_cast<int32_t>(rows.size());
  batch_.positions = arrays_[0].view.As<int32_t>();
  batch_.token_rows = arrays_[1].view.As<int32_t>();
  batch_.row_begins = arrays_[2].view.As<int32_t>();
  batch_.row_slots = arrays_[3].view.As<int32_t>();
  batch_.block_table = arrays_[4].view.As<int32_t>();
  batch_.table_stride = table_stride;
  batch_.tokens_per_block = tokens_per_block;
  batch_.host_row_begins = row_begins;
  batch_.host_row_first_positions = first_positions;
}

void LongStep::DealBlocks(std::mt19937& random) {
  const int32_t longest = *std::max_element(positions.begin(), positions.end()) + 1;
  table_stride = longest / tokens_per_block + 3;
  const auto num_rows = static_cast<int32_t>(rows.size());
  const int32_t poisoned = kSharedBlocks + num_rows;
  table.assign(static_cast<size_t>(num_rows * table_stride), poisoned);
  for (int32_t i = 0; i < tokens_per_block; ++i) {
    Poison(int64_t{poisoned} * tokens_per_block + i);
  }
  for (int32_t r = 0; r < num_rows; ++r) {
    const int32_t last =
        rows[static_cast<size_t>(r)].first_position + rows[static_cast<size_t>(r)].num_tokens - 1;
    int32_t* const blocks = table.data() + row_slots[static_cast<size_t>(r)] * table_stride;
    for (int32_t b = 0; b * tokens_per_block <= last; ++b) {
      const bool is_last = (b + 1) * tokens_per_block > last;
      blocks[b] = is_last ? kSharedBlocks + r
                          : static_cast<int32_t>(random() % static_cast<uint32_t>(kSharedBlocks));
      for (int32_t i = last + 1 - b * tokens_per_block; is_last && i < tokens_per_block; ++i) {
        Poison(int64_t{blocks[b]} * tokens_per_block + i);
      }
    }
  }
}

void LongStep::Poison(int64_t place) {
  for (Matrix* m : {&keys, &values}) {
    std::fill_n(m->values.begin() + place * m->cols, m->cols, std::nan(""));
  }
}

Matrix LongStep::Context(const Matrix& pool, int32_t row, int32_t length, int64_t kv_head) const {
  Matrix context(length, heads.head_dim);
  const int32_t* const blocks = table.data() + row_slots[static_cast<size_t>(row)] * table_stride;
  for (int32_t j = 0; j < length; ++j) {
    const int64_t place =
        int64_t{blocks[j / tokens_per_block]} * tokens_per_block + j % tokens_per_block;
    std::copy_n(pool.values.begin() + place * pool.cols + kv_head * heads.head_dim, heads.head_dim,
                context.values.begin() + j * heads.head_dim);
  }
  return context;
}

class CudaAttention : public testing::TestWithParam<PathCase> {
 protected:
  void SetUp() override {
    const absl::Status gpu = GpuAvailable();
    if (!gpu.ok()) GTEST_SKIP() << Message(gpu);
    if (GetParam().fa2) {
      setenv("POLYREME_FLASHINFER_PATH", "fa2", 1);
    } else {
      unsetenv("POLYREME_FLASHINFER_PATH");
    }
    backend::BackendOptions options;
    options.dtype = GetParam().dtype;
    options.attention = GetParam().choice;
    auto backend = backend::MakeBackend("cuda", options);
    if (!backend.ok() && GetParam().choice == AttentionChoice::kFlashInfer) {
      GTEST_SKIP() << Message(backend.status());
    }
    harness_ = std::make_unique<OpsHarness>(std::move(backend));
  }
  // Checks the first and the last token and `samples` others, all query heads of one kv head each.
  void Check(const std::vector<TestRow>& rows, const HeadLayout& heads,
             int32_t tokens_per_block = 16, int samples = 10);
  void CheckToken(const LongStep& step, const Matrix& qkv, const Matrix& y, int32_t token,
                  int64_t kv_head);

  std::unique_ptr<OpsHarness> harness_;
  std::mt19937 random_{kSeed};
};

INSTANTIATE_TEST_SUITE_P(
    Paths, CudaAttention,
    testing::Values(PathCase{"own_bf16", DType::kBF16, AttentionChoice::kOwn, false},
                    PathCase{"own_f16", DType::kF16, AttentionChoice::kOwn, false},
                    PathCase{"own_f32", DType::kF32, AttentionChoice::kOwn, false},
                    PathCase{"flashinfer_bf16", DType::kBF16, AttentionChoice::kFlashInfer, false},
                    PathCase{"flashinfer_f16", DType::kF16, AttentionChoice::kFlashInfer, false},
                    PathCase{"fa2_bf16", DType::kBF16, AttentionChoice::kFlashInfer, true},
                    PathCase{"fa2_f16", DType::kF16, AttentionChoice::kFlashInfer, true}),
    [](const auto& each) { return each.param.name; });

void CudaAttention::Check(const std::vector<TestRow>& rows, const HeadLayout& heads,
                          int32_t tokens_per_block, int samples) {
  SCOPED_TRACE(fmt::format("{} rows, the first {}+{}; {}/{} heads of {}, blocks of {}", rows.size(),
                           rows[0].first_position, rows[0].num_tokens, heads.query_heads,
                           heads.kv_heads, heads.head_dim, tokens_per_block));
  const LongStep step(*harness_, random_, rows, heads, tokens_per_block, GetParam().dtype);
  const int32_t num_tokens = step.batch().num_tokens;
  Matrix qkv = RandomMatrix(random_, num_tokens, heads.columns());
  const DeviceTensor device_qkv = harness_->Activations(qkv);
  const DeviceTensor y =
      harness_->Poisoned(GetParam().dtype, Shape({num_tokens, heads.query_heads * heads.head_dim}));
  Ops& ops = harness_->ops();
  ops.PrepareAttention(harness_->lane(), step.batch(), heads);
  ops.Attend(harness_->lane(), step.batch(), heads, device_qkv.view, step.kv(),
             1 / std::sqrt(static_cast<float>(heads.head_dim)), y.view);
  const Matrix got = harness_->Download(y.view);
  ASSERT_TRUE(harness_->lane().ok()) << Message(harness_->lane().status());
  const auto strange = std::count_if(got.values.begin(), got.values.end(),
                                     [](double value) { return !std::isfinite(value); });
  EXPECT_EQ(strange, 0) << "of " << got.values.size() << " values are not finite";
  for (int i = 0; i < samples + 2; ++i) {
    const auto token = i == 0 ? 0
                       : i == 1
                           ? num_tokens - 1
                           : static_cast<int32_t>(random_() % static_cast<uint32_t>(num_tokens));
    CheckToken(step, qkv, got, token, static_cast<int64_t>(random_()) % heads.kv_heads);
  }
}

void CudaAttention::CheckToken(const LongStep& step, const Matrix& qkv, const Matrix& y,
                               int32_t token, int64_t kv_head) {
  const HeadLayout& heads = step.heads;
  const int32_t row = step.token_rows[static_cast<size_t>(token)];
  const int32_t position = step.positions[static_cast<size_t>(token)];
  SCOPED_TRACE(
      fmt::format("token {} of row {} at position {}, kv head {}", token, row, position, kv_head));
  const int64_t group = heads.query_heads / heads.kv_heads, width = group * heads.head_dim;
  const HeadLayout one{group, 1, heads.head_dim};
  Matrix query(1, one.columns());
  Matrix got(1, width), want(1, width);
  std::copy_n(qkv.values.begin() + token * qkv.cols + kv_head * width, width, query.values.begin());
  std::copy_n(y.values.begin() + token * y.cols + kv_head * width, width, got.values.begin());
  if (position >= 0) {
    want = naive::Attend(query, position, one, step.Context(step.keys, row, position + 1, kv_head),
                         step.Context(step.values, row, position + 1, kv_head),
                         1 / std::sqrt(static_cast<double>(heads.head_dim)));
  }
  const DType dtype = GetParam().dtype;
  ExpectClose(got, want, dtype == DType::kF32 ? 1e-4 : dtype == DType::kF16 ? 4e-3 : 2e-2);
}

std::vector<TestRow> DecodeRows(const std::vector<int32_t>& lengths) {
  std::vector<TestRow> rows;
  for (const int32_t length : lengths) rows.push_back({0, length - 1, 1});
  return rows;
}

constexpr HeadLayout kShapes[] = {{40, 8, 128}, {20, 4, 128}, {5, 1, 128}, {8, 8, 64}, {14, 2, 64}};

TEST_P(CudaAttention, DecodeRowsAroundTheEdgesOfTiles) {
  for (const HeadLayout& heads : kShapes) {
    for (const int32_t length : {1, 15, 16, 17, 2048}) {
      Check(DecodeRows({length}), heads, 16, heads.kv_heads > 1 ? 4 : 0);
    }
    Check(DecodeRows({1, 15, 16, 17, 31, 32, 33, 64, 65, 127, 128, 129, 2048}), heads);
  }
}

TEST_P(CudaAttention, PaddingRowsAreZeros) {
  Check(DecodeRows({100, 17, 0, 0, 0}), {40, 8, 128});
  Check(DecodeRows({0, 0}), {40, 8, 128});
}

TEST_P(CudaAttention, OneLongSequenceAloneAndAmongShortOnes) {
  Check(DecodeRows({33000}), {40, 8, 128}, 16, 6);
  Check(DecodeRows({33000}), {5, 1, 128}, 16, 0);
  std::vector<int32_t> lengths(63, 100);
  lengths.insert(lengths.begin() + 20, 33000);
  Check(DecodeRows(lengths), {40, 8, 128});
  Check({{0, 32999, 1}, {0, 20, 1}, {0, 32999, 1}}, {20, 4, 128});
}

TEST_P(CudaAttention, ManyRowsOfManyLengths) {
  std::vector<int32_t> lengths;
  for (int i = 0; i < 256; ++i) lengths.push_back(static_cast<int32_t>(random_() % 700));
  Check(DecodeRows(lengths), {40, 8, 128}, 16, 30);
  Check(DecodeRows(lengths), {5, 1, 128}, 16, 30);
}

TEST_P(CudaAttention, PromptsAloneAndTheirChunks) {
  for (const HeadLayout& heads : kShapes) {
    Check({{0, 0, 2}}, heads, 16, 2);
    Check({{0, 0, 400}}, heads);
    Check({{0, 4096, 200}}, heads);
    Check({{0, 0, 129}, {0, 15, 2}, {0, 16, 17}, {0, 700, 128}, {0, 0, 64}}, heads);
  }
  Check({{0, 32700, 300}}, {40, 8, 128});
}

TEST_P(CudaAttention, MixedRowsInAnyOrder) {
  for (const HeadLayout& heads : kShapes) {
    Check({{0, 99, 1}, {0, 2047, 1}, {0, 0, 300}}, heads);
    Check({{0, 0, 300}, {0, 99, 1}, {0, 2047, 1}}, heads);
    Check({{0, 99, 1}, {0, 0, 70}, {0, 15, 1}, {0, 16, 1}, {0, 500, 33}, {0, 2047, 1}, {0, 0, 1}},
          heads, 16, 20);
  }
}

TEST_P(CudaAttention, OtherBlocksAndGroups) {
  const std::vector<TestRow> mixed = {{0, 99, 1}, {0, 0, 70}, {0, 500, 1}, {0, 31, 33}};
  const std::vector<TestRow> decode = {{0, 0, 1}, {0, 300, 1}, {0, 63, 1}, {0, 64, 1}};
  for (const std::vector<TestRow>& rows : {mixed, decode}) {
    for (const int32_t tokens_per_block : {8, 32, 64}) Check(rows, {40, 8, 128}, tokens_per_block);
    for (const HeadLayout heads :
         {HeadLayout{8, 8, 128}, HeadLayout{8, 1, 128}, HeadLayout{12, 1, 128},
          HeadLayout{32, 1, 128}, HeadLayout{6, 2, 96}, HeadLayout{4, 2, 256}}) {
      Check(rows, heads);
    }
  }
}

// The same step twice gives the same bits.
TEST_P(CudaAttention, Repeats) {
  const HeadLayout heads{40, 8, 128};
  const std::vector<TestRow> rows = {{0, 5000, 1}, {0, 0, 200}, {0, 300, 1}};
  const LongStep step(*harness_, random_, rows, heads, 16, GetParam().dtype);
  Matrix qkv = RandomMatrix(random_, step.batch().num_tokens, heads.columns());
  const DeviceTensor device_qkv = harness_->Activations(qkv);
  std::vector<std::byte> first;
  for (int i = 0; i < 3; ++i) {
    const DeviceTensor y =
        harness_->Empty(GetParam().dtype, Shape({step.batch().num_tokens, 40 * 128}));
    harness_->ops().PrepareAttention(harness_->lane(), step.batch(), heads);
    harness_->ops().Attend(harness_->lane(), step.batch(), heads, device_qkv.view, step.kv(), 0.09f,
                           y.view);
    const std::vector<std::byte> bytes = harness_->DownloadBytes(y.view);
    if (i == 0) first = bytes;
    EXPECT_EQ(bytes, first) << "at repetition " << i;
  }
}

}  // namespace
}  // namespace polyreme::ops
