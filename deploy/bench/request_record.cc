#include "deploy/bench/request_record.h"

#include <algorithm>
#include <limits>

#include "deploy/bench/openai_client.h"

namespace polyreme::bench {
namespace {

constexpr size_t kPlainBytes = 16 << 10;
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

double Milliseconds(int64_t ns) {
  return static_cast<double>(ns) / 1e6;
}

}  // namespace

double RequestRecord::ttft_ms() const {
  return first_ns > 0 ? Milliseconds(first_ns - intended_ns) : kNone;
}
double RequestRecord::latency_ms() const {
  return outcome == Outcome::kDone ? Milliseconds(end_ns - intended_ns) : kNone;
}
double RequestRecord::tpot_ms() const {
  if (outcome != Outcome::kDone || first_ns == 0 || output_tokens < 2) return kNone;
  return Milliseconds(end_ns - first_ns) / (output_tokens - 1);
}
double RequestRecord::late_ms() const {
  return outcome == Outcome::kNotSent ? kNone : Milliseconds(sent_ns - intended_ns);
}

std::string_view NameOf(RequestRecord::Outcome outcome) {
  switch (outcome) {
    case RequestRecord::Outcome::kNotSent:
      return "not sent";
    case RequestRecord::Outcome::kDone:
      return "done";
    case RequestRecord::Outcome::kFailed:
      return "failed";
    case RequestRecord::Outcome::kCancelled:
      return "cancelled";
  }
  return "";
}

void StreamRecorder::OnBody(const ResponseParser& head, std::string_view bytes, int64_t now) {
  if (head.code() != 200 || !head.content_type().starts_with("text/event-stream")) {
    plain_ += bytes.substr(0, kPlainBytes - std::min(kPlainBytes, plain_.size()));
    return;
  }
  const absl::Status status =
      events_.Feed(bytes, [this, now](std::string_view data) { OnEvent(data, now); });
  if (!status.ok() && record_->error.empty()) record_->error = Message(status);
}

void StreamRecorder::OnEvent(std::string_view data, int64_t now) {
  if (data == kStreamEnd) {
    is_complete_ = true;
    return;
  }
  const absl::StatusOr<StreamChunk> chunk = ReadStreamChunk(data);
  if (!chunk.ok() || !chunk->error.empty()) {
    if (record_->error.empty()) {
      record_->error = chunk.ok() ? chunk->error : Message(chunk.status());
    }
    return;
  }
  if (!chunk->finish_reason.empty()) record_->finish_reason = chunk->finish_reason;
  if (chunk->prompt_tokens.has_value()) record_->prompt_tokens = *chunk->prompt_tokens;
  if (chunk->completion_tokens.has_value()) {
    record_->output_tokens = *chunk->completion_tokens;
    record_->has_usage = true;
  }
  if (!chunk->has_text) return;
  const int64_t at = now - start_;
  ++record_->num_chunks;
  if (record_->first_ns == 0) {
    record_->first_ns = at;
  } else {
    record_->gaps_ns.push_back(at - last_ns_);
  }
  last_ns_ = at;
}

void StreamRecorder::OnEnd(const ResponseParser& head, const absl::Status& status, int64_t now) {
  RequestRecord& record = *record_;
  record.end_ns = now - start_;
  record.code = head.code();
  if (!record.has_usage) record.output_tokens = record.num_chunks;
  if (absl::IsCancelled(status)) {
    record.outcome = RequestRecord::Outcome::kCancelled;
    return;
  }
  record.outcome = RequestRecord::Outcome::kFailed;
  if (!status.ok()) {
    record.error = Message(status);
  } else if (record.code != 200) {
    record.error = fmt::format("HTTP {}: {}", record.code, ErrorMessage(plain_));
  } else if (!head.content_type().starts_with("text/event-stream")) {
    record.error = "the answer is no stream of events";
  } else if (record.error.empty() && !is_complete_) {
    record.error = "the stream ended without [DONE]";
  } else if (record.error.empty()) {
    record.outcome = RequestRecord::Outcome::kDone;
  }
}

}  // namespace polyreme::bench
