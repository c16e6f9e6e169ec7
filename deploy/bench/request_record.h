// What became of one request, as the client saw it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "deploy/bench/http_response.h"
#include "deploy/bench/sse.h"
#include "parallel/base/status.h"

namespace polyreme::bench {

struct RequestRecord {
  enum class Outcome { kNotSent, kDone, kFailed, kCancelled };

  int32_t index = 0;   // in the load
  int32_t prompt = 0;  // in the data set
  Outcome outcome = Outcome::kNotSent;
  // Nanoseconds since the load's start.
  int64_t intended_ns = 0;       // when it was to be sent: what every delay is counted from
  int64_t sent_ns = 0;           // when it was
  int64_t first_ns = 0;          // the first chunk with text; 0: none
  int64_t end_ns = 0;            // the last byte
  std::vector<int64_t> gaps_ns;  // between chunks with text, one fewer than chunks
  int32_t num_chunks = 0;        // with text
  int32_t prompt_tokens = 0;     // the server's count, else what was asked for; 0: unknown
  int32_t output_tokens = 0;     // the server's count, else num_chunks
  bool has_usage = false;        // the server counted
  int32_t code = 0;              // HTTP
  std::string finish_reason;
  std::string error;

  // Milliseconds; NaN where there is none.
  double ttft_ms() const;
  double latency_ms() const;
  double tpot_ms() const;  // of the tokens behind the first
  double late_ms() const;  // sent behind its time
};
std::string_view NameOf(RequestRecord::Outcome outcome);

// Turns one streamed answer into a record. Pure: times are handed in. One thread.
class StreamRecorder {
 public:
  // `record`: borrowed; its index, times of sending and expected prompt_tokens are set. `start`:
  // what its times count from.
  StreamRecorder(RequestRecord& record, int64_t start) : record_(&record), start_(start) {}

  void OnBody(const ResponseParser& head, std::string_view bytes, int64_t now);
  void OnEnd(const ResponseParser& head, const absl::Status& status, int64_t now);

 private:
  void OnEvent(std::string_view data, int64_t now);

  RequestRecord* record_;
  int64_t start_;
  EventParser events_;
  std::string plain_;  // the beginning of a body that is no stream of events
  int64_t last_ns_ = 0;
  bool is_complete_ = false;
};

}  // namespace polyreme::bench
