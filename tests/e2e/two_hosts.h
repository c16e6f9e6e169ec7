// A launch of two ranks, each with an agent of its own, that take each other for another host and
// so meet over TCP: where a fault proxy can stand between them.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/e2e/launched_cluster.h"
#include "tests/e2e/stories.h"

namespace polyreme::e2e {

class TwoHosts : public testing::Test {
 protected:
  struct HostOptions {
    std::string layout = "-tp";  // of two
    std::string coordinator;     // host:port, as this rank is to reach it
    std::string address;         // where it listens to its peer
    std::string join_timeout = "30";
    std::string max_restarts = "10";
  };
  static std::unique_ptr<Program> StartRank(int rank, const HostOptions& options);

  // Until the first host serves; what its streams say undisturbed is `want_` from then on.
  void AwaitServing();
  std::string Output() const;
  void ExpectOrderlyEnd();

  std::unique_ptr<Program> first_;
  std::unique_ptr<Program> second_;
  Cluster cluster_;
  std::vector<Story> want_;
};

}  // namespace polyreme::e2e
