// A checkpoint directory: one model.safetensors, or several files named by
// model.safetensors.index.json.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "parallel/base/status.h"
#include "worker/weights/safetensors.h"

namespace polyreme::weights {

class Checkpoint {
 public:
  struct Tensor {
    const TensorEntry* entry = nullptr;
    const SafetensorsFile* file = nullptr;
    const std::byte* data() const { return file->DataOf(*entry); }
    std::string Where() const { return file->path() + ": " + entry->name; }  // for messages
  };

  // Opens and checks every file. DataLoss if a name is in two files, or the index and the files
  // disagree; NotFound if there is no checkpoint. File names of an index may not leave the
  // directory.
  static absl::StatusOr<Checkpoint> Open(const std::string& directory);

  const std::string& directory() const { return directory_; }
  // nullptr if there is none of this name.
  const Tensor* Find(std::string_view name) const;
  const std::vector<Tensor>& tensors() const { return tensors_; }  // in order of name
  int64_t data_bytes() const;                                      // of all files
  // Says which checkpoint this is: a hash of config.json, the index, each file's header and size,
  // and pages of data spread over each file. The same for equal directories wherever they are; 16
  // hexadecimal digits. Reads about 64 KiB a file.
  const std::string& fingerprint() const { return fingerprint_; }
  // DataLoss names a file that has changed since Open.
  absl::Status CheckUnchanged() const;

 private:
  Checkpoint() = default;
  absl::Status Index();

  std::string directory_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::vector<Tensor> tensors_;
  absl::flat_hash_map<std::string, size_t> by_name_;
  std::string fingerprint_;
};

}  // namespace polyreme::weights
