// What is known of GPUs before one is bought: memory, rates, links, and where each figure is from.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/base/status.h"

namespace polyreme::sizing {

// Decimal units: bytes and operations per second.
struct Gpu {
  std::string name;           // "a100-80g-sxm4"
  std::string family;         // GPUs that reach like shares of their ceilings: "hopper", "ada", ...
  int64_t memory_bytes = 0;   // as the driver reports it to programs
  double bandwidth = 0;       // of its memory, as its maker says
  double operations = 0;      // dense 16-bit products, summed in float32, as its maker says
  double fp8_operations = 0;  // 0: none
  double link = 0;            // to peers, both ways together
  std::string link_kind;      // "NVLink 4", "PCIe 4 x16"
  int32_t compute_capability = 0;
  int32_t num_multiprocessors = 0;
  // Measured by `polyreme devices --measure`; 0: not.
  double measured_bandwidth = 0;
  double measured_operations = 0;
  std::string memory_source;
  std::string rates_source;
  double price_per_hour = 0;  // of one, in the currency of the user's file; 0: not known

  bool has_bf16() const { return compute_capability >= 80; }
  // What rooflines are made of: measured where it was.
  double best_bandwidth() const { return measured_bandwidth > 0 ? measured_bandwidth : bandwidth; }
  double best_operations() const {
    return measured_operations > 0 ? measured_operations : operations;
  }
};

class GpuTable {
 public:
  GpuTable();  // those that are built in

  // Adds those of a user's file, or changes what it names of those that are there: an object
  // {"gpus": [{"name": "h200", "price_per_hour": 3.5}, {"name": "mine", "memory_gib": 80,
  // "bandwidth_gbs": 2000, "tflops": 300, ...}]}. InvalidArgument names the entry and the key:
  // unknown, missing, of another type, out of range, given twice. `where`: for messages.
  absl::Status Add(std::string_view json, std::string_view where);
  absl::Status AddFile(const std::string& path);

  // InvalidArgument lists the names there are.
  absl::StatusOr<Gpu> Find(std::string_view name) const;
  const std::vector<Gpu>& gpus() const { return gpus_; }
  std::string currency() const { return currency_; }  // of prices, "" if the file does not say

 private:
  std::vector<Gpu> gpus_;
  std::string currency_;
};

// "h200:2": a GPU and how many; 0 without a number. InvalidArgument.
struct GpuChoice {
  Gpu gpu;
  int32_t count = 0;
};
absl::StatusOr<GpuChoice> ParseGpuChoice(const GpuTable& table, std::string_view text);

// Tables for `--gpu list`.
std::string GpuTableText(const GpuTable& table);
std::string GpuTableJson(const GpuTable& table);

}  // namespace polyreme::sizing
