// A strict, incremental parser of HTTP/1 requests (RFC 9112): what two servers could read
// differently is refused.
//
// Refused with 400: content-length beside transfer-encoding, either one twice, a length that is not
// plain digits, any coding but exactly "chunked", chunked in HTTP/1.0, chunk extensions, trailers,
// bare CR or LF, NUL and other controls, space before a colon, folded lines, a missing, repeated or
// malformed Host, an absolute target of another host. There is one parser, and route and key are
// decided on what it says. No I/O, no clock; one thread. Source of the cases: RFC 9112 sections 2
// to 7 and 11.2; narfindustries/http-garden, TROPHIES.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "coordinator/api/http_message.h"
#include "parallel/base/limits.h"

namespace polyreme::api {

class HttpParser {
 public:
  struct Bounds {
    int64_t head_bytes = limits::kMaxHttpHeaderBytes;
    int64_t body_bytes = limits::kMaxHttpBodyBytes;
  };
  struct Failure {
    int32_t code = 400;
    std::string message;  // what was expected; never holds bytes of the client
  };
  enum class State {
    kHead,    // request line and headers are not complete
    kBody,    // the head is, the body is not
    kDone,    // the whole request is there
    kFailed,  // failure() says why; the connection must be closed behind the answer
  };

  explicit HttpParser(const Bounds& bounds) : bounds_(bounds) {}

  // Takes bytes of the one request this parser is for and returns how many. Stops early where the
  // head ends, so that a request can be refused before its body, where the request ends, and at a
  // failure. Otherwise takes all.
  size_t Feed(std::string_view bytes);

  State state() const;
  bool started() const { return head_bytes_ > 0; }
  // Head fields from kBody on, the body at kDone.
  HttpRequest& request() { return request_; }
  const Failure& failure() const { return failure_; }
  // The client waits for "100 Continue" before it sends the body.
  bool expects_continue() const { return expects_continue_; }

 private:
  enum class Step {
    kRequestLine,
    kHeaderLine,
    kFixedBody,
    kChunkSize,
    kChunkData,
    kChunkEnd,
    kLastLine,
    kDone,
    kFailed,
  };

  size_t RoomInLine() const;  // bytes that the line being read may still have
  // Collects into line_ until a line end. True when a whole line is there, without its CRLF.
  bool TakeLine(std::string_view& bytes);
  void TakeBody(std::string_view& bytes);
  void OnLine();
  void OnRequestLine();
  void OnTarget(std::string_view target);
  void OnHeaderLine();
  void OnHeadEnd();
  void CheckHost();
  void CheckConnection();
  void OnContentLength(std::string_view value);
  void OnChunkSize();
  void Fail(int32_t code, std::string_view message);
  void FailTooLong();  // the body
  // The only value of a header; nullptr if there is none. Fails on a second one.
  const std::string* Only(std::string_view name);

  const Bounds bounds_;
  Step step_ = Step::kRequestLine;
  HttpRequest request_;
  Failure failure_;
  std::string line_;
  std::string target_host_;  // of an absolute target
  int64_t head_bytes_ = 0;
  int64_t body_bytes_left_ = 0;  // of the body, or of the current chunk
  bool expects_continue_ = false;
};

}  // namespace polyreme::api
