// Flight records as files: the agent keeps each child's ring in memory of its own, so that it
// outlives the child; whoever is left after a failure writes it into a directory.
//
//   <launch>-epoch-<E>-rank-<R>.flight, <launch>-epoch-<E>-coordinator.flight
//
// A process that lives saves its own ring when its epoch is lost. The ring of one that is gone is
// saved by its successor or, when the launch ends with a failure, by its agent. A launch without
// failures leaves nothing.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "deploy/cli/serve_config.h"
#include "parallel/base/status.h"
#include "parallel/launch/agent.h"
#include "parallel/launch/launch_env.h"
#include "parallel/trace/flight_ring.h"

namespace polyreme::cli {

inline constexpr char kFlightVariable[] = "POLYREME_FLIGHT_FD";

struct FlightFolder {
  std::string path;        // empty: the recorder is off
  bool is_default = true;  // ours alone to make and to enter; else as its owner has it
};
FlightFolder FlightFolderOf(const ServeConfig& config);

// The agent's part.
class FlightKeeper {
 public:
  // InvalidArgument: --flight-recorder-dir cannot be made.
  static absl::StatusOr<FlightKeeper> Make(const ServeConfig& config, const launch::LaunchEnv& env);

  // Gives this child, which will be process `rank`, a ring. Without memory for it, or with the
  // recorder off, the child has none.
  void Add(int32_t rank, launch::ChildSpec& child);
  // The launch has failed: saves what nobody else has.
  void SaveOrphans(const absl::Status& why) const;

 private:
  FlightFolder folder_;
  std::string launch_;
  int32_t stages_ = 1;
  int32_t shards_ = 1;
  std::vector<std::unique_ptr<trace::FlightRing>> rings_;
};

// A child's part. Save and End: any thread, one at a time.
class FlightRecorder {
 public:
  // Takes the ring that the agent has left in the environment, if it did, and saves what a
  // predecessor left in it. Never fails: a process serves without a recorder too.
  static std::unique_ptr<FlightRecorder> Open(const ServeConfig& config);

  trace::FlightRing* ring() const { return ring_.get(); }  // null: none
  // The ring's epoch is lost, and this process goes on.
  void Save(const absl::Status& why) const;
  // The process ends, in order or not.
  void End(const absl::Status& status) const;

 private:
  FlightFolder folder_;
  std::unique_ptr<trace::FlightRing> ring_;
};

}  // namespace polyreme::cli
