#include "deploy/cli/devices_report.h"

#include <algorithm>

namespace polyreme::cli {
namespace {

using Row = std::vector<std::string>;

// Columns as wide as their widest cell, two spaces between them.
std::string Table(const std::vector<Row>& rows) {
  std::vector<size_t> widths;
  for (const Row& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const Row& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) line += fmt::format("{:<{}}  ", row[i], widths[i]);
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string GiB(int64_t bytes) {
  return fmt::format("{:.1f} GiB", static_cast<double>(bytes) / (1 << 30));
}

std::string Known(const std::string& version) {
  return version.empty() ? "none" : version;
}

std::string Microseconds(double seconds) {
  return seconds > 0 ? fmt::format("{:.1f}", seconds * 1e6) : "-";
}

std::string Size(int64_t bytes) {
  return bytes < 1 << 20 ? fmt::format("{} KiB", bytes >> 10) : fmt::format("{} MiB", bytes >> 20);
}

std::string GpuTable(const DevicesReport& report) {
  const bool measured = !report.measurements.empty();
  std::vector<Row> rows = {{"GPU", "Name", "Bus id", "Compute", "SMs", "Memory free", "Memory"}};
  if (measured) rows[0].insert(rows[0].end(), {"Read", "Copy", "Upload", "GEMM"});
  for (size_t i = 0; i < report.system.gpus.size(); ++i) {
    const cuda::GpuDescription& gpu = report.system.gpus[i];
    Row row = {fmt::format("{}", gpu.index),
               gpu.name,
               gpu.bus_id,
               fmt::format("{}.{}", gpu.compute_capability / 10, gpu.compute_capability % 10),
               fmt::format("{}", gpu.multiprocessors),
               GiB(gpu.free_bytes),
               GiB(gpu.total_bytes)};
    if (measured) {
      const cuda::GpuMeasurement& found = report.measurements[i];
      row.push_back(fmt::format("{:.2f} TB/s", found.read_bytes_per_second * 1e-12));
      row.push_back(fmt::format("{:.2f} TB/s", found.copy_bytes_per_second * 1e-12));
      row.push_back(fmt::format("{:.1f} GB/s", found.upload_bytes_per_second * 1e-9));
      row.push_back(fmt::format("{:.0f} TFLOP/s", found.gemm_flops * 1e-12));
    }
    rows.push_back(std::move(row));
  }
  return Table(rows);
}

std::string LinkTable(const cuda::GpuSystem& system) {
  std::vector<Row> rows(1);
  rows[0].push_back("");
  for (const cuda::GpuDescription& gpu : system.gpus) {
    rows[0].push_back(fmt::format("GPU{}", gpu.index));
  }
  for (const cuda::GpuDescription& from : system.gpus) {
    Row row = {fmt::format("GPU{}", from.index)};
    for (const cuda::GpuDescription& to : system.gpus) {
      std::string kind = from.index == to.index ? "X" : "?";
      for (const cuda::GpuLink& link : system.links) {
        if (link.from == from.index && link.to == to.index) kind = link.kind;
      }
      row.push_back(std::move(kind));
    }
    rows.push_back(std::move(row));
  }
  return Table(rows);
}

std::string AllReduceTable(const DevicesReport& report) {
  std::vector<Row> rows = {{"All-reduce", "plain us", "window us"}};
  for (const comm::AllReduceTiming& time : report.all_reduce) {
    rows.push_back(
        {Size(time.bytes), Microseconds(time.plain_seconds), Microseconds(time.window_seconds)});
  }
  return Table(rows);
}

}  // namespace

std::string DevicesText(const DevicesReport& report) {
  const cuda::GpuSystem& system = report.system;
  std::string text =
      fmt::format("Driver {}, CUDA {}, NCCL {}, cuBLAS {}\n\n", system.driver, system.cuda_version,
                  Known(system.nccl_version), Known(system.cublas_version));
  text += GpuTable(report);
  if (system.gpus.size() > 1) text += "\n" + LinkTable(system);
  if (!report.all_reduce.empty()) {
    text += fmt::format("\nOver {} GPUs, bfloat16, in a CUDA graph:\n", system.gpus.size());
    text += AllReduceTable(report);
  }
  return text;
}

Json DevicesJson(const DevicesReport& report) {
  const cuda::GpuSystem& system = report.system;
  Json gpus = Json::MakeArray();
  for (size_t i = 0; i < system.gpus.size(); ++i) {
    const cuda::GpuDescription& gpu = system.gpus[i];
    Json row = Json::MakeObject({{"index", gpu.index},
                                 {"name", gpu.name},
                                 {"bus_id", gpu.bus_id},
                                 {"compute_capability", gpu.compute_capability},
                                 {"multiprocessors", gpu.multiprocessors},
                                 {"free_bytes", gpu.free_bytes},
                                 {"total_bytes", gpu.total_bytes}});
    if (!report.measurements.empty()) {
      const cuda::GpuMeasurement& found = report.measurements[i];
      row.Set("read_bytes_per_second", found.read_bytes_per_second)
          .Set("copy_bytes_per_second", found.copy_bytes_per_second)
          .Set("upload_bytes_per_second", found.upload_bytes_per_second)
          .Set("gemm_flops", found.gemm_flops);
    }
    gpus.Append(std::move(row));
  }
  Json links = Json::MakeArray();
  for (const cuda::GpuLink& link : system.links) {
    links.Append(Json::MakeObject({{"from", link.from}, {"to", link.to}, {"kind", link.kind}}));
  }
  Json all = Json::MakeObject({{"driver", system.driver},
                               {"cuda", system.cuda_version},
                               {"nccl", system.nccl_version},
                               {"cublas", system.cublas_version},
                               {"gpus", std::move(gpus)},
                               {"links", std::move(links)}});
  if (report.all_reduce.empty()) return all;
  Json times = Json::MakeArray();
  for (const comm::AllReduceTiming& time : report.all_reduce) {
    times.Append(Json::MakeObject({{"bytes", time.bytes},
                                   {"plain_seconds", time.plain_seconds},
                                   {"window_seconds", time.window_seconds}}));
  }
  all.Set("all_reduce", std::move(times));
  return all;
}

}  // namespace polyreme::cli
