#include "tests/sim/sim_model.h"

#include <algorithm>
#include <bit>

namespace polyreme::sim {
namespace {

// What is drawn: stop strings, characters of several bytes and merged tokens come often.
constexpr TokenId kDrawn[] = {'a',  'b',  'c',  '.',  'a', 'b', 'd', 'e',  0xC3, 0xA9,
                              0xE8, 0xAA, 0x9E, 0xFF, 256, 257, 258, kEnd, 261,  'f'};

template <class Container>
bool Contains(const Container& tokens, TokenId token) {
  return std::find(tokens.begin(), tokens.end(), token) != tokens.end();
}

uint64_t BitsOf(float value) {
  return std::bit_cast<uint32_t>(value);
}

// All that a draw depends on besides the hidden state: what is lost on the way changes the token.
uint64_t KeyOf(const step::SamplingParams& p, int32_t position, const OutputCounts& counts) {
  uint64_t key = Mix(BitsOf(p.top_p), BitsOf(p.min_p));
  key = Mix(key, static_cast<uint64_t>(p.top_k));
  for (const auto& [token, bias] : p.logit_bias) {
    key = Mix(key, static_cast<uint64_t>(token) ^ BitsOf(bias) << 32);
  }
  if (p.temperature > 0) {
    key = Mix(key, BitsOf(p.temperature));
    key = Mix(Mix(key, p.seed),
              static_cast<uint64_t>(p.choice) << 32 | static_cast<uint64_t>(position));
  }
  if (!HasPenalty(p)) return key;
  key = Mix(key, BitsOf(p.presence_penalty) ^ BitsOf(p.frequency_penalty) << 32);
  for (const auto& [token, count] : counts) {
    key = Mix(key, static_cast<uint64_t>(token) << 32 | static_cast<uint64_t>(count));
  }
  return key;
}

void Tell(uint64_t hidden, const step::SamplingParams& p, bool always, step::SampleResult& result) {
  if (!always && p.num_logprobs < 0) return;
  const uint64_t h = Mix(hidden, static_cast<uint64_t>(result.token));
  result.logprob = -static_cast<float>(h % 4096) / 64.0f;
  result.rank = 1 + static_cast<int32_t>(h >> 32) % 7;
  if (result.rank < 1) result.rank = 1;
  for (int32_t i = 0; i < p.num_logprobs; ++i) {
    const uint64_t t = Mix(hidden, 1000 + static_cast<uint64_t>(i));
    result.top.push_back({static_cast<TokenId>(t % kVocabulary), -static_cast<float>(i)});
  }
}

}  // namespace

uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t h = (a ^ (b + 0x9e3779b97f4a7c15u)) * 0xff51afd7ed558ccdu;
  h ^= h >> 33;
  h *= 0xc4ceb9fe1a85ec53u;
  return h ^ h >> 29;
}

History::History(int32_t stage, int32_t shard)
    : state_(Mix(static_cast<uint64_t>(stage), static_cast<uint64_t>(shard))) {}

bool HasPenalty(const step::SamplingParams& p) {
  return p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
}

step::SampleResult Draw(uint64_t hidden, const step::SamplingParams& sampling, int32_t position,
                        int32_t num_prompt_tokens, const OutputCounts& counts) {
  const uint64_t key = Mix(hidden, KeyOf(sampling, position, counts));
  const bool stops_later = position - num_prompt_tokens < sampling.min_tokens;
  step::SampleResult result;
  result.token = 'a';
  for (uint64_t attempt = 0; attempt < 64; ++attempt) {
    const uint64_t h = Mix(key, attempt);
    const std::vector<TokenId>& allowed = sampling.allowed_tokens;
    const TokenId token =
        allowed.empty() ? kDrawn[h % std::size(kDrawn)] : allowed[h % allowed.size()];
    if (stops_later && Contains(sampling.stop_tokens, token)) continue;
    result.token = token;
    break;
  }
  Tell(hidden, sampling, false, result);
  return result;
}

step::SampleResult Score(uint64_t hidden, const step::SamplingParams& sampling, TokenId target) {
  step::SampleResult result;
  result.token = target;
  Tell(hidden, sampling, true, result);
  return result;
}

DirectModel::DirectModel(const Layout& layout) {
  for (int32_t stage = 0; stage < layout.stages; ++stage) {
    std::vector<History>& histories = histories_.emplace_back();
    for (int32_t shard = 0; shard < layout.shards; ++shard) histories.emplace_back(stage, shard);
  }
}

uint64_t DirectModel::Push(TokenId token) {
  uint64_t hidden = static_cast<uint64_t>(token);
  for (std::vector<History>& histories : histories_) {
    uint64_t sum = 0;
    for (History& history : histories) {
      history.Push(hidden);
      sum += history.Part();
    }
    hidden = sum;
  }
  return hidden;
}

}  // namespace polyreme::sim
