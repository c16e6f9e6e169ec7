#include "coordinator/api/http_parser.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "parallel/base/json.h"

namespace polyreme::api {
namespace {

using State = HttpParser::State;

// Feeds all bytes in pieces of `piece_bytes`, past the stop at the head's end.
HttpParser Parse(std::string_view bytes, size_t piece_bytes,
                 HttpParser::Bounds bounds = HttpParser::Bounds()) {
  HttpParser parser(bounds);
  while (!bytes.empty() && parser.state() != State::kDone && parser.state() != State::kFailed) {
    const size_t taken = parser.Feed(bytes.substr(0, piece_bytes));
    bytes.remove_prefix(taken);
  }
  return parser;
}

TEST(HttpParser, ReadsARequestHoweverItsBytesAreCut) {
  const std::string bytes =
      "POST /v1/completions?x=1 HTTP/1.1\r\nHost: a:80\r\nContent-Length:  4 "
      "\r\nX-A:\tb\r\n\r\nbody";
  for (size_t piece = 1; piece <= bytes.size(); ++piece) {
    HttpParser parser = Parse(bytes, piece);
    ASSERT_EQ(parser.state(), State::kDone) << piece << " " << parser.failure().message;
    EXPECT_EQ(parser.request().method, "POST");
    EXPECT_EQ(parser.request().path, "/v1/completions");
    EXPECT_EQ(parser.request().query, "x=1");
    EXPECT_EQ(*parser.request().Header("x-a"), "b");
    EXPECT_EQ(parser.request().body, "body");
    EXPECT_TRUE(parser.request().keeps_alive);
  }
}

TEST(HttpParser, ReadsChunksHoweverTheirBytesAreCut) {
  const std::string bytes =
      "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: "
      "Chunked\r\n\r\n3\r\nabc\r\n0A\r\n0123456789\r\n0\r\n\r\n";
  for (size_t piece = 1; piece <= bytes.size(); ++piece) {
    HttpParser parser = Parse(bytes, piece);
    ASSERT_EQ(parser.state(), State::kDone) << piece << " " << parser.failure().message;
    EXPECT_EQ(parser.request().body, "abc0123456789");
  }
}

TEST(HttpParser, TheFirstByteThatMayNotBeThereDecidesHoweverTheBytesAreCut) {
  const HttpParser::Bounds bounds{.head_bytes = 64, .body_bytes = 64};
  struct Case {
    std::string bytes;
    int32_t code;
  };
  const std::string long_line(100, 'a');
  const std::vector<Case> cases = {
      {"GET /\r" + long_line, 400},                                // then too long
      {"GET /" + long_line + "\r" + long_line, 431},               // then a bare CR
      {"GET /" + std::string(58, 'a') + "\r" + long_line, 431},    // the CR is the last in bounds
      {"GET /" + std::string(57, 'a') + "\ra" + long_line, 400},   // the byte behind it is
      {"GET /" + std::string(57, 'a') + "\r\n" + long_line, 400},  // a line that says too little
      {"GET /\n" + long_line, 400},                                // a bare LF
  };
  for (const Case& c : cases) {
    for (size_t piece = 1; piece <= c.bytes.size(); ++piece) {
      HttpParser parser = Parse(c.bytes, piece, bounds);
      ASSERT_EQ(parser.state(), State::kFailed) << c.bytes << " in pieces of " << piece;
      EXPECT_EQ(parser.failure().code, c.code) << c.bytes << " in pieces of " << piece;
    }
  }
}

TEST(HttpParser, StopsWhereTheHeadAndTheRequestEnd) {
  const std::string head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n";
  HttpParser parser((HttpParser::Bounds()));
  const std::string bytes = head + "okGET / HTTP/1.1\r\n";
  EXPECT_EQ(parser.Feed(bytes), head.size());
  EXPECT_EQ(parser.state(), State::kBody);
  EXPECT_EQ(parser.Feed(std::string_view(bytes).substr(head.size())), 2u);
  EXPECT_EQ(parser.state(), State::kDone);
}

TEST(HttpParser, AcceptsAnAbsoluteTargetOfItsOwnHost) {
  HttpParser parser = Parse("GET http://A:80/x?y HTTP/1.1\r\nHost: a:80\r\n\r\n", 1000);
  ASSERT_EQ(parser.state(), State::kDone) << parser.failure().message;
  EXPECT_EQ(parser.request().path, "/x");
  EXPECT_EQ(parser.request().query, "y");
}

TEST(HttpParser, ClosesBehindHttp10AndConnectionClose) {
  EXPECT_FALSE(Parse("GET / HTTP/1.0\r\n\r\n", 1000).request().keeps_alive);
  EXPECT_FALSE(Parse("GET / HTTP/1.1\r\nHost: a\r\nConnection: x , Close\r\n\r\n", 1000)
                   .request()
                   .keeps_alive);
}

struct Trick {
  const char* name;
  std::string bytes;
  int32_t code = 400;
};

const std::string kGet = "GET / HTTP/1.1\r\nHost: a\r\n";
const std::string kPost = "POST / HTTP/1.1\r\nHost: a\r\n";
const std::string kChunked = kPost + "Transfer-Encoding: chunked\r\n\r\n";

std::vector<Trick> LengthTricks() {
  return {
      {"CL then TE", kPost + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
      {"TE then CL", kPost + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"},
      {"two equal lengths", kPost + "Content-Length: 1\r\nContent-Length: 1\r\n\r\na"},
      {"two different lengths", kPost + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"},
      {"list of lengths", kPost + "Content-Length: 1, 1\r\n\r\na"},
      {"signed length", kPost + "Content-Length: +1\r\n\r\na"},
      {"negative length", kPost + "Content-Length: -1\r\n\r\na"},
      {"hexadecimal length", kPost + "Content-Length: 0x1\r\n\r\na"},
      {"underscored length", kPost + "Content-Length: 1_0\r\n\r\n0123456789"},
      {"empty length", kPost + "Content-Length:\r\n\r\n"},
      {"length with a letter", kPost + "Content-Length: 1a\r\n\r\na"},
      {"length beyond int64", kPost + "Content-Length: 99999999999999999999\r\n\r\n", 413},
      {"length beyond the bound", kPost + "Content-Length: 999999999\r\n\r\n", 413},
      {"identity coding", kPost + "Transfer-Encoding: identity\r\n\r\n"},
      {"chunked, then more", kPost + "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"},
      {"gzip, chunked", kPost + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
      {"chunked twice in a list", kPost + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"},
      {"chunked in two headers",
       kPost + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
      {"chunked with vertical tab", kPost + "Transfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n"},
      {"quoted chunked", kPost + "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n"},
      {"xchunked", kPost + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"},
      {"empty coding", kPost + "Transfer-Encoding:\r\n\r\n"},
      {"chunked in 1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
  };
}

std::vector<Trick> ChunkTricks() {
  return {
      {"chunk extension", kChunked + "1;a=b\r\na\r\n0\r\n\r\n"},
      {"chunk extension on the last", kChunked + "0;a\r\n\r\n"},
      {"chunk size 0x", kChunked + "0x1\r\na\r\n0\r\n\r\n"},
      {"chunk size with sign", kChunked + "+1\r\na\r\n0\r\n\r\n"},
      {"chunk size with space", kChunked + "1 \r\na\r\n0\r\n\r\n"},
      {"chunk size with underscore", kChunked + "1_0\r\n"},
      {"empty chunk size", kChunked + "\r\n"},
      {"chunk size that overflows", kChunked + "ffffffffffffffff1\r\n"},
      {"chunk beyond the bound", kChunked + "fffffff\r\n", 413},
      {"chunk longer than told", kChunked + "1\r\nab\r\n0\r\n\r\n"},
      {"chunk with bare LF", kChunked + "1\na\r\n0\r\n\r\n"},
      {"trailer", kChunked + "0\r\nX: y\r\n\r\n"},
      {"framing in a trailer", kChunked + "0\r\nContent-Length: 5\r\n\r\n"},
  };
}

std::vector<Trick> LineTricks() {
  return {
      {"bare LF lines", "GET / HTTP/1.1\nHost: a\n\n"},
      {"bare LF behind a header", "GET / HTTP/1.1\r\nHost: a\n\r\n"},
      {"bare CR in a value", kGet + "X: a\rb\r\n\r\n"},
      {"bare CR before the target", "GET\r/ HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"CR CR LF", kGet + "X: a\r\r\n\r\n"},
      {"NUL in a value", kGet + std::string("X: a\0b\r\n\r\n", 10)},
      {"NUL in a name", kGet + std::string("X\0: a\r\n\r\n", 9)},
      {"NUL in the target", std::string("GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 28)},
      {"space before the colon", kGet + "X : a\r\n\r\n"},
      {"tab before the colon", kGet + "X\t: a\r\n\r\n"},
      {"Content-Length with a space", kPost + "Content-Length : 1\r\n\r\na"},
      {"empty name", kGet + ": a\r\n\r\n"},
      {"no colon", kGet + "X\r\n\r\n"},
      {"folded line", kGet + "X: a\r\n b\r\n\r\n"},
      {"folded first line", "GET / HTTP/1.1\r\n Host: a\r\n\r\n"},
      {"no Host", "GET / HTTP/1.1\r\n\r\n"},
      {"two Hosts", kGet + "Host: a\r\n\r\n"},
      {"empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n"},
      {"Host with a path", "GET / HTTP/1.1\r\nHost: a/v1/models?\r\n\r\n"},
      {"Host with an at sign", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"},
  };
}

std::vector<Trick> TargetTricks() {
  return {
      {"absolute target of another host", "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"absolute target without host", "GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"other scheme", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"asterisk", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"authority", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"},
      {"fragment", "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"byte above ASCII in the target", "GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"leading empty line", "\r\n" + kGet + "\r\n"},
      {"HTTP/0.9", "GET /\r\n"},
      {"HTTP/2", "PRI * HTTP/2.0\r\n\r\n", 505},
      {"HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505},
      {"lower-case http", "GET / http/1.1\r\nHost: a\r\n\r\n"},
      {"HTTP/1.1 with blank", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n"},
      {"method with brackets", "G[T / HTTP/1.1\r\nHost: a\r\n\r\n"},
      {"endless method", std::string(64, 'A') + " / HTTP/1.1\r\nHost: a\r\n\r\n"},
  };
}

std::vector<Trick> OtherTricks() {
  return {
      {"two Authorizations", kGet + "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n"},
      {"other expectation", kPost + "Expect: 200-ok\r\nContent-Length: 1\r\n\r\na", 417},
      {"endless target", "GET /" + std::string(9000, 'a') + " HTTP/1.1\r\nHost: a\r\n\r\n", 414},
      {"endless header", kGet + "X: " + std::string(40000, 'a'), 431},
      {"TLS hello", std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", 12)},
  };
}

std::vector<Trick> Tricks() {
  std::vector<Trick> all;
  for (const auto& tricks :
       {LengthTricks(), ChunkTricks(), LineTricks(), TargetTricks(), OtherTricks()}) {
    all.insert(all.end(), tricks.begin(), tricks.end());
  }
  return all;
}

TEST(HttpParser, RefusesWhatTwoServersCouldReadDifferentlyHoweverItsBytesAreCut) {
  for (const Trick& trick : Tricks()) {
    for (const size_t piece : {size_t{1}, size_t{7}, trick.bytes.size()}) {
      HttpParser parser = Parse(trick.bytes, piece);
      EXPECT_EQ(parser.state(), State::kFailed) << trick.name << ", pieces of " << piece;
      EXPECT_EQ(parser.failure().code, trick.code)
          << trick.name << ", pieces of " << piece << ": " << parser.failure().message;
      EXPECT_FALSE(parser.request().keeps_alive) << trick.name;
    }
  }
}

// Random damage to good requests: whatever the verdict is, it must not depend on how the bytes were
// cut, since that is what two readers of one connection differ in.
TEST(HttpParser, JudgesDamagedRequestsAlikeHoweverTheirBytesAreCut) {
  const std::vector<std::string> good = {
      "GET http://a/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
      kPost + "Content-Length: 4\r\nX: y\r\n\r\nbody",
      kChunked + "3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"};
  const std::string spice = "\r\n :,\t0aZ;+-_\xff" + std::string(1, '\0');
  const uint32_t seed = 20261122;
  std::mt19937 random(seed);
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = good[random() % good.size()];
    for (size_t hits = 1 + random() % 3; hits > 0; --hits) {
      const size_t at = random() % bytes.size();
      const char c = spice[random() % spice.size()];
      switch (random() % 3) {
        case 0:
          bytes[at] = c;
          break;
        case 1:
          bytes.insert(at, 1, c);
          break;
        default:
          bytes.erase(at, 1);
          break;
      }
    }
    HttpParser whole = Parse(bytes, bytes.size());
    HttpParser cut = Parse(bytes, 1 + random() % 4);
    SCOPED_TRACE(fmt::format("seed {}, round {}: {}", seed, round, Json(bytes).Dump()));
    ASSERT_EQ(whole.state(), cut.state());
    ASSERT_EQ(whole.failure().code, cut.failure().code);
    ASSERT_EQ(whole.failure().message, cut.failure().message);
    ASSERT_EQ(whole.request().path, cut.request().path);
    ASSERT_EQ(whole.request().body, cut.request().body);
    ASSERT_EQ(whole.request().headers.size(), cut.request().headers.size());
  }
}

TEST(HttpParser, RefusesMoreThanAHundredHeaders) {
  std::string bytes = "GET / HTTP/1.1\r\nHost: a\r\n";
  for (int i = 0; i < 99; ++i) bytes += "X: y\r\n";
  EXPECT_EQ(Parse(bytes + "\r\n", 1000).state(), State::kDone);
  EXPECT_EQ(Parse(bytes + "X: y\r\n\r\n", 1000).failure().code, 431);
}

TEST(HttpParser, BoundsABodyOfManySmallChunks) {
  std::string bytes = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (int i = 0; i < 11; ++i) bytes += "1\r\nx\r\n";
  const HttpParser parser = Parse(bytes, 1000, {.head_bytes = 1000, .body_bytes = 10});
  EXPECT_EQ(parser.failure().code, 413);
  EXPECT_EQ(parser.failure().message, "expected a body of at most 10 bytes");
}

}  // namespace
}  // namespace polyreme::api
