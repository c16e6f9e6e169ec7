#include "coordinator/api/http_server.h"

#include <gtest/gtest.h>

#include <future>
#include <string>

#include "absl/time/clock.h"
#include "parallel/base/bounded_queue.h"
#include "parallel/base/clock.h"
#include "tests/coordinator/api/raw_client.h"

namespace polyreme::api {
namespace {

struct Arrived {
  HttpRequest request;
  std::shared_ptr<HttpResponder> responder;
};

absl::Time Soon() {
  return MonotonicNow() + absl::Seconds(10);
}

// A server whose requests arrive in a queue, to be answered by the test; /no is refused by its
// head.
class HttpServerTest : public ::testing::Test {
 protected:
  void Start(HttpServerOptions options = {}) {
    HttpServer::Hooks hooks;
    hooks.admit = [](HttpRequest& head) -> std::optional<HttpResponse> {
      head.id = "id-1";
      if (head.path == "/no") return HttpResponse{.code = 404, .body = "no"};
      return std::nullopt;
    };
    hooks.handle = [this](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
      const absl::Status pushed = arrived_.TryPush({std::move(request), std::move(responder)});
      CHECK(pushed.ok());
    };
    hooks.count = [](std::string_view, int32_t) {};
    absl::StatusOr<std::unique_ptr<HttpServer>> server = HttpServer::Start(options, hooks);
    ASSERT_TRUE(server.ok()) << Message(server.status());
    server_ = *std::move(server);
    port_ = server_->bound_port();
  }

  Arrived Next() {
    absl::StatusOr<Arrived> next = arrived_.Pop(Soon());
    CHECK(next.ok(), "no request arrived");
    return *std::move(next);
  }

  BoundedQueue<Arrived> arrived_{64};
  std::unique_ptr<HttpServer> server_;
  int32_t port_ = 0;
};

TEST_F(HttpServerTest, AnswersRequestsOfOneConnectionInTurn) {
  Start();
  RawClient client(port_);
  for (int i = 0; i < 3; ++i) {
    client.Send(PostJson("/x", "{\"i\":1}"));
    Arrived one = Next();
    EXPECT_EQ(one.request.body, "{\"i\":1}");
    one.responder->Send({.body = "yes"});
    const auto response = client.Read();
    ASSERT_TRUE(response.has_value());
    EXPECT_EQ(response->code, 200);
    EXPECT_EQ(response->body, "yes");
    EXPECT_EQ(response->Header("connection"), "keep-alive");
    EXPECT_EQ(response->Header("x-request-id"), "id-1");
  }
}

TEST_F(HttpServerTest, KnowsOfAThreadThatDoesNotComeRound) {
  Start();
  EXPECT_EQ(server_->Stillness(), absl::ZeroDuration());
  RawClient client(port_);
  client.Send(Get("/a"));
  Arrived a = Next();
  std::promise<void> ends;
  a.responder->Post([&] { ends.get_future().wait(); });
  const absl::Time deadline = Soon();
  while (server_->Stillness() < absl::Milliseconds(50) && MonotonicNow() < deadline) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_GE(server_->Stillness(), absl::Milliseconds(50));
  ends.set_value();
  while (server_->Stillness() > absl::ZeroDuration() && MonotonicNow() < deadline) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_EQ(server_->Stillness(), absl::ZeroDuration());
  a.responder->Send({.body = "yes"});
  EXPECT_TRUE(client.Read().has_value());
}

TEST_F(HttpServerTest, AnswersPipelinedRequestsInOrder) {
  Start();
  RawClient client(port_);
  client.Send(Get("/a") + Get("/b") + Get("/no") + Get("/c"));
  Arrived a = Next();
  EXPECT_EQ(a.request.path, "/a");
  EXPECT_FALSE(arrived_.TryPop().has_value());
  a.responder->Send({.body = "a"});
  Next().responder->Send({.body = "b"});
  Next().responder->Send({.body = "c"});
  for (const char* body : {"a", "b", "no", "c"}) EXPECT_EQ(client.Read()->body, body);
}

TEST_F(HttpServerTest, StreamsChunksAndKeepsTheConnection) {
  Start();
  RawClient client(port_);
  client.Send(Get("/s"));
  Arrived s = Next();
  s.responder->StartStream({.content_type = "text/event-stream"});
  s.responder->Write("data: 1\n\n");
  EXPECT_NE(client.ReadUntil("data: 1\n\n").find("text/event-stream"), std::string::npos);
  s.responder->Write("data: 2\n\n");
  s.responder->Finish();
  EXPECT_EQ(client.Read()->body, "data: 1\n\ndata: 2\n\n");
  client.Send(Get("/t"));
  Next().responder->Send({.body = "t"});
  EXPECT_EQ(client.Read()->body, "t");
}

TEST_F(HttpServerTest, EndsAStreamToHttp10ByClosing) {
  Start();
  RawClient client(port_);
  client.Send("GET /s HTTP/1.0\r\n\r\n");
  Arrived s = Next();
  s.responder->StartStream({});
  s.responder->Write("one");
  s.responder->Finish();
  const auto response = client.Read();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->body, "one");
  EXPECT_EQ(response->Header("transfer-encoding"), "");
}

TEST_F(HttpServerTest, TellsThatTheClientHasLeftWhileItsRequestWaits) {
  Start();
  RawClient client(port_);
  client.Send(Get("/wait"));
  Arrived one = Next();
  std::promise<void> closed;
  one.responder->SetOnClosed([&] { closed.set_value(); });
  client.Close();
  EXPECT_EQ(closed.get_future().wait_for(std::chrono::seconds(10)), std::future_status::ready);
  std::promise<void> late;
  one.responder->SetOnClosed([&] { late.set_value(); });
  EXPECT_EQ(late.get_future().wait_for(std::chrono::seconds(10)), std::future_status::ready);
  one.responder->Send({});
}

TEST_F(HttpServerTest, CutsAClientThatDoesNotRead) {
  Start();
  RawClient client(port_);
  client.Send(Get("/s"));
  Arrived s = Next();
  std::promise<void> closed;
  s.responder->SetOnClosed([&] { closed.set_value(); });
  s.responder->StartStream({});
  for (int i = 0; i < 64; ++i) s.responder->Write(std::string(1 << 20, 'x'));
  EXPECT_EQ(closed.get_future().wait_for(std::chrono::seconds(10)), std::future_status::ready);
}

TEST_F(HttpServerTest, SendsOneEventOfAnySize) {
  Start();
  RawClient client(port_);
  client.Send(Get("/s"));
  Arrived s = Next();
  s.responder->StartStream({});
  s.responder->Write(std::string(3 * limits::kMaxHttpPendingBytes, 'x'));
  s.responder->Finish();
  const auto response = client.Read();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(std::ssize(response->body), 3 * limits::kMaxHttpPendingBytes);
}

TEST_F(HttpServerTest, TellsWhenThereIsRoomAgain) {
  Start();
  RawClient client(port_);
  client.Send(Get("/s"));
  Arrived s = Next();
  BoundedQueue<int> room(1000);
  s.responder->StartStream({});
  s.responder->SetOnRoom([&] { room.TryPush(1).IgnoreError(); });
  s.responder->Write(std::string(1 << 20, 'x') + "end");
  client.ReadUntil("end");
  EXPECT_TRUE(room.Pop(Soon()).ok());
  s.responder->Finish();
  EXPECT_TRUE(client.Read().has_value());  // the rooms' queue outlives the callbacks
}

TEST_F(HttpServerTest, RefusesByTheHeadBeforeTheBodyComes) {
  Start();
  RawClient client(port_);
  client.Send("POST /no HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
  const auto response = client.Read();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->code, 404);
  EXPECT_EQ(response->Header("connection"), "close");
  EXPECT_TRUE(client.IsClosedByPeer());
}

TEST_F(HttpServerTest, AnswersTooLongABodyAlthoughItIsStillBeingSent) {
  Start();
  const auto response =
      Exchange(port_, "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n" +
                          std::string(500000, 'x'));
  EXPECT_EQ(response.code, 413);
}

TEST_F(HttpServerTest, LetsAWaitingClientContinue) {
  Start();
  RawClient client(port_);
  client.Send("POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
  EXPECT_EQ(client.ReadHead()->code, 100);
  client.Send("ok");
  Arrived x = Next();
  EXPECT_EQ(x.request.body, "ok");
  x.responder->Send({.body = "done"});
  EXPECT_EQ(client.Read()->body, "done");
}

TEST_F(HttpServerTest, ClosesBehindAFramingTrick) {
  Start();
  RawClient client(port_);
  client.Send(
      "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: "
      "chunked\r\n\r\n0\r\n\r\n" +
      Get("/smuggled"));
  const auto response = client.Read();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->code, 400);
  EXPECT_EQ(response->Header("connection"), "close");
  EXPECT_TRUE(client.IsClosedByPeer());
  EXPECT_FALSE(arrived_.TryPop().has_value());
}

TEST_F(HttpServerTest, EndsSlowHeadsSlowBodiesAndIdleConnections) {
  HttpServerOptions options;
  options.header_deadline = absl::Milliseconds(50);
  options.body_deadline = absl::Milliseconds(50);
  options.idle_deadline = absl::Milliseconds(50);
  Start(options);
  EXPECT_EQ(Exchange(port_, "GET / HT").code, 408);
  EXPECT_EQ(Exchange(port_, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab").code, 408);
  RawClient idle(port_);
  EXPECT_TRUE(idle.IsClosedByPeer());
}

TEST_F(HttpServerTest, AnswersWhatAHandlerForgets) {
  Start();
  RawClient client(port_);
  client.Send(Get("/x"));
  Next().responder.reset();
  EXPECT_EQ(client.Read()->code, 500);
  client.Send(Get("/s"));
  Arrived s = Next();
  s.responder->StartStream({});
  s.responder.reset();
  EXPECT_FALSE(client.Read().has_value());  // a stream that breaks off must not look whole
}

TEST_F(HttpServerTest, RefusesOneConnectionTooMany) {
  HttpServerOptions options;
  options.max_connections = 1;
  Start(options);
  RawClient first(port_);
  first.Send(Get("/x"));
  Arrived x = Next();
  RawClient second(port_);
  EXPECT_EQ(second.Read()->code, 503);
  x.responder->Send({.body = "x"});
  EXPECT_EQ(first.Read()->body, "x");
}

TEST_F(HttpServerTest, AnswersHeadWithoutABody) {
  Start();
  RawClient client(port_);
  client.Send("HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n");
  Next().responder->Send({.body = "four"});
  const auto head = client.ReadHead();
  ASSERT_TRUE(head.has_value());
  EXPECT_EQ(head->Header("content-length"), "4");
  client.Send(Get("/y"));
  Next().responder->Send({.body = "y"});
  EXPECT_EQ(client.Read()->body, "y");
}

TEST_F(HttpServerTest, RefusesAPortInUseByName) {
  Start();
  HttpServerOptions options;
  options.port = port_;
  const auto second = HttpServer::Start(options, {});
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(Message(second.status()).find(std::to_string(port_)), std::string::npos);
}

TEST_F(HttpServerTest, StopLetsAnswersEndAndClosesIdleConnections) {
  Start();
  RawClient idle(port_);
  RawClient busy(port_);
  busy.Send(Get("/x"));
  Arrived x = Next();
  std::thread stopper([&] { server_->Stop(Soon()); });
  EXPECT_TRUE(idle.IsClosedByPeer());
  x.responder->Send({.body = "last words"});
  const auto response = busy.Read();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->body, "last words");
  EXPECT_EQ(response->Header("connection"), "close");
  busy.Close();
  stopper.join();
}

TEST_F(HttpServerTest, StopCutsWhatDoesNotEnd) {
  Start();
  RawClient busy(port_);
  busy.Send(Get("/x"));
  Arrived x = Next();
  server_->Stop(MonotonicNow());
  EXPECT_TRUE(busy.IsClosedByPeer());
  x.responder->Send({.body = "too late"});
}

}  // namespace
}  // namespace polyreme::api
