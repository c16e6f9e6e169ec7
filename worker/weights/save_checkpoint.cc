// Files are laid out first, each of their bytes with its place; then threads make and write pieces
// of tensors wherever they come to.
#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <mutex>
#include <system_error>
#include <thread>

#include "parallel/base/file.h"
#include "parallel/base/json.h"
#include "parallel/base/limits.h"
#include "worker/weights/dummy.h"

namespace polyreme::weights {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPieceBytes = int64_t{8} << 20;
constexpr std::string_view kTemporarySuffix = ".partial";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";
// What is copied beside the weights, as far as it is there.
constexpr std::string_view kCopiedFiles[] = {"config.json",
                                             "generation_config.json",
                                             "tokenizer.json",
                                             "tokenizer_config.json",
                                             "special_tokens_map.json",
                                             "added_tokens.json",
                                             "vocab.json",
                                             "merges.txt",
                                             "tokenizer.model",
                                             "chat_template.jinja",
                                             "chat_template.json",
                                             "additional_chat_templates/tool_use.jinja"};
constexpr int64_t kCopiedBytesMax = int64_t{1} << 30;

// What a system call said of `path`.
absl::Status WriteError(const std::string& path, int error) {
  const std::string text = std::generic_category().message(error);
  if (error == ENOSPC || error == EDQUOT) {
    return ResourceExhausted("{}: the disk is full: {}", path, text);
  }
  return FailedPrecondition("{}: cannot be written: {}", path, text);
}

// A file under a temporary name, which goes away unless Publish gives it its own.
class PendingFile {
 public:
  explicit PendingFile(std::string path)
      : path_(std::move(path)), temporary_(path_ + std::string(kTemporarySuffix)) {}
  PendingFile(const PendingFile&) = delete;
  PendingFile& operator=(const PendingFile&) = delete;
  ~PendingFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (!published_ && created_) ::unlink(temporary_.c_str());
  }

  absl::Status Create() {
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (descriptor_ < 0) return WriteError(temporary_, errno);
    created_ = true;
    return absl::OkStatus();
  }
  // Any thread.
  absl::Status WriteAt(int64_t offset, const void* data, int64_t bytes) const {
    const auto* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t count = ::pwrite(descriptor_, from, static_cast<size_t>(bytes), offset);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return WriteError(temporary_, errno);
      from += count;
      offset += count;
      bytes -= count;
    }
    return absl::OkStatus();
  }
  absl::Status Publish() {
    const int closed = ::close(descriptor_);
    descriptor_ = -1;
    if (closed != 0) return WriteError(temporary_, errno);
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) return WriteError(path_, errno);
    published_ = true;
    return absl::OkStatus();
  }

 private:
  const std::string path_;
  const std::string temporary_;
  int descriptor_ = -1;
  bool created_ = false;
  bool published_ = false;
};

absl::StatusOr<std::unique_ptr<PendingFile>> WritePending(const std::string& path,
                                                          std::string_view text) {
  auto file = std::make_unique<PendingFile>(path);
  RETURN_IF_ERROR(file->Create());
  RETURN_IF_ERROR(file->WriteAt(0, text.data(), static_cast<int64_t>(text.size())));
  return file;
}

int64_t NumElements(const ExpectedTensor& tensor) {
  int64_t count = 1;
  for (const int64_t extent : tensor.shape) count *= extent;
  return count;
}

// One .safetensors file to be.
struct FileLayout {
  std::string name;
  std::vector<const ExpectedTensor*> tensors;
  std::vector<int64_t> begins;  // of each tensor, bytes from the first byte of data
  int64_t data_bytes = 0;
  std::string header;  // with its length before it
};

std::string HeaderOf(const FileLayout& file, DType dtype) {
  Json header = Json::MakeObject();
  header.Set("__metadata__", Json::MakeObject({{"format", "pt"}}));  // Transformers insists on it
  for (size_t i = 0; i < file.tensors.size(); ++i) {
    const ExpectedTensor& tensor = *file.tensors[i];
    Json::Array shape(tensor.shape.begin(), tensor.shape.end());
    const int64_t end = file.begins[i] + NumElements(tensor) * SizeOf(dtype);
    header.Set(tensor.name, Json::MakeObject({{"dtype", SafetensorsName(dtype)},
                                              {"shape", std::move(shape)},
                                              {"data_offsets", Json::Array{file.begins[i], end}}}));
  }
  std::string text = header.Dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that tensors are aligned
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(text.size() >> (8 * i) & 255);
  return length + text;
}

std::vector<FileLayout> LayOut(const std::vector<ExpectedTensor>& tensors, DType dtype,
                               int64_t max_file_bytes) {
  std::vector<FileLayout> files;
  for (const ExpectedTensor& tensor : tensors) {
    const int64_t bytes = NumElements(tensor) * SizeOf(dtype);
    if (files.empty() || files.back().data_bytes + bytes > max_file_bytes) files.emplace_back();
    FileLayout& file = files.back();
    file.tensors.push_back(&tensor);
    file.begins.push_back(file.data_bytes);
    file.data_bytes += bytes;
  }
  for (size_t i = 0; i < files.size(); ++i) {
    files[i].name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, files.size());
    files[i].header = HeaderOf(files[i], dtype);
  }
  return files;
}

std::string IndexOf(const std::vector<FileLayout>& files) {
  Json map = Json::MakeObject();
  int64_t total = 0;
  for (const FileLayout& file : files) {
    total += file.data_bytes;
    for (const ExpectedTensor* tensor : file.tensors) map.Set(tensor->name, file.name);
  }
  Json index = Json::MakeObject({{"metadata", Json::MakeObject({{"total_size", total}})}});
  index.Set("weight_map", std::move(map));
  return index.Dump();
}

// Elements of one tensor and where they go.
struct Piece {
  const PendingFile* file = nullptr;
  int64_t offset = 0;
  DummyValues values;
  uint64_t begin = 0;
  int64_t count = 0;
};

// Makes and writes pieces on several threads. The first error ends it.
class PieceWriter {
 public:
  PieceWriter(DType dtype, std::vector<Piece> pieces, const SaveOptions& options)
      : dtype_(dtype), pieces_(std::move(pieces)), options_(options) {
    for (const Piece& piece : pieces_) total_ += piece.count * SizeOf(dtype_);
  }

  absl::Status Run() {
    int32_t num_threads = options_.num_threads;
    if (num_threads <= 0) num_threads = static_cast<int32_t>(std::thread::hardware_concurrency());
    std::vector<std::thread> threads;
    for (int32_t i = 1; i < num_threads; ++i) threads.emplace_back([this] { Work(); });
    Work();
    for (std::thread& thread : threads) thread.join();
    return status_;
  }

 private:
  void Work() {
    std::vector<std::byte> bytes(static_cast<size_t>(kPieceBytes));
    for (;;) {
      const size_t next = next_.fetch_add(1);
      if (next >= pieces_.size()) return;
      const Piece& piece = pieces_[next];
      const int64_t size = piece.count * SizeOf(dtype_);
      FillDummy(piece.values, dtype_, piece.begin, piece.count, bytes.data());
      const absl::Status written = piece.file->WriteAt(piece.offset, bytes.data(), size);
      const std::lock_guard lock(mutex_);
      if (!written.ok()) {
        if (status_.ok()) status_ = written;
        next_ = pieces_.size();
        return;
      }
      done_ += size;
      if (options_.progress) options_.progress(done_, total_);
    }
  }

  const DType dtype_;
  const std::vector<Piece> pieces_;
  const SaveOptions& options_;
  int64_t total_ = 0;
  std::atomic<size_t> next_ = 0;
  std::mutex mutex_;
  int64_t done_ = 0;     // under mutex_
  absl::Status status_;  // under mutex_ until the threads are joined
};

void AppendPieces(const plan::ModelSpec& spec, const FileLayout& layout, const PendingFile& file,
                  uint64_t seed, std::vector<Piece>& pieces) {
  const int64_t element = SizeOf(spec.dtype);
  const int64_t step = kPieceBytes / element;
  for (size_t i = 0; i < layout.tensors.size(); ++i) {
    const ExpectedTensor& tensor = *layout.tensors[i];
    const DummyValues values = DummyValuesOf(spec, tensor, seed);
    const int64_t first = static_cast<int64_t>(layout.header.size()) + layout.begins[i];
    const int64_t count = NumElements(tensor);
    for (int64_t begin = 0; begin < count; begin += step) {
      pieces.push_back({.file = &file,
                        .offset = first + begin * element,
                        .values = values,
                        .begin = static_cast<uint64_t>(begin),
                        .count = std::min(step, count - begin)});
    }
  }
}

// Whether the files may go there: not over their own source, nor between another checkpoint's.
absl::Status CheckDirectory(const std::string& model_directory, const std::string& directory,
                            const std::vector<FileLayout>& files) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) return FailedPrecondition("{}: cannot be made: {}", directory, error.message());
  if (fs::equivalent(model_directory, directory, error)) {
    return AlreadyExists("{}: expected another directory than the model's own", directory);
  }
  for (const fs::directory_entry& entry : fs::directory_iterator(directory, error)) {
    if (entry.path().extension() != ".safetensors") continue;
    const std::string name = entry.path().filename().string();
    const bool is_ours = std::any_of(files.begin(), files.end(),
                                     [&](const FileLayout& file) { return file.name == name; });
    if (!is_ours) {
      return AlreadyExists("{}/{}: expected a directory without another checkpoint", directory,
                           name);
    }
  }
  if (error) return FailedPrecondition("{}: cannot be read: {}", directory, error.message());
  return absl::OkStatus();
}

// Files that will be replaced stay until the new ones are whole, so that their room does not count.
absl::Status CheckRoom(const std::string& directory, const std::vector<FileLayout>& files) {
  int64_t needed = 0;
  for (const FileLayout& file : files) {
    needed += file.data_bytes + static_cast<int64_t>(file.header.size());
  }
  struct statvfs info = {};
  if (::statvfs(directory.c_str(), &info) != 0) return absl::OkStatus();  // then writing will tell
  const auto free = static_cast<int64_t>(info.f_bavail * info.f_frsize);
  if (needed <= free) return absl::OkStatus();
  return ResourceExhausted("{}: the disk is full: {} bytes are needed, {} are free", directory,
                           needed, free);
}

// The copies of what stands beside the weights, ready to be published.
absl::Status AppendCopies(const std::string& model_directory, const std::string& directory,
                          std::vector<std::unique_ptr<PendingFile>>& files) {
  for (const std::string_view name : kCopiedFiles) {
    const fs::path from = fs::path(model_directory) / name;
    if (!FileExists(from.string())) continue;
    const fs::path to = fs::path(directory) / name;
    std::error_code error;
    fs::create_directories(to.parent_path(), error);
    if (error) return FailedPrecondition("{}: cannot be made: {}", to.string(), error.message());
    ASSIGN_OR_RETURN(const std::string text, ReadFile(from.string(), kCopiedBytesMax));
    ASSIGN_OR_RETURN(std::unique_ptr<PendingFile> file, WritePending(to.string(), text));
    files.push_back(std::move(file));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status SaveDummyCheckpoint(const plan::ModelSpec& spec, const std::string& model_directory,
                                 const std::string& directory, const SaveOptions& options) {
  const std::vector<ExpectedTensor> tensors = ExpectedTensors(spec);
  const std::vector<FileLayout> layouts = LayOut(tensors, spec.dtype, options.max_file_bytes);
  RETURN_IF_ERROR(CheckDirectory(model_directory, directory, layouts));
  RETURN_IF_ERROR(CheckRoom(directory, layouts));

  std::vector<std::unique_ptr<PendingFile>> files;
  std::vector<Piece> pieces;
  for (const FileLayout& layout : layouts) {
    ASSIGN_OR_RETURN(std::unique_ptr<PendingFile> file,
                     WritePending(directory + "/" + layout.name, layout.header));
    AppendPieces(spec, layout, *file, options.seed, pieces);
    files.push_back(std::move(file));
  }
  RETURN_IF_ERROR(AppendCopies(model_directory, directory, files));
  ASSIGN_OR_RETURN(std::unique_ptr<PendingFile> index,
                   WritePending(directory + "/" + std::string(kIndexFile), IndexOf(layouts)));
  files.push_back(std::move(index));

  RETURN_IF_ERROR(PieceWriter(spec.dtype, std::move(pieces), options).Run());
  // Nothing is forced to the disk: after a power cut the same command makes the same files.
  for (const std::unique_ptr<PendingFile>& file : files) RETURN_IF_ERROR(file->Publish());
  return absl::OkStatus();
}

}  // namespace polyreme::weights
