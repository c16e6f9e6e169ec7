// Server-sent events out of a stream of bytes that comes in pieces of any size.
//
// As the format is defined (WHATWG HTML, "Server-sent events"): lines end with LF, CR or CRLF; an
// empty line ends an event; lines of one event's data are joined by LF; comments (":" first, what
// servers send to keep a connection alive), other fields and events without data are passed over,
// and so is an event that the stream's end cuts. Pure; one thread.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "parallel/base/status.h"

namespace polyreme::bench {

class EventParser {
 public:
  static constexpr size_t kMaxEventBytes = size_t{8} << 20;

  // Calls `on_data` with the data of each event that `bytes` completes; the text is valid during
  // the call. ResourceExhausted: a line or an event of more than kMaxEventBytes; feed no more then.
  absl::Status Feed(std::string_view bytes, absl::FunctionRef<void(std::string_view)> on_data);

 private:
  void OnLine(std::string_view line, absl::FunctionRef<void(std::string_view)> on_data);

  std::string line_;  // begun in earlier pieces
  std::string data_;
  bool has_data_ = false;
  bool skips_lf_ = false;     // the last piece ended in CR
  bool at_the_start_ = true;  // where a byte order mark may stand
};

}  // namespace polyreme::bench
