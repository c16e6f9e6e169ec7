// The model of the simulator: a token is a pure function of the tokens before it, the sampling
// parameters and the position. It has stages and shards as a real one: each shard of each stage
// reads the whole history of what its stage was given, and the shards' parts are added up.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "parallel/base/ids.h"
#include "parallel/step/step_plan.h"

namespace polyreme::sim {

struct Layout {
  int32_t stages = 1;
  int32_t shards = 1;
  int32_t world_size() const { return stages * shards; }
  // Ranks are dealt shard by shard, stage by stage.
  int32_t StageOf(int32_t rank) const { return rank / shards; }
  int32_t ShardOf(int32_t rank) const { return rank % shards; }
  int32_t RankOf(int32_t stage, int32_t shard) const { return stage * shards + shard; }
};

inline constexpr int32_t kVocabulary = 262;
inline constexpr TokenId kEnd = 260;   // end of sequence
inline constexpr TokenId kPoison = 7;  // from here on the logits are not finite
inline constexpr TokenId kKiller = 8;  // whoever computes a prompt with it dies

uint64_t Mix(uint64_t a, uint64_t b);

// One shard's attention over one sequence: fed position by position.
class History {
 public:
  History(int32_t stage, int32_t shard);
  void Push(uint64_t input) { state_ = Mix(state_, input); }
  // This shard's part of the stage's output at the last position.
  uint64_t Part() const { return Mix(state_, 0x5bd1e995u); }

 private:
  uint64_t state_;
};

// Output tokens of one sequence that penalties count, and how often.
using OutputCounts = std::map<TokenId, int32_t>;
bool HasPenalty(const step::SamplingParams& sampling);

// The token at `position` of a sequence, and what is told of it.
step::SampleResult Draw(uint64_t hidden, const step::SamplingParams& sampling, int32_t position,
                        int32_t num_prompt_tokens, const OutputCounts& counts);
// What is told of `target` at `position`.
step::SampleResult Score(uint64_t hidden, const step::SamplingParams& sampling, TokenId target);

// The whole model on one sequence, computed directly: the definition.
class DirectModel {
 public:
  explicit DirectModel(const Layout& layout);
  // The last stage's output after `token`.
  uint64_t Push(TokenId token);

 private:
  std::vector<std::vector<History>> histories_;  // [stage][shard]
};

}  // namespace polyreme::sim
