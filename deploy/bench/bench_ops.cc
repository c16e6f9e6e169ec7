#include "deploy/bench/bench_ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/time/time.h"
#include "deploy/bench/ceilings.h"
#include "parallel/base/clock.h"

namespace polyreme::bench {
namespace {

// Copies of a weight are cycled through, so that a product finds its weight where a whole step
// would leave it: not in the caches nearest to the core. Big models need no copies.
constexpr int64_t kCpuCopiesBytes = int64_t{64} << 20;
constexpr int64_t kGpuCopiesBytes = int64_t{320} << 20;
constexpr int32_t kTokensPerBlock = 16;
constexpr int kGpuRounds = 9;
constexpr int kGpuCallsAtLeast = 16;  // in a recording, so that starting it does not count
constexpr int64_t kScratchBytes = 64 << 20;
constexpr absl::Duration kWaitPatience = absl::Seconds(60);

struct Linear {
  std::string name;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t segments = 1;
  int64_t count = 0;  // in the model
};

std::vector<Linear> LinearsOf(const plan::ModelSpec& model, int64_t shards) {
  const int64_t attention = model.num_query_heads * model.head_dim / shards;
  const int64_t qkv = attention + 2 * model.num_kv_heads * model.head_dim / shards;
  const int64_t ffn = model.ffn_width / shards;
  const int64_t segments = limits::kSumSegments / shards;
  return {{"qkv", qkv, model.width, 1, model.num_layers},
          {"attention out", model.width, attention, segments, model.num_layers},
          {"gate and up", 2 * ffn, model.width, 1, model.num_layers},
          {"down", model.width, ffn, segments, model.num_layers},
          {"head", model.vocabulary / shards, model.width, 1, 1}};
}

struct AttentionCase {
  int64_t num_rows = 0;
  int64_t tokens_per_row = 0;
  int64_t first_position = 0;
};

class OpsBench {
 public:
  OpsBench(const BenchOpsOptions& options, Ceilings ceilings,
           std::unique_ptr<backend::Backend> backend, std::unique_ptr<Lane> lane)
      : model_(options.model),
        shards_(options.shards),
        on_gpu_(options.device == "cuda"),
        heads_{model_.num_query_heads / shards_, model_.num_kv_heads / shards_, model_.head_dim},
        ceilings_(std::move(ceilings)),
        backend_(std::move(backend)),
        lane_(std::move(lane)),
        type_(backend_->ops().activation_dtype()),
        weight_type_(on_gpu_ ? options.backend.dtype : model_.dtype) {}

  absl::Status Run(std::string* table);
  const TextTable& rows() const { return rows_; }

 private:
  // A weight several times over.
  struct Copies {
    Linear linear;
    std::vector<weights::Weight> weights;
  };

  absl::Status Prepare();
  absl::Status BenchLinears();
  absl::Status BenchAttention(const AttentionCase& size);
  absl::Status BenchRows(int64_t num_tokens);
  absl::StatusOr<Copies> MakeCopies(const Linear& linear);
  absl::StatusOr<TensorView> MakeFloats(DType dtype, const Shape& shape);
  absl::StatusOr<const int32_t*> MakeInts(const std::vector<int32_t>& values);
  absl::StatusOr<ops::StepBatch> MakeBatch(const AttentionCase& size);
  // Median seconds of one call of `body`, which does the same each time but for `call`. Recorded on
  // a GPU if `may_record`.
  absl::StatusOr<double> Time(bool may_record, absl::FunctionRef<void(int64_t call)> body);
  absl::StatusOr<double> TimeOnGpu(bool may_record, absl::FunctionRef<void(int64_t call)> body);
  void AddLine(const std::string& name, int64_t tokens, double seconds, const Cost& cost);
  int64_t BytesOf(const Linear& linear) const {
    return linear.rows * linear.cols * SizeOf(weight_type_);
  }
  std::vector<int64_t> TokenCounts() const {
    if (on_gpu_) return {1, 2, 4, 8, 16, 32, 64, 128, 256, 2048, 8192};
    return {1, 2, 4, 8, 16, 64, 256};
  }

  const plan::ModelSpec model_;
  const int64_t shards_;
  const bool on_gpu_;
  const ops::HeadLayout heads_;
  const Ceilings ceilings_;
  std::unique_ptr<backend::Backend> backend_;
  std::unique_ptr<Lane> lane_;
  const DType type_;         // of activations and cache
  const DType weight_type_;  // on the device
  std::vector<Copies> linears_;
  std::vector<Buffer> buffers_;
  // Host side of a batch, which outlives the ops that read it.
  std::vector<int32_t> slots_, begins_, firsts_, table_, positions_, token_rows_;
  int32_t num_recordings_ = 0;
  std::string text_;
  TextTable rows_{
      .columns = {{"op", 0}, {"us", 1}, {"gb_per_s", 2}, {"gflop_per_s", 1}, {"share_percent", 0}},
      .rows = {}};
};

uint16_t HalfBits(DType dtype, float value) {
  return dtype == DType::kBF16 ? weights::DummyToBf16(value) : weights::DummyToF16(value);
}

absl::StatusOr<TensorView> OpsBench::MakeFloats(DType dtype, const Shape& shape) {
  TensorView view{nullptr, dtype, shape};
  ASSIGN_OR_RETURN(Buffer buffer, backend_->device().Allocate(view.bytes()));
  view.data = buffer.data();
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1, 1);
  // One piece over and over: its length is odd, so that no two rows are alike.
  constexpr int64_t kPiece = 99991;
  const int64_t piece = std::min(kPiece, view.num_elements());
  const int64_t size = SizeOf(dtype);
  std::vector<std::byte> host(static_cast<size_t>(piece * size));
  for (int64_t i = 0; i < piece; ++i) {
    const float value = uniform(random);
    const uint16_t half = HalfBits(dtype, value);
    std::memcpy(host.data() + i * size, size == 4 ? static_cast<const void*>(&value) : &half,
                static_cast<size_t>(size));
  }
  for (int64_t at = 0; at < view.bytes(); at += piece * size) {
    RETURN_IF_ERROR(backend_->device().CopyFromHost(host.data(),
                                                    std::min(piece * size, view.bytes() - at),
                                                    static_cast<std::byte*>(view.data) + at));
  }
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

void OpsBench::AddLine(const std::string& name, int64_t tokens, double seconds, const Cost& cost) {
  const Rates& rates = ceilings_.rates;
  const bool by_bytes = cost.bytes / rates.bytes > cost.operations / rates.operations;
  text_ += fmt::format("{:<28}{:>6}{:>12.1f}{:>10.2f}{:>11.1f}  {:<8}{:>5.0f} %\n", name, tokens,
                       seconds * 1e6, cost.bytes / seconds / 1e9, cost.operations / seconds / 1e9,
                       by_bytes ? "memory" : ceilings_.operations,
                       100 * cost.SecondsAtBest(rates) / seconds);
  rows_.rows.push_back({fmt::format("{}, {} tokens", name, tokens), seconds * 1e6,
                        cost.bytes / seconds / 1e9, cost.operations / seconds / 1e9,
                        100 * cost.SecondsAtBest(rates) / seconds});
}

absl::StatusOr<double> OpsBench::Time(bool may_record, absl::FunctionRef<void(int64_t call)> body) {
  if (on_gpu_) return TimeOnGpu(may_record, body);
  int64_t call = 0;
  const double seconds = MedianSeconds([&] { body(call++); });
  RETURN_IF_ERROR(lane_->status());
  return seconds;
}

absl::StatusOr<double> OpsBench::TimeOnGpu(bool may_record,
                                           absl::FunctionRef<void(int64_t call)> body) {
  const auto run = [&](int64_t calls) -> absl::StatusOr<double> {
    const absl::Time start = MonotonicNow();
    const auto all = [&] {
      for (int64_t call = 0; call < calls; ++call) body(call);
    };
    if (may_record) {
      lane_->Replay({num_recordings_, static_cast<int32_t>(calls), true}, all);
    } else {
      all();
    }
    RETURN_IF_ERROR(lane_->Wait(lane_->Mark(), MonotonicNow() + kWaitPatience));
    return SecondsSince(start) / static_cast<double>(calls);
  };
  // Once unrecorded: what a kernel's first launch loads cannot be loaded while recording.
  body(0);
  RETURN_IF_ERROR(lane_->Wait(lane_->Mark(), MonotonicNow() + kWaitPatience));
  RETURN_IF_ERROR(run(2).status());
  ASSIGN_OR_RETURN(const double once, run(2));
  const auto calls = std::clamp<int64_t>(static_cast<int64_t>(2e-3 / once), kGpuCallsAtLeast, 256);
  RETURN_IF_ERROR(run(once > 1e-2 ? 2 : calls).status());
  std::vector<double> seconds;
  for (int round = 0; round < kGpuRounds; ++round) {
    ASSIGN_OR_RETURN(seconds.emplace_back(), run(once > 1e-2 ? 2 : calls));
  }
  ++num_recordings_;
  std::nth_element(seconds.begin(), seconds.begin() + kGpuRounds / 2, seconds.end());
  return seconds[kGpuRounds / 2];
}

absl::StatusOr<OpsBench::Copies> OpsBench::MakeCopies(const Linear& linear) {
  weights::WeightSource source;
  weights::WeightSource::RowBlock block;
  block.rows = linear.rows;
  block.generated = weights::WeightSource::Generated{
      .values = {.key = weights::DummyKey(linear.name.data(), linear.name.size(), 1),
                 .scale = 1.0f / std::sqrt(static_cast<float>(linear.cols))},
      .full_cols = linear.cols};
  source.blocks = {block};
  source.cols = linear.cols;
  source.dtype = weight_type_;
  for (int64_t s = 1; s <= linear.segments; ++s) {
    source.segment_ends.push_back(s * linear.cols / linear.segments);
  }
  Copies copies{linear, {}};
  const int64_t wanted = 1 + (on_gpu_ ? kGpuCopiesBytes : kCpuCopiesBytes) / BytesOf(linear);
  for (int64_t i = 0; i < std::min(wanted, linear.count); ++i) {
    ASSIGN_OR_RETURN(copies.weights.emplace_back(), backend_->packer().Pack(source));
  }
  return copies;
}

absl::Status OpsBench::Prepare() {
  ops::Workload workload;
  workload.max_tokens = TokenCounts().back();
  workload.max_rows = 256;
  workload.max_samples = 1;
  workload.max_model_len = on_gpu_ ? 1 << 15 : 1 << 13;
  workload.tokens_per_block = kTokensPerBlock;
  workload.vocabulary = static_cast<int32_t>(model_.vocabulary);
  workload.heads = heads_;
  workload.kv_dtype = type_;
  for (const Linear& linear : LinearsOf(model_, shards_)) {
    ASSIGN_OR_RETURN(linears_.emplace_back(), MakeCopies(linear));
  }
  for (const Copies& copies : linears_) {
    const bool head = copies.linear.count == 1 && copies.linear.name == "head";
    for (const weights::Weight& weight : copies.weights) {
      workload.products.push_back({&weight, TokenCounts().back(), head ? DType::kF32 : type_});
    }
  }
  return backend_->ops().Prepare(*lane_, workload);
}

absl::Status OpsBench::BenchLinears() {
  const std::vector<int64_t> counts = TokenCounts();
  std::vector<double> step_seconds(counts.size());
  std::vector<Cost> step_costs(counts.size());
  for (const Copies& of_linear : linears_) {
    const Linear& linear = of_linear.linear;
    const std::vector<weights::Weight>& copies = of_linear.weights;
    const DType out = linear.name == "head" ? DType::kF32 : type_;
    for (size_t i = 0; i < counts.size(); ++i) {
      const int64_t tokens = counts[i];
      buffers_.clear();
      ASSIGN_OR_RETURN(const TensorView x, MakeFloats(type_, Shape({tokens, linear.cols})));
      ASSIGN_OR_RETURN(const TensorView y, MakeFloats(out, Shape({tokens, linear.rows})));
      ASSIGN_OR_RETURN(const double seconds, Time(true, [&](int64_t call) {
                         const auto copy = static_cast<size_t>(call) % copies.size();
                         backend_->ops().MatMul(*lane_, x, copies[copy], y);
                       }));
      const Cost cost = {static_cast<double>(BytesOf(linear) + x.bytes() + y.bytes()),
                         2.0 * static_cast<double>(tokens * linear.rows * linear.cols)};
      AddLine(fmt::format("{} {}x{}", linear.name, linear.rows, linear.cols), tokens, seconds,
              cost);
      const auto count = static_cast<double>(linear.count);
      step_seconds[i] += count * seconds;
      step_costs[i].bytes += count * cost.bytes;
      step_costs[i].operations += count * cost.operations;
    }
  }
  for (size_t i = 0; i < counts.size(); ++i) {
    AddLine("all products of a step", counts[i], step_seconds[i], step_costs[i]);
  }
  return absl::OkStatus();
}

absl::StatusOr<ops::StepBatch> OpsBench::MakeBatch(const AttentionCase& size) {
  const int64_t length = size.first_position + size.tokens_per_row;
  const auto blocks_per_row =
      static_cast<int32_t>((length + kTokensPerBlock - 1) / kTokensPerBlock);
  slots_.clear(), begins_ = {0}, firsts_.clear(), table_.clear();
  positions_.clear(), token_rows_.clear();
  for (int32_t r = 0; r < size.num_rows; ++r) {
    slots_.push_back(r);
    firsts_.push_back(static_cast<int32_t>(size.first_position));
    begins_.push_back(static_cast<int32_t>((r + 1) * size.tokens_per_row));
    for (int32_t t = 0; t < size.tokens_per_row; ++t) {
      positions_.push_back(static_cast<int32_t>(size.first_position) + t);
      token_rows_.push_back(r);
    }
    // Blocks of the rows lie between each other, as they do after a while of serving.
    for (int32_t b = 0; b < blocks_per_row; ++b) {
      table_.push_back(b * static_cast<int32_t>(size.num_rows) + r);
    }
  }
  ops::StepBatch batch;
  batch.num_tokens = static_cast<int32_t>(positions_.size());
  batch.num_rows = static_cast<int32_t>(size.num_rows);
  ASSIGN_OR_RETURN(batch.positions, MakeInts(positions_));
  ASSIGN_OR_RETURN(batch.token_rows, MakeInts(token_rows_));
  ASSIGN_OR_RETURN(batch.row_begins, MakeInts(begins_));
  ASSIGN_OR_RETURN(batch.row_slots, MakeInts(slots_));
  ASSIGN_OR_RETURN(batch.block_table, MakeInts(table_));
  batch.table_stride = blocks_per_row;
  batch.tokens_per_block = kTokensPerBlock;
  batch.host_row_begins = begins_;
  batch.host_row_first_positions = firsts_;
  return batch;
}

absl::Status OpsBench::BenchAttention(const AttentionCase& size) {
  buffers_.clear();
  ASSIGN_OR_RETURN(const ops::StepBatch batch, MakeBatch(size));
  const int64_t length = size.first_position + size.tokens_per_row;
  const Shape pool(
      {size.num_rows * batch.table_stride, kTokensPerBlock, heads_.kv_heads, heads_.head_dim});
  ASSIGN_OR_RETURN(const TensorView keys, MakeFloats(type_, pool));
  ASSIGN_OR_RETURN(const TensorView values, MakeFloats(type_, pool));
  ASSIGN_OR_RETURN(const TensorView qkv,
                   MakeFloats(type_, Shape({batch.num_tokens, heads_.columns()})));
  ASSIGN_OR_RETURN(
      const TensorView y,
      MakeFloats(type_, Shape({batch.num_tokens, heads_.query_heads * heads_.head_dim})));
  const float scale = 1.0f / std::sqrt(static_cast<float>(heads_.head_dim));
  ops::Ops& ops = backend_->ops();
  // Planned once per step, for all layers; on CPU that is nothing.
  ops.PrepareAttention(*lane_, batch, heads_);
  ASSIGN_OR_RETURN(const double seconds, Time(batch.decode_only(), [&](int64_t) {
                     ops.Attend(*lane_, batch, heads_, qkv, {keys, values}, scale, y);
                   }));
  const auto pairs = static_cast<double>(size.tokens_per_row * size.first_position +
                                         size.tokens_per_row * (size.tokens_per_row + 1) / 2);
  const Cost cost = {
      static_cast<double>(2 * size.num_rows * length * heads_.kv_heads * heads_.head_dim *
                              SizeOf(type_) +
                          qkv.bytes() + y.bytes()),
      4.0 * static_cast<double>(size.num_rows * heads_.query_heads * heads_.head_dim) * pairs};
  AddLine(fmt::format("attention, {} rows to {}", size.num_rows, length), batch.num_tokens, seconds,
          cost);
  return absl::OkStatus();
}

absl::Status OpsBench::BenchRows(int64_t num_tokens) {
  buffers_.clear();
  const int64_t ffn = model_.ffn_width / shards_;
  const Shape stream({num_tokens, model_.width});
  ASSIGN_OR_RETURN(const TensorView x, MakeFloats(type_, stream));
  ASSIGN_OR_RETURN(const TensorView delta, MakeFloats(type_, stream));
  ASSIGN_OR_RETURN(const TensorView y, MakeFloats(type_, stream));
  ASSIGN_OR_RETURN(const TensorView gain, MakeFloats(DType::kF32, Shape({model_.width})));
  ASSIGN_OR_RETURN(const TensorView gates, MakeFloats(type_, Shape({num_tokens, 2 * ffn})));
  ASSIGN_OR_RETURN(const TensorView gated, MakeFloats(type_, Shape({num_tokens, ffn})));
  ops::Ops& ops = backend_->ops();
  ASSIGN_OR_RETURN(const double norm,
                   Time(true, [&](int64_t) { ops.AddRmsNorm(*lane_, delta, x, gain, 1e-5f, y); }));
  AddLine("add and norm", num_tokens, norm, {4.0 * static_cast<double>(x.bytes()), 0});
  ASSIGN_OR_RETURN(const double gate,
                   Time(true, [&](int64_t) { ops.SiluGate(*lane_, gates, gated); }));
  AddLine("gate", num_tokens, gate, {static_cast<double>(gates.bytes() + gated.bytes()), 0});
  return absl::OkStatus();
}

std::vector<AttentionCase> AttentionCases(bool on_gpu) {
  if (!on_gpu)
    return {{1, 1, 511}, {16, 1, 511}, {1, 1, 4095}, {16, 1, 4095}, {1, 256, 0}, {1, 256, 2048}};
  return {{1, 1, 2047}, {16, 1, 2047}, {64, 1, 2047}, {1, 1, 32767},  {16, 1, 32767},
          {1, 2048, 0}, {1, 8192, 0},  {4, 2048, 0},  {1, 512, 4096}, {1, 2048, 30720}};
}

absl::Status OpsBench::Run(std::string* table) {
  text_ += ceilings_.description;
  text_ += fmt::format("{:<28}{:>6}{:>12}{:>10}{:>11}  {:<8}{:>7}\n", "op", "tokens", "us", "GB/s",
                       "GFLOP/s", "bound", "of it");
  RETURN_IF_ERROR(Prepare());
  RETURN_IF_ERROR(BenchLinears());
  for (const AttentionCase& size : AttentionCases(on_gpu_)) {
    RETURN_IF_ERROR(BenchAttention(size));
  }
  for (const int64_t num_tokens : {1, 16, 64, 256}) RETURN_IF_ERROR(BenchRows(num_tokens));
  if (on_gpu_) RETURN_IF_ERROR(BenchRows(8192));
  *table = std::move(text_);
  return absl::OkStatus();
}

absl::Status Check(const BenchOpsOptions& options) {
  const plan::ModelSpec& model = options.model;
  const int64_t shards = options.shards;
  if (shards < 1 || limits::kSumSegments % shards != 0 || model.num_kv_heads % shards != 0 ||
      model.num_query_heads % shards != 0 || model.ffn_width % shards != 0) {
    return InvalidArgument("-tp: expected a divisor of {} that divides {} kv heads, got {}",
                           limits::kSumSegments, model.num_kv_heads, shards);
  }
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

absl::Status RunBenchOps(const BenchOpsOptions& options, std::string* table, TextTable* rows) {
  RETURN_IF_ERROR(Check(options));
  backend::BackendOptions backend_options = options.backend;
  backend_options.num_threads = options.num_threads;
  ASSIGN_OR_RETURN(std::unique_ptr<backend::Backend> backend,
                   backend::MakeBackend(options.device, backend_options));
  int64_t bytes = 0;
  for (const Linear& linear : LinearsOf(options.model, options.shards)) {
    bytes += linear.count * linear.rows * linear.cols * SizeOf(options.model.dtype);
  }
  ASSIGN_OR_RETURN(Ceilings ceilings,
                   options.device == "cuda"
                       ? MeasureGpuCeilings(1)
                       : MeasureCpuCeilings(backend->device(), 1, options.num_threads, bytes));
  ASSIGN_OR_RETURN(std::unique_ptr<Lane> lane, backend->device().MakeLane(kScratchBytes));
  OpsBench bench(options, std::move(ceilings), std::move(backend), std::move(lane));
  RETURN_IF_ERROR(bench.Run(table));
  if (rows != nullptr) *rows = bench.rows();
  return absl::OkStatus();
}

}  // namespace polyreme::bench
