// More than the cluster can do: who is taken is served as fast as ever, everybody else is told at
// once, and who does not read harms nobody.
//
// Also the tool that measured docs/benchmarks/overload.md: POLYREME_OVERLOAD_SECONDS sets how long
// each phase takes (default 4).

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "parallel/base/clock.h"
#include "tests/coordinator/api/raw_client.h"
#include "tests/e2e/launched_cluster.h"

namespace polyreme::e2e {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kRunning = 8;   // --max-num-seqs
constexpr int kQueued = 16;   // --max-num-queued-reqs
constexpr int kTokens = 24;   // of each answer
constexpr int kClients = 64;  // threads of the open loop
constexpr double kOverload = 5;

absl::Duration PhaseLength() {
  const char* const text = std::getenv("POLYREME_OVERLOAD_SECONDS");
  return absl::Seconds(text == nullptr ? 4 : std::max(1, std::atoi(text)));
}

std::string Request(int64_t i) {
  return api::PostJson("/v1/completions",
                       fmt::format(R"({{"prompt":"def f{}(","max_tokens":{},"ignore_eos":true,)"
                                   R"("temperature":0}})",
                                   i, kTokens));
}

void WaitUntil(absl::Time time) {
  for (absl::Duration left; (left = time - MonotonicNow()) > absl::ZeroDuration();) {
    poll(nullptr, 0, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
  }
}

struct Tally {
  std::mutex mutex;
  std::map<int32_t, int64_t> codes;     // of every answer
  std::vector<double> refused_ms;       // how long a refusal took
  std::vector<double> served_ms;        // and an answer
  int64_t num_in_time = 0;              // answers within the phase
  int64_t num_without_retry_after = 0;  // refusals that do not say when to come back

  void Add(const api::RawResponse& response, absl::Duration took, bool in_time) {
    const std::lock_guard lock(mutex);
    ++codes[response.code];
    const double ms = absl::ToDoubleMilliseconds(took);
    if (response.code == 200) {
      served_ms.push_back(ms);
      num_in_time += in_time ? 1 : 0;
    } else {
      refused_ms.push_back(ms);
      num_without_retry_after += response.Header("retry-after").empty() ? 1 : 0;
    }
  }
};

double Percentile(std::vector<double> values, double part) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(part * static_cast<double>(values.size() - 1))];
}

// Requests per second of clients that ask one after another: more than can run, so that no place
// stays empty, and fewer than may wait, should all come before the first has begun to run.
double PeakRate(int32_t port, absl::Duration length) {
  Tally tally;
  std::vector<std::thread> clients;
  const absl::Time end = MonotonicNow() + length;
  for (int c = 0; c < kRunning + kRunning / 2; ++c) {
    clients.emplace_back([&, c] {
      for (int64_t i = c; MonotonicNow() < end; i += 1000) {
        const absl::Time begin = MonotonicNow();
        const api::RawResponse response = api::Exchange(port, Request(i));
        tally.Add(response, MonotonicNow() - begin, MonotonicNow() < end);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(tally.codes.size(), 1u);
  return static_cast<double>(tally.num_in_time) / absl::ToDoubleSeconds(length);
}

// Seconds of CPU time that a process has had.
double CpuSeconds(pid_t pid) {
  std::ifstream in(fmt::format("/proc/{}/stat", pid));
  std::string text;
  std::getline(in, text);
  std::istringstream fields(text.substr(text.rfind(')') + 1));
  std::vector<std::string> values{std::istream_iterator<std::string>(fields), {}};
  if (values.size() < 13) return 0;
  // utime and stime, fields 14 and 15 of proc(5).
  return static_cast<double>(std::atoll(values[11].c_str()) + std::atoll(values[12].c_str())) /
         static_cast<double>(sysconf(_SC_CLK_TCK));
}

// Who had the CPU: the measured cluster's parts, and the clients, which are this process.
struct CpuShares {
  explicit CpuShares(const Cluster& cluster) : clients(CpuSeconds(getpid())) {
    for (const pid_t pid : cluster.program->Descendants("polyreme coordinator")) {
      coordinator += CpuSeconds(pid);
    }
    for (const pid_t pid : cluster.program->Descendants("polyreme worker")) {
      workers += CpuSeconds(pid);
    }
  }
  double coordinator = 0;
  double workers = 0;
  double clients = 0;
};

// Requests come at `rate` whatever happens to them. Who is refused comes back at once, twice.
void RunOpenLoop(int32_t port, double rate, absl::Duration length, Tally& tally) {
  constexpr int kTries = 3;
  std::atomic<int64_t> next{0};
  const absl::Time start = MonotonicNow(), end = start + length;
  std::vector<std::thread> clients;
  for (int c = 0; c < kClients; ++c) {
    clients.emplace_back([&] {
      while (true) {
        const int64_t i = next++;
        const absl::Time arrival = start + absl::Seconds(static_cast<double>(i) / rate);
        if (arrival >= end) return;
        WaitUntil(arrival);
        for (int t = 0; t < kTries; ++t) {
          const absl::Time begin = MonotonicNow();
          const api::RawResponse response = api::Exchange(port, Request(i));
          tally.Add(response, MonotonicNow() - begin, MonotonicNow() < end);
          if (response.code != 429) break;
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
}

// The worker has half of the cores, so that the coordinator and the clients have the rest, as on
// the machines that this is about: there GPUs compute, and clients are elsewhere. Where all share
// all cores, each refusal takes its CPU time from an answer, whatever the server does.
TEST(Overload, GoodputHoldsAndRefusalsComeAtOnce) {
  const unsigned cores = std::thread::hardware_concurrency();
  Cluster cluster = StartCluster(
      {}, {"--max-num-seqs", std::to_string(kRunning), "--max-num-queued-reqs",
           std::to_string(kQueued), "--cpu-threads", std::to_string(std::max(1u, cores / 2))});
  ASSERT_NE(cluster.port, 0);
  PeakRate(cluster.port, absl::Seconds(1));  // warm
  const double before = PeakRate(cluster.port, PhaseLength());
  ASSERT_GT(before, 0);
  Tally tally;
  const CpuShares at_begin(cluster);
  RunOpenLoop(cluster.port, kOverload * before, PhaseLength(), tally);
  const CpuShares at_end(cluster);
  const double after = PeakRate(cluster.port, PhaseLength());

  const double goodput =
      static_cast<double>(tally.num_in_time) / absl::ToDoubleSeconds(PhaseLength());
  // Other work on the machine comes and goes: the slower of both is what it can do now.
  const double peak = std::min(before, after);
  std::printf(
      "peak %.1f req/s before, %.1f after; at %.0f x: goodput %.1f req/s (%.2f of the peak), %zu "
      "served, p50 %.0f ms, p99 %.0f ms; %zu refused, p50 %.1f ms, p99 %.1f ms, most %.1f ms\n",
      before, after, kOverload, goodput, goodput / peak, tally.served_ms.size(),
      Percentile(tally.served_ms, 0.5), Percentile(tally.served_ms, 0.99), tally.refused_ms.size(),
      Percentile(tally.refused_ms, 0.5), Percentile(tally.refused_ms, 0.99),
      Percentile(tally.refused_ms, 1));
  std::printf("CPU seconds meanwhile: workers %.2f, coordinator %.2f, clients %.2f\n",
              at_end.workers - at_begin.workers, at_end.coordinator - at_begin.coordinator,
              at_end.clients - at_begin.clients);
  for (const auto& [code, count] : tally.codes) {
    EXPECT_TRUE(code == 200 || code == 429) << count << " answers of code " << code;
  }
  EXPECT_GT(tally.codes[429], 0) << "this was no overload";
  EXPECT_EQ(tally.num_without_retry_after, 0);
  EXPECT_GE(goodput, 0.6 * peak);
  EXPECT_EQ(cluster.Stop(), 0) << cluster.program->output();
}

// A client with the smallest buffer there is, that asks for a long stream and reads nothing of it.
class DeafClient {
 public:
  DeafClient(int32_t port, const std::string& request) {
    fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int bytes = 1;
    setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(port));
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(write(fd_, request.data(), request.size()), std::ssize(request));
  }
  ~DeafClient() { close(fd_); }
  DeafClient(const DeafClient&) = delete;
  DeafClient& operator=(const DeafClient&) = delete;

  // To the answer's last chunk, or the end of the connection if that comes first.
  std::string ReadRest() {
    std::string bytes;
    std::array<char, 1 << 16> part{};
    while (!bytes.ends_with("\r\n0\r\n\r\n")) {
      pollfd readable = {fd_, POLLIN, 0};
      const int ready = poll(&readable, 1, 10'000);
      EXPECT_EQ(ready, 1) << "neither more nor an end of it";
      const ssize_t count = ready == 1 ? read(fd_, part.data(), part.size()) : -1;
      if (count <= 0) break;
      bytes.append(part.data(), static_cast<size_t>(count));
    }
    return bytes;
  }
  // The slowest reader there is.
  void ReadByte() {
    char byte = 0;
    EXPECT_LE(recv(fd_, &byte, 1, MSG_DONTWAIT), 1);
  }

 private:
  int fd_ = -1;
};

int64_t ResidentBytes(pid_t pid) {
  std::ifstream in(fmt::format("/proc/{}/status", pid));
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("VmRSS:")) return std::atoll(line.c_str() + 6) * 1024;
  }
  ADD_FAILURE() << "no resident size of " << pid;
  return 0;
}

// The text of one normal client's answer. Streamed: a loaded machine may take long for all of it.
std::string TextOfAStream(int32_t port) {
  api::RawClient client(port);
  client.Send(api::PostJson("/v1/completions",
                            R"({"prompt":"def f(","max_tokens":32,"ignore_eos":true,)"
                            R"("temperature":0,"stream":true})"));
  const std::string bytes = client.ReadUntil("data: [DONE]");
  EXPECT_THAT(bytes, HasSubstr("data: [DONE]"));
  std::string text;
  for (size_t at = bytes.find("data: {"); at != std::string::npos;
       at = bytes.find("data: {", at + 1)) {
    const absl::StatusOr<Json> event =
        Json::Parse(bytes.substr(at + 6, bytes.find('\n', at) - at - 6));
    EXPECT_TRUE(event.ok() && event->Find("choices") != nullptr) << bytes;
    if (!event.ok() || event->Find("choices") == nullptr) return "";
    text += event->Find("choices")->as_array().at(0).Find("text")->as_string();
  }
  EXPECT_FALSE(text.empty());
  return text;
}

int64_t MetricOf(const Cluster& cluster, const std::string& name) {
  const std::string text = cluster.Get("/metrics");
  const size_t at = text.find(name + "{model_name=\"demo-model\"} ");
  if (at == std::string::npos) return -1;
  return std::atoll(text.c_str() + text.find("} ", at) + 2);
}

// A normal client beside the slow ones, again and again until none of their sequences runs any
// more, having been `expected` at once; `each_round` first. Returns what the coordinator's resident
// size grew by at most, in bytes.
int64_t ServeBesideSlowClients(const Cluster& cluster, const std::string& want,
                               int64_t resident_before, pid_t coordinator, int expected,
                               absl::Duration patience, const std::function<void()>& each_round) {
  int64_t most = 0, running = -1;
  bool have_run = false;
  const absl::Time deadline = MonotonicNow() + patience;
  while (!(have_run && running == 0) && MonotonicNow() < deadline) {
    each_round();
    EXPECT_EQ(TextOfAStream(cluster.port), want);
    most = std::max(most, ResidentBytes(coordinator) - resident_before);
    running = MetricOf(cluster, "polyreme_num_requests_running");
    have_run |= running >= expected;
  }
  EXPECT_TRUE(have_run);
  EXPECT_EQ(running, 0) << "who does not read holds his place";
  return most;
}

TEST(Overload, ClientsThatDoNotReadBoundTheirOwnMemoryAndHarmNobody) {
  constexpr int kDeaf = 24;
  Cluster cluster = StartCluster({}, {"--max-num-seqs", "32"});
  ASSERT_NE(cluster.port, 0);
  const std::string want = TextOfAStream(cluster.port);
  const std::vector<pid_t> coordinators = cluster.program->Descendants("polyreme coordinator");
  ASSERT_EQ(coordinators.size(), 1u);
  const int64_t before = ResidentBytes(coordinators[0]);
  {
    std::vector<std::unique_ptr<DeafClient>> deaf;
    for (int i = 0; i < kDeaf; ++i) {
      deaf.push_back(std::make_unique<DeafClient>(
          cluster.port,
          api::PostJson("/v1/completions", R"({"prompt":"x","max_tokens":250,"ignore_eos":true,)"
                                           R"("stream":true,"logprobs":20})")));
    }
    const int64_t most = ServeBesideSlowClients(cluster, want, before, coordinators[0], kDeaf / 2,
                                                absl::Seconds(120), [] {});
    std::printf("%d clients that read nothing: %.2f MiB each\n", kDeaf,
                static_cast<double>(most) / kDeaf / 0x1p20);
    EXPECT_LE(most, int64_t{kDeaf} * (6 << 20));
  }
  EXPECT_THAT(cluster.Get("/health"), HasSubstr("ok"));
  EXPECT_EQ(cluster.Stop(), 0) << cluster.program->output();
}

// What they are sent is more than the kernel takes, more than the connection takes and more than
// the stream of pieces takes: then each one's request ends, long before it would by itself.
TEST(Overload, ClientsFarBehindLoseTheirRequestAndNobodyElseNotices) {
  constexpr int kBehind = 3, kChoices = 8, kLongest = 1500;
  Cluster cluster = StartCluster({}, {"--max-num-seqs", "32"});
  ASSERT_NE(cluster.port, 0);
  const std::string want = TextOfAStream(cluster.port);
  const std::vector<pid_t> coordinators = cluster.program->Descendants("polyreme coordinator");
  ASSERT_EQ(coordinators.size(), 1u);
  const int64_t before = ResidentBytes(coordinators[0]);
  std::vector<std::unique_ptr<DeafClient>> behind;
  for (int i = 0; i < kBehind; ++i) {
    behind.push_back(std::make_unique<DeafClient>(
        cluster.port,
        api::PostJson("/v1/completions",
                      fmt::format(R"({{"prompt":"x","max_tokens":{},"ignore_eos":true,"n":{},)"
                                  R"("stream":true,"logprobs":20}})",
                                  kLongest, kChoices))));
  }
  const int64_t most =
      ServeBesideSlowClients(cluster, want, before, coordinators[0], kBehind * kChoices / 2,
                             absl::Seconds(150), [&] { behind[0]->ReadByte(); });
  const int64_t tokens = MetricOf(cluster, "polyreme_generation_tokens_total");
  EXPECT_GT(tokens, 0);
  EXPECT_LT(tokens, kBehind * kChoices * kLongest / 2) << "nothing ended them before their time";
  std::printf("%d clients far behind: %.2f MiB each, %lld tokens made\n", kBehind,
              static_cast<double>(most) / kBehind / 0x1p20, static_cast<long long>(tokens));
  EXPECT_LE(most, int64_t{kBehind} * (12 << 20));
  for (const std::unique_ptr<DeafClient>& client : behind) {
    const std::string bytes = client->ReadRest();
    EXPECT_THAT(bytes, HasSubstr("200 OK"));
    // On a machine so busy that this took a minute the connection has been cut already.
    EXPECT_THAT(bytes, AnyOf(HasSubstr("the client fell too far behind in reading its tokens"),
                             Not(HasSubstr("[DONE]"))));
  }
  EXPECT_EQ(TextOfAStream(cluster.port), want);
  EXPECT_EQ(cluster.Stop(), 0) << cluster.program->output();
}

}  // namespace
}  // namespace polyreme::e2e
