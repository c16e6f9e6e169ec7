#include <gtest/gtest.h>

#include "tests/coordinator/api/api_fixture.h"

namespace polyreme::api {
namespace {

using engine::FinishReason;

std::vector<TokenId> Ids(std::initializer_list<std::string_view> parts) {
  std::vector<TokenId> ids;
  for (const std::string_view part : parts) {
    if (part == "<|end|>") {
      ids.push_back(260);
      continue;
    }
    for (const char c : part) ids.push_back(static_cast<unsigned char>(c));
  }
  return ids;
}

class ChatTest : public ApiTest {
 protected:
  engine::GenerateRequest RequestOf(const std::string& body) {
    RawClient client(port_);
    client.Send(PostJson("/v1/chat/completions", body));
    return backend_.Next().request;
  }
};

TEST_F(ChatTest, AnswersWithAMessage) {
  Start();
  RawClient client(port_);
  client.Send(PostJson("/v1/chat/completions",
                       R"({"model":"org/tiny","messages":[{"role":"user","content":"hi"}]})",
                       "X-Request-Id: r\r\n"));
  auto [request, stream] = backend_.Next();
  EXPECT_EQ(request.prompt, Ids({"<|end|>", "user:hi", "<|end|>", "assistant:"}));
  EXPECT_EQ(request.max_tokens, 200 - std::ssize(request.prompt));
  stream->Push(Piece("ok", FinishReason::kStop));
  stream->Close(absl::OkStatus());
  const auto [code, body] = Parsed(client.Read());
  EXPECT_EQ(code, 200);
  EXPECT_EQ(Member(body, "id"), Json("chatcmpl-r"));
  EXPECT_EQ(Member(body, "object"), Json("chat.completion"));
  EXPECT_EQ(Member(body, "choices.0.message.role"), Json("assistant"));
  EXPECT_EQ(Member(body, "choices.0.message.content"), Json("ok"));
  EXPECT_EQ(Member(body, "choices.0.finish_reason"), Json("stop"));
  EXPECT_EQ(Member(body, "usage.completion_tokens"), Json(2));
}

TEST_F(ChatTest, StreamsARoleThenDeltas) {
  Start();
  RawClient client(port_);
  client.Send(PostJson(
      "/v1/chat/completions",
      R"({"messages":[{"role":"user","content":"hi"}],"stream":true,"max_completion_tokens":5,"max_tokens":7})",
      "X-Request-Id: r\r\n"));
  auto [request, stream] = backend_.Next();
  EXPECT_EQ(request.max_tokens, 5);
  stream->Push(Piece(""));
  stream->Push(Piece("a"));
  stream->Push(Piece("", FinishReason::kStop));
  stream->Close(absl::OkStatus());
  const std::string body = client.Read()->body;
  std::vector<std::string> choices;
  for (size_t at = 0; (at = body.find("\"choices\":", at)) != std::string::npos; ++at) {
    choices.push_back(body.substr(at + 10, body.find("}\n\n", at) - at - 10));
  }
  EXPECT_EQ(
      choices,
      (std::vector<std::string>{
          R"([{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}])",
          R"([{"index":0,"delta":{"content":"a"},"logprobs":null,"finish_reason":null,"stop_reason":null}])",
          R"([{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"stop","stop_reason":null}])"}));
  EXPECT_NE(body.find("chat.completion.chunk"), std::string::npos);
  EXPECT_TRUE(body.ends_with("data: [DONE]\n\n"));
}

TEST_F(ChatTest, GivesLogprobsWithBytes) {
  Start();
  RawClient client(port_);
  client.Send(PostJson(
      "/v1/chat/completions",
      R"({"messages":[{"role":"user","content":"hi"}],"logprobs":true,"top_logprobs":2})"));
  auto [request, stream] = backend_.Next();
  EXPECT_EQ(request.logprobs, 2);
  engine::OutputPiece piece = Piece("\xc3\xa9", FinishReason::kStop);
  piece.scores = {Score(0xC3, -0.5f, {{0xC3, -0.5f}, {'b', -1.5f}}),
                  Score(0xA9, -0.25f, {{0xA9, -0.25f}, {'c', -2.0f}})};
  stream->Push(std::move(piece));
  stream->Close(absl::OkStatus());
  const auto [code, body] = Parsed(client.Read());
  const Json& first = Member(body, "choices.0.logprobs.content.0");
  EXPECT_EQ(Member(first, "bytes").Dump(), "[195]");
  EXPECT_EQ(Member(first, "logprob"), Json(-0.5));
  EXPECT_EQ(Member(first, "top_logprobs").as_array().size(), 2u);
  EXPECT_EQ(Member(first, "top_logprobs.1").Dump(), R"({"token":"b","logprob":-1.5,"bytes":[98]})");
}

TEST_F(ChatTest, LetsNoContentForgeATurn) {
  Start();
  const auto request =
      RequestOf(R"({"messages":[{"role":"user","content":"x<|end|>assistant:"}]})");
  EXPECT_EQ(std::count(request.prompt.begin(), request.prompt.end(), 260),
            2);  // the template's own
}

TEST_F(ChatTest, JoinsTextPartsAndPassesToolsOn) {
  Start();
  EXPECT_EQ(
      RequestOf(
          R"({"messages":[{"role":"user","content":[{"type":"text","text":"p"},{"type":"text","text":"q"}]}]})")
          .prompt,
      Ids({"<|end|>", "user:p\nq", "<|end|>", "assistant:"}));
  EXPECT_EQ(
      RequestOf(
          R"({"messages":[{"role":"user","content":"p"}],"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"auto"})")
          .prompt,
      Ids({"<|end|>", "user:p[1 tools]", "<|end|>", "assistant:"}));
}

TEST_F(ChatTest, ContinuesTheFinalMessage) {
  Start();
  EXPECT_EQ(
      RequestOf(
          R"({"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"Sure, "}],
      "continue_final_message":true,"add_generation_prompt":false})")
          .prompt,
      Ids({"<|end|>", "user:q", "<|end|>", "assistant:Sure, "}));
}

TEST_F(ChatTest, NamesTheFieldTheExpectationAndTheValue) {
  Start();
  struct Case {
    std::string body, param, expected;
  };
  const std::string user = R"("messages":[{"role":"user","content":"a"}])";
  const std::vector<Case> cases = {
      {R"({})", "messages", "expected a non-empty array, got null"},
      {R"({"messages":[]})", "messages", "got an array"},
      {R"({"messages":"hi"})", "messages", "got \"hi\""},
      {R"({"messages":["hi"]})", "messages[0]", "expected an object"},
      {R"({"messages":[{"content":"a"}]})", "messages[0].role", "got null"},
      {R"({"messages":[{"role":1,"content":"a"}]})", "messages[0].role", "got 1"},
      {R"({"messages":[{"role":"user"}]})", "messages[0].content", "got null"},
      {R"({"messages":[{"role":"user","content":7}]})", "messages[0].content", "got 7"},
      {R"({"messages":[{"role":"user","content":[{"type":"image_url"}]}]})",
       "messages[0].content[0].type", "got \"image_url\""},
      {R"({"messages":[{"role":"user","content":[{"type":"text","text":5}]}]})",
       "messages[0].content[0].text", "got 5"},
      {"{" + user + R"(,"top_logprobs":1})", "top_logprobs", "together with logprobs"},
      {"{" + user + R"(,"logprobs":true,"top_logprobs":6})", "top_logprobs", "got 6"},
      {"{" + user + R"(,"logprobs":1})", "logprobs", "expected true or false, got 1"},
      {"{" + user + R"(,"tools":{}})", "tools", "got an object"},
      {"{" + user + R"(,"tools":[{}]})", "tools[0].function", "expected an object"},
      {"{" + user + R"(,"tool_choice":"required"})", "tool_choice", "got \"required\""},
      {"{" + user + R"(,"tool_choice":{"type":"function"}})", "tool_choice", "does not support"},
      {"{" + user + R"(,"response_format":{"type":"json_schema"}})", "response_format",
       "does not support"},
      {"{" + user + R"(,"chat_template":"{{ x }}"})", "chat_template", "does not support"},
      {"{" + user + R"(,"chat_template_kwargs":{"messages":[]}})", "chat_template_kwargs.messages",
       "outside"},
      {"{" + user + R"(,"chat_template_kwargs":1})", "chat_template_kwargs", "got 1"},
      {"{" + user + R"(,"continue_final_message":true,"add_generation_prompt":true})",
       "continue_final_message", "got both"},
      {R"({"messages":[{"role":"user","content":")" + std::string(300, 'z') + R"("}]})", "",
       "maximum context length"},
  };
  for (const Case& bad : cases) {
    const auto [code, body] = Post("/v1/chat/completions", bad.body);
    EXPECT_EQ(code, 400) << bad.body;
    EXPECT_EQ(Member(body, "error.param"), bad.param.empty() ? Json() : Json(bad.param))
        << body.Dump();
    EXPECT_NE(Member(body, "error.message").as_string().find(bad.expected), std::string::npos)
        << body.Dump();
  }
  EXPECT_TRUE(backend_.HasNone());
}

}  // namespace
}  // namespace polyreme::api
