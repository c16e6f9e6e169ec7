#include "tests/worker/ops_harness.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <numeric>

#include "worker/backend/cuda/plugin.h"

namespace polyreme::ops {
namespace {

using backend::AttentionChoice;
using backend::cpu::Isa;

template <Isa kIsa, int32_t kThreads>
absl::StatusOr<std::unique_ptr<backend::Backend>> MakeCpu() {
  return backend::MakeCpuBackend({.num_threads = kThreads, .isa = kIsa});
}

template <DType kType, AttentionChoice kAttention = AttentionChoice::kAuto>
absl::StatusOr<std::unique_ptr<backend::Backend>> MakeCuda() {
  backend::BackendOptions options;
  options.dtype = kType;
  options.attention = kAttention;
  return backend::MakeBackend("cuda", options);
}

}  // namespace

void UseBuiltCudaPlugin() {
  namespace fs = std::filesystem;
  std::error_code error;
  fs::path folder = fs::read_symlink("/proc/self/exe", error);
  for (int up = 0; up < 4 && !error && folder.has_relative_path(); ++up) {
    folder = folder.parent_path();
    const fs::path plugin = folder / cuda::kPluginFile;
    if (fs::exists(plugin, error)) {
      setenv("POLYREME_CUDA_PLUGIN", plugin.c_str(), 0);
      return;
    }
  }
}

std::string NameOf(Isa isa) {
  return isa == Isa::kScalar ? "scalar" : isa == Isa::kAvx2 ? "avx2" : "avx512";
}

std::vector<Isa> SupportedIsas() {
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (backend::cpu::IsSupported(isa)) isas.push_back(isa);
  }
  return isas;
}

absl::Status GpuAvailable() {
  UseBuiltCudaPlugin();
  ASSIGN_OR_RETURN(const cuda::CudaPlugin* plugin, cuda::OpenCudaPlugin());
  ASSIGN_OR_RETURN(const cuda::GpuSystem system, plugin->describe());
  if (system.gpus.empty()) return FailedPrecondition("no GPU is visible to this process");
  return absl::OkStatus();
}

std::vector<BackendCase> BackendCases() {
  std::vector<BackendCase> cases = {
      {"cpu", [] { return backend::MakeBackend("cpu", {}); }},
      {"cpu_scalar_2_threads", MakeCpu<Isa::kScalar, 2>},
  };
  if (backend::cpu::IsSupported(Isa::kAvx2)) {
    cases.push_back({"cpu_avx2_3_threads", MakeCpu<Isa::kAvx2, 3>});
  }
  if (backend::cpu::IsSupported(Isa::kAvx512)) {
    cases.push_back({"cpu_avx512_2_threads", MakeCpu<Isa::kAvx512, 2>});
  }
  if (GpuAvailable().ok()) {
    cases.push_back({"cuda_bf16", MakeCuda<DType::kBF16>});
    cases.push_back({"cuda_f16", MakeCuda<DType::kF16>});
    cases.push_back({"cuda_f32", MakeCuda<DType::kF32>});
    cases.push_back({"cuda_bf16_own_attention", MakeCuda<DType::kBF16, AttentionChoice::kOwn>});
  }
  for (const std::string_view name : backend::BackendNames()) {
    CHECK(name == "cpu" || name == "cuda", "add cases for backend {}", name);
  }
  return cases;
}

OpsHarness::OpsHarness(absl::StatusOr<std::unique_ptr<backend::Backend>> backend) {
  CHECK(backend.ok(), "{}", Message(backend.status()));
  backend_ = std::move(backend).value();
  auto lane = device().MakeLane(int64_t{64} << 20);
  CHECK(lane.ok(), "{}", Message(lane.status()));
  lane_ = std::move(lane).value();
}

DeviceTensor OpsHarness::Empty(DType dtype, const Shape& shape) {
  DeviceTensor tensor;
  tensor.view = {nullptr, dtype, shape};
  auto buffer = device().Allocate(tensor.view.bytes());
  CHECK(buffer.ok(), "{}", Message(buffer.status()));
  tensor.buffer = std::move(buffer).value();
  tensor.view.data = tensor.buffer.data();
  return tensor;
}

DeviceTensor OpsHarness::Poisoned(DType dtype, const Shape& shape) {
  const std::vector<double> nans(static_cast<size_t>(shape.num_elements()), std::nan(""));
  return From(dtype, shape, nans);
}

DeviceTensor OpsHarness::From(DType dtype, const Shape& shape, absl::Span<const double> values) {
  DeviceTensor tensor = Empty(dtype, shape);
  const std::vector<std::byte> bytes = naive::ToBytes(dtype, values);
  CHECK(static_cast<int64_t>(bytes.size()) == tensor.view.bytes());
  CHECK(device().CopyFromHost(bytes.data(), tensor.view.bytes(), tensor.view.data).ok());
  return tensor;
}

DeviceTensor OpsHarness::Activations(naive::Matrix& m) {
  for (double& value : m.values) value = naive::RoundTo(activation_dtype(), value);
  return From(activation_dtype(), Shape({m.rows, m.cols}), m.values);
}

DeviceTensor OpsHarness::Floats(naive::Vector& v) {
  for (double& value : v) value = naive::RoundTo(DType::kF32, value);
  return From(DType::kF32, Shape({static_cast<int64_t>(v.size())}), v);
}

DeviceTensor OpsHarness::Ints(absl::Span<const int32_t> values) {
  DeviceTensor tensor = Empty(DType::kI32, Shape({static_cast<int64_t>(values.size())}));
  CHECK(device().CopyFromHost(values.data(), tensor.view.bytes(), tensor.view.data).ok());
  return tensor;
}

weights::Weight OpsHarness::Pack(naive::Matrix& w, DType dtype, std::vector<int64_t> segment_ends) {
  for (double& value : w.values) value = naive::RoundTo(dtype, value);
  const std::vector<std::byte> bytes = naive::ToBytes(dtype, w.values);
  weights::WeightSource source;
  source.blocks = {{bytes.data(), w.rows, w.cols * SizeOf(dtype)}};
  source.cols = w.cols;
  source.dtype = dtype;
  source.segment_ends = std::move(segment_ends);
  return Pack(source);
}

weights::Weight OpsHarness::Pack(const weights::WeightSource& source) {
  auto weight = backend_->packer().Pack(source);
  CHECK(weight.ok(), "{}", Message(weight.status()));
  return std::move(weight).value();
}

std::vector<std::byte> OpsHarness::DownloadBytes(const TensorView& view) {
  std::vector<std::byte> bytes(static_cast<size_t>(view.bytes()));
  const absl::Status status = lane_->Wait(lane_->Mark(), absl::InfiniteFuture());
  CHECK(status.ok(), "{}", Message(status));
  CHECK(device().CopyToHost(view.data, view.bytes(), bytes.data()).ok());
  return bytes;
}

naive::Matrix OpsHarness::Download(const TensorView& view) {
  naive::Matrix m(view.shape[0], view.row_elements());
  m.values = naive::FromBytes(view.dtype, DownloadBytes(view));
  return m;
}

std::vector<std::byte> OpsHarness::MatMulBytes(naive::Matrix x, const weights::Weight& w) {
  const DeviceTensor in = Activations(x);
  const DeviceTensor out = Empty(DType::kF32, Shape({x.rows, w.rows}));
  ops().MatMul(lane(), in.view, w, out.view);
  return DownloadBytes(out.view);
}

TestStep::TestStep(OpsHarness& harness, std::vector<TestRow> rows, int32_t num_slots,
                   int32_t tokens_per_block, int32_t table_stride)
    : rows_(std::move(rows)),
      row_begins_{0},
      table_(static_cast<size_t>(num_slots * table_stride)) {
  std::iota(table_.begin(), table_.end(), 0);
  std::mt19937 random(7);
  std::shuffle(table_.begin(), table_.end(), random);
  for (size_t r = 0; r < rows_.size(); ++r) {
    for (int32_t i = 0; i < rows_[r].num_tokens; ++i) {
      positions_.push_back(rows_[r].first_position + i);
      token_rows_.push_back(static_cast<int32_t>(r));
    }
    row_begins_.push_back(static_cast<int32_t>(positions_.size()));
    row_slots_.push_back(rows_[r].slot);
    first_positions_.push_back(rows_[r].first_position);
  }
  for (const auto* values : {&positions_, &token_rows_, &row_begins_, &row_slots_, &table_}) {
    device_.push_back(harness.Ints(*values));
  }
  batch_.num_tokens = row_begins_.back();
  batch_.num_rows = static_cast<int32_t>(rows_.size());
  batch_.positions = device_[0].view.As<int32_t>();
  batch_.token_rows = device_[1].view.As<int32_t>();
  batch_.row_begins = device_[2].view.As<int32_t>();
  batch_.row_slots = device_[3].view.As<int32_t>();
  batch_.block_table = device_[4].view.As<int32_t>();
  batch_.table_stride = table_stride;
  batch_.tokens_per_block = tokens_per_block;
  batch_.host_row_begins = row_begins_;
  batch_.host_row_first_positions = first_positions_;
}

int64_t TestStep::PlaceOf(int32_t slot, int64_t position) const {
  const int64_t block =
      table_[static_cast<size_t>(slot * batch_.table_stride + position / batch_.tokens_per_block)];
  return block * batch_.tokens_per_block + position % batch_.tokens_per_block;
}

naive::Matrix RandomMatrix(std::mt19937& random, int64_t rows, int64_t cols, double scale) {
  naive::Matrix m(rows, cols);
  std::normal_distribution<double> normal(0, scale);
  for (double& value : m.values) value = normal(random);
  return m;
}

naive::Vector RandomVector(std::mt19937& random, int64_t n, double scale) {
  return RandomMatrix(random, 1, n, scale).values;
}

void ExpectClose(const naive::Matrix& got, const naive::Matrix& want, double tolerance) {
  ASSERT_EQ(got.rows, want.rows);
  ASSERT_EQ(got.cols, want.cols);
  double squares = 0;
  for (const double value : want.values) squares += value * value;
  const double root =
      std::sqrt(squares / std::max<double>(1, static_cast<double>(want.values.size())));
  for (int64_t r = 0; r < want.rows; ++r) {
    for (int64_t c = 0; c < want.cols; ++c) {
      const double bound = tolerance * (std::abs(want.at(r, c)) + root);
      ASSERT_LE(std::abs(got.at(r, c) - want.at(r, c)), bound)
          << "at [" << r << ", " << c << "]: got " << got.at(r, c) << ", want " << want.at(r, c);
    }
  }
}

}  // namespace polyreme::ops
