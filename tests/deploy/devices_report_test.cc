// What `polyreme devices` prints.

#include "deploy/cli/devices_report.h"

#include <gtest/gtest.h>

namespace polyreme::cli {
namespace {

DevicesReport TwoGpus() {
  DevicesReport report;
  report.system.driver = "580.159.04";
  report.system.cuda_version = "13.0";
  report.system.nccl_version = "2.28.9";
  for (int32_t i = 0; i < 2; ++i) {
    cuda::GpuDescription& gpu = report.system.gpus.emplace_back();
    gpu.index = i;
    gpu.name = "NVIDIA H200";
    gpu.bus_id = i == 0 ? "0000:1b:00.0" : "0000:43:00.0";
    gpu.compute_capability = 90;
    gpu.multiprocessors = 132;
    gpu.free_bytes = int64_t{139} << 30;
    gpu.total_bytes = int64_t{140} << 30;
    report.system.links.push_back({i, 1 - i, "NV18"});
  }
  return report;
}

TEST(DevicesReport, TablesNameGpusAndLinks) {
  EXPECT_EQ(DevicesText(TwoGpus()),
            "Driver 580.159.04, CUDA 13.0, NCCL 2.28.9, cuBLAS none\n"
            "\n"
            "GPU  Name         Bus id        Compute  SMs  Memory free  Memory\n"
            "0    NVIDIA H200  0000:1b:00.0  9.0      132  139.0 GiB    140.0 GiB\n"
            "1    NVIDIA H200  0000:43:00.0  9.0      132  139.0 GiB    140.0 GiB\n"
            "\n"
            "      GPU0  GPU1\n"
            "GPU0  X     NV18\n"
            "GPU1  NV18  X\n");
}

TEST(DevicesReport, MeasurementsAddColumnsAndATable) {
  DevicesReport report = TwoGpus();
  for (int32_t i = 0; i < 2; ++i) report.measurements.push_back({i, 4.65e12, 4.3e12, 5.5e10, 7e14});
  report.all_reduce = {{8 << 10, 7.2e-6, 4.2e-6}, {16 << 20, 8e-5, 0}};
  const std::string text = DevicesText(report);
  EXPECT_NE(text.find("4.65 TB/s  4.30 TB/s  55.0 GB/s  700 TFLOP/s"), std::string::npos) << text;
  EXPECT_NE(text.find("8 KiB       7.2       4.2\n16 MiB      80.0      -\n"), std::string::npos)
      << text;
}

TEST(DevicesReport, JsonCarriesTheSameInPlainUnits) {
  DevicesReport report = TwoGpus();
  report.all_reduce = {{8192, 7e-6, 4e-6}};
  const Json json = DevicesJson(report);
  EXPECT_EQ(json.Find("driver")->as_string(), "580.159.04");
  ASSERT_EQ(json.Find("gpus")->as_array().size(), 2u);
  EXPECT_EQ(json.Find("gpus")->as_array()[1].Find("total_bytes")->as_int(), int64_t{140} << 30);
  EXPECT_EQ(json.Find("gpus")->as_array()[1].Find("gemm_flops"), nullptr);
  EXPECT_EQ(json.Find("links")->as_array()[0].Find("kind")->as_string(), "NV18");
  EXPECT_EQ(json.Find("all_reduce")->as_array()[0].Find("bytes")->as_int(), 8192);
}

}  // namespace
}  // namespace polyreme::cli
