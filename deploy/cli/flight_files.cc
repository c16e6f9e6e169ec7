#include "deploy/cli/flight_files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "deploy/cli/meeting.h"
#include "parallel/base/clock.h"
#include "parallel/base/log.h"

namespace polyreme::cli {
namespace {

namespace fs = std::filesystem;

constexpr char kSuffix[] = ".flight";

// The same for all ranks of a launch, also where each has an agent of its own.
std::string LaunchName(const ServeConfig& config, const launch::LaunchEnv& env) {
  constexpr size_t kMaxBytes = 48;
  std::string name = env.launched() ? env.job_id : "";
  if (name.empty() && env.launched()) name = config.coordinator;
  if (name.empty()) {
    name = fmt::format("{}-{}",
                       absl::FormatTime("%Y%m%dT%H%M%S", MonotonicNow(), absl::LocalTimeZone()),
                       getpid());
  }
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '-';
  }
  return name.substr(0, kMaxBytes);
}

std::string HostName() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return name.data();
}

void RemoveOldest(const std::string& directory) {
  std::vector<std::pair<fs::file_time_type, fs::path>> files;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    if (entry.path().extension() != kSuffix) continue;
    const fs::file_time_type written = entry.last_write_time(error);
    if (!error) files.emplace_back(written, entry.path());
  }
  std::sort(files.begin(), files.end());
  for (int64_t i = 0; i < std::ssize(files) - trace::kMaxFlightFiles; ++i) {
    fs::remove(files[static_cast<size_t>(i)].second, error);
  }
}

absl::Status WriteWhole(const std::string& path, std::string_view bytes) {
  const std::string draft = fmt::format("{}.{}", path, getpid());
  const int fd = open(draft.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return FailedPrecondition("cannot write {}: {}", draft, std::strerror(errno));
  bool good = true;
  for (size_t at = 0; good && at < bytes.size();) {
    const ssize_t n = write(fd, bytes.data() + at, bytes.size() - at);
    good = n > 0 || (n < 0 && errno == EINTR);
    at += n > 0 ? static_cast<size_t>(n) : 0;
  }
  close(fd);
  if (good && rename(draft.c_str(), path.c_str()) == 0) return absl::OkStatus();
  const int error = errno;
  unlink(draft.c_str());
  return FailedPrecondition("cannot write {}: {}", path, std::strerror(error));
}

// The path of the file.
absl::StatusOr<std::string> SaveRing(const trace::FlightRing& ring, trace::FlightSaver saver,
                                     const std::string& reason, const FlightFolder& folder) {
  // Made when it is first needed: who never fails leaves nothing.
  if (folder.is_default) RETURN_IF_ERROR(MakePrivateDirectory(folder.path));
  const trace::FlightHeader& header = ring.header();
  const std::string launch(header.launch.data(),
                           strnlen(header.launch.data(), header.launch.size()));
  const std::string who =
      header.rank == trace::kCoordinatorRank ? "coordinator" : fmt::format("rank-{}", header.rank);
  const std::string path =
      fmt::format("{}/{}-epoch-{}-{}{}", folder.path, launch, ring.epoch().value, who, kSuffix);
  RETURN_IF_ERROR(WriteWhole(path, ring.Snapshot(saver, reason)));
  RemoveOldest(folder.path);
  return path;
}

// A ring in which nothing has happened has nothing to tell.
bool HasEvents(const trace::FlightRing& ring) {
  return ring.header().steps_begun.load() > 0 || ring.header().operations_begun.load() > 0;
}

void SaveAndLog(const trace::FlightRing& ring, trace::FlightSaver saver, const std::string& reason,
                const FlightFolder& folder) {
  if (!HasEvents(ring)) return;
  const absl::StatusOr<std::string> path = SaveRing(ring, saver, reason, folder);
  if (path.ok()) {
    LogInfo("flight record: {} (see polyreme trace)", *path);
  } else {
    LogWarning("no flight record was saved: {}", Message(path.status()));
  }
}

}  // namespace

FlightFolder FlightFolderOf(const ServeConfig& config) {
  if (config.flight_recorder_dir == "off") return {};
  if (!config.flight_recorder_dir.empty()) return {config.flight_recorder_dir, false};
  return {fmt::format("{}/polyreme-{}-flight", TemporaryRoot(), geteuid()), true};
}

absl::StatusOr<FlightKeeper> FlightKeeper::Make(const ServeConfig& config,
                                                const launch::LaunchEnv& env) {
  FlightKeeper keeper;
  keeper.folder_ = FlightFolderOf(config);
  keeper.launch_ = LaunchName(config, env);
  keeper.stages_ = config.pipeline_parallel_size;
  keeper.shards_ = config.tensor_parallel_size;
  if (keeper.folder_.path.empty() || keeper.folder_.is_default) return keeper;
  std::error_code error;
  fs::create_directories(keeper.folder_.path, error);
  if (error || access(keeper.folder_.path.c_str(), W_OK | X_OK) != 0) {
    return InvalidArgument("--flight-recorder-dir {} cannot be written to: {}", keeper.folder_.path,
                           error ? error.message() : std::string(std::strerror(errno)));
  }
  return keeper;
}

void FlightKeeper::Add(int32_t rank, launch::ChildSpec& child) {
  if (folder_.path.empty()) return;
  const absl::StatusOr<int> fd =
      trace::FlightRing::MakeFile({rank, stages_, shards_, launch_, HostName()});
  absl::StatusOr<std::unique_ptr<trace::FlightRing>> ring =
      fd.ok() ? trace::FlightRing::Map(*fd) : fd.status();
  if (!ring.ok()) return LogWarning("{}: {}", child.title, Message(ring.status()));
  rings_.push_back(*std::move(ring));
  child.environment.emplace_back(kFlightVariable, std::to_string(*fd));
}

void FlightKeeper::SaveOrphans(const absl::Status& why) const {
  for (const auto& ring : rings_) {
    if (ring->IsOrphaned()) {
      SaveAndLog(*ring, trace::FlightSaver::kAgent, Message(why), folder_);
    }
  }
}

std::unique_ptr<FlightRecorder> FlightRecorder::Open(const ServeConfig& config) {
  auto recorder = std::make_unique<FlightRecorder>();
  recorder->folder_ = FlightFolderOf(config);
  const std::optional<std::string> variable = launch::ProcessEnvironment()(kFlightVariable);
  int32_t fd = -1;
  if (recorder->folder_.path.empty() || !variable.has_value() ||
      !SetInt(&fd, 0, 1 << 20)(*variable).ok()) {
    return recorder;
  }
  absl::StatusOr<std::unique_ptr<trace::FlightRing>> ring = trace::FlightRing::Map(fd);
  if (!ring.ok()) {
    LogWarning("no flight recorder: {}", Message(ring.status()));
    return recorder;
  }
  close(fd);
  recorder->ring_ = *std::move(ring);
  if (recorder->ring_->IsOrphaned()) {
    SaveAndLog(*recorder->ring_, trace::FlightSaver::kSuccessor,
               fmt::format("the process ended without a word; pid {} took its place", getpid()),
               recorder->folder_);
  }
  recorder->ring_->Claim(getpid());
  return recorder;
}

void FlightRecorder::Save(const absl::Status& why) const {
  if (ring_ == nullptr) return;
  SaveAndLog(*ring_, trace::FlightSaver::kItself, Message(why), folder_);
}

void FlightRecorder::End(const absl::Status& status) const {
  if (ring_ == nullptr) return;
  if (!status.ok()) Save(status);
  ring_->Close();
}

}  // namespace polyreme::cli
