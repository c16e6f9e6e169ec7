// What the clients of a run ask for.
#pragma once

#include <vector>

#include "coordinator/engine/request.h"
#include "tests/sim/sim_loop.h"

namespace polyreme::sim {

engine::ModelLimits SimModel();

class RequestMaker {
 public:
  // A request fits into `capacity` positions. `grows`: outputs are long and prompts short, so that
  // those who run take blocks from one another. `random` is borrowed.
  RequestMaker(int32_t capacity, bool grows, Random& random);

  // `may_kill`: it may be one that kills whoever computes it.
  engine::GenerateRequest Make(bool may_kill);
  // Another may begin as this one did and went on.
  void Remember(std::vector<TokenId> text) { texts_.push_back(std::move(text)); }

 private:
  std::vector<TokenId> MakePrompt(int32_t length, bool may_kill);
  void AddStops(engine::GenerateRequest& request);
  void AddSampling(engine::GenerateRequest& request);

  const int32_t capacity_;
  const bool grows_;
  Random& random_;
  std::vector<std::vector<TokenId>> texts_;
};

}  // namespace polyreme::sim
