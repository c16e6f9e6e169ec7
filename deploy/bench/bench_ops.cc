#include "deploy/bench/bench_ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <random>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/time/time.h"
#include "deploy/bench/ceilings.h"
#include "parallel/base/clock.h"
#include "worker/backend/cpu/cpu_backend.h"
#include "worker/backend/cpu/cpu_device.h"
#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/thread_pool.h"

namespace polyreme::bench {
namespace {

namespace cpu = backend::cpu;

constexpr int64_t kTokenCounts[] = {1, 2, 4, 8, 16, 64, 256};
// Copies of a weight are cycled through, so that a product finds its weight where a whole step
// would leave it: not in the caches nearest to the core. Big models need no copies.
constexpr int64_t kCopiesBytes = int64_t{64} << 20;
constexpr int32_t kTokensPerBlock = 16;

struct Linear {
  std::string name;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t segments = 1;
  int64_t count = 0;  // in the model
};

std::vector<Linear> LinearsOf(const plan::ModelSpec& model) {
  const int64_t attention = model.num_query_heads * model.head_dim;
  const int64_t qkv = attention + 2 * model.num_kv_heads * model.head_dim;
  return {{"qkv", qkv, model.width, 1, model.num_layers},
          {"attention out", model.width, attention, limits::kSumSegments, model.num_layers},
          {"gate and up", 2 * model.ffn_width, model.width, 1, model.num_layers},
          {"down", model.width, model.ffn_width, limits::kSumSegments, model.num_layers},
          {"head", model.vocabulary, model.width, 1, 1}};
}

int64_t BytesOf(const Linear& linear, DType dtype) {
  return linear.rows * linear.cols * SizeOf(dtype);
}

class OpsBench {
 public:
  OpsBench(const BenchOpsOptions& options, std::unique_ptr<backend::Backend> backend,
           std::unique_ptr<Lane> lane)
      : model_(options.model),
        num_threads_(options.num_threads),
        backend_(std::move(backend)),
        lane_(std::move(lane)) {}

  absl::Status Run(std::string* table);

 private:
  absl::Status MeasureCeilings();
  absl::Status BenchLinears();
  absl::Status BenchAttention(int64_t num_rows, int64_t tokens_per_row, int64_t first_position);
  absl::Status BenchRows(int64_t num_tokens);
  absl::StatusOr<std::vector<weights::Weight>> MakeCopies(const Linear& linear);
  absl::StatusOr<TensorView> MakeFloats(const Shape& shape);
  absl::StatusOr<const int32_t*> MakeInts(const std::vector<int32_t>& values);
  void AddLine(const std::string& name, int64_t tokens, double seconds, const Cost& cost);

  const plan::ModelSpec model_;
  const int32_t num_threads_;
  std::unique_ptr<backend::Backend> backend_;
  std::unique_ptr<Lane> lane_;
  std::vector<Buffer> buffers_;
  Ceilings ceilings_;
  std::string text_;
};

absl::StatusOr<TensorView> OpsBench::MakeFloats(const Shape& shape) {
  TensorView view{nullptr, DType::kF32, shape};
  ASSIGN_OR_RETURN(Buffer buffer, backend_->device().Allocate(view.bytes()));
  view.data = buffer.data();
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (int64_t i = 0; i < view.num_elements(); ++i) view.As<float>()[i] = uniform(random);
  buffers_.push_back(std::move(buffer));
  return view;
}

absl::StatusOr<const int32_t*> OpsBench::MakeInts(const std::vector<int32_t>& values) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(int32_t));
  ASSIGN_OR_RETURN(Buffer buffer, backend_->device().Allocate(bytes));
  RETURN_IF_ERROR(backend_->device().CopyFromHost(values.data(), bytes, buffer.data()));
  buffers_.push_back(std::move(buffer));
  return static_cast<const int32_t*>(buffers_.back().data());
}

absl::Status OpsBench::MeasureCeilings() {
  int64_t bytes = 0;
  for (const Linear& linear : LinearsOf(model_))
    bytes += linear.count * BytesOf(linear, model_.dtype);
  ASSIGN_OR_RETURN(ceilings_, bench::MeasureCeilings(backend_->device(), num_threads_, bytes));
  text_ += Describe(ceilings_, backend_->device(), num_threads_);
  return absl::OkStatus();
}

void OpsBench::AddLine(const std::string& name, int64_t tokens, double seconds, const Cost& cost) {
  const bool by_bytes = cost.bytes / ceilings_.bytes > cost.operations / ceilings_.operations;
  text_ += fmt::format("{:<28}{:>6}{:>12.1f}{:>10.2f}{:>10.1f}  {:<8}{:>5.0f} %\n", name, tokens,
                       seconds * 1e6, cost.bytes / seconds / 1e9, cost.operations / seconds / 1e9,
                       by_bytes ? "memory" : "FMA", 100 * cost.SecondsAtBest(ceilings_) / seconds);
}

absl::StatusOr<std::vector<weights::Weight>> OpsBench::MakeCopies(const Linear& linear) {
  weights::WeightSource source;
  std::vector<std::byte> bytes(static_cast<size_t>(BytesOf(linear, model_.dtype)));
  std::mt19937 random(2);
  // Halves 0x3f00 to 0x3f7f of either sign: ordinary numbers in each of the three formats.
  for (size_t i = 0; i < bytes.size(); i += 2) {
    bytes[i] = static_cast<std::byte>(random() & 0x7fu);
    bytes[i + 1] = static_cast<std::byte>(0x3fu | (random() & 0x80u));
  }
  source.blocks = {{bytes.data(), linear.rows, linear.cols * SizeOf(model_.dtype)}};
  source.cols = linear.cols;
  source.dtype = model_.dtype;
  for (int64_t s = 1; s <= linear.segments; ++s) {
    source.segment_ends.push_back(s * linear.cols / linear.segments);
  }
  std::vector<weights::Weight> copies;
  const int64_t wanted = 1 + kCopiesBytes / BytesOf(linear, model_.dtype);
  for (int64_t i = 0; i < std::min(wanted, linear.count); ++i) {
    ASSIGN_OR_RETURN(copies.emplace_back(), backend_->packer().Pack(source));
  }
  return copies;
}

absl::Status OpsBench::BenchLinears() {
  std::vector<double> step_seconds(std::size(kTokenCounts));
  std::vector<Cost> step_costs(std::size(kTokenCounts));
  for (const Linear& linear : LinearsOf(model_)) {
    ASSIGN_OR_RETURN(const std::vector<weights::Weight> copies, MakeCopies(linear));
    buffers_.clear();
    for (size_t i = 0; i < std::size(kTokenCounts); ++i) {
      const int64_t tokens = kTokenCounts[i];
      ASSIGN_OR_RETURN(const TensorView x, MakeFloats(Shape({tokens, linear.cols})));
      ASSIGN_OR_RETURN(const TensorView y, MakeFloats(Shape({tokens, linear.rows})));
      const double seconds = MedianSeconds([&] {
                               for (const auto& w : copies) backend_->ops().MatMul(*lane_, x, w, y);
                             }) /
                             static_cast<double>(copies.size());
      const Cost cost = {static_cast<double>(BytesOf(linear, model_.dtype) + x.bytes() + y.bytes()),
                         2.0 * static_cast<double>(tokens * linear.rows * linear.cols)};
      AddLine(fmt::format("{} {}x{}", linear.name, linear.rows, linear.cols), tokens, seconds,
              cost);
      const auto count = static_cast<double>(linear.count);
      step_seconds[i] += count * seconds;
      step_costs[i].bytes += count * cost.bytes;
      step_costs[i].operations += count * cost.operations;
    }
  }
  for (size_t i = 0; i < std::size(kTokenCounts); ++i) {
    AddLine("all products of a step", kTokenCounts[i], step_seconds[i], step_costs[i]);
  }
  return absl::OkStatus();
}

absl::Status OpsBench::BenchAttention(int64_t num_rows, int64_t tokens_per_row,
                                      int64_t first_position) {
  buffers_.clear();
  const ops::HeadLayout heads{model_.num_query_heads, model_.num_kv_heads, model_.head_dim};
  const int64_t length = first_position + tokens_per_row;
  const auto blocks_per_row =
      static_cast<int32_t>((length + kTokensPerBlock - 1) / kTokensPerBlock);
  const int64_t num_tokens = num_rows * tokens_per_row;
  std::vector<int32_t> slots, begins = {0}, firsts, table;
  for (int32_t r = 0; r < num_rows; ++r) {
    slots.push_back(r);
    firsts.push_back(static_cast<int32_t>(first_position));
    begins.push_back(static_cast<int32_t>((r + 1) * tokens_per_row));
    // Blocks of the rows lie between each other, as they do after a while of serving.
    for (int32_t b = 0; b < blocks_per_row; ++b) {
      table.push_back(b * static_cast<int32_t>(num_rows) + r);
    }
  }
  ops::StepBatch batch;
  batch.num_tokens = static_cast<int32_t>(num_tokens);
  batch.num_rows = static_cast<int32_t>(num_rows);
  ASSIGN_OR_RETURN(batch.row_slots, MakeInts(slots));
  ASSIGN_OR_RETURN(batch.block_table, MakeInts(table));
  batch.table_stride = blocks_per_row;
  batch.tokens_per_block = kTokensPerBlock;
  batch.host_row_begins = begins;
  batch.host_row_first_positions = firsts;
  const Shape pool({num_rows * blocks_per_row, kTokensPerBlock, heads.kv_heads, heads.head_dim});
  ASSIGN_OR_RETURN(const TensorView keys, MakeFloats(pool));
  ASSIGN_OR_RETURN(const TensorView values, MakeFloats(pool));
  ASSIGN_OR_RETURN(const TensorView qkv, MakeFloats(Shape({num_tokens, heads.columns()})));
  ASSIGN_OR_RETURN(const TensorView y,
                   MakeFloats(Shape({num_tokens, heads.query_heads * heads.head_dim})));
  const double seconds = MedianSeconds([&] {
    backend_->ops().PrepareAttention(*lane_, batch, heads);
    backend_->ops().Attend(*lane_, batch, heads, qkv, {keys, values}, 0.125f, y);
  });
  const auto pairs = static_cast<double>(tokens_per_row * first_position +
                                         tokens_per_row * (tokens_per_row + 1) / 2);
  const Cost cost = {
      static_cast<double>(2 * num_rows * length * heads.kv_heads * heads.head_dim * 4 +
                          qkv.bytes() + y.bytes()),
      4.0 * static_cast<double>(num_rows * heads.query_heads * heads.head_dim) * pairs};
  AddLine(fmt::format("attention, {} rows to {}", num_rows, length), num_tokens, seconds, cost);
  return absl::OkStatus();
}

absl::Status OpsBench::BenchRows(int64_t num_tokens) {
  buffers_.clear();
  ASSIGN_OR_RETURN(const TensorView x, MakeFloats(Shape({num_tokens, model_.width})));
  ASSIGN_OR_RETURN(const TensorView delta, MakeFloats(Shape({num_tokens, model_.width})));
  ASSIGN_OR_RETURN(const TensorView y, MakeFloats(Shape({num_tokens, model_.width})));
  ASSIGN_OR_RETURN(const TensorView gain, MakeFloats(Shape({model_.width})));
  ASSIGN_OR_RETURN(const TensorView gates, MakeFloats(Shape({num_tokens, 2 * model_.ffn_width})));
  ASSIGN_OR_RETURN(const TensorView gated, MakeFloats(Shape({num_tokens, model_.ffn_width})));
  ops::Ops& ops = backend_->ops();
  const double norm = MedianSeconds([&] { ops.AddRmsNorm(*lane_, delta, x, gain, 1e-5f, y); });
  AddLine("add and norm", num_tokens, norm, {4.0 * static_cast<double>(x.bytes()), 0});
  const double gate = MedianSeconds([&] { ops.SiluGate(*lane_, gates, gated); });
  AddLine("gate", num_tokens, gate, {static_cast<double>(gates.bytes() + gated.bytes()), 0});
  return absl::OkStatus();
}

absl::Status OpsBench::Run(std::string* table) {
  RETURN_IF_ERROR(MeasureCeilings());
  text_ += fmt::format("{:<28}{:>6}{:>12}{:>10}{:>10}  {:<8}{:>7}\n", "op", "tokens", "us", "GB/s",
                       "GFLOP/s", "bound", "of it");
  RETURN_IF_ERROR(BenchLinears());
  for (const int64_t first_position : {511, 4095}) {
    RETURN_IF_ERROR(BenchAttention(1, 1, first_position));
    RETURN_IF_ERROR(BenchAttention(16, 1, first_position));
  }
  RETURN_IF_ERROR(BenchAttention(1, 256, 0));
  RETURN_IF_ERROR(BenchAttention(1, 256, 2048));
  for (const int64_t num_tokens : {1, 16, 256}) RETURN_IF_ERROR(BenchRows(num_tokens));
  *table = std::move(text_);
  return absl::OkStatus();
}

}  // namespace

plan::ModelSpec DemoModelSizes() {
  plan::ModelSpec model;
  model.num_layers = 8;
  model.width = 384;
  model.num_query_heads = 8;
  model.num_kv_heads = 4;
  model.head_dim = 64;
  model.ffn_width = 1024;
  model.vocabulary = 8192;
  model.dtype = DType::kBF16;
  return model;
}

absl::Status RunBenchOps(const BenchOpsOptions& options, std::string* table) {
  ASSIGN_OR_RETURN(std::unique_ptr<backend::Backend> backend,
                   backend::MakeCpuBackend({.num_threads = options.num_threads}));
  ASSIGN_OR_RETURN(std::unique_ptr<Lane> lane, backend->device().MakeLane(0));
  return OpsBench(options, std::move(backend), std::move(lane)).Run(table);
}

}  // namespace polyreme::bench
