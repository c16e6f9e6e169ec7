#include "tests/worker/test_backends.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <ostream>

#include "parallel/base/status.h"
#include "tests/worker/ops_harness.h"
#include "worker/backend/cuda/plugin.h"

namespace polyreme {
namespace {

// GPUs that this process may use.
absl::StatusOr<int32_t> NumGpus() {
  RETURN_IF_ERROR(ops::GpuAvailable());
  ASSIGN_OR_RETURN(const cuda::CudaPlugin* plugin, cuda::OpenCudaPlugin());
  ASSIGN_OR_RETURN(const cuda::GpuSystem system, plugin->describe());
  return static_cast<int32_t>(system.gpus.size());
}

class SaysWhereItRuns : public testing::Environment {
 public:
  void SetUp() override {
    const absl::StatusOr<int32_t> gpus = NumGpus();
    if (gpus.ok()) {
      fmt::print("CUDA runs on {} GPU{}: layouts of more ranks are left out\n", *gpus,
                 *gpus == 1 ? "" : "s");
    } else {
      fmt::print("CUDA does not run: {}\n", Message(gpus.status()));
    }
  }
};
[[maybe_unused]] const testing::Environment* const kSays =
    testing::AddGlobalTestEnvironment(new SaysWhereItRuns);

}  // namespace

double TestBackend::tolerance() const {
  if (dtype == DType::kF32) return 2e-4;
  // About 25 units in the last place. Seen in bfloat16 on an H200: 6.3e-2, on a tiny random model
  // whose logits are sums of few terms; at real sizes check_against_transformers.py is the judge.
  return dtype == DType::kF16 ? 1e-2 : 8e-2;
}

void PrintTo(const TestBackend& backend, std::ostream* out) {
  *out << backend.name;
}

std::vector<TestBackend> TestBackends() {
  std::vector<TestBackend> backends = {{.name = "cpu"}};
  const absl::StatusOr<int32_t> gpus = NumGpus();
  if (!gpus.ok()) return backends;
  backends.push_back({"cuda_f32", "cuda", DType::kF32, *gpus});
  backends.push_back({"cuda_f16", "cuda", DType::kF16, *gpus});
  backends.push_back({"cuda_bf16", "cuda", DType::kBF16, *gpus});
  return backends;
}

std::vector<TestBackend> StagedBackends() {
  std::vector<TestBackend> backends = {{.name = "staged_cpu", .max_ranks = 8, .staged = true}};
  if (NumGpus().ok()) {
    backends.push_back(backends[0]);
    backends.back().name = "staged_f32";
    backends.back().device = "cuda";
  }
  return backends;
}

std::vector<TestBackend> Float32Backends() {
  std::vector<TestBackend> backends = TestBackends();
  std::erase_if(backends, [](const TestBackend& backend) { return backend.dtype != DType::kF32; });
  return backends;
}

std::string SourcePath(std::string_view relative) {
  const char* const now = std::getenv("POLYREME_SOURCE_DIR");
  return fmt::format("{}/{}", now != nullptr ? now : POLYREME_SOURCE_DIR, relative);
}

}  // namespace polyreme
