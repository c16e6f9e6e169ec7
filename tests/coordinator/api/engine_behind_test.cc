// The faces over the real engine, with workers that answer at once: what only the two together can
// show.
#include <gtest/gtest.h>

#include "coordinator/engine/null_link.h"
#include "tests/coordinator/api/engine_fixture.h"

namespace polyreme::api {
namespace {

class EngineBehindTest : public EngineApiTest<engine::NullLink> {
 protected:
  EngineBehindTest() : EngineApiTest(/*num_blocks=*/256) {}
};

TEST_F(EngineBehindTest, AnswersWithAsManyTokensAsAsked) {
  const auto [code, body] =
      Post("/v1/completions", R"({"prompt":"ab c","max_tokens":9,"ignore_eos":true,"n":3,)"
                              R"("return_token_ids":true,"logprobs":0})");
  ASSERT_EQ(code, 200) << body.Dump();
  EXPECT_EQ(Member(body, "usage.prompt_tokens"), Json(3));
  EXPECT_EQ(Member(body, "usage.completion_tokens"), Json(27));
  for (const char* choice : {"choices.0", "choices.1", "choices.2"}) {
    EXPECT_EQ(Member(Member(body, choice), "token_ids").as_array().size(), 9u);
    EXPECT_EQ(Member(Member(body, choice), "logprobs.tokens").as_array().size(), 9u);
    EXPECT_EQ(Member(Member(body, choice), "finish_reason"), Json("length"));
  }
}

TEST_F(EngineBehindTest, StreamsTheTextOfTheWholeAnswer) {
  const std::string fields =
      R"("prompt":[1,2,3],"max_tokens":40,"ignore_eos":true,"temperature":0)";
  RawClient client(port_);
  client.Send(PostJson("/v1/completions", "{" + fields + R"(,"stream":true})"));
  const auto response = client.Read();
  ASSERT_TRUE(response.has_value());
  std::string streamed;
  int events = 0;
  for (size_t at = 0; (at = response->body.find("data: {", at)) != std::string::npos; ++at) {
    const size_t end = response->body.find("\n\n", at);
    const absl::StatusOr<Json> event = Json::Parse(response->body.substr(at + 6, end - at - 6));
    ASSERT_TRUE(event.ok());
    streamed += Member(*event, "choices.0.text").as_string();
    ++events;
  }
  EXPECT_GT(events, 1);
  EXPECT_FALSE(streamed.empty());
  EXPECT_TRUE(response->body.ends_with("data: [DONE]\n\n"));
}

TEST_F(EngineBehindTest, RefusesAtOnceMoreThanMayWait) {
  const auto full = Exchange(
      port_, PostJson("/v1/completions", R"({"prompt":["a","b"],"n":8,"max_tokens":150})"));
  EXPECT_EQ(full.code, 429);
  EXPECT_EQ(full.Header("retry-after"), "1");
  // What the same request had already queued is given back, as soon as the engine has seen it.
  const absl::Time deadline = MonotonicNow() + absl::Seconds(10);
  int32_t code = 429;
  while (code == 429 && MonotonicNow() < deadline) {
    code = Post("/v1/completions", R"({"prompt":"a","n":8,"max_tokens":2})").first;
  }
  EXPECT_EQ(code, 200);
}

TEST_F(EngineBehindTest, TellsThatItDrains) {
  engine_.Drain(MonotonicNow() + absl::Seconds(10));
  EXPECT_EQ(Exchange(port_, Get("/health")).code, 503);
  const auto refused = Exchange(port_, PostJson("/v1/completions", R"({"prompt":"a"})"));
  EXPECT_EQ(refused.code, 503);
  EXPECT_EQ(refused.Header("retry-after"), "1");
}

TEST_F(EngineBehindTest, ADrainIsTheEndOfEachConnection) {
  RawClient client(port_);
  client.Send(Get("/health"));
  ASSERT_EQ(client.Read()->code, 200);
  server_->Drain();
  engine_.Drain(MonotonicNow() + absl::Seconds(10));
  client.Send(PostJson("/v1/completions", R"({"prompt":"a"})"));
  const std::optional<RawResponse> refused = client.Read();
  ASSERT_TRUE(refused.has_value());
  EXPECT_EQ(refused->code, 503);
  EXPECT_EQ(refused->Header("connection"), "close");
  EXPECT_TRUE(client.IsClosedByPeer());
}

TEST_F(EngineBehindTest, ARequestEndsAtItsTimeoutWithATypedError) {
  const auto [code, body] = Post(
      "/v1/completions", R"({"prompt":"a","max_tokens":150,"ignore_eos":true,"timeout":1e-6})");
  EXPECT_EQ(code, 504);
  EXPECT_EQ(Member(body, "error.type"), Json("TimeoutError"));
  // What it held is free: the same again runs to its end.
  EXPECT_EQ(Post("/v1/completions", R"({"prompt":"a","max_tokens":150,"ignore_eos":true})").first,
            200);
}

}  // namespace
}  // namespace polyreme::api
