// One run: a random cluster, random clients and random faults from one seed, and the engine's core
// driven as Engine drives it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/engine/engine_core.h"
#include "coordinator/engine/metrics.h"
#include "tests/sim/sim_client.h"
#include "tests/sim/sim_cluster.h"

namespace polyreme::sim {

// What is fixed about a run besides its seed.
struct StoryOptions {
  Plant plant = Plant::kNone;
  bool traces = false;
  bool faults = true;
  // Many clients whose requests fit into eight blocks, and no more blocks than that or, with
  // `plenty`, more than anybody needs.
  bool eight_blocks = false;
  bool plenty = false;
};

struct StoryEnd {
  std::string failure;  // empty: all went as it has to
  std::vector<std::string> trace;
  uint64_t digest = 0;  // of all plans
  int64_t num_steps = 0;
  int64_t num_losses = 0;
  int64_t num_takeovers = 0;  // of coordinators, by the next
  int64_t num_preemptions = 0;
  int64_t num_reused = 0;  // slots that began behind cached blocks
  int64_t num_events = 0;
  int32_t num_ok = 0;  // clients that got all they asked for
  int32_t num_cancelled = 0;
  int32_t num_late = 0;
  int32_t num_slow = 0;
  int32_t num_quarantined = 0;
  int32_t num_unavailable = 0;
  int32_t num_broken = 0;  // connections, with a coordinator; most clients come again
  std::map<int32_t, std::vector<ChoiceText>> outputs;  // by client, of those that got all

  StoryEnd& operator+=(const StoryEnd& other);  // the counts
};

StoryEnd RunStory(uint64_t seed, const StoryOptions& options);

}  // namespace polyreme::sim
