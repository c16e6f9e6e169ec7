#include "deploy/cli/meeting.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string_view>
#include <system_error>
#include <vector>

#include "parallel/base/clock.h"
#include "parallel/launch/host_address.h"
#include "parallel/launch/job_token.h"

namespace polyreme::cli {
namespace {

namespace fs = std::filesystem;

constexpr int32_t kPortBase = 23000;
constexpr int32_t kPortSpan = 8000;

absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  std::ifstream in(path);
  if (!in) return NotFound("cannot read {}: {}", path, std::strerror(errno));
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

constexpr char kDirectoryPrefix[] = "polyreme-meeting-";
constexpr char kFileName[] = "coordinator";

// Opens a directory and takes a lock on it that ends with this process; -1 if it is gone or another
// holds a lock that this one does not go with.
int LockDirectory(const std::string& directory, int kind) {
  const int fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  struct stat held {};
  struct stat named {};
  // Who removes a directory holds its lock: afterwards the name is gone, or is another's.
  if (fd >= 0 && flock(fd, kind) == 0 && fstat(fd, &held) == 0 &&
      lstat(directory.c_str(), &named) == 0 && held.st_ino == named.st_ino &&
      held.st_dev == named.st_dev) {
    return fd;
  }
  if (fd >= 0) close(fd);
  return -1;
}

// The entries whose names begin so; fewer if the directory cannot be read.
std::vector<fs::path> EntriesOf(const fs::path& directory, std::string_view prefix) {
  std::vector<fs::path> entries;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    if (it->path().filename().string().starts_with(prefix)) entries.push_back(it->path());
  }
  return entries;
}

// Of this user's jobs that were killed before all had met: no agent of theirs holds the lock.
void RemoveLeftovers() {
  for (const fs::path& path : EntriesOf(TemporaryRoot(), kDirectoryPrefix)) {
    struct stat info {};
    if (lstat(path.c_str(), &info) != 0 || info.st_uid != geteuid()) continue;
    const int lock = LockDirectory(path, LOCK_EX | LOCK_NB);
    if (lock < 0) continue;
    for (const fs::path& file : EntriesOf(path, kFileName)) unlink(file.c_str());
    rmdir(path.c_str());
    close(lock);
  }
}

// Alone on a host: a fresh directory. Under a launcher: one that all ranks of the job can name.
absl::StatusOr<std::string> MakeMeetingDirectory(const launch::LaunchEnv& env) {
  if (!env.launched()) {
    std::string pattern = fmt::format("{}/{}XXXXXX", TemporaryRoot(), kDirectoryPrefix);
    if (mkdtemp(pattern.data()) == nullptr) {
      return FailedPrecondition("cannot make {}: {}", pattern, std::strerror(errno));
    }
    return pattern;
  }
  if (env.job_id.empty()) {
    return InvalidArgument(
        "{} ranks of one host, but {} names no job they share: give --coordinator HOST:PORT and {}",
        env.world_size, launch::NameOf(env.launcher), kJobTokenVariable);
  }
  std::string name = env.job_id;
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '-';
  }
  const std::string directory =
      fmt::format("{}/{}{}-{}", TemporaryRoot(), kDirectoryPrefix, geteuid(), name);
  RETURN_IF_ERROR(MakePrivateDirectory(directory));
  return directory;
}

// The directory is this launch's for as long as one of its agents lives.
absl::StatusOr<std::string> MeetingDirectory(const launch::LaunchEnv& env) {
  RemoveLeftovers();
  constexpr int kAttempts = 100;  // another launch may sweep it away before it is locked
  for (int i = 0; i < kAttempts; ++i) {
    absl::StatusOr<std::string> directory = MakeMeetingDirectory(env);
    if (absl::IsNotFound(directory.status())) continue;
    if (!directory.ok() || LockDirectory(*directory, LOCK_SH) >= 0) return directory;
  }
  return FailedPrecondition("cannot lock a directory of this launch in {}: {}", TemporaryRoot(),
                            std::strerror(errno));
}

// Across hosts without --coordinator: where the launcher says that rank 0 is.
absl::StatusOr<std::string> CoordinatorAddress(const launch::LaunchEnv& env) {
  std::string host = env.meeting_host;
  if (host.empty() && !env.nodes.empty()) host = env.nodes[0];
  if (host.empty()) {
    return InvalidArgument(
        "{} ranks on several hosts, and {} does not say where rank 0 is: "
        "give --coordinator HOST:PORT",
        env.world_size, launch::NameOf(env.launcher));
  }
  const absl::StatusOr<std::string> own = launch::OwnAddressTowards(host);
  if (!own.ok()) {
    return InvalidArgument("{} says that rank 0 is on {}, but: {}; give --coordinator HOST:PORT",
                           launch::NameOf(env.launcher), host, Message(own.status()));
  }
  // A distribution's /etc/hosts may map a host's own name to 127.0.1.1.
  if (env.rank == 0 && env.meeting_host.empty() && launch::IsLoopbackAddress(*own)) {
    return InvalidArgument(
        "{} is {} here, where other hosts do not reach it: give --coordinator ADDRESS:PORT", host,
        *own);
  }
  const int32_t port =
      env.meeting_port.value_or(launch::PortOfJob(env.job_id, kPortBase, kPortSpan));
  return fmt::format("{}:{}", host, port);
}

}  // namespace

std::string TemporaryRoot() {
  return launch::ProcessEnvironment()("TMPDIR").value_or("/tmp");
}

absl::Status MakePrivateDirectory(const std::string& directory) {
  if (mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) {
    return FailedPrecondition("cannot make {}: {}", directory, std::strerror(errno));
  }
  struct stat info {};
  if (lstat(directory.c_str(), &info) != 0) {
    return NotFound("cannot look at {}: {}", directory, std::strerror(errno));
  }
  if (!S_ISDIR(info.st_mode) || info.st_uid != geteuid() || (info.st_mode & 077) != 0) {
    return FailedPrecondition("{} is not a private directory of this user: remove it", directory);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> FindJobToken(const ServeConfig& config) {
  std::string token = launch::ProcessEnvironment()(kJobTokenVariable).value_or("");
  if (!config.job_token_file.empty()) {
    ASSIGN_OR_RETURN(token, ReadSmallFile(config.job_token_file));
    while (!token.empty() && std::isspace(static_cast<unsigned char>(token.back())) != 0) {
      token.pop_back();
    }
    if (token.empty())
      return InvalidArgument("--job-token-file {} is empty", config.job_token_file);
  }
  if (!token.empty() && token.size() < 16) {
    return InvalidArgument("the job token has {} characters, expected at least 16", token.size());
  }
  return token;
}

absl::StatusOr<Meeting> ArrangeMeeting(const ServeConfig& config, const launch::LaunchEnv& env) {
  Meeting meeting;
  ASSIGN_OR_RETURN(meeting.job_token, FindJobToken(config));
  const bool one_host = !env.launched() || env.one_host();
  if (!config.coordinator.empty()) {
    meeting.coordinator = config.coordinator;
  } else if (one_host) {
    ASSIGN_OR_RETURN(const std::string directory, MeetingDirectory(env));
    meeting.file = fmt::format("{}/{}", directory, kFileName);
    if (env.rank == 0) unlink(meeting.file.c_str());  // of a killed job of the same name
  } else {
    ASSIGN_OR_RETURN(meeting.coordinator, CoordinatorAddress(env));
  }
  if (meeting.job_token.empty() && !meeting.file.empty()) {
    // The file hands rank 0's token to the others.
    if (env.rank == 0) meeting.job_token = launch::MakeJobToken();
  } else if (meeting.job_token.empty()) {
    if (env.launched()) {
      return InvalidArgument(
          "ranks that meet over the network need one secret: set {} or --job-token-file to the "
          "same on all",
          kJobTokenVariable);
    }
    meeting.job_token = launch::MakeJobToken();
  }
  return meeting;
}

absl::Status WriteMeetingFile(const std::string& file, const std::string& address,
                              const std::string& job_token) {
  const std::string draft = fmt::format("{}.{}", file, getpid());
  const int fd = open(draft.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
  if (fd < 0) return FailedPrecondition("cannot write {}: {}", draft, std::strerror(errno));
  const std::string text = fmt::format("{}\n{}\n", address, job_token);
  const bool written = write(fd, text.data(), text.size()) == std::ssize(text);
  close(fd);
  if (!written || rename(draft.c_str(), file.c_str()) != 0) {
    unlink(draft.c_str());
    return FailedPrecondition("cannot write {}: {}", file, std::strerror(errno));
  }
  return absl::OkStatus();
}

void RemoveMeetingFile(const std::string& file) {
  unlink(file.c_str());
  rmdir(fs::path(file).parent_path().c_str());  // refused, rightly, if it holds anything else
}

absl::StatusOr<MeetingPlace> WaitForMeetingFile(const std::string& file, absl::Time deadline) {
  // Told by the kernel when the file appears; that its directory is gone is looked up at each turn.
  const int watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  const fs::path directory = fs::path(file).parent_path();
  if (watch >= 0) inotify_add_watch(watch, directory.c_str(), IN_MOVED_TO | IN_CREATE);
  struct stat info {};
  while (stat(file.c_str(), &info) != 0 && MonotonicNow() < deadline) {
    pollfd entry{watch, POLLIN, 0};
    poll(&entry, 1, 100);
    char events[4096];
    while (watch >= 0 && read(watch, events, sizeof(events)) > 0) {
    }
    if (stat(directory.c_str(), &info) != 0) break;
  }
  if (watch >= 0) close(watch);
  if (stat(directory.c_str(), &info) != 0) {
    return Cancelled("the launch ended before its coordinator listened");
  }
  if (stat(file.c_str(), &info) != 0) {
    return DeadlineExceeded("the coordinator did not write its address to {} in time", file);
  }
  if (info.st_uid != geteuid() || (info.st_mode & 077) != 0) {
    return FailedPrecondition("{} is not a private file of this user", file);
  }
  ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(file));
  const size_t first = text.find('\n');
  const size_t second = first == std::string::npos ? first : text.find('\n', first + 1);
  if (second == std::string::npos) return DataLoss("{} is not a meeting file", file);
  return MeetingPlace{text.substr(0, first), text.substr(first + 1, second - first - 1)};
}

}  // namespace polyreme::cli
