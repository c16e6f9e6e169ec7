// Communicator over any Transport, on host memory.
#pragma once

#include <memory>

#include "parallel/comm/communicator.h"
#include "parallel/comm/transport.h"

namespace polyreme::comm {

// Work is done when the call returns: a CPU lane is always up to date. Sums are float32, in the
// order of TreeSum whatever the algorithm. All buffers are taken here; nothing is allocated in
// steady state. For n ranks and b bytes:
//
//   shared stage, small   1 round: all write, all add everything          b written, n*b read
//   shared stage, large   2 rounds per chunk: add own slice, copy others  2b written, 2b read
//   messages, small       1 exchange of everything with everyone          (n-1)*b sent
//   messages, large       2 exchanges per chunk: slices to owners, sums to all  2(n-1)/n*b sent
//
// Each operation has limits::kCollectivePatience; its errors go to the lane.
std::unique_ptr<Communicator> MakeCpuCommunicator(std::unique_ptr<Transport> transport);

}  // namespace polyreme::comm
