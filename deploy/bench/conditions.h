// What figures were measured on and with: nothing is worth keeping without it.
#pragma once

#include <string>

#include "parallel/base/json.h"

namespace polyreme::bench {

struct Conditions {
  std::string date;      // UTC, when the run began
  std::string command;   // as it was typed
  std::string program;   // version and build id
  std::string commit;    // POLYREME_COMMIT, else of the checkout that the program lies in
  std::string hardware;  // processor, cores, memory, GPUs of this machine
  std::string driver;    // NVIDIA's, "none"
  std::string system;    // kernel
  std::string roofline = "not measured";  // and why, or the rates of this run

  Json ToJson() const;
  std::string Markdown() const;  // a list
};

// Of this machine, now. Reads /proc; asks git, with a deadline, if the environment does not say.
Conditions GatherConditions(const std::string& command, const std::string& program);

}  // namespace polyreme::bench
