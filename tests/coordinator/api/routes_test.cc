#include <gtest/gtest.h>

#include <future>

#include "coordinator/api/task_pool.h"
#include "tests/coordinator/api/api_fixture.h"

namespace polyreme::api {
namespace {

class RoutesTest : public ApiTest {};

TEST_F(RoutesTest, ListsTheModelUnderEachOfItsNames) {
  Start();
  const auto [code, list] = Parsed(Exchange(port_, Get("/v1/models")));
  EXPECT_EQ(code, 200);
  EXPECT_EQ(Member(list, "data.0.id"), Json("tiny"));
  EXPECT_EQ(Member(list, "data.0.object"), Json("model"));
  EXPECT_EQ(Member(list, "data.0.max_model_len"), Json(200));
  EXPECT_EQ(Member(list, "data.1.id"), Json("org/tiny"));
  EXPECT_EQ(Member(Parsed(Exchange(port_, Get("/v1/models/tiny"))).second, "id"), Json("tiny"));
  EXPECT_EQ(Exchange(port_, Get("/v1/models/org/tiny")).code, 200);
  EXPECT_EQ(Exchange(port_, Get("/v1/models/org%2Ftiny")).code, 200);
  EXPECT_EQ(Exchange(port_, Get("/v1/models/other")).code, 404);
  EXPECT_EQ(Exchange(port_, Get("/v1/models/%zz")).code, 404);
}

TEST_F(RoutesTest, TokenizesAndDetokenizes) {
  Start();
  const auto [code, tokens] =
      Post("/tokenize", R"({"prompt":"ab<|end|>","return_token_strs":true})");
  EXPECT_EQ(code, 200);
  EXPECT_EQ(tokens.Dump(),
            R"({"count":2,"max_model_len":200,"tokens":[256,260],"token_strs":["ab","<|end|>"]})");
  EXPECT_EQ(
      Member(Post("/tokenize", R"({"messages":[{"role":"user","content":"<|end|>"}]})").second,
             "count"),
      Json(1 + 5 + 7 + 1 + 10));
  EXPECT_EQ(
      Member(Post("/tokenize",
                  R"({"messages":[{"role":"u","content":"c"}],"add_generation_prompt":false})")
                 .second,
             "tokens")
          .Dump(),
      "[260,117,58,99]");
  EXPECT_EQ(Post("/detokenize", R"({"tokens":[256,260]})").second.Dump(),
            R"({"prompt":"ab<|end|>"})");
  EXPECT_EQ(Member(Post("/detokenize", R"({"tokens":[1,262]})").second, "error.param"),
            Json("tokens[1]"));
  EXPECT_EQ(Member(Post("/detokenize", R"({})").second, "error.param"), Json("tokens"));
  EXPECT_EQ(Member(Post("/tokenize", R"({"prompt":["a"]})").second, "error.param"), Json("prompt"));
}

TEST_F(RoutesTest, TellsHealthFromTheEngine) {
  Start();
  for (const char* path : {"/health", "/ping"}) {
    backend_.SetServing(true);
    EXPECT_EQ(Exchange(port_, Get(path)).code, 200);
    backend_.SetServing(false, "rank 1 is lost");
    const auto [code, body] = Parsed(Exchange(port_, Get(path)));
    EXPECT_EQ(code, 503);
    EXPECT_EQ(Member(body, "error.message"), Json("rank 1 is lost"));
  }
}

TEST_F(RoutesTest, ShowsVersionLoadMetricsAndAPage) {
  Start();
  EXPECT_EQ(Exchange(port_, Get("/version")).body, R"({"version":"test"})");
  backend_.SetHealth({.serving = true,
                      .reason = "",
                      .num_running = 2,
                      .num_waiting = 1,
                      .since_progress = absl::ZeroDuration()});
  EXPECT_EQ(Exchange(port_, Get("/load")).body, R"({"server_load":3})");
  const auto metrics = Exchange(port_, Get("/metrics"));
  EXPECT_EQ(metrics.Header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
  EXPECT_NE(metrics.body.find("polyreme_"), std::string::npos);
  const auto page = Exchange(port_, Get("/"));
  EXPECT_EQ(page.Header("content-type"), "text/html; charset=utf-8");
  EXPECT_NE(page.body.find("curl http://localhost/v1/completions"), std::string::npos);
  EXPECT_EQ(page.body.find('@'), std::string::npos);
}

TEST_F(RoutesTest, CountsAnswersByRouteNeverByWhatAClientSent) {
  Start();
  Exchange(port_, Get("/v1/models/whatever"));
  Exchange(port_, Get("/no/such/path"));
  Exchange(port_, "BREW /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
  const std::string metrics = Exchange(port_, Get("/metrics")).body;
  EXPECT_NE(metrics.find("/v1/models/*"), std::string::npos);
  EXPECT_EQ(metrics.find("whatever"), std::string::npos);
  EXPECT_EQ(metrics.find("/no/such"), std::string::npos);
  EXPECT_EQ(metrics.find("BREW"), std::string::npos);
}

TEST_F(RoutesTest, RefusesUnknownPathsMethodsAndTypes) {
  Start();
  EXPECT_EQ(Exchange(port_, Get("/v1/nothing")).code, 404);
  EXPECT_EQ(Exchange(port_, Get("/v1/../health")).code, 404);
  EXPECT_EQ(Exchange(port_, Get("//health")).code, 404);
  EXPECT_EQ(Exchange(port_, Get("/%68ealth")).code, 404);
  const auto wrong = Exchange(port_, Get("/v1/completions"));
  EXPECT_EQ(wrong.code, 405);
  EXPECT_EQ(wrong.Header("allow"), "POST");
  EXPECT_NE(wrong.body.find("expected method POST at this path, got GET"), std::string::npos);
  EXPECT_EQ(Exchange(port_, PostJson("/health", "{}")).Header("allow"), "GET, HEAD");
  EXPECT_EQ(Exchange(port_, "DELETE /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n").code, 405);
  RawClient head(port_);
  head.Send("HEAD /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
  EXPECT_EQ(head.ReadHead()->code, 200);
  const std::string form =
      "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n";
  EXPECT_EQ(Exchange(port_, form + "\r\n{}").code, 415);
  EXPECT_EQ(Exchange(port_, form + "Content-Type: text/plain\r\n\r\n{}").code, 415);
  EXPECT_EQ(
      Exchange(port_, form + "Content-Type: application/json\r\nContent-Encoding: gzip\r\n\r\n{}")
          .code,
      415);
  EXPECT_EQ(Exchange(port_, form + "Content-Type: Application/JSON ; charset=utf-8\r\n\r\n{}").code,
            400);
}

TEST_F(RoutesTest, AsksForAKeyOnEveryRouteButTheProbes) {
  PublicServerOptions options;
  options.api_keys = {"first", "second"};
  Start(options);
  for (const char* path :
       {"/", "/version", "/metrics", "/load", "/v1/models", "/v1/models/tiny", "/no/such"}) {
    EXPECT_EQ(Exchange(port_, Get(path)).code, 401) << path;
  }
  for (const char* path : {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"}) {
    const auto refused = Exchange(port_, PostJson(path, R"({"prompt":"a"})"));
    EXPECT_EQ(refused.code, 401) << path;
    EXPECT_EQ(refused.Header("www-authenticate"), "Bearer");
  }
  EXPECT_EQ(Exchange(port_, Get("/health")).code, 200);
  EXPECT_EQ(Exchange(port_, Get("/ping")).code, 200);
  const auto with = [&](std::string_view value) {
    return Exchange(port_, Get("/v1/models", fmt::format("Authorization: {}\r\n", value))).code;
  };
  EXPECT_EQ(with("Bearer first"), 200);
  EXPECT_EQ(with("bearer second"), 200);
  for (const char* wrong : {"Bearer firs", "Bearer firstt", "Bearer ", "Bearer", "first",
                            "Basic first", "Bearer  first"}) {
    EXPECT_EQ(with(wrong), 401) << wrong;
  }
  // Neither another Host nor an absolute target leads around the key.
  EXPECT_EQ(Exchange(port_, "GET http://x/health HTTP/1.1\r\nHost: /v1/models\r\n\r\n").code, 400);
  EXPECT_EQ(Exchange(port_, "GET http://x/v1/models HTTP/1.1\r\nHost: x\r\n\r\n").code, 401);
}

TEST_F(RoutesTest, LetsNoWebPageElsewhereUseAServerWithoutKeys) {
  Start();
  const auto code = [&](std::string_view host, std::string_view origin) {
    return Exchange(port_, fmt::format("GET /v1/models HTTP/1.1\r\nHost: {}\r\n{}\r\n", host,
                                       origin.empty() ? "" : fmt::format("Origin: {}\r\n", origin)))
        .code;
  };
  EXPECT_EQ(code("localhost:8000", ""), 200);
  EXPECT_EQ(code("127.0.0.1", ""), 200);
  EXPECT_EQ(code("[::1]:8000", ""), 200);
  EXPECT_EQ(code("localhost", "http://localhost:3000"), 200);
  EXPECT_EQ(code("evil.example", ""), 403);
  EXPECT_EQ(code("localhost.evil.example", ""), 403);
  EXPECT_EQ(code("localhost", "https://evil.example"), 403);
  EXPECT_EQ(code("localhost", "null"), 403);
}

TEST_F(RoutesTest, EchoesAHarmlessRequestIdAndDrawsOneOtherwise) {
  Start();
  EXPECT_EQ(Exchange(port_, Get("/health", "X-Request-Id: abc-1.2\r\n")).Header("x-request-id"),
            "abc-1.2");
  const std::string drawn =
      Exchange(port_, Get("/health", "X-Request-Id: a b<c>\r\n")).Header("x-request-id");
  EXPECT_EQ(drawn.size(), 32u);
  EXPECT_NE(Exchange(port_, Get("/health")).Header("x-request-id"), drawn);
}

TEST(TaskPool, RefusesWhatItCannotHoldAndGoesOn) {
  TaskPool pool(1, 1);
  std::promise<void> started;
  std::promise<void> go_on;
  std::promise<void> done;
  ASSERT_TRUE(pool.TryRun([&] {
                    started.set_value();
                    go_on.get_future().wait();
                  })
                  .ok());
  started.get_future().wait();
  ASSERT_TRUE(pool.TryRun([&] { done.set_value(); }).ok());
  EXPECT_EQ(pool.TryRun([] {}).code(), absl::StatusCode::kResourceExhausted);
  go_on.set_value();
  done.get_future().wait();
  EXPECT_TRUE(pool.TryRun([] {}).ok());
}

}  // namespace
}  // namespace polyreme::api
