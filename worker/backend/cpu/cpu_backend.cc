#include "worker/backend/cpu/cpu_backend.h"

#include "worker/backend/cpu/cpu_device.h"
#include "worker/backend/cpu/cpu_ops.h"
#include "worker/backend/cpu/cpu_packer.h"
#include "worker/backend/cpu/thread_pool.h"

namespace polyreme::backend {
namespace {

constexpr int32_t kMaxThreads = 1024;

class CpuBackend final : public Backend {
 public:
  CpuBackend(int32_t num_threads, const cpu::Kernels& kernels)
      : pool_(num_threads), ops_(pool_, kernels), packer_(device_, pool_) {}
  std::string_view name() const override { return "cpu"; }
  Device& device() override { return device_; }
  ops::Ops& ops() override { return ops_; }
  weights::WeightPacker& packer() override { return packer_; }

 private:
  CpuDevice device_;
  ThreadPool pool_;
  CpuOps ops_;
  CpuPacker packer_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const CpuOptions& options) {
  if (options.num_threads < 1 || options.num_threads > kMaxThreads) {
    return InvalidArgument("expected 1 to {} threads, got {}", kMaxThreads, options.num_threads);
  }
  const cpu::Isa isa = options.isa.value_or(cpu::BestIsa());
  if (!cpu::IsSupported(isa)) {
    return FailedPrecondition("this processor lacks {}", cpu::KernelsOf(isa).name);
  }
  return std::make_unique<CpuBackend>(options.num_threads, cpu::KernelsOf(isa));
}

}  // namespace polyreme::backend
