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
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "parallel/base/clock.h"
#include "tests/coordinator/api/raw_client.h"

namespace polyreme::e2e {
namespace {

// Waiting for something that has no file descriptor: looks every few milliseconds.
template <class Condition>
bool Until(absl::Duration patience, Condition condition) {
  const absl::Time deadline = MonotonicNow() + patience;
  while (!condition()) {
    if (MonotonicNow() > deadline) return false;
    poll(nullptr, 0, 5);
  }
  return true;
}

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

std::string CommandLine(pid_t pid) {
  std::ifstream in(fmt::format("/proc/{}/cmdline", pid));
  std::ostringstream text;
  text << in.rdbuf();
  std::string line = text.str();
  std::replace(line.begin(), line.end(), '\0', ' ');
  return line;
}

}  // namespace

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
  Until(patience, [&] { return look() || WaitForExit(absl::ZeroDuration()).has_value(); });
  if (!found.has_value()) look();
  return found;
}

std::optional<int> Program::WaitForExit(absl::Duration patience) {
  if (exit_.has_value()) return exit_;
  Until(patience, [&] {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) != pid_) return false;
    exit_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    return true;
  });
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
                     const std::vector<std::string>& arguments, const std::string& model) {
  std::vector<std::string> line = launcher;
  line.insert(line.end(), {POLYREME_BINARY, "serve", model, "--port", "0"});
  line.insert(line.end(), arguments.begin(), arguments.end());
  Cluster cluster;
  cluster.program = Program::Start(line);
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
  std::ifstream in(fmt::format("/proc/{}/stat", pid));
  std::string text;
  if (!std::getline(in, text)) return false;
  const size_t end = text.rfind(')');
  return end != std::string::npos && end + 2 < text.size() && text[end + 2] != 'Z';
}

std::optional<pid_t> FirstAlive(const std::vector<pid_t>& pids, absl::Duration patience) {
  for (const pid_t pid : pids) {
    if (!Until(patience, [&] { return !IsAlive(pid); })) return pid;
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

}  // namespace polyreme::e2e
