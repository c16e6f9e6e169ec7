// Ranks that are threads and share one GPU: their sums and messages go through host memory, where
// the CPU's communicator makes them. Slow, and in the order of TreeSum, so that what a layout of
// several ranks computes can be told apart from what NCCL does with it, on a machine with one GPU.
#pragma once

#include <memory>
#include <string>

#include "parallel/comm/communicator.h"
#include "parallel/comm/thread_transport.h"
#include "parallel/tensor/device.h"

namespace polyreme {

// Makes communicators of one rank. All ranks have one hub, each its own device object.
class StagedFactory final : public comm::CommunicatorFactory {
 public:
  StagedFactory(comm::ThreadHub& hub, Device& device) : hub_(hub), device_(device) {}
  absl::StatusOr<std::string> MakeId() override;
  absl::StatusOr<std::unique_ptr<comm::Communicator>> Make(const comm::GroupSpec& group,
                                                           const std::string& id) override;

 private:
  comm::ThreadHub& hub_;
  Device& device_;
};

}  // namespace polyreme
