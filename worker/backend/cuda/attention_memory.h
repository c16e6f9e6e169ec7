// The memory that attention.cc plans into, and owners of what CUDA made.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "worker/backend/cuda/cuda_status.h"

namespace polyreme::cuda {

inline constexpr int64_t kPartAlignment = 256;
inline int64_t Aligned(int64_t bytes) {
  return (bytes + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
}

// Bytes of each part of the device memory, in this order; staged and fa2_ints lie in pinned memory
// too.
struct AttentionParts {
  int64_t staged = 0;
  int64_t fa2_ints = 0;
  int64_t pages = 0;
  int64_t decode_plan = 0;
  int64_t partials = 0;
  int64_t fa2_floats = 0;

  int64_t host_bytes() const { return Aligned(staged) + Aligned(fa2_ints); }
  int64_t device_bytes() const {
    return host_bytes() + Aligned(pages) + Aligned(decode_plan) + Aligned(partials) +
           Aligned(fa2_floats);
  }
  bool Holds(const AttentionParts& other) const {
    return staged >= other.staged && fa2_ints >= other.fa2_ints && pages >= other.pages &&
           decode_plan >= other.decode_plan && partials >= other.partials &&
           fa2_floats >= other.fa2_floats;
  }
  static AttentionParts Max(const AttentionParts& a, const AttentionParts& b) {
    return {std::max(a.staged, b.staged),     std::max(a.fa2_ints, b.fa2_ints),
            std::max(a.pages, b.pages),       std::max(a.decode_plan, b.decode_plan),
            std::max(a.partials, b.partials), std::max(a.fa2_floats, b.fa2_floats)};
  }
};

// Pointers to the parts.
struct AttentionMemory {
  int32_t* staged = nullptr;
  void* fa2_ints = nullptr;
  int32_t* pages = nullptr;
  void* decode_plan = nullptr;
  float* partials = nullptr;
  void* fa2_floats = nullptr;

  AttentionMemory() = default;
  AttentionMemory(void* base, const AttentionParts& parts) {
    auto* next = static_cast<std::byte*>(base);
    const auto take = [&next](int64_t bytes) {
      void* const part = next;
      next += Aligned(bytes);
      return part;
    };
    staged = static_cast<int32_t*>(take(parts.staged));
    fa2_ints = take(parts.fa2_ints);
    pages = static_cast<int32_t*>(take(parts.pages));
    decode_plan = take(parts.decode_plan);
    partials = static_cast<float*>(take(parts.partials));
    fa2_floats = take(parts.fa2_floats);
  }
};

// Owns what CUDA made.
struct DeviceFree {
  void operator()(void* memory) const { (void)cudaFree(memory); }
};
struct HostFree {
  void operator()(void* memory) const { (void)cudaFreeHost(memory); }
};
struct StreamFree {
  void operator()(cudaStream_t stream) const { (void)cudaStreamDestroy(stream); }
};
struct EventFree {
  void operator()(cudaEvent_t event) const { (void)cudaEventDestroy(event); }
};
using StreamHandle = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, StreamFree>;
using EventHandle = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, EventFree>;

inline absl::StatusOr<EventHandle> MakeEvent() {
  cudaEvent_t event = nullptr;
  RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
  return EventHandle(event);
}

// Pinned memory that a plan is written to. There are two, so that the copy of one step's plan may
// still be under way while the next one is made.
struct Staging {
  std::unique_ptr<void, HostFree> memory;
  EventHandle copied;
  bool used = false;
};

}  // namespace polyreme::cuda
