#include "parallel/comm/nccl_library.h"

#include <cstdlib>

#include "parallel/base/dynamic_library.h"

namespace polyreme::comm {
namespace {

static_assert(NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0), "nccl.h of 2.27 or newer has windows");

constexpr int kOldestVersion = NCCL_VERSION(2, 19, 0);
constexpr char kOldestVersionName[] = "2.19";

std::string NameOfVersion(int version) {
  return fmt::format("{}.{}.{}", version / 10000, version % 10000 / 100, version % 100);
}

absl::Status FindAll(const DynamicLibrary& library, NcclLibrary& nccl) {
  RETURN_IF_ERROR(library.Find("ncclGetErrorString", nccl.get_error_string));
  RETURN_IF_ERROR(library.Find("ncclGetLastError", nccl.get_last_error));
  RETURN_IF_ERROR(library.Find("ncclGetUniqueId", nccl.get_unique_id));
  RETURN_IF_ERROR(library.Find("ncclCommInitRankConfig", nccl.comm_init_rank_config));
  RETURN_IF_ERROR(library.Find("ncclCommSplit", nccl.comm_split));
  RETURN_IF_ERROR(library.Find("ncclCommFinalize", nccl.comm_finalize));
  RETURN_IF_ERROR(library.Find("ncclCommDestroy", nccl.comm_destroy));
  RETURN_IF_ERROR(library.Find("ncclCommAbort", nccl.comm_abort));
  RETURN_IF_ERROR(library.Find("ncclCommGetAsyncError", nccl.comm_get_async_error));
  RETURN_IF_ERROR(library.Find("ncclAllReduce", nccl.all_reduce));
  RETURN_IF_ERROR(library.Find("ncclReduceScatter", nccl.reduce_scatter));
  RETURN_IF_ERROR(library.Find("ncclAllGather", nccl.all_gather));
  RETURN_IF_ERROR(library.Find("ncclBroadcast", nccl.broadcast));
  RETURN_IF_ERROR(library.Find("ncclSend", nccl.send));
  RETURN_IF_ERROR(library.Find("ncclRecv", nccl.recv));
  RETURN_IF_ERROR(library.Find("ncclGroupStart", nccl.group_start));
  RETURN_IF_ERROR(library.Find("ncclGroupEnd", nccl.group_end));
  RETURN_IF_ERROR(library.Find("ncclMemAlloc", nccl.mem_alloc));
  RETURN_IF_ERROR(library.Find("ncclMemFree", nccl.mem_free));
  library.FindOptional("ncclCommWindowRegister", nccl.comm_window_register);
  library.FindOptional("ncclCommWindowDeregister", nccl.comm_window_deregister);
  if (nccl.comm_window_deregister == nullptr) nccl.comm_window_register = nullptr;
  return absl::OkStatus();
}

absl::StatusOr<NcclLibrary> Load() {
  (void)setenv("NCCL_RAS_ENABLE", "0", /*overwrite=*/0);
  const std::string names[] = {"libnccl.so.2", "/usr/local/cuda/lib64/libnccl.so.2",
                               "/usr/local/cuda/lib/libnccl.so.2"};
  absl::StatusOr<DynamicLibrary> library = DynamicLibrary::OpenFirst("libnccl.so.2", names);
  if (!library.ok()) {
    return FailedPrecondition(
        "GPUs that work together need NCCL {} or newer; install it or name its folder in "
        "LD_LIBRARY_PATH ({})",
        kOldestVersionName, Message(library.status()));
  }
  NcclLibrary nccl;
  RETURN_IF_ERROR(library->Find("ncclGetVersion", nccl.get_version));
  if (nccl.get_version(&nccl.version) != ncclSuccess || nccl.version < kOldestVersion) {
    return FailedPrecondition("GPUs that work together need NCCL {} or newer; {} is {}",
                              kOldestVersionName, library->name(), nccl.VersionName());
  }
  RETURN_IF_ERROR(FindAll(*library, nccl));
  library->Leak();
  return nccl;
}

}  // namespace

std::string NcclLibrary::VersionName() const {
  return NameOfVersion(version);
}

absl::StatusOr<const NcclLibrary*> OpenNccl() {
  static const absl::StatusOr<NcclLibrary> library = Load();
  if (!library.ok()) return library.status();
  return &*library;
}

}  // namespace polyreme::comm
