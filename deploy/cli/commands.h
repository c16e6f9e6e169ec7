// The sub-commands of `polyreme`. Each takes what follows its name and returns the process's exit
// code.
#pragma once

#include <string>
#include <vector>

namespace polyreme::cli {

using Arguments = std::vector<std::string>;

int RunServe(const Arguments& arguments);        // the agent
int RunCoordinator(const Arguments& arguments);  // rank 0's brain; started by the agent
int RunWorker(const Arguments& arguments);       // one shard; started by the agent
int RunBench(const Arguments& arguments);
int RunDevices(const Arguments& arguments);
int RunTrace(const Arguments& arguments);
int RunPlan(const Arguments& arguments);

}  // namespace polyreme::cli
