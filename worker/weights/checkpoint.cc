#include "worker/weights/checkpoint.h"

#include <algorithm>
#include <string>

#include "absl/container/flat_hash_set.h"
#include "parallel/base/file.h"
#include "parallel/base/json.h"
#include "parallel/base/limits.h"
#include "worker/weights/fingerprint.h"

namespace polyreme::weights {
namespace {

constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";
constexpr int64_t kPageBytes = 4096;
constexpr int64_t kHashedPages = 16;

void AddFile(const SafetensorsFile& file, std::string_view name, Fingerprint& hash) {
  hash.Add(name);
  hash.Add(file.header());
  hash.Add(file.file_bytes());
  // A fine-tuned twin has the same header: look at some of the data, the last page included.
  const int64_t last = std::max<int64_t>(0, file.data_bytes() - kPageBytes);
  for (int64_t page = 0; page < kHashedPages; ++page) {
    const int64_t begin = last / (kHashedPages - 1) * page;
    hash.Add(file.data() + begin, std::min(kPageBytes, file.data_bytes() - begin));
  }
  hash.Add(file.data() + last, file.data_bytes() - last);
}

// Name of tensor -> name of file, as the index has it.
using WeightMap = absl::flat_hash_map<std::string, std::string>;

absl::StatusOr<WeightMap> ParseIndex(std::string_view text, const std::string& path) {
  const absl::StatusOr<Json> json = Json::Parse(text);
  if (!json.ok()) return DataLoss("{}: {}", path, Message(json.status()));
  const Json* map = json->Find("weight_map");
  if (map == nullptr || !map->is_object() || map->members().empty()) {
    return DataLoss("{}: expected weight_map to be an object of file names", path);
  }
  WeightMap files;
  for (const Json::Member& member : map->members()) {
    if (!member.second.is_string()) {
      return DataLoss("{}: {}: expected the name of a file", path, member.first);
    }
    const std::string& file = member.second.as_string();
    if (file.empty() || file[0] == '.' || file.find('/') != std::string::npos ||
        file.find('\0') != std::string::npos) {
      return DataLoss("{}: {}: expected a file of this directory, got '{:.80}'", path, member.first,
                      file);
    }
    files.emplace(member.first, file);
  }
  return files;
}

// Each tensor stands in the file that the index names, and in no other.
absl::Status CheckIndex(const WeightMap& index, const std::string& directory,
                        const std::vector<Checkpoint::Tensor>& tensors) {
  for (const Checkpoint::Tensor& tensor : tensors) {
    const auto row = index.find(tensor.entry->name);
    if (row == index.end()) return DataLoss("{}: the index does not name it", tensor.Where());
    if (directory + "/" + row->second != tensor.file->path()) {
      return DataLoss("{}: the index says it is in {}", tensor.Where(), row->second);
    }
  }
  if (index.size() == tensors.size()) return absl::OkStatus();
  absl::flat_hash_set<std::string_view> held;
  for (const Checkpoint::Tensor& tensor : tensors) held.insert(tensor.entry->name);
  for (const auto& [name, file] : index) {
    if (held.contains(std::string_view(name))) continue;
    return DataLoss("{}/{}: {}: the index names it, the file does not have it", directory, file,
                    name);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& directory) {
  Checkpoint checkpoint;
  checkpoint.directory_ = directory;
  Fingerprint hash;
  ASSIGN_OR_RETURN(const std::string config,
                   ReadFile(directory + "/config.json", limits::kMaxConfigFileBytes));
  hash.Add(config);
  std::vector<std::string> names = {std::string(kSingleFile)};
  WeightMap index;
  if (!FileExists(directory + "/" + names[0])) {
    const std::string path = directory + "/" + std::string(kIndexFile);
    const absl::StatusOr<std::string> text = ReadFile(path, limits::kMaxSafetensorsHeaderBytes);
    if (absl::IsNotFound(text.status())) {
      return NotFound("{}: expected {} or {}", directory, kSingleFile, kIndexFile);
    }
    RETURN_IF_ERROR(text.status());
    hash.Add(*text);
    ASSIGN_OR_RETURN(index, ParseIndex(*text, path));
    names.clear();
    for (const auto& [tensor, file] : index) names.push_back(file);
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    if (names.size() > size_t{limits::kMaxCheckpointFiles}) {
      return DataLoss("{}: expected at most {} files, got {}", path, limits::kMaxCheckpointFiles,
                      names.size());
    }
  }
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file,
                     SafetensorsFile::Open(directory + "/" + name));
    AddFile(*file, name, hash);
    checkpoint.files_.push_back(std::move(file));
  }
  checkpoint.fingerprint_ = hash.ToString();
  RETURN_IF_ERROR(checkpoint.Index());
  if (!index.empty()) RETURN_IF_ERROR(CheckIndex(index, directory, checkpoint.tensors_));
  return checkpoint;
}

absl::Status Checkpoint::Index() {
  for (const std::unique_ptr<SafetensorsFile>& file : files_) {
    for (const TensorEntry& entry : file->tensors()) {
      tensors_.push_back({.entry = &entry, .file = file.get()});
    }
  }
  std::sort(tensors_.begin(), tensors_.end(),
            [](const Tensor& a, const Tensor& b) { return a.entry->name < b.entry->name; });
  by_name_.reserve(tensors_.size());
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const auto [row, is_new] = by_name_.emplace(tensors_[i].entry->name, i);
    if (!is_new) {
      return DataLoss("{}: also in {}", tensors_[i].Where(), tensors_[row->second].file->path());
    }
  }
  return absl::OkStatus();
}

const Checkpoint::Tensor* Checkpoint::Find(std::string_view name) const {
  const auto row = by_name_.find(std::string(name));
  return row == by_name_.end() ? nullptr : &tensors_[row->second];
}

int64_t Checkpoint::data_bytes() const {
  int64_t bytes = 0;
  for (const std::unique_ptr<SafetensorsFile>& file : files_) bytes += file->data_bytes();
  return bytes;
}

absl::Status Checkpoint::CheckUnchanged() const {
  for (const std::unique_ptr<SafetensorsFile>& file : files_) {
    RETURN_IF_ERROR(file->CheckUnchanged());
  }
  return absl::OkStatus();
}

}  // namespace polyreme::weights
