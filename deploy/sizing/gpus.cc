#include "deploy/sizing/gpus.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>

#include "absl/strings/numbers.h"
#include "deploy/sizing/table.h"
#include "parallel/base/file.h"
#include "parallel/base/json.h"
#include "parallel/base/limits.h"
#include "parallel/plan/config_reader.h"

namespace polyreme::sizing {
namespace {

constexpr double kGiB = 0x1p30;
constexpr double kGiga = 1e9;
constexpr double kTera = 1e12;
constexpr int32_t kMaxGpus = 1024;

// Of the memory: what CUDA calls a device's total, as programs print it when it runs out (public
// reports; two digits).
constexpr char kReported[] = "driver's total, as programs print it";
constexpr char kMeasuredHere[] = "measured 2026-11-22, docs/benchmarks/h200-2026-11-22/devices.txt";

struct Row {
  const char* name;
  const char* family;
  double memory_gib;
  double bandwidth_gbs;
  double tflops;
  double fp8_tflops;
  double link_gbs;
  const char* link_kind;
  int32_t compute_capability;
  int32_t multiprocessors;
  const char* source;
};

// clang-format off
constexpr Row kRows[] = {
    {"v100-16g-pcie", "volta", 15.78, 900, 112, 0, 32, "PCIe 3 x16", 70, 80, "NVIDIA V100 datasheet"},
    {"v100-16g-sxm2", "volta", 15.78, 900, 125, 0, 300, "NVLink 2", 70, 80, "NVIDIA V100 datasheet"},
    {"v100-32g-pcie", "volta", 31.74, 900, 112, 0, 32, "PCIe 3 x16", 70, 80, "NVIDIA V100 datasheet"},
    {"v100-32g-sxm2", "volta", 31.74, 900, 125, 0, 300, "NVLink 2", 70, 80, "NVIDIA V100 datasheet"},
    {"a100-40g-pcie", "ampere", 39.39, 1555, 312, 0, 64, "PCIe 4 x16", 80, 108, "NVIDIA A100 datasheet"},
    {"a100-40g-sxm4", "ampere", 39.39, 1555, 312, 0, 600, "NVLink 3", 80, 108, "NVIDIA A100 datasheet"},
    {"a100-80g-pcie", "ampere", 79.15, 1935, 312, 0, 64, "PCIe 4 x16", 80, 108, "NVIDIA A100 datasheet"},
    {"a100-80g-sxm4", "ampere", 79.15, 2039, 312, 0, 600, "NVLink 3", 80, 108, "NVIDIA A100 datasheet"},
    {"h100-80g-pcie", "hopper", 79.10, 2000, 756, 1513, 128, "PCIe 5 x16", 90, 114, "NVIDIA H100 datasheet"},
    {"h100-80g-sxm5", "hopper", 79.10, 3350, 989, 1979, 900, "NVLink 4", 90, 132, "NVIDIA H100 datasheet"},
    {"h100-94g-nvl", "hopper", 93.10, 3900, 835, 1671, 600, "NVLink 4 bridge", 90, 132, "NVIDIA H100 NVL datasheet"},
    {"h200", "hopper", 139.8, 4800, 989, 1979, 900, "NVLink 4", 90, 132, "NVIDIA H200 datasheet"},
    {"b200", "blackwell", 178.35, 8000, 2250, 4500, 1800, "NVLink 5", 100, 148, "NVIDIA HGX B200 datasheet"},
    {"l4", "ada", 22.03, 300, 121, 242, 64, "PCIe 4 x16", 89, 58, "NVIDIA L4 datasheet"},
    {"l40s", "ada", 44.40, 864, 362, 733, 64, "PCIe 4 x16", 89, 142, "NVIDIA L40S datasheet"},
    {"a10", "ampere-gddr", 22.05, 600, 125, 0, 64, "PCIe 4 x16", 86, 72, "NVIDIA A10 datasheet"},
    {"a40", "ampere-gddr", 44.40, 696, 149.7, 0, 64, "PCIe 4 x16", 86, 84, "NVIDIA A40 datasheet"},
    {"rtx-3090", "ampere-gddr", 23.68, 936, 71, 0, 64, "PCIe 4 x16", 86, 82, "NVIDIA GA102 whitepaper"},
    {"rtx-4090", "ada", 23.52, 1008, 165.2, 330.3, 64, "PCIe 4 x16", 89, 128, "NVIDIA Ada whitepaper"},
    {"rtx-5090", "blackwell-gddr", 31.36, 1792, 209.5, 419, 128, "PCIe 5 x16", 120, 170, "NVIDIA RTX Blackwell whitepaper"},
    {"rtx-6000-ada", "ada", 47.40, 960, 364.2, 728.5, 64, "PCIe 4 x16", 89, 142, "NVIDIA RTX 6000 Ada datasheet"},
};
// clang-format on

Gpu GpuOf(const Row& row) {
  Gpu gpu;
  gpu.name = row.name;
  gpu.family = row.family;
  gpu.memory_bytes = static_cast<int64_t>(row.memory_gib * kGiB);
  gpu.bandwidth = row.bandwidth_gbs * kGiga;
  gpu.operations = row.tflops * kTera;
  gpu.fp8_operations = row.fp8_tflops * kTera;
  gpu.link = row.link_gbs * kGiga;
  gpu.link_kind = row.link_kind;
  gpu.compute_capability = row.compute_capability;
  gpu.num_multiprocessors = row.multiprocessors;
  gpu.memory_source = kReported;
  gpu.rates_source = row.source;
  if (gpu.name == "h200") {
    gpu.memory_source = kMeasuredHere;
    gpu.measured_bandwidth = 4.65e12;
    gpu.measured_operations = 802e12;
    gpu.rates_source += "; reads and products: ";
    gpu.rates_source += kMeasuredHere;
  }
  return gpu;
}

absl::Status CheckKeys(const plan::ConfigReader& entry) {
  static const std::set<std::string, std::less<>> kKnown = {
      "name",     "family", "memory_gib",         "bandwidth_gbs",   "tflops",         "fp8_tflops",
      "link_gbs", "link",   "compute_capability", "multiprocessors", "price_per_hour", "source"};
  for (const auto& [key, value] : entry.object().members()) {
    if (!kKnown.contains(key)) {
      return InvalidArgument("{}: expected one of {}", entry.PathOf(key), fmt::join(kKnown, ", "));
    }
  }
  return absl::OkStatus();
}

// Of a number that a GPU of its own must have, and one that is there already may have.
absl::Status Read(const plan::ConfigReader& entry, std::string_view key, plan::DoubleBounds bounds,
                  double unit, bool needed, double* value) {
  ASSIGN_OR_RETURN(const std::optional<double> given, entry.FindDouble(key, bounds));
  if (given.has_value()) {
    *value = *given * unit;
  } else if (needed) {
    return InvalidArgument("{}: expected this key, it is missing", entry.PathOf(key));
  }
  return absl::OkStatus();
}

absl::Status ReadText(const plan::ConfigReader& entry, std::string_view key, std::string* value) {
  ASSIGN_OR_RETURN(const std::optional<std::string> given, entry.FindString(key));
  if (!given.has_value()) return absl::OkStatus();
  if (given->size() > 200) {
    return InvalidArgument("{}: expected at most 200 characters, got {}", entry.PathOf(key),
                           given->size());
  }
  *value = *given;
  return absl::OkStatus();
}

absl::Status ReadGpu(const plan::ConfigReader& entry, bool is_new, Gpu& gpu) {
  RETURN_IF_ERROR(CheckKeys(entry));
  RETURN_IF_ERROR(ReadText(entry, "family", &gpu.family));
  RETURN_IF_ERROR(ReadText(entry, "link", &gpu.link_kind));
  double memory = static_cast<double>(gpu.memory_bytes);
  double capability = gpu.compute_capability / 10.0;
  double multiprocessors = gpu.num_multiprocessors;
  const Gpu before = gpu;
  RETURN_IF_ERROR(Read(entry, "memory_gib", {0.1, 1e5}, kGiB, is_new, &memory));
  RETURN_IF_ERROR(Read(entry, "bandwidth_gbs", {1, 1e6}, kGiga, is_new, &gpu.bandwidth));
  RETURN_IF_ERROR(Read(entry, "tflops", {0.1, 1e6}, kTera, is_new, &gpu.operations));
  RETURN_IF_ERROR(Read(entry, "fp8_tflops", {0, 1e6}, kTera, false, &gpu.fp8_operations));
  RETURN_IF_ERROR(Read(entry, "link_gbs", {0, 1e6}, kGiga, false, &gpu.link));
  RETURN_IF_ERROR(Read(entry, "compute_capability", {7, 20}, 1, is_new, &capability));
  RETURN_IF_ERROR(Read(entry, "multiprocessors", {1, 4096}, 1, is_new, &multiprocessors));
  RETURN_IF_ERROR(Read(entry, "price_per_hour", {0, 1e6}, 1, false, &gpu.price_per_hour));
  // Rates that the file gives are the user's own: what was measured elsewhere no longer stands.
  if (gpu.bandwidth != before.bandwidth) gpu.measured_bandwidth = 0;
  if (gpu.operations != before.operations) gpu.measured_operations = 0;
  gpu.memory_bytes = static_cast<int64_t>(memory);
  gpu.compute_capability = static_cast<int32_t>(capability * 10 + 0.5);
  gpu.num_multiprocessors = static_cast<int32_t>(multiprocessors + 0.5);
  std::string source = "user's file";
  RETURN_IF_ERROR(ReadText(entry, "source", &source));
  if (gpu.memory_bytes != before.memory_bytes) gpu.memory_source = source;
  if (gpu.bandwidth != before.bandwidth || gpu.operations != before.operations) {
    gpu.rates_source = source;
  }
  return absl::OkStatus();
}

bool IsGpuName(std::string_view name) {
  return !name.empty() && name.size() <= 64 && name != "list" &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
                  c == '.';
         });
}

}  // namespace

GpuTable::GpuTable() {
  for (const Row& row : kRows) gpus_.push_back(GpuOf(row));
}

absl::Status GpuTable::Add(std::string_view json, std::string_view where) {
  ASSIGN_OR_RETURN(const Json file, Json::Parse(json));
  const Json* const list = file.Find("gpus");
  if (list == nullptr || !list->is_array()) {
    return InvalidArgument("{}: expected an object with a list \"gpus\", got {}", where,
                           file.type_name());
  }
  if (std::ssize(list->as_array()) > kMaxGpus) {
    return InvalidArgument("{}: expected at most {} GPUs, got {}", where, kMaxGpus,
                           list->as_array().size());
  }
  const plan::ConfigReader top(file, fmt::format("{}: ", where));
  for (const auto& [key, value] : file.members()) {
    if (key != "gpus" && key != "currency") {
      return InvalidArgument("{}: expected gpus or currency", top.PathOf(key));
    }
  }
  std::string currency = currency_;
  RETURN_IF_ERROR(ReadText(top, "currency", &currency));
  std::vector<Gpu> gpus = gpus_;
  std::set<std::string> named;
  for (size_t i = 0; i < list->as_array().size(); ++i) {
    const Json& object = list->as_array()[i];
    const std::string at = fmt::format("{}: gpus[{}]", where, i);
    if (!object.is_object()) {
      return InvalidArgument("{}: expected an object, got {}", at, object.type_name());
    }
    const plan::ConfigReader entry(object, at + ".");
    ASSIGN_OR_RETURN(const std::string name, entry.String("name"));
    if (!IsGpuName(name)) {
      return InvalidArgument(
          "{}: expected a name of small letters, digits, '-', '_' and '.', got '{:.80}'",
          entry.PathOf("name"), name);
    }
    if (!named.insert(name).second) {
      return InvalidArgument("{}: '{}' is there twice", entry.PathOf("name"), name);
    }
    const auto found =
        std::find_if(gpus.begin(), gpus.end(), [&](const Gpu& gpu) { return gpu.name == name; });
    Gpu gpu;
    const bool is_new = found == gpus.end();
    if (is_new) {
      gpu.name = gpu.family = name;
      gpu.link_kind = "unknown";
    } else {
      gpu = *found;
    }
    RETURN_IF_ERROR(ReadGpu(entry, is_new, gpu));
    if (is_new) {
      gpus.push_back(std::move(gpu));
    } else {
      *found = std::move(gpu);
    }
  }
  gpus_ = std::move(gpus);
  currency_ = std::move(currency);
  return absl::OkStatus();
}

absl::Status GpuTable::AddFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, limits::kMaxConfigFileBytes));
  const absl::Status added = Add(text, path);
  // A text that is no JSON does not say which file it was.
  return added.ok() || Message(added).starts_with(path) ? added : Annotate(added, path);
}

absl::StatusOr<Gpu> GpuTable::Find(std::string_view name) const {
  std::string names;
  for (const Gpu& gpu : gpus_) {
    if (gpu.name == name) return gpu;
    names += (names.empty() ? "" : ", ") + gpu.name;
  }
  return InvalidArgument("expected a GPU of {}, got '{:.80}' (--gpu-file adds more)", names, name);
}

absl::StatusOr<GpuChoice> ParseGpuChoice(const GpuTable& table, std::string_view text) {
  GpuChoice choice;
  const size_t colon = text.rfind(':');
  if (colon != std::string_view::npos) {
    const std::string count(text.substr(colon + 1));
    if (!absl::SimpleAtoi(count, &choice.count) || choice.count < 1 ||
        choice.count > limits::kMaxRanks) {
      return InvalidArgument("expected NAME or NAME:N with N from 1 to {}, got '{:.80}'",
                             limits::kMaxRanks, text);
    }
  }
  ASSIGN_OR_RETURN(choice.gpu, table.Find(text.substr(0, colon)));
  return choice;
}

std::string GpuTableText(const GpuTable& table) {
  Table figures(
      {"GPU", "memory", "GB/s", "TFLOP/s", "fp8", "link GB/s", "link", "sm", "SMs", "per hour"});
  std::string sources;
  for (const Gpu& gpu : table.gpus()) {
    figures.Add({gpu.name, Gibibytes(gpu.memory_bytes), Rate(gpu.bandwidth / kGiga),
                 Rate(gpu.operations / kTera),
                 gpu.fp8_operations > 0 ? Rate(gpu.fp8_operations / kTera) : "-",
                 Rate(gpu.link / kGiga), gpu.link_kind,
                 fmt::format("{}.{}", gpu.compute_capability / 10, gpu.compute_capability % 10),
                 fmt::format("{}", gpu.num_multiprocessors),
                 gpu.price_per_hour > 0 ? fmt::format("{:.2f}", gpu.price_per_hour) : "-"});
    sources +=
        fmt::format("  {}: memory: {}; rates: {}\n", gpu.name, gpu.memory_source, gpu.rates_source);
    if (gpu.measured_bandwidth > 0 || gpu.measured_operations > 0) {
      sources +=
          fmt::format("  {}: measured {:.0f} GB/s of reads, {:.0f} TFLOP/s of products\n", gpu.name,
                      gpu.measured_bandwidth / kGiga, gpu.measured_operations / kTera);
    }
  }
  return figures.ToString() +
         "\nmemory: what programs may use, ECC and firmware taken off. GB/s: of that memory. "
         "TFLOP/s: dense 16-bit products summed\nin float32. link: to peers, both ways together.\n"
         "\nsources\n" +
         sources;
}

std::string GpuTableJson(const GpuTable& table) {
  Json list = Json::MakeArray();
  for (const Gpu& gpu : table.gpus()) {
    list.Append(Json::MakeObject({{"name", gpu.name},
                                  {"family", gpu.family},
                                  {"memory_bytes", gpu.memory_bytes},
                                  {"bytes_per_second", gpu.bandwidth},
                                  {"flops", gpu.operations},
                                  {"fp8_flops", gpu.fp8_operations},
                                  {"measured_bytes_per_second", gpu.measured_bandwidth},
                                  {"measured_flops", gpu.measured_operations},
                                  {"link_bytes_per_second", gpu.link},
                                  {"link", gpu.link_kind},
                                  {"compute_capability", gpu.compute_capability},
                                  {"multiprocessors", gpu.num_multiprocessors},
                                  {"memory_source", gpu.memory_source},
                                  {"rates_source", gpu.rates_source},
                                  {"price_per_hour", gpu.price_per_hour}}));
  }
  return Json::MakeObject({{"gpus", std::move(list)}}).Dump() + "\n";
}

}  // namespace polyreme::sizing
