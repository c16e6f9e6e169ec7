// Incremental parser of one HTTP/1 response, as a client needs it (RFC 9112).
//
// Takes what real servers send (chunk extensions, trailers, bare LF, interim 1xx answers) and
// refuses what has no one meaning. Pure; one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "parallel/base/status.h"

namespace polyreme::bench {

class ResponseParser {
 public:
  static constexpr size_t kMaxHeadBytes = 64 << 10;  // of all heads and trailers of one answer

  enum class State { kHead, kBody, kDone, kFailed };

  // Takes bytes and hands on those of the body, undone of their framing. Returns how many it took:
  // fewer than all only at the answer's end or a failure.
  size_t Feed(std::string_view bytes, absl::FunctionRef<void(std::string_view)> on_body);
  // The connection has ended: the end of a body without a length, else a failure.
  void FeedEnd();

  State state() const;
  const absl::Status& failure() const { return failure_; }  // DataLoss, in state kFailed
  // From kBody on.
  int32_t code() const { return code_; }
  const std::string& content_type() const { return content_type_; }  // in lower case
  // Whether another request may follow on the connection, once done.
  bool keeps_alive() const { return keeps_alive_ && !until_end_; }

 private:
  enum class Step {
    kStatusLine,
    kHeader,
    kFixed,
    kChunkSize,
    kChunk,
    kChunkEnd,
    kTrailer,
    kUntilEnd,
    kDone,
    kFailed
  };

  bool TakeLine(std::string_view& bytes);
  void OnLine();
  void OnStatusLine();
  void OnHeader();
  void OnHeadEnd();
  void OnChunkSize();
  void Fail(std::string_view what);

  Step step_ = Step::kStatusLine;
  absl::Status failure_;
  std::string line_;
  size_t head_bytes_ = 0;
  int32_t code_ = 0;
  std::string content_type_;
  bool keeps_alive_ = true;
  bool until_end_ = false;
  bool is_chunked_ = false;
  int64_t length_ = -1;  // Content-Length; -1: none
  int64_t left_ = 0;     // of the body or the current chunk
};

}  // namespace polyreme::bench
