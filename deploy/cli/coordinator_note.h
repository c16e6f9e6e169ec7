// What a coordinator leaves to the one that takes its place: where it listens, and what keeps the
// two apart.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/launch/heart.h"

namespace polyreme::cli {

struct CoordinatorNote {
  std::string cluster_address;  // host:port for workers
  int64_t incarnation = 1;
  Epoch epoch;  // the last that anybody may have been told of
  int32_t http_port = 0;
  int32_t grpc_port = 0;
  std::vector<absl::Time> losses;  // that count for --max-restarts; the latest are kept

  // One line of at most 1 KiB.
  std::string Encode() const;
  // DataLoss: not a note.
  static absl::StatusOr<CoordinatorNote> Decode(std::string_view line);
};

// The note as it grows, handed to the agent at each change. Any thread.
class CoordinatorNotebook {
 public:
  CoordinatorNotebook(CoordinatorNote note, launch::Heart& heart);
  void SetClusterAddress(std::string address);
  void SetEpoch(Epoch epoch, const std::vector<absl::Time>& losses);
  void SetPublicPorts(int32_t http_port, int32_t grpc_port);
  CoordinatorNote note() const;

 private:
  launch::Heart& heart_;
  mutable std::mutex mutex_;
  CoordinatorNote note_;  // guarded by mutex_
};

}  // namespace polyreme::cli
