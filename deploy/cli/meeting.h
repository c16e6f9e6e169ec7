// How the processes of one launch find each other: the job's token and the coordinator's address.
//
// On one host a file in a private directory carries both; across hosts the address is
// --coordinator's (or the launcher's first node), and the token comes from POLYREME_JOB_TOKEN or
// --job-token-file.
#pragma once

#include <string>

#include "absl/time/time.h"
#include "deploy/cli/serve_config.h"
#include "parallel/base/status.h"
#include "parallel/launch/launch_env.h"

namespace polyreme::cli {

inline constexpr char kJobTokenVariable[] = "POLYREME_JOB_TOKEN";

struct Meeting {
  std::string job_token;
  std::string coordinator;  // host:port, or empty: it is in `file` once the coordinator listens
  std::string file;         // one host only
};

// What the agent of one rank can know before anybody listens. InvalidArgument says which flag is
// missing across hosts.
absl::StatusOr<Meeting> ArrangeMeeting(const ServeConfig& config, const launch::LaunchEnv& env);
// The token of --job-token-file or the environment; empty if there is none. InvalidArgument:
// unreadable, or shorter than 16 characters.
absl::StatusOr<std::string> FindJobToken(const ServeConfig& config);

// $TMPDIR, or /tmp.
std::string TemporaryRoot();
// A directory that only this user can enter; made, or found to be so. NotFound if it has been
// removed meanwhile, otherwise FailedPrecondition.
absl::Status MakePrivateDirectory(const std::string& directory);

// Written by the coordinator (atomically), read by everybody else of the host.
absl::Status WriteMeetingFile(const std::string& file, const std::string& address,
                              const std::string& job_token);
// With its directory. When all have met, so that a job that is killed leaves nothing; and at the
// end, for one that never met: who still waits for the file then ends too.
void RemoveMeetingFile(const std::string& file);
struct MeetingPlace {
  std::string address;
  std::string job_token;
};
// Waits for the file. Cancelled once its directory is gone: nobody will write it. DeadlineExceeded;
// PermissionDenied-like FailedPrecondition if it is not ours.
absl::StatusOr<MeetingPlace> WaitForMeetingFile(const std::string& file, absl::Time deadline);

}  // namespace polyreme::cli
