// The plugin's only symbol.
#include <cstdlib>
#include <string>

#include "parallel/base/log.h"
#include "parallel/base/process_identity.h"
#include "worker/backend/cuda/cuda_backend.h"
#include "worker/backend/cuda/describe.h"
#include "worker/backend/cuda/measure.h"
#include "worker/backend/cuda/plugin.h"

extern "C" __attribute__((visibility("default"))) const polyreme::cuda::CudaPlugin*
polyreme_cuda_plugin() {
  namespace cuda = polyreme::cuda;
  static const cuda::CudaPlugin plugin = [] {
    // Kernels are loaded at start and not on their first launch, which would wait for the GPU and
    // take memory in the midst of steps. Before the first call of CUDA; what the user has set
    // stands.
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    return cuda::CudaPlugin{.build_id = cuda::PluginBuildId(),
                            .adopt =
                                [](const polyreme::ClockAnchor& clock, const std::string& name) {
                                  polyreme::AdoptClockAnchor(clock);
                                  polyreme::SetLogName(name);
                                },
                            .describe = &cuda::DescribeSystem,
                            .measure = &cuda::MeasureGpu,
                            .measure_all_reduce = &cuda::MeasureAllReduce,
                            .make_backend = &cuda::MakeCudaBackend};
  }();
  return &plugin;
}
