// The CPU as a device on which decode steps are padded and recorded: proves, where there is no such
// device, that a step's recorded part is the same work on the same memory each time.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>

#include "parallel/base/status.h"
#include "worker/backend/backend.h"

namespace polyreme::run {

// What a device has been asked for. Used by the step thread; read when no step runs.
struct Recordings {
  using Key = std::tuple<int32_t, int32_t>;  // padded tokens, samples
  std::map<Key, std::string> work;           // each op with its sizes and addresses, line by line
  int64_t num_replays = 0;
  int64_t device_bytes = 0;  // allocated, arenas included
  int64_t host_bytes = 0;
  bool sealed = false;  // no new key may come any more
  // The first thing that was wrong: work that differed from its recording, an upload, an allocation
  // or a wait inside one, a key after `sealed`.
  std::string mistake;
};

// The CPU backend inside; `recordings` outlives it.
absl::StatusOr<std::unique_ptr<backend::Backend>> MakeRecordingBackend(Recordings& recordings,
                                                                       int32_t num_threads);

}  // namespace polyreme::run
