// What the client of `polyreme bench` reads: events, answers, chunks, addresses; and its
// statistics.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "deploy/bench/chunk_scan.h"
#include "deploy/bench/http_response.h"
#include "deploy/bench/http_url.h"
#include "deploy/bench/openai_client.h"
#include "deploy/bench/request_record.h"
#include "deploy/bench/samples.h"
#include "deploy/bench/sse.h"

namespace polyreme::bench {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// The events of `text` when it comes in pieces of `size` bytes.
std::vector<std::string> Events(std::string_view text, size_t size) {
  EventParser parser;
  std::vector<std::string> events;
  for (size_t at = 0; at < text.size(); at += size) {
    EXPECT_TRUE(
        parser
            .Feed(text.substr(at, size), [&](std::string_view data) { events.emplace_back(data); })
            .ok());
  }
  return events;
}

TEST(EventParser, ReadsTheSameEventsWhateverThePieces) {
  const std::string text =
      "\xEF\xBB\xBF"
      "data: one\n\n: a comment\n\ndata:two\r\n\r\ndata:  three\rdata: more\r\r"
      "event: x\nid: 4\ndata\n\ndatabase: no\n\ndata: {\"a\":1}\nretry: 5\n\ndata: cut";
  for (size_t size = 1; size <= text.size(); ++size) {
    EXPECT_THAT(Events(text, size), ElementsAre("one", "two", " three\nmore", "", "{\"a\":1}"))
        << "pieces of " << size;
  }
}

TEST(EventParser, EventsWithoutDataAreNone) {
  EXPECT_THAT(Events("\n\n\n: ping\n\nevent: end\n\n", 3), IsEmpty());
}

TEST(EventParser, AnEndlessLineIsRefused) {
  EventParser parser;
  const std::string part(1 << 20, 'x');
  absl::Status status;
  for (int i = 0; i < 9 && status.ok(); ++i) status = parser.Feed(part, [](std::string_view) {});
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
}

struct Answer {
  ResponseParser::State state;
  int32_t code = 0;
  std::string body;
  size_t taken = 0;
  bool keeps_alive = false;
};
Answer Parse(std::string_view text, size_t size, bool ends = false) {
  ResponseParser parser;
  Answer answer{};
  for (size_t at = 0; at < text.size(); at += size) {
    const std::string_view part = text.substr(at, size);
    const size_t taken = parser.Feed(part, [&](std::string_view bytes) { answer.body += bytes; });
    answer.taken += taken;
    if (taken < part.size()) break;
  }
  if (ends) parser.FeedEnd();
  answer.state = parser.state();
  answer.code = parser.code();
  answer.keeps_alive = parser.keeps_alive();
  return answer;
}

TEST(ResponseParser, ReadsEveryFramingInAnyPieces) {
  const std::string chunked =
      "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
      "Content-Type: Text/Event-Stream\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nT: 1\r\n\r\n";
  const std::string fixed = "HTTP/1.1 404 Not Found\nContent-Length: 5\nConnection: close\n\nhello";
  const std::string until_end = "HTTP/1.0 200 OK\r\n\r\nall of it";
  for (size_t size = 1; size < 80; ++size) {
    const Answer a = Parse(chunked + "next", size);
    EXPECT_EQ(a.state, ResponseParser::State::kDone);
    EXPECT_EQ(a.body, "abc0123456789");
    EXPECT_EQ(a.taken, chunked.size());
    EXPECT_TRUE(a.keeps_alive);
    const Answer b = Parse(fixed, size);
    EXPECT_EQ(b.state, ResponseParser::State::kDone);
    EXPECT_EQ(b.code, 404);
    EXPECT_EQ(b.body, "hello");
    EXPECT_FALSE(b.keeps_alive);
    const Answer c = Parse(until_end, size, /*ends=*/true);
    EXPECT_EQ(c.state, ResponseParser::State::kDone);
    EXPECT_EQ(c.body, "all of it");
    EXPECT_FALSE(c.keeps_alive);
  }
}

TEST(ResponseParser, RefusesWhatHasNoOneMeaning) {
  for (const std::string text :
       {"SSH-2.0-x\r\n", "HTTP/2 200\r\n", "HTTP/1.1 99 x\r\n", "HTTP/1.1 200 OK\r\n: x\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n"
        "Content-Length: 2\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n"}) {
    EXPECT_EQ(Parse(text, 7).state, ResponseParser::State::kFailed) << text;
  }
  const std::string long_head = "HTTP/1.1 200 OK\r\nA: " + std::string(70 << 10, 'a');
  EXPECT_EQ(Parse(long_head, 1000).state, ResponseParser::State::kFailed);
}

TEST(ResponseParser, AnAnswerThatIsCutIsAFailure) {
  for (const std::string text :
       {"", "HTTP/1.1 200", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"}) {
    EXPECT_EQ(Parse(text, 5, /*ends=*/true).state, ResponseParser::State::kFailed) << text;
  }
}

TEST(HttpUrl, SaysHostPortAndPrefix) {
  const auto url = ParseHttpUrl("http://gpu-1.example:8000/v1/");
  ASSERT_TRUE(url.ok());
  EXPECT_EQ(url->authority(), "gpu-1.example:8000");
  EXPECT_EQ(url->prefix, "");
  EXPECT_EQ(ParseHttpUrl("http://[::1]:80/a/b")->authority(), "[::1]:80");
  EXPECT_EQ(ParseHttpUrl("http://[::1]:80/a/b")->prefix, "/a/b");
  EXPECT_EQ(ParseHttpUrl("http://host")->port, "80");
}

TEST(HttpUrl, RefusesWhatIsNone) {
  for (const std::string text :
       {"", "localhost:8000", "ftp://a", "http://", "http://a:b", "http://a:99999", "http://u@a",
        "http://[::1", "http://a/?q", "http://a b", "http://[::1]x"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseHttpUrl(text).status())) << text;
  }
  EXPECT_THAT(Message(ParseHttpUrl("https://a").status()), HasSubstr("TLS"));
}

TEST(StreamChunk, PlainTextIsToldWithoutParsing) {
  for (
      const std::string text :
      {R"({"id":"a","choices":[{"index":0,"text":"x","logprobs":null,"finish_reason":null}],"usage":null})",
       R"({"choices": [ {"delta": {"role":"assistant","content":"a \"q\" }]"}, "finish_reason": null} ]})"}) {
    EXPECT_TRUE(IsPlainTextChunk(text)) << text;
    EXPECT_TRUE(ReadStreamChunk(text)->has_text);
  }
  for (const std::string text :
       {R"({"choices":[{"text":"","finish_reason":null}]})",
        R"({"choices":[{"text":"x","finish_reason":"stop"}]})",
        R"({"choices":[{"text":"x"}],"usage":{"completion_tokens":1}})",
        R"({"error":{"message":"x"}})", R"({"text":"x"})", R"({"choices":[{"text":"x"})", "{", "",
        R"({"choices":[{"text":"x)", R"("choices")"}) {
    EXPECT_FALSE(IsPlainTextChunk(text)) << text;
  }
}

// A chunk that is told without parsing is told as parsing would tell it: random texts of the pieces
// that chunks are made of.
TEST(StreamChunk, TheShortWayAgreesWithTheLongOne) {
  const std::vector<std::string> pieces = {"{",
                                           "}",
                                           "[",
                                           "]",
                                           ",",
                                           ":",
                                           "\"choices\"",
                                           "\"text\"",
                                           "\"content\"",
                                           "\"delta\"",
                                           "\"finish_reason\"",
                                           "null",
                                           "\"usage\"",
                                           "\"a\"",
                                           "\"\"",
                                           "1",
                                           " ",
                                           "\"a\\\"\""};
  std::mt19937_64 random(7);
  int plain = 0;
  for (int i = 0; i < 200000; ++i) {
    std::string text = R"({"choices":[{"text":"a")";
    const auto more = random() % 8;
    for (uint64_t p = 0; p < more; ++p) text += pieces[random() % pieces.size()];
    if (random() % 2 == 0) text += "}]}";
    if (!IsPlainTextChunk(text)) continue;
    const absl::StatusOr<Json> json = Json::Parse(text);
    if (!json.ok()) continue;  // no server's chunk: what is said of it does not matter
    ++plain;
    const Json* choices = json->Find("choices");
    ASSERT_NE(choices, nullptr) << text << " (seed 7)";
    EXPECT_EQ(json->Find("usage") == nullptr || json->Find("usage")->is_null(), true) << text;
  }
  EXPECT_GT(plain, 100);
}

TEST(StreamChunk, SaysUsageReasonsAndErrors) {
  const auto last = ReadStreamChunk(
      R"({"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}})");
  EXPECT_EQ(last->prompt_tokens, 3);
  EXPECT_EQ(last->completion_tokens, 5);
  EXPECT_FALSE(last->has_text);
  EXPECT_EQ(ReadStreamChunk(R"({"choices":[{"text":"","finish_reason":"length"}]})")->finish_reason,
            "length");
  EXPECT_EQ(ReadStreamChunk(R"({"error":{"message":"too long","code":400}})")->error, "too long");
  EXPECT_EQ(ReadStreamChunk(R"({"object":"error","message":"no room","code":503})")->error,
            "no room");
  EXPECT_FALSE(ReadStreamChunk("word").ok());
  EXPECT_FALSE(ReadStreamChunk("[1]").ok());
  EXPECT_TRUE(ReadStreamChunk(R"({"choices":[{"delta":{"reasoning_content":"hm"}}]})")->has_text);
}

TEST(ErrorMessage, FindsTheSentenceInWhatServersSend) {
  EXPECT_EQ(ErrorMessage(R"({"error":{"message":"a\nb"}})"), "a b");
  EXPECT_EQ(ErrorMessage(R"({"detail":"Not Found"})"), "Not Found");
  EXPECT_EQ(ErrorMessage(R"({"object":"error","message":"m"})"), "m");
  EXPECT_EQ(ErrorMessage("<html>bad gateway"), "<html>bad gateway");
}

TEST(GenerationBody, HasOpenAiNames) {
  OpenAiTarget target;
  target.model = "m";
  target.ignore_eos = true;
  target.extra.Set("top_p", 0.5);
  const Json body = *Json::Parse(*GenerationBody(target, std::vector<TokenId>{1, 2}, 9));
  EXPECT_EQ(body.Find("prompt")->Dump(), "[1,2]");
  EXPECT_EQ(body.Find("max_tokens")->as_int(), 9);
  EXPECT_TRUE(body.Find("stream_options")->Find("include_usage")->as_bool());
  EXPECT_TRUE(body.Find("ignore_eos")->as_bool());
  EXPECT_EQ(body.Find("top_p")->as_double(), 0.5);
  target.chat = true;
  EXPECT_FALSE(GenerationBody(target, std::vector<TokenId>{1}, 9).ok());
  EXPECT_EQ(Json::Parse(*GenerationBody(target, std::string("hi"), 9))->Find("messages")->Dump(),
            R"([{"role":"user","content":"hi"}])");
}

TEST(ReadModelList, TakesNamesAndLengths) {
  const auto models = ReadModelList(R"({"data":[{"id":"a","max_model_len":128},{"id":"b"},{}]})");
  ASSERT_EQ(models->size(), 2u);
  EXPECT_EQ((*models)[0].max_model_len, 128);
  EXPECT_EQ((*models)[1].max_model_len, 0);
  EXPECT_FALSE(ReadModelList("{}").ok());
  EXPECT_FALSE(ReadModelList("x").ok());
}

TEST(Percentile, IsLinearBetweenTheNearestRanks) {
  const std::vector<double> values = {1, 2, 3, 4};
  EXPECT_DOUBLE_EQ(Percentile(values, 0), 1);
  EXPECT_DOUBLE_EQ(Percentile(values, 50), 2.5);
  EXPECT_DOUBLE_EQ(Percentile(values, 99), 3.97);
  EXPECT_DOUBLE_EQ(Percentile(values, 100), 4);
  EXPECT_TRUE(std::isnan(Percentile({}, 50)));
  const Samples samples({4, 1, 3, 2});
  EXPECT_DOUBLE_EQ(samples.mean(), 2.5);
  EXPECT_DOUBLE_EQ(samples.deviation(), std::sqrt(1.25));
  EXPECT_DOUBLE_EQ(samples.median(), 2.5);
}

// Streams whose delays are drawn from known distributions, in time that is handed in: what comes
// out are those distributions, to 1 %.
TEST(StreamRecorder, PercentilesAreThoseOfTheDelaysToOnePercent) {
  constexpr int kRequests = 2000;
  constexpr int kChunks = 50;
  std::mt19937_64 random(11);
  std::exponential_distribution<double> first(1 / 200.0);
  std::lognormal_distribution<double> gap(3.0, 0.5);
  std::vector<double> ttft, itl, tpot;
  std::vector<double> expected_tpot;
  for (int r = 0; r < kRequests; ++r) {
    RequestRecord record;
    record.outcome = RequestRecord::Outcome::kFailed;
    record.intended_ns = int64_t{r} * 1'000'000;
    record.sent_ns = record.intended_ns + 5'000'000;  // late: counts
    constexpr int64_t kStart = 123'456'789;
    StreamRecorder recorder(record, kStart);
    ResponseParser head;
    std::vector<std::string> bodies;
    const auto feed = [&](std::string_view bytes, int64_t now) {
      head.Feed(bytes, [&](std::string_view body) { recorder.OnBody(head, body, now); });
    };
    int64_t now = kStart + record.intended_ns;
    feed("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", now);
    double sum = 0;
    for (int c = 0; c < kChunks; ++c) {
      const double ms = c == 0 ? first(random) : gap(random);
      now += static_cast<int64_t>(ms * 1e6);
      sum += c == 0 ? 0 : ms;
      feed("data: {\"choices\":[{\"text\":\"x\",\"finish_reason\":null}]}\n\n", now);
    }
    feed("data: [DONE]\n\n", now);
    recorder.OnEnd(head, absl::OkStatus(), now);
    ASSERT_EQ(record.outcome, RequestRecord::Outcome::kDone) << record.error;
    ASSERT_EQ(record.output_tokens, kChunks);
    ttft.push_back(record.ttft_ms());
    tpot.push_back(record.tpot_ms());
    expected_tpot.push_back(sum / (kChunks - 1));
    for (const int64_t ns : record.gaps_ns) itl.push_back(static_cast<double>(ns) / 1e6);
  }
  const auto near = [](double got, double want, double part) {
    EXPECT_NEAR(got, want, part * want);
  };
  // Of 100,000 gaps the drawn percentiles are the distribution's own to 1 %.
  const Samples gaps(std::move(itl));
  near(gaps.median(), std::exp(3.0), 0.01);
  near(gaps.Percentile(90), std::exp(3.0 + 0.5 * 1.2815516), 0.01);
  near(gaps.Percentile(99), std::exp(3.0 + 0.5 * 2.3263479), 0.01);
  near(gaps.mean(), std::exp(3.125), 0.01);
  // Of 2,000 first chunks those that were drawn.
  const Samples firsts(std::move(ttft));
  near(firsts.mean(), 200, 0.06);
  near(firsts.median(), 200 * std::log(2.0), 0.08);
  const Samples tokens(std::move(tpot));
  const Samples wanted(std::move(expected_tpot));
  for (const double p : {1.0, 50.0, 99.0}) near(tokens.Percentile(p), wanted.Percentile(p), 1e-4);
}

TEST(StreamRecorder, SaysWhatWentWrong) {
  const auto outcome = [](std::string_view answer, const absl::Status& status) {
    RequestRecord record;
    StreamRecorder recorder(record, 0);
    ResponseParser head;
    head.Feed(answer, [&](std::string_view body) { recorder.OnBody(head, body, 1); });
    recorder.OnEnd(head, status, 2);
    EXPECT_NE(record.outcome, RequestRecord::Outcome::kDone);
    return record.error;
  };
  EXPECT_THAT(outcome("HTTP/1.1 400 X\r\nContent-Length: 32\r\n\r\n"
                      R"({"error":{"message":"too long"}})",
                      absl::OkStatus()),
              "HTTP 400: too long");
  const std::string stream = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
  EXPECT_THAT(outcome(stream + "data: {\"choices\":[]}\n\n", absl::OkStatus()),
              HasSubstr("[DONE]"));
  EXPECT_THAT(outcome(stream + "data: {\"error\":\"gone\"}\n\ndata: [DONE]\n\n", absl::OkStatus()),
              "gone");
  EXPECT_THAT(outcome("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", absl::OkStatus()),
              HasSubstr("no stream"));
  EXPECT_THAT(outcome(stream, Unavailable("the connection broke")), "the connection broke");
}

}  // namespace
}  // namespace polyreme::bench
