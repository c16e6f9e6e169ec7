// A whole .safetensors file, in memory: what opens is in bounds, byte by byte.
#include "worker/weights/safetensors.h"

#include <sys/mman.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"

namespace polyreme::weights {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int descriptor = memfd_create("safetensors_fuzz", MFD_CLOEXEC);
  CHECK(descriptor >= 0);
  CHECK(ftruncate(descriptor, static_cast<off_t>(size)) == 0);
  CHECK(pwrite(descriptor, data, size, 0) == static_cast<ssize_t>(size));
  const std::string path = "/proc/self/fd/" + std::to_string(descriptor);
  const absl::StatusOr<std::unique_ptr<SafetensorsFile>> file = SafetensorsFile::Open(path);
  if (!file.ok()) {
    fuzz::CheckRefusal(file.status());
    CHECK(Message(file.status()).find(path) != std::string::npos, "does not name the file");
    return 0;
  }
  int64_t bytes = 0;
  uint8_t sum = 0;
  for (const weights::TensorEntry& tensor : (*file)->tensors()) {
    CHECK(tensor.begin >= 0 && tensor.begin <= tensor.end && tensor.end <= (*file)->data_bytes());
    const std::byte* begin = (*file)->DataOf(tensor);
    for (int64_t i = 0; i < tensor.bytes(); ++i) sum ^= static_cast<uint8_t>(begin[i]);
    bytes += tensor.bytes();
  }
  [[maybe_unused]] static volatile uint8_t seen;
  seen = sum;
  CHECK(bytes == (*file)->data_bytes(), "a hole");
  CHECK((*file)->CheckUnchanged().ok());
  return 0;
}

}  // namespace polyreme::weights
