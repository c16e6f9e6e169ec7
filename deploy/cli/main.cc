// The one program. It is the only code that sees both the coordinator and the worker.

#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "deploy/cli/build_info.h"
#include "deploy/cli/commands.h"

namespace {

struct Command {
  std::string_view name;
  int (*run)(const polyreme::cli::Arguments&);
  std::string_view summary;
};

constexpr Command kCommands[] = {
    {"serve", polyreme::cli::RunServe,
     "start a cluster: the same line on every rank, or alone on one host"},
    {"bench", polyreme::cli::RunBench,
     "measure ops, steps or the coordinator against their rooflines"},
    {"plan", polyreme::cli::RunPlan,
     "what a model takes and how fast it can be, without weights or a GPU"},
    {"devices", polyreme::cli::RunDevices, "list the GPUs, their links and, if asked, their speed"},
    {"trace", polyreme::cli::RunTrace,
     "tell from flight records what ranks did last, and which one fell behind"},
    {"coordinator", polyreme::cli::RunCoordinator,
     "(started by serve) schedules and answers requests"},
    {"worker", polyreme::cli::RunWorker, "(started by serve) holds one shard of the model"},
};

void PrintHelp(std::FILE* out) {
  std::fprintf(out,
               "polyreme %s: serves large language models in shards\n\n"
               "usage: polyreme COMMAND [ARGUMENTS]     (polyreme COMMAND --help)\n\n",
               polyreme::cli::kVersion);
  for (const Command& command : kCommands) {
    std::fprintf(out, "  %-12s %s\n", command.name.data(), command.summary.data());
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + (argc > 0 ? 1 : 0), argv + argc);
  if (arguments.empty()) {
    PrintHelp(stderr);
    return 2;
  }
  const std::string& name = arguments[0];
  if (name == "--help" || name == "-h" || name == "help") {
    PrintHelp(stdout);
    return 0;
  }
  if (name == "--version" || name == "version") {
    std::printf("polyreme %s (build %s)\n", polyreme::cli::kVersion,
                polyreme::cli::BuildId().c_str());
    return 0;
  }
  for (const Command& command : kCommands) {
    if (name == command.name) {
      return command.run({arguments.begin() + 1, arguments.end()});
    }
  }
  std::fprintf(stderr, "polyreme: no command '%.60s'; see polyreme --help\n", name.c_str());
  return 2;
}
