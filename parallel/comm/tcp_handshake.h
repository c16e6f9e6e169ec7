// How both ends of a connection prove the job token, and agree on who they are, before anything
// else is said.
//
//   connector                               acceptor
//      | Hello: epoch, group, from, to, nonce  |
//      |-------------------------------------->|
//      | Welcome: verdict, epoch, nonce, proof |   proof over Hello and the rest of Welcome, role
//      "accepts"
//      |<--------------------------------------|
//      | proof                                 |   over Hello and Welcome, role "connects"
//      |-------------------------------------->|
//
// The token itself never travels; the nonces make each proof good for this connection only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "parallel/base/status.h"
#include "parallel/launch/job_token.h"

namespace polyreme::comm {

// As they travel: fixed sizes, little endian, no padding.
struct Hello {
  static constexpr std::array<char, 8> kMagic = {'p', 'o', 'l', 'y', 'r', 'e', 'm', '1'};
  std::array<char, 8> magic = kMagic;
  int64_t epoch = 0;
  std::array<std::byte, 32> group{};  // DigestOf the group's key
  int32_t from = 0;                   // ranks within the group
  int32_t to = 0;
  launch::Nonce nonce{};
};
struct Welcome {
  enum Verdict : int64_t { kWelcome, kOtherEpoch, kOtherGroup, kOtherPlace, kTaken };
  int64_t verdict = kWelcome;
  int64_t epoch = 0;  // the acceptor's
  launch::Nonce nonce{};
  launch::Proof proof{};
};
static_assert(std::has_unique_object_representations_v<Hello>);
static_assert(std::has_unique_object_representations_v<Welcome>);

// What one end knows of a group.
struct DoorKey {
  int64_t epoch = 0;
  std::array<std::byte, 32> group{};
  std::string job_token;
};
DoorKey MakeDoorKey(int64_t epoch, const std::string& group_key, const std::string& job_token);

// Acceptor: the answer to `hello`, at the place `self`; `verdict` is kWelcome or kTaken if the rest
// is right.
Welcome Answer(const DoorKey& key, const Hello& hello, int self, Welcome::Verdict verdict);
bool IsProven(const DoorKey& key, const Hello& hello, const Welcome& welcome,
              const launch::Proof& proof);

// Connector: checks the acceptor's proof and verdict. Unauthenticated, FailedPrecondition.
absl::Status CheckWelcome(const DoorKey& key, const Hello& hello, const Welcome& welcome);
launch::Proof ProveTo(const DoorKey& key, const Hello& hello, const Welcome& welcome);

}  // namespace polyreme::comm
