// Where std::bad_alloc ends (docs/decisions/0013): at the boundary of one request it is an error as
// any other; a thread that serves everybody draws on a reserve instead; what still reaches the
// boundary of a thread ends the process, named, and its agent starts it again.
#pragma once

#include <cstddef>
#include <new>
#include <type_traits>
#include <utility>

#include "parallel/base/status.h"

namespace polyreme {

// Unavailable: "the server is out of memory ...". Made when the program starts, so that saying it
// takes no memory.
const absl::Status& OutOfMemory();

// Runs `work`, which returns a status or nothing. OutOfMemory() if memory ran out; what `work` was
// about is then to be given up.
template <class Work>
absl::Status WithinMemory(Work&& work) {
  try {
    if constexpr (std::is_void_v<decltype(work())>) {
      std::forward<Work>(work)();
      return absl::OkStatus();
    } else {
      return std::forward<Work>(work)();
    }
  } catch (const std::bad_alloc&) {
    return OutOfMemory();
  }
}

// The outermost call of a thread.
template <class Work>
void EndIfOutOfMemory(const char* thread, Work&& work) {
  try {
    std::forward<Work>(work)();
  } catch (const std::bad_alloc&) {
    CHECK(false, "{}: out of memory, and nobody could make do without", thread);
  }
}

// Memory of the process, held back for threads whose failure would be everybody's. When an
// allocation of a thread that may draw on it fails, all of it is let go and the allocation is tried
// again; others get std::bad_alloc at once. Any thread.
class MemoryReserve {
 public:
  // Holds so many bytes from now on, or tries to again after it was drawn on. False: memory is
  // short still, and nothing more should be begun. Cheap while it is held.
  static bool Hold(size_t num_bytes) noexcept;
  static bool held() noexcept;

  // While it lives, the calling thread may draw on the reserve, or no longer may. They nest.
  class Access {
   public:
    explicit Access(bool may_draw) noexcept;
    ~Access();
    // Whether the calling thread may draw.
    static bool may_draw() noexcept;
    Access(const Access&) = delete;
    Access& operator=(const Access&) = delete;

   private:
    const bool before_;
  };
};

// The outermost call of a thread that serves everybody: what it lacks is nobody's own failure.
template <class Work>
void RunOnReserve(const char* thread, Work&& work) {
  const MemoryReserve::Access access(true);
  EndIfOutOfMemory(thread, std::forward<Work>(work));
}

}  // namespace polyreme
