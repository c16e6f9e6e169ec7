// What the tests of ops share: a backend with a lane, tensors moved to and from its device, and
// made-up steps.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "tests/support/naive_ops.h"
#include "worker/backend/backend.h"
#include "worker/backend/cpu/cpu_backend.h"

namespace polyreme::ops {

// A backend to run the suite on.
struct BackendCase {
  std::string name;  // "cpu", "cpu_avx2_3_threads"
  absl::StatusOr<std::unique_ptr<backend::Backend>> (*make)();
};
// The CPU's with each instruction set that this machine has, and the GPU's of each type where there
// is one (GpuAvailable).
std::vector<BackendCase> BackendCases();
// Ok, or why nothing can run on a GPU here: no plugin in this build, no driver, no GPU.
absl::Status GpuAvailable();
// Names the plugin of this test's own build folder, unless POLYREME_CUDA_PLUGIN names one.
void UseBuiltCudaPlugin();
std::vector<backend::cpu::Isa> SupportedIsas();
std::string NameOf(backend::cpu::Isa isa);

// Memory on the device with its view.
struct DeviceTensor {
  Buffer buffer;
  TensorView view;
};

class OpsHarness {
 public:
  explicit OpsHarness(absl::StatusOr<std::unique_ptr<backend::Backend>> backend);

  Ops& ops() { return backend_->ops(); }
  Lane& lane() { return *lane_; }
  Device& device() { return backend_->device(); }
  DType activation_dtype() { return ops().activation_dtype(); }

  DeviceTensor Empty(DType dtype, const Shape& shape);     // zeros
  DeviceTensor Poisoned(DType dtype, const Shape& shape);  // NaN
  DeviceTensor From(DType dtype, const Shape& shape, absl::Span<const double> values);
  // In the type of activations; `m` is rounded to it in place, so that it can be given to the naive
  // form too.
  DeviceTensor Activations(naive::Matrix& m);
  DeviceTensor Floats(naive::Vector& v);
  DeviceTensor Ints(absl::Span<const int32_t> values);
  // Rounds `w` to `dtype` in place, and packs it.
  weights::Weight Pack(naive::Matrix& w, DType dtype, std::vector<int64_t> segment_ends = {});
  weights::Weight Pack(const weights::WeightSource& source);
  naive::Matrix Download(const TensorView& view);
  // Of float32 or narrower; for comparing bits.
  std::vector<std::byte> DownloadBytes(const TensorView& view);
  // y = x w^T in float32, as bytes.
  std::vector<std::byte> MatMulBytes(naive::Matrix x, const weights::Weight& w);

 private:
  std::unique_ptr<backend::Backend> backend_;
  std::unique_ptr<Lane> lane_;
};

// Rows of a step as the tests write them down.
struct TestRow {
  int32_t slot = 0;
  int32_t first_position = 0;
  int32_t num_tokens = 0;
};

// A StepBatch with all its arrays. Slot s has blocks s * table_stride, ... of a pool, dealt in
// shuffled order.
class TestStep {
 public:
  TestStep(OpsHarness& harness, std::vector<TestRow> rows, int32_t num_slots,
           int32_t tokens_per_block, int32_t table_stride);
  const StepBatch& batch() const { return batch_; }
  absl::Span<const int32_t> positions() const { return positions_; }
  int32_t num_blocks() const { return static_cast<int32_t>(table_.size()); }
  // Place in the pool, in tokens.
  int64_t PlaceOf(int32_t slot, int64_t position) const;

 private:
  std::vector<TestRow> rows_;
  std::vector<int32_t> positions_, token_rows_, row_begins_, row_slots_, first_positions_, table_;
  std::vector<DeviceTensor> device_;
  StepBatch batch_;
};

naive::Matrix RandomMatrix(std::mt19937& random, int64_t rows, int64_t cols, double scale = 1);
naive::Vector RandomVector(std::mt19937& random, int64_t n, double scale = 1);

// |got - want| <= tolerance * (|want| + root mean square of want), for each element; NaN is never
// close.
void ExpectClose(const naive::Matrix& got, const naive::Matrix& want, double tolerance);

}  // namespace polyreme::ops
