#include "deploy/bench/sse.h"

namespace polyreme::bench {

absl::Status EventParser::Feed(std::string_view bytes,
                               absl::FunctionRef<void(std::string_view)> on_data) {
  if (skips_lf_ && !bytes.empty()) {
    if (bytes.front() == '\n') bytes.remove_prefix(1);
    skips_lf_ = false;
  }
  while (!bytes.empty()) {
    const size_t end = bytes.find_first_of("\r\n");
    const std::string_view part = bytes.substr(0, end);
    if (line_.size() + data_.size() + part.size() > kMaxEventBytes) {
      return ResourceExhausted("an event of more than {} bytes", kMaxEventBytes);
    }
    if (end == std::string_view::npos) {
      line_ += part;
      return absl::OkStatus();
    }
    const bool is_cr = bytes[end] == '\r';
    bytes.remove_prefix(end + 1);
    if (is_cr) {
      if (bytes.empty()) skips_lf_ = true;
      if (bytes.starts_with('\n')) bytes.remove_prefix(1);
    }
    if (line_.empty()) {
      OnLine(part, on_data);
    } else {
      line_ += part;
      OnLine(line_, on_data);
      line_.clear();
    }
  }
  return absl::OkStatus();
}

void EventParser::OnLine(std::string_view line, absl::FunctionRef<void(std::string_view)> on_data) {
  constexpr std::string_view kMark = "\xEF\xBB\xBF";
  if (at_the_start_ && line.starts_with(kMark)) line.remove_prefix(kMark.size());
  at_the_start_ = false;
  if (line.empty()) {
    if (has_data_) on_data(data_);
    data_.clear();
    has_data_ = false;
    return;
  }
  constexpr std::string_view kField = "data";
  if (!line.starts_with(kField)) return;
  line.remove_prefix(kField.size());
  if (!line.empty() && line.front() != ':') return;  // "database: ..."
  if (!line.empty()) line.remove_prefix(1);
  if (line.starts_with(' ')) line.remove_prefix(1);
  if (has_data_) data_ += '\n';
  data_ += line;
  has_data_ = true;
}

}  // namespace polyreme::bench
