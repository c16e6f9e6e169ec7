#include "worker/backend/cpu/cpu_device.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>

namespace polyreme::backend {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kPageBytes = 4096;
constexpr int64_t kHugePageBytes = int64_t{2} << 20;

int64_t RoundUp(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

// The number after `key` in a file of "key value" lines, or -1.
int64_t ReadField(const char* path, const std::string& key) {
  std::ifstream file(path);
  std::string word;
  while (file >> word) {
    int64_t value = 0;
    if (word == key) return file >> value ? value : -1;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return -1;
}

// The file's only number; -1 when the file is absent or says "max".
int64_t ReadNumber(const char* path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : -1;
}

// What the control group still allows (version 2, then 1), page cache counted as free; -1 without a
// limit.
int64_t GroupFreeBytes() {
  int64_t limit = ReadNumber("/sys/fs/cgroup/memory.max");
  int64_t used = ReadNumber("/sys/fs/cgroup/memory.current");
  int64_t cache = ReadField("/sys/fs/cgroup/memory.stat", "inactive_file");
  if (limit < 0) {
    limit = ReadNumber("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    used = ReadNumber("/sys/fs/cgroup/memory/memory.usage_in_bytes");
    cache = ReadField("/sys/fs/cgroup/memory/memory.stat", "total_inactive_file");
  }
  if (limit < 0 || used < 0) return -1;
  return std::max<int64_t>(0, limit - used + std::max<int64_t>(0, cache));
}

}  // namespace

TensorView CpuLane::Scratch(DType dtype, const Shape& shape) {
  TensorView view{nullptr, dtype, shape};
  const int64_t bytes = RoundUp(view.bytes(), kAlignment);
  CHECK(bytes <= arena_.bytes() - used_, "scratch {} of {} exceeds the arena: {} of {} bytes taken",
        shape.ToString(), NameOf(dtype), used_, arena_.bytes());
  view.data = static_cast<std::byte*>(arena_.data()) + used_;
  used_ += bytes;
  return view;
}

void CpuLane::RestoreScratch(int64_t watermark) {
  CHECK(watermark >= 0 && watermark <= used_, "watermark {} of {} bytes taken", watermark, used_);
  used_ = watermark;
}

absl::Status CpuLane::Wait(LaneMark mark, absl::Time) {
  CHECK(mark.value <= marks_, "mark {} was never made; the last is {}", mark.value, marks_.load());
  return status();
}

void CpuLane::Replay(const ReplayKey&, absl::FunctionRef<void()> body) {
  body();
}

std::string CpuDevice::name() const {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "x86-64 processor";
}

absl::StatusOr<Buffer> CpuDevice::Allocate(int64_t bytes) {
  CHECK(bytes >= 0, "a buffer of {} bytes", bytes);
  if (bytes == 0) return Buffer();
  const bool huge = bytes >= kHugePageBytes;
  const int64_t free_bytes = huge ? FreeBytes() : std::numeric_limits<int64_t>::max();
  // A big mapping is made one huge page longer and begun on a huge page's boundary: fewer misses of
  // the TLB.
  const int64_t length =
      RoundUp(bytes, huge ? kHugePageBytes : kPageBytes) + (huge ? kHugePageBytes : 0);
  void* base = MAP_FAILED;
  if (bytes <= free_bytes) {
    base = mmap(nullptr, static_cast<size_t>(length), PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  if (base == MAP_FAILED) {
    return ResourceExhausted("expected {} bytes of memory, {} are free", bytes, FreeBytes());
  }
  void* data = base;
  if (huge) {
    data = reinterpret_cast<void*>(
        RoundUp(static_cast<int64_t>(reinterpret_cast<intptr_t>(base)), kHugePageBytes));
    // Advice only; a kernel without huge pages says no, and nothing is lost.
    (void)madvise(data, static_cast<size_t>(RoundUp(bytes, kHugePageBytes)), MADV_HUGEPAGE);
  }
  *used_ += bytes;
  return Buffer(data, bytes, [base, length, bytes, used = used_](void*) {
    munmap(base, static_cast<size_t>(length));
    *used -= bytes;
  });
}

absl::StatusOr<std::unique_ptr<Lane>> CpuDevice::MakeLane(int64_t scratch_bytes) {
  ASSIGN_OR_RETURN(Buffer arena, Allocate(scratch_bytes));
  return std::make_unique<CpuLane>(std::move(arena));
}

absl::Status CpuDevice::CopyFromHost(const void* from, int64_t bytes, void* to) {
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
  return absl::OkStatus();
}

absl::Status CpuDevice::CopyToHost(const void* from, int64_t bytes, void* to) {
  return CopyFromHost(from, bytes, to);
}

void CpuDevice::Upload(Lane& lane, const void* from, int64_t bytes, void* to) {
  if (lane.ok() && bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}

void CpuDevice::Download(Lane& lane, const void* from, int64_t bytes, void* to) {
  Upload(lane, from, bytes, to);
}

void CpuDevice::Copy(Lane& lane, const void* from, int64_t bytes, void* to) {
  Upload(lane, from, bytes, to);
}

int64_t CpuDevice::TotalBytes() const {
  return ReadField("/proc/meminfo", "MemTotal:") * 1024;
}

int64_t CpuDevice::FreeBytes() const {
  const int64_t available = ReadField("/proc/meminfo", "MemAvailable:") * 1024;
  const int64_t group = GroupFreeBytes();
  return group >= 0 ? std::min(group, available) : available;
}

}  // namespace polyreme::backend
