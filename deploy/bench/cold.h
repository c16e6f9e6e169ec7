// `bench cold`: how long a server takes from exec to ready to its first token, in real processes.
#pragma once

#include <cstdint>

#include "deploy/bench/child_server.h"
#include "deploy/bench/openai_client.h"
#include "deploy/bench/report.h"
#include "parallel/base/status.h"

namespace polyreme::bench {

struct ColdOptions {
  ChildServerOptions server;
  std::string model;  // a directory
  std::string api_key;
  int32_t rounds = 3;
  bool evict_page_cache = false;  // before each start, of the model's files
};

// Starts, asks for one token and ends the server, `rounds` times. An interrupt keeps the rounds
// that were whole. The report has title, one point, table and notes; conditions and settings are
// the caller's. Errors as ChildServer's; Unavailable if no token comes.
absl::StatusOr<Report> RunCold(const ColdOptions& options);

// Lets the kernel forget what it holds of the files in `directory`, as far as nobody maps them.
// FailedPrecondition names the file that cannot be opened.
absl::Status EvictFromPageCache(const std::string& directory);

}  // namespace polyreme::bench
