// Where std::bad_alloc ends (docs/decisions/0013): at the boundary of one request it is an error as
// any other; what reaches the boundary of a thread ends the process, named, and its agent starts it
// again.
#pragma once

#include <new>
#include <type_traits>
#include <utility>

#include "parallel/base/status.h"

namespace polyreme {

// Runs `work`, which returns a status or nothing. ResourceExhausted if memory ran out; what `work`
// was about is then to be given up.
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
    return ResourceExhausted("the server is out of memory; try again later");
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

}  // namespace polyreme
