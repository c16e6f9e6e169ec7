// What streams say, told with and without a disturbance.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/coordinator/api/raw_client.h"
#include "tests/e2e/launched_cluster.h"

namespace polyreme::e2e {

// Per choice of a stream its text and how it ended.
using Story = std::map<int64_t, std::string>;

// Streamed completions that run together: greedy, seeded, and two seeded choices. Long answers, or
// long prompts that have nothing in common and short answers.
std::vector<std::string> RequestsThatDecode();
std::vector<std::string> RequestsThatPrefill();

// One telling of some requests. Fails the test on what is not a complete stream.
class Telling {
 public:
  // Sends all at once.
  Telling(const Cluster& cluster, const std::vector<std::string>& requests);
  void WaitUntilEachAnswers();
  // How many have begun, and how many have come to their end, by what has come so far.
  int num_answering();
  int num_ended();
  // Waits for all, each for a disturbance's length.
  std::vector<Story> Finish();

 private:
  std::vector<std::unique_ptr<api::RawClient>> clients_;
};

// RequestsThatDecode; `disturb` is called when each has begun to answer.
std::vector<Story> Tell(
    const Cluster& cluster, const std::function<void()>& disturb = [] {});

}  // namespace polyreme::e2e
