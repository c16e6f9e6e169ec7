#include <gtest/gtest.h>

#include "coordinator/engine/deadline_keeper.h"
#include "tests/coordinator/api/api_fixture.h"

namespace polyreme::api {
namespace {

using engine::FinishReason;

class CompletionsTest : public ApiTest {};

TEST_F(CompletionsTest, AnswersWithTextUsageAndReason) {
  Start();
  RawClient client(port_);
  client.Send(PostJson("/v1/completions",
                       R"({"model":"tiny","prompt":"hi","max_tokens":9,"temperature":0.5,
      "top_p":0.9,"top_k":3,"seed":-1,"stop":"x","stop_token_ids":[7],"logit_bias":{"65":-1.5},"n":1.0,
      "presence_penalty":1,"user":"me","unheard_of":{"a":[1]}})",
                       "X-Request-Id: r-1\r\n"));
  auto [request, stream] = backend_.Next();
  EXPECT_EQ(request.request_id, "r-1");
  EXPECT_EQ(request.prompt, (std::vector<TokenId>{'h', 'i'}));
  EXPECT_EQ(request.max_tokens, 9);
  EXPECT_EQ(request.temperature, 0.5);
  EXPECT_EQ(request.top_p, 0.9);
  EXPECT_EQ(request.top_k, 3);
  EXPECT_EQ(request.seed, ~uint64_t{0});
  EXPECT_EQ(request.stop, std::vector<std::string>{"x"});
  EXPECT_EQ(request.stop_token_ids, std::vector<TokenId>{7});
  EXPECT_EQ(request.logit_bias, (std::vector<std::pair<TokenId, double>>{{65, -1.5}}));
  EXPECT_EQ(request.presence_penalty, 1.0);
  EXPECT_EQ(request.logprobs, -1);
  engine::OutputPiece first = Piece("one ");
  first.num_cached_tokens = 1;
  stream->Push(std::move(first));
  engine::OutputPiece last = Piece("two", FinishReason::kStop);
  last.stop_string = "x";
  stream->Push(std::move(last));
  stream->Close(absl::OkStatus());

  const auto response = client.Read();
  EXPECT_EQ(response->Header("x-request-id"), "r-1");
  const auto [code, body] = Parsed(response);
  EXPECT_EQ(code, 200);
  EXPECT_EQ(Member(body, "id"), Json("cmpl-r-1"));
  EXPECT_EQ(Member(body, "object"), Json("text_completion"));
  EXPECT_EQ(Member(body, "model"), Json("tiny"));
  EXPECT_EQ(Member(body, "choices").as_array().size(), 1u);
  EXPECT_EQ(Member(body, "choices.0.text"), Json("one two"));
  EXPECT_EQ(Member(body, "choices.0.index"), Json(0));
  EXPECT_EQ(Member(body, "choices.0.finish_reason"), Json("stop"));
  EXPECT_EQ(Member(body, "choices.0.stop_reason"), Json("x"));
  EXPECT_TRUE(Member(body, "choices.0.logprobs").is_null());
  EXPECT_EQ(Member(body, "usage.prompt_tokens"), Json(2));
  EXPECT_EQ(Member(body, "usage.completion_tokens"), Json(7));
  EXPECT_EQ(Member(body, "usage.total_tokens"), Json(9));
  EXPECT_EQ(Member(body, "usage.prompt_tokens_details.cached_tokens"), Json(1));
}

TEST_F(CompletionsTest, StreamsEventsAndUsageInTheEnd) {
  Start();
  RawClient client(port_);
  client.Send(
      PostJson("/v1/completions",
               R"({"prompt":[104,105],"stream":true,"stream_options":{"include_usage":true}})",
               "X-Request-Id: r\r\n"));
  auto [request, stream] = backend_.Next();
  EXPECT_EQ(request.max_tokens, 16);
  stream->Push(Piece("a\nb\r\n\"\xc3\xa9"));
  EXPECT_NE(client.ReadUntil("\n\n").find("a\\nb\\r\\n"),
            std::string::npos);  // before the rest is there
  stream->Push(Piece(""));       // tokens held back give no event
  stream->Push(Piece("c", FinishReason::kLength));
  stream->Close(absl::OkStatus());
  const auto response = client.Read();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->Header("content-type"), "text/event-stream; charset=utf-8");
  const std::string created = response->body.substr(response->body.find("\"created\":") + 10, 10);
  const std::string head = R"(data: {"id":"cmpl-r","object":"text_completion","created":)" +
                           created +
                           R"(,"model":"tiny","system_fingerprint":"polyreme-test","choices":[)";
  EXPECT_EQ(
      response->body,
      head +
          R"({"index":0,"text":"a\nb\r\n\"é","logprobs":null,"finish_reason":null,"stop_reason":null}],"usage":null})"
          "\n\n" +
          head +
          R"({"index":0,"text":"c","logprobs":null,"finish_reason":"length","stop_reason":null}],"usage":null})"
          "\n\n" +
          head +
          R"(],"usage":{"prompt_tokens":2,"total_tokens":11,"completion_tokens":9,"prompt_tokens_details":{"cached_tokens":0}}})"
          "\n\n" +
          "data: [DONE]\n\n");
}

TEST_F(CompletionsTest, SendsUsageInEachChunkIfAsked) {
  Start();
  RawClient client(port_);
  client.Send(PostJson("/v1/completions",
                       R"({"prompt":"hi","stream":true,"max_tokens":4,"ignore_eos":true,"stop":null,
      "stream_options":{"include_usage":true,"continuous_usage_stats":true}})"));
  auto [request, stream] = backend_.Next();
  EXPECT_TRUE(request.ignore_eos);
  stream->Push(Piece("a"));
  stream->Push(Piece("b", FinishReason::kLength));
  stream->Close(absl::OkStatus());
  const std::string body = client.Read()->body;
  EXPECT_NE(body.find(R"("completion_tokens":1)"), std::string::npos);
  EXPECT_NE(body.find(R"("completion_tokens":2)"), std::string::npos);
}

TEST_F(CompletionsTest, NumbersTheChoicesOfSeveralPrompts) {
  Start();
  RawClient client(port_);
  client.Send(PostJson("/v1/completions", R"({"prompt":["a",[98]],"n":2})", "X-Request-Id: r\r\n"));
  auto first = backend_.Next();
  auto second = backend_.Next();
  EXPECT_EQ(first.request.n, 2);
  EXPECT_EQ(first.request.request_id, "r-0");
  EXPECT_EQ(second.request.request_id, "r-1");
  EXPECT_EQ(second.request.prompt, std::vector<TokenId>{98});
  for (auto* one : {&second, &first}) {
    for (const int choice : {1, 0}) {
      engine::OutputPiece piece =
          Piece(std::string(1, static_cast<char>(one->request.prompt[0])) + std::to_string(choice),
                FinishReason::kStop);
      piece.choice = choice;
      one->stream->Push(std::move(piece));
    }
    one->stream->Close(absl::OkStatus());
  }
  const auto [code, body] = Parsed(client.Read());
  ASSERT_EQ(Member(body, "choices").as_array().size(), 4u);
  EXPECT_EQ(Member(body, "choices.0.text"), Json("a0"));
  EXPECT_EQ(Member(body, "choices.1.text"), Json("a1"));
  EXPECT_EQ(Member(body, "choices.2.text"), Json("b0"));
  EXPECT_EQ(Member(body, "choices.3.text"), Json("b1"));
  EXPECT_EQ(Member(body, "choices.3.index"), Json(3));
  EXPECT_EQ(Member(body, "usage.prompt_tokens"), Json(2));
  EXPECT_EQ(Member(body, "usage.completion_tokens"), Json(8));
}

TEST_F(CompletionsTest, ScoresAnEchoedPromptAsEvaluationToolsAsk) {
  Start();
  RawClient client(port_);
  client.Send(
      PostJson("/v1/completions", R"({"prompt":"héj","echo":true,"logprobs":1,"max_tokens":0})"));
  auto [request, stream] = backend_.Next();
  ASSERT_EQ(request.prompt.size(), 4u);  // h, two halves of é, j
  EXPECT_EQ(request.max_tokens, 0);
  EXPECT_EQ(request.prompt_logprobs, 1);
  engine::OutputPiece piece = Piece("", FinishReason::kLength);
  piece.prompt_scores = {Score(0xC3, -1.0f, {{'x', -0.5f}}), Score(0xA9, -2.0f, {{0xA9, -2.0f}}),
                         Score('j', -3.0f, {{'k', -0.25f}})};
  stream->Push(std::move(piece));
  stream->Close(absl::OkStatus());
  const auto [code, body] = Parsed(client.Read());
  EXPECT_EQ(code, 200);
  EXPECT_EQ(Member(body, "choices.0.text"), Json("héj"));
  const Json& logprobs = Member(body, "choices.0.logprobs");
  EXPECT_EQ(Member(logprobs, "tokens").as_array().size(), 4u);
  EXPECT_EQ(Member(logprobs, "tokens.0"), Json("h"));
  EXPECT_TRUE(Member(logprobs, "token_logprobs.0").is_null());
  EXPECT_TRUE(Member(logprobs, "top_logprobs.0").is_null());
  EXPECT_EQ(Member(logprobs, "token_logprobs.3"), Json(-3.0));
  EXPECT_EQ(Member(logprobs, "top_logprobs.3"), Json::MakeObject({{"k", -0.25}, {"j", -3.0}}));
  EXPECT_EQ(Member(logprobs, "text_offset").Dump(), "[0,1,2,2]");
}

TEST_F(CompletionsTest, GivesLogprobsOfDrawnTokens) {
  Start();
  RawClient client(port_);
  client.Send(PostJson(
      "/v1/completions",
      R"({"prompt":"p","logprobs":2,"return_tokens_as_token_ids":true,"return_token_ids":true})"));
  auto [request, stream] = backend_.Next();
  EXPECT_EQ(request.logprobs, 2);
  EXPECT_EQ(request.prompt_logprobs, -1);
  engine::OutputPiece piece = Piece("ab", FinishReason::kStop);
  piece.scores = {Score('a', -0.5f, {{'a', -0.5f}, {'b', -1.5f}}),
                  Score('b', -4.0f, {{'a', -0.5f}, {'c', -1.5f}})};
  piece.stop_token = 7;
  stream->Push(std::move(piece));
  stream->Close(absl::OkStatus());
  const auto [code, body] = Parsed(client.Read());
  EXPECT_EQ(Member(body, "choices.0.logprobs.tokens").Dump(), R"(["token_id:97","token_id:98"])");
  EXPECT_EQ(Member(body, "choices.0.logprobs.top_logprobs.1").Dump(),
            R"({"token_id:97":-0.5,"token_id:99":-1.5,"token_id:98":-4.0})");
  EXPECT_EQ(Member(body, "choices.0.stop_reason"), Json(7));
  EXPECT_EQ(Member(body, "choices.0.token_ids").Dump(), "[97,98]");
  EXPECT_EQ(Member(body, "choices.0.prompt_token_ids").Dump(), "[112]");
}

TEST_F(CompletionsTest, GivesPromptLogprobsAsVllmDoes) {
  Start();
  RawClient client(port_);
  client.Send(
      PostJson("/v1/completions", R"({"prompt":"ab c","prompt_logprobs":1,"max_tokens":1})"));
  auto [request, stream] = backend_.Next();
  EXPECT_EQ(request.prompt_logprobs, 1);
  engine::OutputPiece piece = Piece("d", FinishReason::kLength);
  piece.prompt_scores = {{.token = ' ', .logprob = -1.0f, .rank = 3, .top = {{'x', -0.5f}}},
                         Score('c', -0.5f, {{'c', -0.5f}})};
  stream->Push(std::move(piece));
  stream->Close(absl::OkStatus());
  const auto [code, body] = Parsed(client.Read());
  EXPECT_EQ(
      Member(body, "choices.0.prompt_logprobs").Dump(),
      R"([null,{"32":{"logprob":-1.0,"rank":3,"decoded_token":" "},"120":{"logprob":-0.5,"rank":1,"decoded_token":"x"}},)"
      R"({"99":{"logprob":-0.5,"rank":1,"decoded_token":"c"}}])");
}

TEST_F(CompletionsTest, RecognisesSpecialTokensInAPrompt) {
  Start();
  RawClient client(port_);
  client.Send(PostJson("/v1/completions", R"({"prompt":"a<|end|>"})"));
  auto [request, stream] = backend_.Next();
  EXPECT_EQ(request.prompt, (std::vector<TokenId>{'a', 260}));
}

TEST_F(CompletionsTest, KeepsAndEchoesTheEndOfATruncatedPrompt) {
  Start();
  RawClient client(port_);
  client.Send(
      PostJson("/v1/completions", R"({"prompt":"xyz","truncate_prompt_tokens":2,"echo":true})"));
  auto [request, stream] = backend_.Next();
  EXPECT_EQ(request.prompt, (std::vector<TokenId>{'y', 'z'}));
  stream->Push(Piece("!", FinishReason::kStop));
  stream->Close(absl::OkStatus());
  EXPECT_EQ(Member(Parsed(client.Read()).second, "choices.0.text"), Json("yz!"));
}

struct BadField {
  std::string body;
  std::string param;
  std::string expected;  // part of the message
  int32_t code = 400;
};

std::vector<BadField> BadSampling() {
  return {
      {R"({"prompt":"a","n":"two"})", "n", "expected an integer of 32 bits, got \"two\""},
      {R"({"prompt":"a","n":1.5})", "n", "got 1.5"},
      {R"({"prompt":"a","n":true})", "n", "got true"},
      {R"({"prompt":"a","n":0})", "n", "expected 1 to 8, got 0"},
      {R"({"prompt":"a","n":9999999999})", "n", "got 9999999999"},
      {R"({"prompt":"a","n":1e999})", "body", ""},
      {R"({"prompt":"a","max_tokens":-1})", "max_tokens", "got -1"},
      {R"({"prompt":"a","max_tokens":0})", "max_tokens", "got 0"},
      {R"({"prompt":"a","max_tokens":1000})", "", "maximum context length is 200"},
      {R"({"prompt":"a","min_tokens":17})", "min_tokens", "got 17"},
      {R"({"prompt":"a","temperature":-0.1})", "temperature", "got -0.1"},
      {R"({"prompt":"a","temperature":"hot"})", "temperature", "expected a number, got \"hot\""},
      {R"({"prompt":"a","top_p":0})", "top_p", "got 0"},
      {R"({"prompt":"a","top_p":1.1})", "top_p", "got 1.1"},
      {R"({"prompt":"a","top_k":-2})", "top_k", "got -2"},
      {R"({"prompt":"a","logprobs":6})", "logprobs", "got 6"},
      {R"({"prompt":"a","logprobs":true})", "logprobs", "got true"},
      {R"({"prompt":"a","stop":[""]})", "stop[0]", "got 0"},
      {R"({"prompt":"a","stop":[1]})", "stop[0]", "expected a string, got 1"},
      {R"({"prompt":"a","stop":{}})", "stop", "got an object"},
      {R"({"prompt":"a","stop":["1","2","3","4","5","6","7","8","9","a","b","c","d","e","f","g","h"]})",
       "stop", "got 17"},
      {R"({"prompt":"a","logit_bias":{"262":1}})", "logit_bias", "got 262"},
      {R"({"prompt":"a","logit_bias":{"x":1}})", "logit_bias", "\"x\""},
      {R"({"prompt":"a","logit_bias":[1]})", "logit_bias", "got an array"},
      {R"({"prompt":"a","seed":1.5})", "seed", "got 1.5"},
      {R"({"prompt":"a","priority":1})", "priority", "--scheduling-policy priority, got 1"},
      {R"({"prompt":"a","timeout":0})", "timeout", "expected seconds above 0, at most 604800"},
      {R"({"prompt":"a","timeout":-1.5})", "timeout", "got -1.5"},
      {R"({"prompt":"a","timeout":"5"})", "timeout", "got \"5\""},
      {R"({"prompt":"a","timeout":1e9})", "timeout", "at most 604800"},
  };
}

std::vector<BadField> BadOptions() {
  return {
      {R"({"prompt":"a","best_of":2})", "best_of", "expected it to equal n (1), got 2"},
      {R"({"prompt":"a","suffix":"z"})", "suffix", "got \"z\""},
      {R"({"prompt":"a","use_beam_search":true})", "use_beam_search", "does not support"},
      {R"({"prompt":"a","guided_json":{"type":"object"}})", "guided_json", "does not support"},
      {R"({"prompt":"a","response_format":{"type":"json_object"}})", "response_format",
       "does not support"},
      {R"({"prompt":"a","stream":true,"prompt_logprobs":1})", "prompt_logprobs", "without stream"},
      {R"({"prompt":"a","stream_options":{}})", "stream_options", "together with stream"},
      {R"({"prompt":"a","stream":true,"stream_options":{"include_usage":1}})",
       "stream_options.include_usage", "got 1"},
      {R"({"prompt":"a","stream":"yes"})", "stream", "expected true or false, got \"yes\""},
      {R"({"prompt":"a","model":"gpt-4"})", "model", "expected 'tiny', got \"gpt-4\"", 404},
  };
}

std::vector<BadField> BadPrompts() {
  return {
      {R"({"model":"tiny"})", "prompt", "got null"},
      {R"({"prompt":""})", "prompt", "got none"},
      {R"({"prompt":[]})", "prompt", "got an array"},
      {R"({"prompt":[[]]})", "prompt", "got none"},
      {R"({"prompt":[1,"a"]})", "prompt[1]", "expected a token id, got \"a\""},
      {R"({"prompt":["a",7]})", "prompt[1]", "got 7"},
      {R"({"prompt":[262]})", "prompt[0]", "got 262"},
      {R"({"prompt":[-1]})", "prompt[0]", "got -1"},
      {R"({"prompt":{"a":1}})", "prompt", "got an object"},
      {R"({"prompt":["a","b"],"n":1000})", "n", "got n = 1000"},
      {R"(["prompt"])", "body", "expected an object, got an array"},
      {R"({"prompt":"a",})", "body", ""},
      {R"({"prompt":"a","prompt":"b"})", "body", ""},
      {R"({"prompt":"a"} x)", "body", ""},
      {"{\"prompt\":\"\xff\"}", "body", ""},
      {R"({"prompt":"\ud800"})", "body", ""},
      {"\xef\xbb\xbf{\"prompt\":\"a\"}", "body", ""},
      {R"({"prompt":NaN})", "body", ""},
      {"", "body", ""},
      {std::string(100000, '['), "body", ""},
  };
}

TEST_F(CompletionsTest, NamesTheFieldTheExpectationAndTheValue) {
  Start();
  std::vector<BadField> cases = BadSampling();
  for (const auto& more : {BadOptions(), BadPrompts()})
    cases.insert(cases.end(), more.begin(), more.end());
  for (const BadField& bad : cases) {
    const std::string name = bad.body.substr(0, 80);
    const auto [code, body] = Post("/v1/completions", bad.body);
    EXPECT_EQ(code, bad.code) << name;
    const Json& error = Member(body, "error");
    EXPECT_EQ(Member(error, "param"), bad.param.empty() ? Json() : Json(bad.param))
        << name << error.Dump();
    EXPECT_NE(Member(error, "message").as_string().find(bad.expected), std::string::npos)
        << name << ": " << error.Dump();
    EXPECT_EQ(Member(error, "code"), Json(bad.code)) << name;
    EXPECT_EQ(Member(error, "type"), Json(bad.code == 404 ? "NotFoundError" : "BadRequestError"))
        << name;
  }
  EXPECT_TRUE(backend_.HasNone());
}

TEST_F(CompletionsTest, RefusesAtOnceWhenTheEngineIsFullOrEnding) {
  Start();
  backend_.SetRefusal(ResourceExhausted("expected at most 2 waiting requests"));
  const auto full = Exchange(port_, PostJson("/v1/completions", R"({"prompt":"a"})"));
  EXPECT_EQ(full.code, 429);
  EXPECT_EQ(full.Header("retry-after"), "1");
  EXPECT_EQ(Member(Parsed(full).second, "error.type"), Json("RateLimitError"));
  backend_.SetRefusal(Unavailable("the server is draining"));
  const auto draining =
      Exchange(port_, PostJson("/v1/completions", R"({"prompt":"a","stream":true})"));
  EXPECT_EQ(draining.code, 503);
  EXPECT_EQ(draining.Header("content-type"), "application/json");
}

TEST_F(CompletionsTest, ATimeoutIsADeadlineFromNowOn) {
  Start();
  RawClient client(port_);
  const absl::Time begin = clock_.Now();
  client.Send(PostJson("/v1/completions", R"({"prompt":"a","timeout":2.5})"));
  auto [request, stream] = backend_.Next();
  EXPECT_GE(request.deadline, begin + absl::Seconds(2.5));
  EXPECT_LE(request.deadline, clock_.Now() + absl::Seconds(2.5));
  stream->Close(engine::DeadlinePassed());
  const auto [code, body] = Parsed(client.Read());
  EXPECT_EQ(code, 504);
  EXPECT_EQ(Member(body, "error.type"), Json("TimeoutError"));
  EXPECT_NE(Member(body, "error.message").as_string().find("deadline passed"), std::string::npos);
}

TEST_F(CompletionsTest, WhoCannotBeTakenIsToldBeforeHisRequestIsRead) {
  backend_.SetRoom(ResourceExhausted("8 of at most 8 sequences are waiting"));
  Start();
  const auto response = Exchange(port_, PostJson("/v1/completions", "{ no JSON at all"));
  EXPECT_EQ(response.code, 429);
  EXPECT_EQ(response.Header("retry-after"), "1");
  EXPECT_TRUE(backend_.HasNone());
}

TEST_F(CompletionsTest, CancelsWhatAClientLeavesBehind) {
  Start();
  for (const char* body : {R"({"prompt":"a"})", R"({"prompt":"a","stream":true})"}) {
    RawClient client(port_);
    client.Send(PostJson("/v1/completions", body));
    auto [request, stream] = backend_.Next();
    stream->Push(Piece("x"));
    if (std::string_view(body).find("stream") != std::string_view::npos) client.ReadUntil("\n\n");
    EXPECT_FALSE(stream->cancelled());
    client.Close();
    EXPECT_TRUE(backend_.WaitUntilCancelled()) << body;
  }
}

TEST_F(CompletionsTest, EndsAStreamThatFailsWithAnErrorEvent) {
  Start();
  RawClient client(port_);
  client.Send(PostJson("/v1/completions", R"({"prompt":"a","stream":true})"));
  auto [request, stream] = backend_.Next();
  stream->Push(Piece("x"));
  client.ReadUntil("\n\n");
  stream->Close(Unavailable("rank 3 was lost"));
  const std::string body = client.Read()->body;
  EXPECT_NE(
      body.find(
          R"(data: {"error":{"message":"rank 3 was lost","type":"ServiceUnavailableError","param":null,"code":503}})"),
      std::string::npos)
      << body;
  EXPECT_TRUE(body.ends_with("data: [DONE]\n\n"));
}

TEST_F(CompletionsTest, AnswersAnEarlyFailureByItsCodeAndKeepsInternalsToItself) {
  Start();
  for (const char* body : {R"({"prompt":"a"})", R"({"prompt":"a","stream":true})"}) {
    RawClient client(port_);
    client.Send(PostJson("/v1/completions", body));
    backend_.Next().stream->Close(Internal("pointer 0x7f12 at /secret/path"));
    const auto [code, answer] = Parsed(client.Read());
    EXPECT_EQ(code, 500);
    EXPECT_EQ(answer.Dump().find("secret"), std::string::npos);
  }
}

TEST_F(CompletionsTest, TellsTheErrorOfOneChoiceWithoutEndingTheOthers) {
  Start();
  RawClient client(port_);
  client.Send(PostJson("/v1/completions", R"({"prompt":"a","stream":true,"n":2})"));
  auto [request, stream] = backend_.Next();
  engine::OutputPiece bad = Piece("", FinishReason::kAbort);
  bad.error = Internal("logits are not finite");
  stream->Push(std::move(bad));
  engine::OutputPiece good = Piece("fine", FinishReason::kStop);
  good.choice = 1;
  stream->Push(std::move(good));
  stream->Close(absl::OkStatus());
  const std::string body = client.Read()->body;
  EXPECT_NE(
      body.find(
          R"({"error":{"message":"logits are not finite","type":"InternalServerError","param":null,"code":500}})"),
      std::string::npos);
  EXPECT_NE(body.find(R"("index":1,"text":"fine")"), std::string::npos);
}

TEST_F(CompletionsTest, TakesPromptsOfManyForms) {
  Start();
  for (const auto& [body, prompts] :
       std::vector<std::pair<std::string, size_t>>{{R"({"prompt":"ab"})", 1},
                                                   {R"({"prompt":[1,2]})", 1},
                                                   {R"({"prompt":["a","b","c"]})", 3},
                                                   {R"({"prompt":[[1],[2]]})", 2}}) {
    RawClient client(port_);
    client.Send(PostJson("/v1/completions", body));
    for (size_t i = 0; i < prompts; ++i) {
      auto [request, stream] = backend_.Next();
      stream->Push(Piece("x", FinishReason::kStop));
      stream->Close(absl::OkStatus());
    }
    const auto [code, answer] = Parsed(client.Read());
    EXPECT_EQ(Member(answer, "choices").as_array().size(), prompts) << body;
  }
}

TEST_F(CompletionsTest, HoldsBackForAClientThatReadsSlowly) {
  Start();
  RawClient client(port_);
  client.Send(PostJson("/v1/completions", R"({"prompt":"a","stream":true})"));
  auto [request, stream] = backend_.Next();
  // Far more than sockets and the server's own bound take: pieces stay in their stream until it is
  // full.
  const std::string text(32 << 10, 'x');
  int pushed = 0;
  engine::OutputPiece piece;
  piece.text = text;
  while (pushed < 2 * limits::kTokenStreamCapacity && stream->Push(piece)) ++pushed;
  EXPECT_LT(pushed, 2 * limits::kTokenStreamCapacity);
  EXPECT_FALSE(stream->Push(piece));
}

}  // namespace
}  // namespace polyreme::api
