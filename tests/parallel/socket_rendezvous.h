// A meeting for tests whose ranks are processes: each child asks its parent over a socket pair.
#pragma once

#include <string>

#include "parallel/comm/unique_fd.h"
#include "parallel/launch/rendezvous.h"

namespace polyreme::launch {

// The child's side. One thread.
class SocketRendezvous final : public Rendezvous {
 public:
  explicit SocketRendezvous(int socket) : socket_(socket) {}
  absl::Status Put(std::string_view key, std::string value) override;
  absl::StatusOr<std::string> Wait(std::string_view key, absl::Time deadline) override;
  // Tells the parent what came of it.
  void Report(const absl::Status& status, const std::string& result);

 private:
  absl::StatusOr<std::string> Ask(const std::string& question);
  comm::UniqueFd socket_;
};

// What a child said at its end; Unavailable if it ended without a word.
struct ChildReport {
  absl::Status status;
  std::string result;
};
// The parent's side: a SOCK_SEQPACKET socket pair, and answers from `meet` until the child reports
// or ends.
ChildReport ServeChild(int socket, InMemoryRendezvous& meet);

}  // namespace polyreme::launch
