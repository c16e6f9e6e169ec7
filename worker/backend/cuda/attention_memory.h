// The memory that attention.cc plans into, and owners of what CUDA made.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "worker/backend/cuda/cuda_status.h"
#include "worker/backend/cuda/workspace.h"

namespace polyreme::cuda {

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
