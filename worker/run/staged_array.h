// An array that exists once on the device, at a fixed address, and several times on the host: while
// the device may still read what one step staged, the next step writes elsewhere.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/tensor/device.h"

namespace polyreme::run {

template <class T>
requires std::is_trivially_copyable_v<T>
class StagedArray {
 public:
  StagedArray() = default;

  // capacity in elements; num_buffers: steps whose staging may be in use at once.
  static absl::StatusOr<StagedArray> Make(Device& device, int64_t capacity, int32_t num_buffers) {
    StagedArray array;
    array.device_ = &device;
    array.capacity_ = capacity;
    array.num_buffers_ = num_buffers;
    ASSIGN_OR_RETURN(array.on_device_, device.Allocate(capacity * kBytes));
    ASSIGN_OR_RETURN(array.on_host_, device.AllocateHost(capacity * num_buffers * kBytes));
    return array;
  }

  int64_t capacity() const { return capacity_; }
  T* device() const { return static_cast<T*>(on_device_.data()); }
  // The step's own copy; it stays until a step num_buffers later takes its place.
  T* host(StepId step) const {
    return static_cast<T*>(on_host_.data()) + step.value % num_buffers_ * capacity_;
  }
  // Elements [first, first + count) of the step's copy, in lane order.
  void Upload(Lane& lane, StepId step, int64_t first, int64_t count) const {
    CHECK(first >= 0 && count >= 0 && first + count <= capacity_, "[{}, {}) of {}", first,
          first + count, capacity_);
    if (count > 0) device_->Upload(lane, host(step) + first, count * kBytes, device() + first);
  }
  void Download(Lane& lane, StepId step, int64_t count) const {
    CHECK(count >= 0 && count <= capacity_, "{} of {}", count, capacity_);
    device_->Download(lane, device(), count * kBytes, host(step));
  }

 private:
  static constexpr int64_t kBytes = sizeof(T);

  Device* device_ = nullptr;
  int64_t capacity_ = 0;
  int32_t num_buffers_ = 1;
  Buffer on_device_;
  Buffer on_host_;
};

// Steps whose buffers may be in use at once: those in flight, and one being written.
inline int32_t NumStepBuffers(int32_t max_steps_in_flight) {
  return max_steps_in_flight + 1;
}

}  // namespace polyreme::run
