#include "tests/e2e/launched_cluster.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "parallel/base/clock.h"
#include "tests/coordinator/api/raw_client.h"

namespace polyreme::e2e {
namespace {

std::vector<std::pair<pid_t, pid_t>> ProcessesAndParents() {
  std::vector<std::pair<pid_t, pid_t>> out;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (!std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; }))
      continue;
    std::ifstream in(entry.path() / "stat");
    std::string text;
    std::getline(in, text);
    const size_t end = text.rfind(')');
    if (end == std::string::npos) continue;
    std::istringstream rest(text.substr(end + 2));
    char state = 0;
    pid_t parent = 0;
    rest >> state >> parent;
    out.emplace_back(std::stoi(name), parent);
  }
  return out;
}

// As in /proc/PID/stat: 'R', 'S', 'T', 'Z'; 0 if there is no such process.
char StateOf(pid_t pid) {
  std::ifstream in(fmt::format("/proc/{}/stat", pid));
  std::string text;
  if (!std::getline(in, text)) return 0;
  const size_t end = text.rfind(')');
  return end != std::string::npos && end + 2 < text.size() ? text[end + 2] : '\0';
}

std::set<std::string> EntriesOf(const std::string& directory) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    names.insert(entry.path());
  }
  return names;
}

// What Open MPI leaves when it is killed is not ours to remove; flight records are meant to be
// left.
bool IsNoTrace(const std::string& path) {
  const std::string name = std::filesystem::path(path).filename();
  return name.starts_with("ompi") || name.starts_with("openmpi") || name.starts_with("vader") ||
         name.starts_with("pmix") || name.starts_with("prte") || name.ends_with("-flight");
}

std::string CommandLine(pid_t pid) {
  std::ifstream in(fmt::format("/proc/{}/cmdline", pid));
  std::ostringstream text;
  text << in.rdbuf();
  std::string line = text.str();
  std::replace(line.begin(), line.end(), '\0', ' ');
  return line;
}

}  // namespace

bool WaitUntil(absl::Duration patience, const std::function<bool()>& condition) {
  const absl::Time deadline = MonotonicNow() + patience;
  while (!condition()) {
    if (MonotonicNow() > deadline) return false;
    poll(nullptr, 0, 5);
  }
  return true;
}

std::unique_ptr<Program> Program::Start(const std::vector<std::string>& arguments,
                                        const Environment& environment) {
  int ends[2];
  EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
  std::vector<char*> argv;
  for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  auto program = std::unique_ptr<Program>(new Program());
  program->pipe_ = ends[0];
  program->pid_ = fork();
  if (program->pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setpgid(0, 0);
    for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
    const int null = open("/dev/null", O_RDONLY);
    dup2(null, STDIN_FILENO);
    dup2(ends[1], STDOUT_FILENO);
    dup2(ends[1], STDERR_FILENO);
    execvp(argv[0], argv.data());
    _exit(127);
  }
  close(ends[1]);
  program->reader_ = std::thread([p = program.get()] {
    char buffer[4096];
    ssize_t n = 0;
    while ((n = read(p->pipe_, buffer, sizeof(buffer))) > 0) {
      const std::lock_guard lock(p->mutex_);
      p->output_.append(buffer, static_cast<size_t>(n));
    }
    p->is_read_ = true;
  });
  return program;
}

Program::~Program() {
  if (!exit_.has_value()) {
    kill(pid_, SIGTERM);
    if (!WaitForExit(absl::Seconds(10)).has_value()) {
      kill(pid_, SIGKILL);
      WaitForExit(absl::Seconds(10));
    }
  }
  reader_.join();
  close(pipe_);
}

std::string Program::output() const {
  const std::lock_guard lock(mutex_);
  return output_;
}

int Program::Count(const std::string& text) const {
  const std::string all = output();
  int count = 0;
  for (size_t at = all.find(text); at != std::string::npos; at = all.find(text, at + text.size())) {
    ++count;
  }
  return count;
}

std::optional<std::string> Program::WaitForLine(const std::string& text, absl::Duration patience) {
  std::optional<std::string> found;
  const auto look = [&] {
    const std::string all = output();
    const size_t at = all.find(text);
    if (at == std::string::npos) return false;
    const size_t end = all.find('\n', at);
    if (end == std::string::npos) return false;
    found = all.substr(at + text.size(), end - at - text.size());
    return true;
  };
  WaitUntil(patience, [&] { return look() || WaitForExit(absl::ZeroDuration()).has_value(); });
  if (!found.has_value()) look();
  return found;
}

std::optional<int> Program::WaitForExit(absl::Duration patience) {
  if (exit_.has_value()) return exit_;
  WaitUntil(patience, [&] {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) != pid_) return false;
    exit_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    return true;
  });
  // Its last words may still be in the pipe; a child that it left behind may hold it open.
  if (exit_.has_value()) WaitUntil(absl::Seconds(2), [&] { return is_read_.load(); });
  return exit_;
}

void Program::Signal(int signal) {
  kill(pid_, signal);
}

std::vector<pid_t> Program::Descendants(const std::string& text) const {
  const auto processes = ProcessesAndParents();
  std::set<pid_t> family{pid_};
  for (bool grew = true; grew;) {
    grew = false;
    for (const auto& [pid, parent] : processes) {
      if (family.contains(parent) && family.insert(pid).second) grew = true;
    }
  }
  std::vector<pid_t> out;
  for (const pid_t pid : family) {
    if (pid != pid_ && CommandLine(pid).find(text) != std::string::npos) out.push_back(pid);
  }
  return out;
}

Json Cluster::Post(const std::string& path, const Json& body, int32_t code) const {
  const std::optional<api::RawResponse> response =
      api::Exchange(port, api::PostJson(path, body.Dump()));
  EXPECT_TRUE(response.has_value()) << path << " was not answered\n" << program->output();
  if (!response.has_value()) return Json();
  EXPECT_EQ(response->code, code) << response->body;
  absl::StatusOr<Json> parsed = Json::Parse(response->body);
  EXPECT_TRUE(parsed.ok()) << response->body;
  return parsed.ok() ? *std::move(parsed) : Json();
}

std::string Cluster::Get(const std::string& path, int32_t code) const {
  const std::optional<api::RawResponse> response = api::Exchange(port, api::Get(path));
  EXPECT_TRUE(response.has_value()) << path << " was not answered";
  if (!response.has_value()) return "";
  EXPECT_EQ(response->code, code) << response->body;
  return response->body;
}

int Cluster::Stop() {
  program->Signal(SIGTERM);
  return program->WaitForExit(absl::Seconds(30)).value_or(-1);
}

Cluster StartCluster(const std::vector<std::string>& launcher,
                     const std::vector<std::string>& arguments, const std::string& model,
                     const Program::Environment& environment) {
  std::vector<std::string> line = launcher;
  line.insert(line.end(), {POLYREME_BINARY, "serve", model, "--port", "0"});
  line.insert(line.end(), arguments.begin(), arguments.end());
  Cluster cluster;
  cluster.program = Program::Start(line, environment);
  const std::optional<std::string> port =
      cluster.program->WaitForLine("at http://127.0.0.1:", absl::Seconds(60));
  EXPECT_TRUE(port.has_value()) << "not ready:\n" << cluster.program->output();
  if (port.has_value()) cluster.port = std::stoi(*port);
  return cluster;
}

std::vector<std::string> Mpirun(int ranks) {
  std::vector<std::string> line = {"mpirun",          "-np",       std::to_string(ranks),
                                   "--oversubscribe", "--bind-to", "none"};
  if (geteuid() == 0) line.push_back("--allow-run-as-root");
  return line;
}

std::vector<pid_t> ProcessesWith(const std::string& text) {
  std::vector<pid_t> out;
  for (const auto& [pid, parent] : ProcessesAndParents()) {
    if (pid != getpid() && CommandLine(pid).find(text) != std::string::npos) out.push_back(pid);
  }
  return out;
}

bool IsAlive(pid_t pid) {
  const char state = StateOf(pid);
  return state != 0 && state != 'Z';
}

pid_t WorkerOf(const Program& program, int rank) {
  pid_t worker = -1;
  const std::string place = fmt::format("--rank {} --world-size", rank);
  WaitUntil(absl::Seconds(10), [&] {
    for (const pid_t pid : program.Descendants("polyreme worker")) {
      if (CommandLine(pid).find(place) != std::string::npos && IsAlive(pid)) worker = pid;
    }
    return worker > 1;
  });
  EXPECT_GT(worker, 1) << "no worker of rank " << rank << "\n" << program.output();
  return worker;
}

void Strike(pid_t pid, int signal) {
  ASSERT_GT(pid, 1);
  ASSERT_EQ(kill(pid, signal), 0) << "pid " << pid << ": " << std::strerror(errno);
  EXPECT_TRUE(WaitUntil(absl::Seconds(5),
                        [&] { return signal == SIGSTOP ? StateOf(pid) == 'T' : !IsAlive(pid); }))
      << "signal " << signal << " had no effect on pid " << pid;
}

std::optional<pid_t> FirstAlive(const std::vector<pid_t>& pids, absl::Duration patience) {
  for (const pid_t pid : pids) {
    if (!WaitUntil(patience, [&] { return !IsAlive(pid); })) return pid;
  }
  return std::nullopt;
}

int32_t FreePort() {
  // Below the range from which the kernel hands out ports by itself, so that no other test gets the
  // same one between now and its use; different for processes that run side by side.
  static int32_t next = getpid() * 37;
  for (int tries = 0; tries < 1000; ++tries) {
    const int32_t port = 12000 + next++ % 18000;
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(port));
    const bool is_free = bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
    close(fd);
    if (is_free) return port;
  }
  ADD_FAILURE() << "no free port";
  return 0;
}

Traces::Traces() : shared_memory_(EntriesOf("/dev/shm")) {
  directory_ = std::filesystem::temp_directory_path() / "polyreme-traces-XXXXXX";
  EXPECT_NE(mkdtemp(directory_.data()), nullptr);
}

Traces::~Traces() {
  std::filesystem::remove_all(directory_);
}

std::vector<std::string> Traces::Left() const {
  std::vector<std::string> left;
  WaitUntil(absl::Seconds(5), [&] {
    left.clear();
    for (const std::string& name : EntriesOf(directory_)) {
      if (!IsNoTrace(name)) left.push_back(name);
    }
    for (const std::string& name : EntriesOf("/dev/shm")) {
      if (!shared_memory_.contains(name) && !IsNoTrace(name)) left.push_back(name);
    }
    return left.empty();
  });
  return left;
}

}  // namespace polyreme::e2e
