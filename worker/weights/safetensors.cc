#include "worker/weights/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "parallel/base/json.h"
#include "parallel/base/limits.h"

namespace polyreme::weights {
namespace {

constexpr int64_t kLengthBytes = 8;
constexpr size_t kMaxAxes = 16;

struct StoredType {
  std::string_view name;
  int64_t bits;
};
constexpr StoredType kStoredTypes[] = {
    {"BOOL", 8},    {"U8", 8},   {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8},
    {"F8_E8M0", 8}, {"I16", 16}, {"U16", 16}, {"F16", 16},    {"BF16", 16},
    {"I32", 32},    {"U32", 32}, {"F32", 32}, {"C64", 64},    {"F64", 64},
    {"I64", 64},    {"U64", 64}, {"F4", 4},   {"F6_E2M3", 6}, {"F6_E3M2", 6},
};

// Bytes that a tensor of this type and shape takes; DataLoss on overflow or half a byte.
absl::StatusOr<int64_t> ExpectedBytes(const TensorEntry& tensor) {
  const auto* type = std::find_if(std::begin(kStoredTypes), std::end(kStoredTypes),
                                  [&](const StoredType& row) { return row.name == tensor.dtype; });
  if (type == std::end(kStoredTypes)) {
    return DataLoss("{}: unknown dtype '{:.20}'", tensor.name, tensor.dtype);
  }
  int64_t bits = type->bits;
  for (const int64_t extent : tensor.shape) {
    if (__builtin_mul_overflow(bits, extent, &bits)) {
      return DataLoss("{}: shape overflows", tensor.name);
    }
  }
  if (bits % 8 != 0) return DataLoss("{}: ends within a byte", tensor.name);
  return bits / 8;
}

// A list of integers >= 0.
absl::StatusOr<std::vector<int64_t>> ParseSizes(const Json* list, std::string_view tensor,
                                                std::string_view key) {
  std::vector<int64_t> sizes;
  if (list == nullptr || !list->is_array() || list->as_array().size() > kMaxAxes) {
    return DataLoss("{}: expected {} to be a list of at most {} numbers", tensor, key, kMaxAxes);
  }
  for (const Json& size : list->as_array()) {
    if (!size.is_int() || size.as_int() < 0) {
      return DataLoss("{}: expected {} to hold integers from 0 up, got {:.40}", tensor, key,
                      size.Dump());
    }
    sizes.push_back(size.as_int());
  }
  return sizes;
}

absl::StatusOr<TensorEntry> ParseEntry(const std::string& name, const Json& json,
                                       int64_t data_bytes) {
  TensorEntry tensor;
  tensor.name = name;
  if (!json.is_object()) return DataLoss("{}: expected an object, got {}", name, json.type_name());
  for (const Json::Member& member : json.members()) {
    if (member.first != "dtype" && member.first != "shape" && member.first != "data_offsets") {
      return DataLoss("{}: unknown key '{:.40}'", name, member.first);
    }
  }
  const Json* dtype = json.Find("dtype");
  if (dtype == nullptr || !dtype->is_string()) return DataLoss("{}: expected a dtype", name);
  tensor.dtype = dtype->as_string();
  ASSIGN_OR_RETURN(tensor.shape, ParseSizes(json.Find("shape"), name, "shape"));
  ASSIGN_OR_RETURN(const std::vector<int64_t> offsets,
                   ParseSizes(json.Find("data_offsets"), name, "data_offsets"));
  if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > data_bytes) {
    return DataLoss("{}: expected data_offsets [begin, end] within {} bytes of data, got {:.80}",
                    name, data_bytes, json.Find("data_offsets")->Dump());
  }
  tensor.begin = offsets[0];
  tensor.end = offsets[1];
  ASSIGN_OR_RETURN(const int64_t expected, ExpectedBytes(tensor));
  if (expected != tensor.bytes()) {
    return DataLoss("{}: {} of its shape take {} bytes, data_offsets give it {}", name,
                    tensor.dtype, expected, tensor.bytes());
  }
  return tensor;
}

// The ranges, in order of place, must follow each other from the first byte to the last.
absl::Status CheckTiling(const std::vector<TensorEntry>& tensors, int64_t data_bytes) {
  std::vector<const TensorEntry*> by_place;
  for (const TensorEntry& tensor : tensors) by_place.push_back(&tensor);
  std::sort(by_place.begin(), by_place.end(), [](const TensorEntry* a, const TensorEntry* b) {
    return std::pair(a->begin, a->end) < std::pair(b->begin, b->end);
  });
  int64_t place = 0;
  for (const TensorEntry* tensor : by_place) {
    if (tensor->begin != place) {
      return DataLoss("{}: {} at byte {} of the data, expected it to begin at byte {}",
                      tensor->name, tensor->begin < place ? "overlaps another" : "leaves a hole",
                      tensor->begin, place);
    }
    place = tensor->end;
  }
  if (place != data_bytes) {
    return DataLoss("expected {} bytes of data after the header, got {}", place, data_bytes);
  }
  return absl::OkStatus();
}

absl::Status CheckMetadata(const Json& metadata) {
  bool strings = metadata.is_object();
  if (strings) {
    for (const Json::Member& member : metadata.members()) strings &= member.second.is_string();
  }
  return strings ? absl::OkStatus() : DataLoss("__metadata__: expected an object of strings");
}

std::string ErrorText(int error) {
  return std::generic_category().message(error);
}

int64_t ChangedAt(const struct stat& info) {
  return int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
}

}  // namespace

std::string_view SafetensorsName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    default:
      CHECK(false, "{} is not written", NameOf(dtype));
  }
}

absl::StatusOr<std::vector<TensorEntry>> ParseSafetensorsHeader(std::string_view text,
                                                                int64_t data_bytes) {
  if (!text.starts_with('{')) return DataLoss("expected the header to begin with '{{'");
  absl::StatusOr<Json> json =
      Json::Parse(text, {.depth_max = 8, .bytes_max = limits::kMaxSafetensorsHeaderBytes});
  if (!json.ok()) return DataLoss("header: {}", Message(json.status()));
  std::vector<TensorEntry> tensors;
  if (json->members().size() > size_t{limits::kMaxTensorsPerFile}) {
    return DataLoss("expected at most {} tensors, got {}", limits::kMaxTensorsPerFile,
                    json->members().size());
  }
  tensors.reserve(json->members().size());
  for (const Json::Member& member : json->members()) {
    if (member.first == "__metadata__") {
      RETURN_IF_ERROR(CheckMetadata(member.second));
      continue;
    }
    ASSIGN_OR_RETURN(TensorEntry tensor, ParseEntry(member.first, member.second, data_bytes));
    tensors.push_back(std::move(tensor));
  }
  RETURN_IF_ERROR(CheckTiling(tensors, data_bytes));
  std::sort(tensors.begin(), tensors.end(),
            [](const TensorEntry& a, const TensorEntry& b) { return a.name < b.name; });
  return tensors;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    const int error = errno;
    if (error == ENOENT || error == ENOTDIR) return NotFound("{}: no such file", path);
    return FailedPrecondition("{}: cannot be opened: {}", path, ErrorText(error));
  }
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile);
  file->path_ = path;
  struct stat info = {};
  const bool regular = ::fstat(descriptor, &info) == 0 && S_ISREG(info.st_mode);
  file->file_bytes_ = info.st_size;
  file->changed_at_ns_ = ChangedAt(info);
  void* map = MAP_FAILED;
  if (regular && info.st_size > kLengthBytes) {
    map = ::mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_PRIVATE, descriptor, 0);
  }
  const int error = errno;
  ::close(descriptor);
  if (!regular) return FailedPrecondition("{}: expected a regular file", path);
  if (info.st_size <= kLengthBytes) {
    return DataLoss("{}: expected more than {} bytes, got {}", path, kLengthBytes, info.st_size);
  }
  if (map == MAP_FAILED) {
    return FailedPrecondition("{}: cannot be mapped: {}", path, ErrorText(error));
  }
  file->map_ = static_cast<const std::byte*>(map);

  uint64_t header_bytes = 0;
  for (int i = kLengthBytes - 1; i >= 0; --i) {
    header_bytes = header_bytes << 8 | static_cast<uint8_t>(file->map_[i]);
  }
  const int64_t most = std::min(limits::kMaxSafetensorsHeaderBytes, info.st_size - kLengthBytes);
  if (header_bytes > static_cast<uint64_t>(most)) {
    return DataLoss("{}: expected a header of at most {} bytes, got {}", path, most, header_bytes);
  }
  file->data_ = file->map_ + kLengthBytes + header_bytes;
  absl::StatusOr<std::vector<TensorEntry>> tensors =
      ParseSafetensorsHeader(file->header(), file->data_bytes());
  if (!tensors.ok()) return Annotate(tensors.status(), path);
  file->tensors_ = *std::move(tensors);
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  if (map_ == nullptr) return;
  ::munmap(const_cast<std::byte*>(map_), static_cast<size_t>(file_bytes_));
}

std::string_view SafetensorsFile::header() const {
  const std::byte* begin = map_ + kLengthBytes;
  return {reinterpret_cast<const char*>(begin), static_cast<size_t>(data_ - begin)};
}

absl::Status SafetensorsFile::CheckUnchanged() const {
  struct stat info = {};
  if (::stat(path_.c_str(), &info) == 0 && info.st_size == file_bytes_ &&
      ChangedAt(info) == changed_at_ns_) {
    return absl::OkStatus();
  }
  return DataLoss("{}: the file changed while it was read", path_);
}

}  // namespace polyreme::weights
