// NCCL's functions, found in libnccl.so.2 while the program runs: one binary serves machines with
// and without it.
#pragma once

#include <nccl.h>

#include <string>

#include "parallel/base/status.h"

namespace polyreme::comm {

struct NcclLibrary {
  int version = 0;  // as NCCL_VERSION: 22809 is 2.28.9
  std::string VersionName() const;
  // Symmetric windows: from 2.27 on.
  bool has_windows() const { return comm_window_register != nullptr; }

  decltype(&ncclGetVersion) get_version = nullptr;
  decltype(&ncclGetErrorString) get_error_string = nullptr;
  decltype(&ncclGetLastError) get_last_error = nullptr;
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) comm_init_rank_config = nullptr;
  decltype(&ncclCommSplit) comm_split = nullptr;
  decltype(&ncclCommFinalize) comm_finalize = nullptr;
  decltype(&ncclCommDestroy) comm_destroy = nullptr;
  decltype(&ncclCommAbort) comm_abort = nullptr;
  decltype(&ncclCommGetAsyncError) comm_get_async_error = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclReduceScatter) reduce_scatter = nullptr;
  decltype(&ncclAllGather) all_gather = nullptr;
  decltype(&ncclBroadcast) broadcast = nullptr;
  decltype(&ncclSend) send = nullptr;
  decltype(&ncclRecv) recv = nullptr;
  decltype(&ncclGroupStart) group_start = nullptr;
  decltype(&ncclGroupEnd) group_end = nullptr;
  decltype(&ncclMemAlloc) mem_alloc = nullptr;
  decltype(&ncclMemFree) mem_free = nullptr;
  decltype(&ncclCommWindowRegister) comm_window_register = nullptr;      // or null
  decltype(&ncclCommWindowDeregister) comm_window_deregister = nullptr;  // or null
};

// Opens it once per process, for good; later calls return the same. Sets NCCL_RAS_ENABLE=0 where
// it is unset: NCCL's monitor would listen on a port that nobody asked for; all other variables
// stay the user's. FailedPrecondition: none found (where it was looked for), or older than 2.19.
// Any thread.
absl::StatusOr<const NcclLibrary*> OpenNccl();

}  // namespace polyreme::comm
