// What the client of `polyreme bench` reads from a server: an answer in pieces, the events in it
// and their chunks. The pieces must not matter. First byte: how the rest is cut.
#include "deploy/bench/chunk_scan.h"
#include "deploy/bench/compare.h"
#include "deploy/bench/dataset.h"
#include "deploy/bench/http_response.h"
#include "deploy/bench/http_url.h"
#include "deploy/bench/openai_client.h"
#include "deploy/bench/request_record.h"
#include "deploy/bench/server_watch.h"
#include "tests/fuzz/fuzz.h"

namespace polyreme::bench {
namespace {

struct Seen {
  std::string body;
  size_t taken = 0;
  ResponseParser::State state = ResponseParser::State::kHead;
  RequestRecord record;
};

Seen Read(std::string_view bytes, size_t piece) {
  Seen seen;
  ResponseParser parser;
  StreamRecorder recorder(seen.record, 0);
  while (seen.taken < bytes.size()) {
    const std::string_view part = bytes.substr(seen.taken, piece);
    const size_t taken = parser.Feed(part, [&](std::string_view body) {
      seen.body += body;
      recorder.OnBody(parser, body, 1);
    });
    seen.taken += taken;
    if (taken < part.size()) break;
  }
  parser.FeedEnd();
  seen.state = parser.state();
  const bool done = seen.state == ResponseParser::State::kDone;
  CHECK(done || seen.state == ResponseParser::State::kFailed);
  if (!done) polyreme::fuzz::CheckRefusal(parser.failure());
  recorder.OnEnd(parser, parser.failure(), 2);
  CHECK((seen.record.outcome == RequestRecord::Outcome::kFailed) == !seen.record.error.empty());
  return seen;
}

void ReadTexts(std::string_view text) {
  const absl::StatusOr<StreamChunk> chunk = ReadStreamChunk(text);
  if (!chunk.ok()) polyreme::fuzz::CheckRefusal(chunk.status());
  if (IsPlainTextChunk(text)) CHECK(chunk.ok() && chunk->has_text);
  CHECK(ErrorMessage(text).size() <= 1024);
  CacheUsageOf(text);
  const auto check = [](const absl::Status& status) {
    if (!status.ok()) polyreme::fuzz::CheckRefusal(status);
  };
  check(ReadModelList(text).status());
  check(ParseHttpUrl(text).status());
  check(ReadPrompts(text, 8).status());
  // Prompts of a trace are drawn as long as it says: those of a fuzzer are not to take memory.
  if (text.find("input_") == std::string_view::npos) check(ReadTrace(text, 1, 100, 0).status());
  const absl::StatusOr<Json> json = Json::Parse(text, {.bytes_max = 1 << 20, .values_max = 4096});
  if (json.ok()) check(Compare(*json, *json, true).status());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view bytes = polyreme::fuzz::AsText(data + 1, size - 1);
  const Seen whole = Read(bytes, bytes.size() + 1);
  const Seen cut = Read(bytes, 1 + data[0] % 17);
  CHECK(whole.body == cut.body && whole.state == cut.state);
  CHECK(whole.state != ResponseParser::State::kDone || whole.taken == cut.taken);
  CHECK(whole.record.error == cut.record.error, "'{}' and '{}'", whole.record.error,
        cut.record.error);
  CHECK(whole.record.num_chunks == cut.record.num_chunks &&
        whole.record.output_tokens == cut.record.output_tokens);
  ReadTexts(bytes);
  return 0;
}

}  // namespace polyreme::bench
