// `polyreme devices`: which GPUs this process may use, how they are joined, and how fast they are.

#include <cstdio>
#include <string>

#include "deploy/cli/commands.h"
#include "deploy/cli/devices_report.h"
#include "deploy/cli/flags.h"
#include "worker/backend/cuda/plugin.h"

namespace polyreme::cli {
namespace {

constexpr char kUsage[] =
    "usage: polyreme devices [--measure] [--json]\n\n"
    "Lists the GPUs that this process sees (CUDA_VISIBLE_DEVICES) and the link between each two:\n"
    "NV18 is NVLink with 18 links; PIX, PXB, PHB, NODE and SYS are ever farther by PCIe.";

absl::StatusOr<DevicesReport> Look(bool measure) {
  ASSIGN_OR_RETURN(const cuda::CudaPlugin* const plugin, cuda::OpenCudaPlugin());
  DevicesReport report;
  ASSIGN_OR_RETURN(report.system, plugin->describe());
  if (!measure) return report;
  for (const cuda::GpuDescription& gpu : report.system.gpus) {
    ASSIGN_OR_RETURN(const cuda::GpuMeasurement found, plugin->measure(gpu.index));
    report.measurements.push_back(found);
  }
  if (report.system.gpus.size() > 1) {
    ASSIGN_OR_RETURN(report.all_reduce,
                     plugin->measure_all_reduce(static_cast<int32_t>(report.system.gpus.size())));
  }
  return report;
}

}  // namespace

int RunDevices(const Arguments& arguments) {
  bool measure = false, json = false, help = false;
  FlagSet flags(kUsage);
  flags.Section("Flags");
  flags.Add({"--measure"}, "",
            "also read bandwidth, copies, uploads, large products and, with more than one GPU, "
            "all-reduces (seconds for each GPU)",
            SetFlag(&measure));
  flags.Add({"--json"}, "", "one JSON object in place of the tables", SetFlag(&json));
  flags.Add({"--help", "-h"}, "", "this text", SetFlag(&help));
  Arguments operands;
  absl::Status parsed = flags.Parse(arguments, operands);
  if (parsed.ok() && !operands.empty()) {
    parsed = InvalidArgument("expected flags only, got '{:.40}'; see --help", operands[0]);
  }
  if (!parsed.ok()) {
    std::fprintf(stderr, "polyreme devices: %s\n", Message(parsed).c_str());
    return 2;
  }
  if (help) {
    std::fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  const absl::StatusOr<DevicesReport> report = Look(measure);
  if (!report.ok()) {
    std::fprintf(stderr, "polyreme devices: %s\n", Message(report.status()).c_str());
    return 1;
  }
  std::fputs(json ? (DevicesJson(*report).Dump() + "\n").c_str() : DevicesText(*report).c_str(),
             stdout);
  return 0;
}

}  // namespace polyreme::cli
