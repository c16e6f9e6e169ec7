// The one validator: each field at and around its borders, and the messages that clients read.
#include "coordinator/engine/request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "parallel/base/limits.h"

namespace polyreme::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

ModelLimits Model() {
  return {.model_name = "m",
          .max_model_len = 100,
          .vocabulary = 50,
          .eos_tokens = {2, 3},
          .max_choices = 8,
          .max_logprobs = 20};
}

GenerateRequest Good() {
  GenerateRequest request;
  request.prompt = {1, 2, 3};
  request.max_tokens = 10;
  return request;
}

struct Case {
  const char* message;  // "" if it is accepted
  std::function<void(GenerateRequest&)> change;
};

class ValidateTest : public ::testing::TestWithParam<Case> {};

TEST(Validate, APriorityIsRefusedUnlessThePolicySaysSo) {
  GenerateRequest request = Good();
  request.priority = -3;
  EXPECT_EQ(Message(Validate(request, Model())),
            "priority: expected 0, since this server was not started with --scheduling-policy "
            "priority, got -3");
  ModelLimits model = Model();
  model.allows_priority = true;
  EXPECT_TRUE(Validate(request, model).ok());
}

TEST_P(ValidateTest, SaysWhatWasExpectedAndWhatCame) {
  GenerateRequest request = Good();
  GetParam().change(request);
  const absl::Status status = Validate(request, Model());
  EXPECT_EQ(Message(status), GetParam().message);
  const bool is_good = std::string(GetParam().message).empty();
  EXPECT_EQ(status.code(), is_good ? absl::StatusCode::kOk : absl::StatusCode::kInvalidArgument);
}

using R = GenerateRequest;
const Case kCases[] = {
    {"", [](R&) {}},
    {"prompt: expected at least one token, got none", [](R& r) { r.prompt.clear(); }},
    {"prompt[1]: expected a token id from 0 to 49, got 50", [](R& r) { r.prompt[1] = 50; }},
    {"prompt[0]: expected a token id from 0 to 49, got -1", [](R& r) { r.prompt[0] = -1; }},
    {"", [](R& r) { r.max_tokens = 97; }},
    {"This model's maximum context length is 100 tokens. However, you requested 101 tokens (3 in "
     "the prompt, 98 in "
     "the completion). Please reduce the length of the prompt or completion.",
     [](R& r) { r.max_tokens = 98; }},
    {"This model's maximum context length is 100 tokens. However, you requested 2147483650 tokens "
     "(3 in the prompt, "
     "2147483647 in the completion). Please reduce the length of the prompt or completion.",
     [](R& r) { r.max_tokens = INT32_MAX; }},
    {"max_tokens: expected at least 1, got 0", [](R& r) { r.max_tokens = 0; }},
    {"",
     [](R& r) {
       r.max_tokens = 0;
       r.prompt_logprobs = 0;
     }},
    {"max_tokens: expected at least 0, got -1",
     [](R& r) {
       r.max_tokens = -1;
       r.prompt_logprobs = 0;
     }},
    {"", [](R& r) { r.min_tokens = 10; }},
    {"min_tokens: expected 0 to max_tokens, which is 10, got 11", [](R& r) { r.min_tokens = 11; }},
    {"min_tokens: expected 0 to max_tokens, which is 10, got -1", [](R& r) { r.min_tokens = -1; }},
    {"", [](R& r) { r.n = 8; }},
    {"n: expected 1 to 8, got 9", [](R& r) { r.n = 9; }},
    {"n: expected 1 to 8, got 0", [](R& r) { r.n = 0; }},
    {"stop_token_ids[0]: expected a token id from 0 to 49, got 99",
     [](R& r) { r.stop_token_ids = {99}; }},
    {"", [](R& r) { r.stop_token_ids.assign(254, 7); }},
    {"stop_token_ids: expected at most 254, got 255",
     [](R& r) { r.stop_token_ids.assign(255, 7); }},
    {"", [](R& r) { r.stop.assign(16, "x"); }},
    {"stop: expected at most 16 strings, got 17", [](R& r) { r.stop.assign(17, "x"); }},
    {"stop[1]: expected 1 to 1024 bytes, got 0",
     [](R& r) {
       r.stop = {"a", ""};
     }},
    {"stop[0]: expected 1 to 1024 bytes, got 1025",
     [](R& r) { r.stop = {std::string(1025, 'a')}; }},
    {"", [](R& r) { r.temperature = 0; }},
    {"", [](R& r) { r.temperature = 100; }},
    {"temperature: expected 0 to 100, got -0.1", [](R& r) { r.temperature = -0.1; }},
    {"temperature: expected 0 to 100, got nan", [](R& r) { r.temperature = kNan; }},
    {"temperature: expected 0 to 100, got inf", [](R& r) { r.temperature = kInf; }},
    {"", [](R& r) { r.top_k = -1; }},
    {"top_k: expected -1 or 0 (off), or at least 1, got -2", [](R& r) { r.top_k = -2; }},
    {"", [](R& r) { r.top_p = 1e-9; }},
    {"top_p: expected more than 0 and at most 1, got 0", [](R& r) { r.top_p = 0; }},
    {"top_p: expected more than 0 and at most 1, got 1e-300", [](R& r) { r.top_p = 1e-300; }},
    {"top_p: expected more than 0 and at most 1, got 1.5", [](R& r) { r.top_p = 1.5; }},
    {"top_p: expected more than 0 and at most 1, got nan", [](R& r) { r.top_p = kNan; }},
    {"min_p: expected 0 to 1, got 1.5", [](R& r) { r.min_p = 1.5; }},
    {"",
     [](R& r) {
       r.presence_penalty = -2;
       r.frequency_penalty = 2;
     }},
    {"presence_penalty: expected -2 to 2, got 2.5", [](R& r) { r.presence_penalty = 2.5; }},
    {"frequency_penalty: expected -2 to 2, got -2.5", [](R& r) { r.frequency_penalty = -2.5; }},
    {"repetition_penalty: expected more than 0 and at most 10, got 0",
     [](R& r) { r.repetition_penalty = 0; }},
    {"repetition_penalty: expected more than 0 and at most 10, got nan",
     [](R& r) { r.repetition_penalty = kNan; }},
    {"",
     [](R& r) {
       r.logit_bias = {{49, 100}, {0, -100}};
     }},
    {"logit_bias: expected token ids from 0 to 49, got 50",
     [](R& r) {
       r.logit_bias = {{50, 1}};
     }},
    {"logit_bias: expected -100 to 100 for token 4, got 101",
     [](R& r) {
       r.logit_bias = {{4, 101}};
     }},
    {"logit_bias: expected -100 to 100 for token 4, got nan",
     [](R& r) {
       r.logit_bias = {{4, kNan}};
     }},
    {"logit_bias: expected at most 1024 entries, got 1025",
     [](R& r) {
       r.logit_bias.assign(1025, {4, 1});
     }},
    {"allowed_token_ids[0]: expected a token id from 0 to 49, got 50",
     [](R& r) { r.allowed_token_ids = {50}; }},
    {"",
     [](R& r) {
       r.logprobs = 20;
       r.prompt_logprobs = 20;
     }},
    {"logprobs: expected 0 to 20, got 21", [](R& r) { r.logprobs = 21; }},
    {"logprobs: expected 0 to 20, got -2", [](R& r) { r.logprobs = -2; }},
    {"prompt_logprobs: expected 0 to 20, got 21", [](R& r) { r.prompt_logprobs = 21; }},
};
INSTANTIATE_TEST_SUITE_P(Fields, ValidateTest, ::testing::ValuesIn(kCases));

TEST(ToSamplingParams, MakesGreedyExactAndOffReallyOff) {
  GenerateRequest request = Good();
  request.temperature = 1e-6;
  request.top_k = -1;
  step::SamplingParams params = ToSamplingParams(request, Model(), 7, 3);
  EXPECT_EQ(params.temperature, 0.0f);
  EXPECT_EQ(params.top_k, 0);
  EXPECT_EQ(params.seed, 7u);
  EXPECT_EQ(params.choice, 3);
  EXPECT_EQ(params.num_logprobs, -1);
  request.top_k = 50;
  EXPECT_EQ(ToSamplingParams(request, Model(), 7, 0).top_k, 0);
  request.top_k = 49;
  EXPECT_EQ(ToSamplingParams(request, Model(), 7, 0).top_k, 49);
}

TEST(ToSamplingParams, NamesStopTokensOnlyWhileMinTokensHolds) {
  GenerateRequest request = Good();
  request.stop_token_ids = {9};
  EXPECT_THAT(ToSamplingParams(request, Model(), 7, 0).stop_tokens, IsEmpty());
  request.min_tokens = 2;
  EXPECT_THAT(ToSamplingParams(request, Model(), 7, 0).stop_tokens, ElementsAre(2, 3, 9));
  request.ignore_eos = true;
  EXPECT_THAT(ToSamplingParams(request, Model(), 7, 0).stop_tokens, ElementsAre(9));
}

TEST(ToSamplingParams, ThePromptIsScoredByTheFirstChoiceOnly) {
  GenerateRequest request = Good();
  request.logprobs = 2;
  request.prompt_logprobs = 5;
  EXPECT_EQ(ToSamplingParams(request, Model(), 7, 0).num_logprobs, 5);
  EXPECT_EQ(ToSamplingParams(request, Model(), 7, 1).num_logprobs, 2);
}

}  // namespace
}  // namespace polyreme::engine
