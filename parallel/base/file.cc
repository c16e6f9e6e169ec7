#include "parallel/base/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace polyreme {
namespace {

std::string ErrorText(int error) {
  return std::generic_category().message(error);
}

struct Descriptor {
  explicit Descriptor(int descriptor) : value(descriptor) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (value >= 0) ::close(value);
  }
  const int value;
};

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t bytes_max) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.value < 0) {
    if (errno == ENOENT || errno == ENOTDIR) return NotFound("{}: no such file", path);
    return FailedPrecondition("{}: cannot be opened: {}", path, ErrorText(errno));
  }
  struct stat info = {};
  if (::fstat(file.value, &info) != 0 || !S_ISREG(info.st_mode)) {
    return FailedPrecondition("{}: expected a regular file", path);
  }
  if (info.st_size > bytes_max) {
    return ResourceExhausted("{}: expected at most {} bytes, got {}", path, bytes_max,
                             info.st_size);
  }
  std::string text(static_cast<size_t>(info.st_size), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = ::read(file.value, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return FailedPrecondition("{}: cannot be read: {}", path, ErrorText(errno));
    if (count == 0) {
      return DataLoss("{}: expected {} bytes, but it ended after {}: it changed while it was read",
                      path, text.size(), done);
    }
    done += static_cast<size_t>(count);
  }
  return text;
}

bool FileExists(const std::string& path) {
  return ::access(path.c_str(), R_OK) == 0;
}

}  // namespace polyreme
