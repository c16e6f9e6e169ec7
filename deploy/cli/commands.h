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
// Of `bench`, each with flags of its own; arguments[0] is its name.
int RunBenchSweep(const Arguments& arguments);
int RunBenchServe(const Arguments& arguments);
int RunBenchCold(const Arguments& arguments);
int RunBenchCompare(const Arguments& arguments);
int RunDevices(const Arguments& arguments);
int RunTrace(const Arguments& arguments);
int RunPlan(const Arguments& arguments);

}  // namespace polyreme::cli
