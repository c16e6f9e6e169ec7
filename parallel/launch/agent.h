// Supervises the child processes of one launched rank: the worker, and on rank 0 the coordinator.
//
// What a launcher starts is an agent that calls no MPI; its children do the work and die with it. A
// child that may be replaced and has served is started again when it is killed, crashes, asks for
// it (kReplaceMe), or falls silent, so many times within a window. Any other end of a child ends
// the launch whole: the agent names what died and how, lets the rest end by themselves for a
// moment, and kills what is left.
#pragma once

#include <sys/types.h>

#include <csignal>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "parallel/base/status.h"

namespace polyreme::launch {

struct ChildSpec {
  std::string title;  // for messages: "worker rank 1"
  std::vector<std::string>
      arguments;  // argv, argv[0] included; the executable is this process's own
  std::vector<std::pair<std::string, std::string>> environment;  // added to this process's
  bool replaceable = false;  // it beats (launch/heart.h), and another can take its place
  bool drains = false;       // gets the first SIGTERM; the others wait for it to end them
};

struct AgentOptions {
  int32_t max_restarts = 0;  // of all children within restart_window
  absl::Duration restart_window = absl::Minutes(10);
  absl::Duration drain_patience = absl::Seconds(35);  // after SIGTERM, until what is left is killed
  absl::Duration end_patience = absl::Seconds(5);     // after one child failed, for the others
  absl::Duration orderly_patience = absl::Seconds(15);  // after one ended in order
  // Called once, when the first child has ended: what others of the launch wait for will not come.
  std::function<void()> on_first_end = [] {};
  // The launcher's pid if one started us: when it is not our parent any more, all is killed. mpirun
  // that was killed leaves its ranks running. 0: nobody's end is ours.
  pid_t launcher = 0;
};

// What asks an agent to end. A terminal or a launcher may send each of them to the whole process
// group, so children take no notice of them but for the agent's SIGTERM. The last two because
// mpirun passes them on at once, while its SIGTERM is followed by SIGKILL within a second; with
// PMIx 5 (Ubuntu 24.04's mpirun) it passes on SIGUSR2 alone.
inline constexpr int kEndSignals[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2};

// Starts the children and stays until all have ended. Must be called while this process has one
// thread; blocks kEndSignals and SIGCHLD and reads them itself. First of kEndSignals: the draining
// child gets SIGTERM. Second: all are killed. Children that are replaced do not count.
// ok: every child ended with exit code 0. Otherwise the first failure ("worker rank 1 (pid 4711)
// was killed by signal 9 (Killed)"), or Cancelled after a second signal or the launcher's end.
absl::Status RunAgent(const std::vector<ChildSpec>& children, const AgentOptions& options);

}  // namespace polyreme::launch
