// Reads one .safetensors file: an 8-byte length, a JSON header, then the tensors' bytes without
// holes.
//
// The format has no checksum, so what can be checked is: the header fits the file, each tensor's
// range has the size that its type and shape ask for, and the ranges tile the data exactly. The
// same files are refused as by the format's reference reader; duplicate names as well.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/base/status.h"
#include "parallel/tensor/tensor.h"

namespace polyreme::weights {

// One tensor as its header describes it.
struct TensorEntry {
  std::string name;
  std::string dtype;  // as the file spells it: "BF16", "F8_E4M3", ...
  std::vector<int64_t> shape;
  int64_t begin = 0;  // bytes, from the first byte of data
  int64_t end = 0;
  int64_t bytes() const { return end - begin; }
};

// "F32", "F16" or "BF16".
std::string_view SafetensorsName(DType dtype);

// The header alone: what is in `text`, checked against `data_bytes`, the bytes that follow it.
// Entries in order of name. DataLoss names the tensor and says what is wrong.
absl::StatusOr<std::vector<TensorEntry>> ParseSafetensorsHeader(std::string_view text,
                                                                int64_t data_bytes);

// A file mapped read-only. Immutable, any thread. The bytes are valid while the object lives; a
// file that another process shortens under the mapping raises SIGBUS, one that it rewrites is seen
// by CheckUnchanged.
class SafetensorsFile {
 public:
  // NotFound or FailedPrecondition if the file cannot be opened or mapped, DataLoss if it is
  // malformed; each names the path.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const std::vector<TensorEntry>& tensors() const { return tensors_; }  // in order of name
  // Borrowed; element-aligned is not promised.
  const std::byte* DataOf(const TensorEntry& tensor) const { return data_ + tensor.begin; }
  std::string_view header() const;  // the JSON text
  int64_t file_bytes() const { return file_bytes_; }
  int64_t data_bytes() const { return file_bytes_ - (data_ - map_); }
  const std::byte* data() const { return data_; }
  // DataLoss if the file's size or time of change is not what it was at Open.
  absl::Status CheckUnchanged() const;

 private:
  SafetensorsFile() = default;
  std::string path_;
  const std::byte* map_ = nullptr;
  const std::byte* data_ = nullptr;
  int64_t file_bytes_ = 0;
  int64_t changed_at_ns_ = 0;
  std::vector<TensorEntry> tensors_;
};

}  // namespace polyreme::weights
