#include "deploy/bench/cold.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "deploy/bench/http_client.h"
#include "deploy/bench/interrupt.h"
#include "deploy/bench/load.h"
#include "deploy/bench/load_bench.h"
#include "deploy/bench/progress.h"

namespace polyreme::bench {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);

struct Start {
  double ready_s = 0;        // exec to the ready line
  double first_token_s = 0;  // exec to the first token
  double request_ms = 0;     // from sending the request to the first token
  double stop_s = 0;         // SIGTERM to the end
};

absl::StatusOr<Start> StartOnce(const ColdOptions& options) {
  ASSIGN_OR_RETURN(const auto server, ChildServer::Start(options.server));
  OpenAiTarget target;
  ASSIGN_OR_RETURN(target.url, ParseHttpUrl(server->url()));
  target.api_key = options.api_key;
  ASSIGN_OR_RETURN(const ServedModel model, AskServer(target, "", kPatience));
  target.model = model.id;
  target.ignore_eos = true;
  LoadOptions load;
  load.url = target.url;
  load.path = target.path();
  load.headers = target.headers();
  load.silence_deadline = kPatience;
  std::vector<RequestSpec> specs(1);
  ASSIGN_OR_RETURN(specs[0].body, GenerationBody(target, std::string("def main():"), 8));
  const int64_t sent = NowNanos();
  ASSIGN_OR_RETURN(const LoadResult result, RunLoad(load, std::move(specs), {}));
  const RequestRecord& record = result.records[0];
  if (result.interrupted) return Cancelled("interrupted");
  if (record.first_ns == 0) {
    return Unavailable("the server is ready but gave no token: {}", record.error);
  }
  Start start;
  start.ready_s = static_cast<double>(server->ready_ns() - server->started_ns()) / 1e9;
  start.request_ms = static_cast<double>(record.first_ns) / 1e6;
  start.first_token_s = static_cast<double>(sent - server->started_ns() + record.first_ns) / 1e9;
  const int64_t stopping = NowNanos();
  RETURN_IF_ERROR(server->Stop());
  start.stop_s = static_cast<double>(NowNanos() - stopping) / 1e9;
  return start;
}

Metrics MetricsOf(const Start& start) {
  return {{"exec_to_ready_s", start.ready_s},
          {"exec_to_first_token_s", start.first_token_s},
          {"first_request_ttft_ms", start.request_ms},
          {"stop_s", start.stop_s}};
}

}  // namespace

absl::Status EvictFromPageCache(const std::string& directory) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    if (!entry.is_regular_file()) continue;
    const std::string path = entry.path();
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) return FailedPrecondition("{}: {}", path, std::strerror(errno));
    fdatasync(file);  // what is not yet on the disk cannot be forgotten
    posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    close(file);
  }
  if (error) return FailedPrecondition("{}: {}", directory, error.message());
  return absl::OkStatus();
}

absl::StatusOr<Report> RunCold(const ColdOptions& options) {
  Report report;
  report.kind = "cold";
  report.title = fmt::format("{}: from exec to ready to the first token, page cache {}",
                             options.model, options.evict_page_cache ? "emptied" : "as it was");
  report.points.push_back({"start", {}});
  report.table.columns = {
      {"round", 0}, {"ready s", 3}, {"first token s", 3}, {"first request ms", 1}, {"stop s", 3}};
  ProgressLine line;
  for (int32_t r = 0; r < options.rounds; ++r) {
    line.Show(fmt::format("start {} of {}", r + 1, options.rounds));
    if (options.evict_page_cache) RETURN_IF_ERROR(EvictFromPageCache(options.model));
    const absl::StatusOr<Start> start = StartOnce(options);
    if (absl::IsCancelled(start.status()) && r > 0) {
      report.interrupted = true;
      break;
    }
    RETURN_IF_ERROR(start.status());
    report.points[0].rounds.push_back(MetricsOf(*start));
    report.table.rows.push_back({std::to_string(r + 1), start->ready_s, start->first_token_s,
                                 start->request_ms, start->stop_s});
  }
  const ReportPoint& point = report.points[0];
  report.table.rows.push_back(
      {"median", MedianOf(point, "exec_to_ready_s"), MedianOf(point, "exec_to_first_token_s"),
       MedianOf(point, "first_request_ttft_ms"), MedianOf(point, "stop_s")});
  return report;
}

}  // namespace polyreme::bench
