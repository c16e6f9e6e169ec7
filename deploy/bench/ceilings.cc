#include "deploy/bench/ceilings.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "parallel/base/clock.h"
#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/thread_pool.h"
#include "worker/backend/cuda/plugin.h"

namespace polyreme::bench {
namespace {

namespace cpu = backend::cpu;

constexpr int kRounds = 9;
constexpr double kRoundSeconds = 2e-3;
constexpr int64_t kReadTaskFloats = 64 << 10;

std::string Today() {
  return absl::FormatTime("%Y-%m-%d", MonotonicNow(), absl::UTCTimeZone());
}

}  // namespace

double SecondsSince(absl::Time start) {
  return absl::ToDoubleSeconds(MonotonicNow() - start);
}

double MedianSeconds(absl::FunctionRef<void()> body) {
  body();
  absl::Time start = MonotonicNow();
  body();
  const double once = std::max(1e-7, SecondsSince(start));
  const auto calls = static_cast<int64_t>(std::clamp(kRoundSeconds / once, 1.0, 1e5));
  std::vector<double> seconds;
  for (int round = 0; round < kRounds; ++round) {
    start = MonotonicNow();
    for (int64_t i = 0; i < calls; ++i) body();
    seconds.push_back(SecondsSince(start) / static_cast<double>(calls));
  }
  std::nth_element(seconds.begin(), seconds.begin() + kRounds / 2, seconds.end());
  return seconds[kRounds / 2];
}

absl::StatusOr<Ceilings> MeasureCpuCeilings(Device& device, int32_t ranks, int32_t num_threads,
                                            int64_t bytes) {
  const int32_t threads = ranks * num_threads;
  const int64_t task_bytes = kReadTaskFloats * static_cast<int64_t>(sizeof(float));
  const int64_t tasks = std::max<int64_t>(1, std::min(bytes, device.FreeBytes() / 4) / task_bytes);
  ASSIGN_OR_RETURN(const Buffer buffer, device.Allocate(tasks * task_bytes));
  auto* const floats = static_cast<float*>(buffer.data());
  // Written, so that every page is its own: untouched ones would all be one page of zeros.
  for (int64_t i = 0; i < tasks * kReadTaskFloats; ++i) floats[i] = static_cast<float>(i % 97);
  const cpu::Kernels& kernels = cpu::KernelsOf(cpu::BestIsa());
  backend::ThreadPool pool(threads);
  std::atomic<bool> odd{false};  // keeps the sums alive
  const double read_seconds = MedianSeconds([&] {
    pool.ParallelFor(tasks, [&](int64_t task) {
      const float sum = kernels.read_all(floats + task * kReadTaskFloats, kReadTaskFloats);
      if (sum != sum) odd = true;
    });
  });
  constexpr int64_t kFmaRounds = 4000;
  std::atomic<int64_t> operations{0};
  const double fma_seconds = MedianSeconds([&] {
    operations = 0;
    pool.ParallelFor(threads * 16, [&](int64_t) {
      float result = 0.5f;
      operations += kernels.multiply_add(kFmaRounds, &result);
      if (result != result) odd = true;
    });
  });
  CHECK(!odd, "a sum of finite numbers was NaN");
  const double read_rate = static_cast<double>(buffer.bytes()) / read_seconds;
  const double fma_rate = static_cast<double>(operations.load()) / fma_seconds;
  Ceilings ceilings;
  ceilings.rates = {read_rate / ranks, fma_rate / ranks};
  ceilings.description = fmt::format(
      "{}, {} thread(s), {}, {}\nat best: reads {:.1f} MB at {:.2f} GB/s, {:.1f} GFLOP/s of "
      "FMA\n\n",
      device.name(), threads, kernels.name, Today(), static_cast<double>(buffer.bytes()) / 1e6,
      read_rate / 1e9, fma_rate / 1e9);
  return ceilings;
}

absl::StatusOr<Ceilings> MeasureGpuCeilings(int32_t num_gpus) {
  ASSIGN_OR_RETURN(const cuda::CudaPlugin* const plugin, cuda::OpenCudaPlugin());
  ASSIGN_OR_RETURN(const cuda::GpuSystem system, plugin->describe());
  if (std::ssize(system.gpus) < num_gpus) {
    return FailedPrecondition("{} ranks need as many GPUs, found {}", num_gpus, system.gpus.size());
  }
  Ceilings ceilings;
  ceilings.operations = "GEMM";
  for (int32_t i = 0; i < num_gpus; ++i) {
    ASSIGN_OR_RETURN(const cuda::GpuMeasurement measured, plugin->measure(i));
    const auto least = [i](double& rate, double other) {
      rate = i == 0 ? other : std::min(rate, other);
    };
    least(ceilings.rates.bytes, measured.read_bytes_per_second);
    least(ceilings.rates.operations, measured.gemm_flops);
    least(ceilings.upload_bytes, measured.upload_bytes_per_second);
  }
  ceilings.description = fmt::format(
      "{} x {}, driver {} (CUDA {}), cuBLAS {}, NCCL {}, {}\nat best, each: reads at {:.0f} GB/s, "
      "products at {:.0f} TFLOP/s; uploads at {:.1f} GB/s\n\n",
      num_gpus, system.gpus[0].name, system.driver, system.cuda_version, system.cublas_version,
      system.nccl_version.empty() ? "absent" : system.nccl_version, Today(),
      ceilings.rates.bytes / 1e9, ceilings.rates.operations / 1e12, ceilings.upload_bytes / 1e9);
  return ceilings;
}

}  // namespace polyreme::bench
