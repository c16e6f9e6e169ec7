// Proof of the job token for one call inside the cluster, as a line of text that fits a gRPC
// header.
//
// A caller makes a fresh nonce and proves the token over it and the method's name; the guard
// refuses what is wrong or was seen before. The token itself never travels.
#pragma once

#include <mutex>
#include <set>
#include <string>
#include <string_view>

#include "parallel/base/status.h"

namespace polyreme::launch {

// The header's name on the wire.
inline constexpr char kProofHeader[] = "polyreme-proof";

std::string MakeCallProof(std::string_view job_token, std::string_view method);

// Checks the proofs of one listener. Any thread.
class CallGuard {
 public:
  explicit CallGuard(std::string job_token) : job_token_(std::move(job_token)) {}
  // Unauthenticated: malformed, wrong, or used before.
  absl::Status Check(std::string_view proof, std::string_view method);

 private:
  const std::string job_token_;
  std::mutex mutex_;
  std::set<std::string> seen_;  // guarded by mutex_; bounded by the number of good calls of the job
};

// The answer to a worker's challenge: that the coordinator knows the token too. Hexadecimal.
std::string AnswerChallenge(std::string_view job_token, std::string_view challenge);

}  // namespace polyreme::launch
