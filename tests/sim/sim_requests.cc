#include "tests/sim/sim_requests.h"

#include <algorithm>

#include "tests/sim/sim_model.h"

namespace polyreme::sim {
namespace {

constexpr int32_t kMaxModelLength = 64;
// The end of sequence may stand in a prompt like any other token.
constexpr TokenId kPromptTokens[] = {'p', 'q', 'r', 'a', 'b', kEnd};

}  // namespace

engine::ModelLimits SimModel() {
  return {.model_name = "sim",
          .max_model_len = kMaxModelLength,
          .vocabulary = kVocabulary,
          .eos_tokens = {kEnd},
          .max_choices = 8,
          .max_logprobs = 5,
          .allows_priority = true};
}

RequestMaker::RequestMaker(int32_t capacity, bool grows, Random& random)
    : capacity_(std::min(capacity, kMaxModelLength)), grows_(grows), random_(random) {}

engine::GenerateRequest RequestMaker::Make(bool may_kill) {
  engine::GenerateRequest request;
  const int32_t longest = grows_ ? std::max(1, capacity_ / 3) : std::min(capacity_, 40);
  const int32_t length = random_.Between(1, longest);
  request.prompt = MakePrompt(length, may_kill);
  const int32_t room = std::min(capacity_ + 1, kMaxModelLength) - length;
  request.prompt_logprobs = random_.OneIn(8) ? random_.Between(0, 2) : -1;
  const int32_t least = request.prompt_logprobs >= 0 ? 0 : 1;
  request.max_tokens = random_.Between(grows_ ? std::min(room, 8) : least, std::min(room, 40));
  request.n = random_.OneIn(3) ? random_.Between(2, 4) : 1;
  if (request.max_tokens == 0) request.n = 1;
  request.logprobs = random_.OneIn(5) ? random_.Between(0, 3) : -1;
  request.priority = random_.OneIn(5) ? random_.Between(-1, 1) : 0;
  AddStops(request);
  AddSampling(request);
  return request;
}

std::vector<TokenId> RequestMaker::MakePrompt(int32_t length, bool may_kill) {
  std::vector<TokenId> prompt;
  if (!texts_.empty() && !random_.OneIn(3)) {
    const std::vector<TokenId>& text = random_.PickOf(texts_);
    const auto common = random_.Between(0, std::min(length, static_cast<int32_t>(text.size())));
    prompt.assign(text.begin(), text.begin() + common);
  }
  while (std::ssize(prompt) < length) prompt.push_back(random_.PickOf(kPromptTokens));
  const bool kills = may_kill && random_.OneIn(3);
  for (TokenId& token : prompt) {
    if (token == kKiller) token = 'p';
  }
  if (kills) prompt[static_cast<size_t>(random_.Between(0, length - 1))] = kKiller;
  if (random_.OneIn(25)) prompt[static_cast<size_t>(random_.Between(0, length - 1))] = kPoison;
  return prompt;
}

void RequestMaker::AddStops(engine::GenerateRequest& request) {
  static constexpr const char* kStops[] = {"ab", "abc", "b.", "é", "ca", "de", "aa", "語"};
  if (random_.OneIn(grows_ ? 8 : 3)) {
    for (int32_t i = random_.Between(1, 3); i > 0; --i) {
      request.stop.push_back(random_.PickOf(kStops));
    }
  }
  if (random_.OneIn(grows_ ? 15 : 5)) request.stop_token_ids = {'.', 'f'};
  if (random_.OneIn(3)) request.min_tokens = random_.Between(0, request.max_tokens);
  request.ignore_eos = grows_ || random_.OneIn(3);
  request.include_stop_str_in_output = random_.OneIn(2);
  request.skip_special_tokens = random_.OneIn(2);
}

void RequestMaker::AddSampling(engine::GenerateRequest& request) {
  request.temperature = random_.OneIn(3) ? 0.0 : 0.25 * random_.Between(1, 6);
  if (random_.OneIn(2)) request.seed = random_.Next();
  if (random_.OneIn(4)) request.top_k = random_.Between(1, 50);
  if (random_.OneIn(4)) request.top_p = 0.5;
  if (random_.OneIn(3)) {
    request.presence_penalty = 0.5 * random_.Between(0, 2);
    request.frequency_penalty = 0.5 * random_.Between(-2, 2);
    request.repetition_penalty = random_.OneIn(2) ? 1.25 : 1.0;
  }
  if (random_.OneIn(8)) request.logit_bias = {{'a', 1.5}, {'b', -2.0}};
  if (random_.OneIn(8)) request.allowed_token_ids = {'a', 'b', 0xC3, 0xA9, kEnd, '.'};
}

}  // namespace polyreme::sim
