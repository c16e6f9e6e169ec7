#include "parallel/comm/tcp_handshake.h"

#include <cstddef>
#include <cstring>

namespace polyreme::comm {
namespace {

// Both messages, without the acceptor's proof.
using Transcript = std::array<std::byte, sizeof(Hello) + offsetof(Welcome, proof)>;

launch::Proof ProveAs(std::string_view role, const DoorKey& key, const Hello& hello,
                      const Welcome& welcome) {
  Transcript transcript;
  std::memcpy(transcript.data(), &hello, sizeof(hello));
  std::memcpy(transcript.data() + sizeof(hello), &welcome, offsetof(Welcome, proof));
  return launch::Prove(key.job_token, role, transcript);
}

constexpr std::string_view kAccepts = "accepts a transport";
constexpr std::string_view kConnects = "connects a transport";

}  // namespace

DoorKey MakeDoorKey(int64_t epoch, const std::string& group_key, const std::string& job_token) {
  return {epoch, launch::Prove("", group_key, {}), job_token};
}

Welcome Answer(const DoorKey& key, const Hello& hello, int self, Welcome::Verdict verdict) {
  Welcome welcome;
  welcome.verdict = verdict;
  if (hello.to != self || hello.from <= self) welcome.verdict = Welcome::kOtherPlace;
  if (hello.group != key.group) welcome.verdict = Welcome::kOtherGroup;
  if (hello.epoch != key.epoch) welcome.verdict = Welcome::kOtherEpoch;
  welcome.epoch = key.epoch;
  welcome.nonce = launch::MakeNonce();
  welcome.proof = ProveAs(kAccepts, key, hello, welcome);
  return welcome;
}

bool IsProven(const DoorKey& key, const Hello& hello, const Welcome& welcome,
              const launch::Proof& proof) {
  return launch::SameProof(proof, ProveAs(kConnects, key, hello, welcome));
}

absl::Status CheckWelcome(const DoorKey& key, const Hello& hello, const Welcome& welcome) {
  if (!launch::SameProof(welcome.proof, ProveAs(kAccepts, key, hello, welcome))) {
    return Unauthenticated("it has another job token");
  }
  switch (welcome.verdict) {
    case Welcome::kWelcome:
      return absl::OkStatus();
    case Welcome::kOtherEpoch:
      return FailedPrecondition("it is at epoch {}, this rank at epoch {}", welcome.epoch,
                                key.epoch);
    case Welcome::kTaken:
      return FailedPrecondition("this rank has joined it already");
    default:
      return FailedPrecondition("it takes part in another group or at another place");
  }
}

launch::Proof ProveTo(const DoorKey& key, const Hello& hello, const Welcome& welcome) {
  return ProveAs(kConnects, key, hello, welcome);
}

}  // namespace polyreme::comm
