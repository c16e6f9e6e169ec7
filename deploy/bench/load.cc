#include "deploy/bench/load.h"

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "deploy/bench/http_client.h"
#include "deploy/bench/interrupt.h"
#include "deploy/bench/samples.h"

namespace polyreme::bench {
namespace {

namespace asio = boost::asio;
using ErrorCode = boost::system::error_code;

constexpr int64_t kTickNs = 10'000'000;
constexpr int kTicksBetweenChecks = 10;  // of deadlines
constexpr size_t kMaxLagSamples = size_t{1} << 20;
constexpr rlim_t kSpareFiles = 64;

// What the threads of a load share.
struct Shared {
  std::vector<RequestSpec> specs;
  std::vector<RequestRecord> records;  // each touched by the thread that took its request
  int64_t start = 0;
  std::mutex mutex;
  std::condition_variable changed;
  size_t next = 0;          // guarded by mutex
  int32_t num_running = 0;  // threads; guarded by mutex
  std::atomic<bool> stop{false};
  std::atomic<int64_t> sent{0}, done{0}, failed{0}, chunks{0};

  // The next request if its time has come; else nullptr and the time of the next one in
  // *wait_until, or 0 if there is none left.
  RequestSpec* Take(int64_t now, int64_t* wait_until) {
    const std::lock_guard lock(mutex);
    *wait_until = 0;
    if (next == specs.size() || stop) return nullptr;
    RequestSpec& spec = specs[next];
    if (spec.intended_ns == RequestSpec::kWhenThereIsRoom) spec.intended_ns = now - start;
    if (start + spec.intended_ns > now) {
      *wait_until = start + spec.intended_ns;
      return nullptr;
    }
    RequestRecord& record = records[next];
    record.index = static_cast<int32_t>(next);
    record.intended_ns = spec.intended_ns;
    ++next;
    return &spec;
  }
};

// One thread's part: an event loop, its connections, and the requests it took.
class Sender {
 public:
  Sender(Shared& shared, const LoadOptions& options, const HttpClient::Endpoints& endpoints,
         int32_t room, int32_t max_connections)
      : shared_(shared),
        options_(options),
        client_(context_, endpoints,
                {.max_connections = max_connections, .silence_deadline = options.silence_deadline}),
        room_(room),
        wake_(context_),
        tick_(context_) {}

  void Run() {
    // Counted from here: what is made beforehand belongs to no request.
    ticked_ = NowNanos();
    Tick();
    SendWhatIsDue();
    context_.run();
    rusage usage = {};
    getrusage(RUSAGE_THREAD, &usage);
    cpu_seconds_ = static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                   static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    const std::lock_guard lock(shared_.mutex);
    --shared_.num_running;
    shared_.changed.notify_all();
  }

  double cpu_seconds() const { return cpu_seconds_; }
  const std::vector<double>& lags_ms() const { return lags_ms_; }
  int64_t connections() const { return client_.connections_made(); }

 private:
  class Exchange final : public ExchangeHandler {
   public:
    Exchange(Sender& sender, RequestRecord& record)
        : sender_(sender), record_(record), recorder_(record, sender.shared_.start) {}
    void OnBody(const ResponseParser& head, std::string_view bytes, int64_t now) override {
      const int32_t before = record_.num_chunks;
      recorder_.OnBody(head, bytes, now);
      sender_.shared_.chunks.fetch_add(record_.num_chunks - before, std::memory_order_relaxed);
    }
    void OnEnd(const ResponseParser& head, const absl::Status& status, int64_t now) override {
      recorder_.OnEnd(head, status, now);
      sender_.OnEnd(record_);
      delete this;
    }

   private:
    Sender& sender_;
    RequestRecord& record_;
    StreamRecorder recorder_;
  };

  void SendWhatIsDue() {
    int64_t wait_until = 0;
    while (room_ > 0) {
      const int64_t now = NowNanos();
      RequestSpec* const spec = shared_.Take(now, &wait_until);
      if (spec == nullptr) break;
      RequestRecord& record = shared_.records[static_cast<size_t>(spec - shared_.specs.data())];
      record.prompt = spec->prompt;
      record.prompt_tokens = spec->prompt_tokens;
      record.sent_ns = now - shared_.start;
      --room_;
      ++num_under_way_;
      ++shared_.sent;
      const std::string id =
          fmt::format("X-Request-Id: bench-{}\r\n{}", record.index, options_.headers);
      // Deletes itself at its end, which always comes.
      client_.Start(PostRequest(options_.url, options_.path, id, std::exchange(spec->body, {})),
                    *new Exchange(*this, record));
    }
    if (wait_until > 0) {
      wake_.expires_at(std::chrono::steady_clock::time_point(std::chrono::nanoseconds(wait_until)));
      wake_.async_wait([this](const ErrorCode& error) {
        if (!error) SendWhatIsDue();
      });
    } else if (num_under_way_ == 0 && room_ > 0) {
      End();
    }
  }

  void OnEnd(const RequestRecord& record) {
    ++room_;
    --num_under_way_;
    if (record.outcome == RequestRecord::Outcome::kDone) {
      ++shared_.done;
    } else if (record.outcome == RequestRecord::Outcome::kFailed) {
      ++shared_.failed;
    }
    if (!is_cancelling_) SendWhatIsDue();
  }

  void Tick() {
    ticked_ += kTickNs;
    tick_.expires_at(std::chrono::steady_clock::time_point(std::chrono::nanoseconds(ticked_)));
    tick_.async_wait([this](const ErrorCode& error) {
      if (error) return;
      const int64_t now = NowNanos();
      if (lags_ms_.size() < kMaxLagSamples) {
        lags_ms_.push_back(static_cast<double>(now - ticked_) / 1e6);
      }
      if (shared_.stop) return Cancel();
      if (++num_ticks_ % kTicksBetweenChecks == 0) client_.CheckDeadlines(now);
      // Ticks that were missed are not made up for: the lag has told of them.
      ticked_ = std::max(ticked_, now - kTickNs);
      if (!has_ended_) Tick();
    });
  }

  void Cancel() {
    is_cancelling_ = true;
    client_.Cancel();
    End();
  }

  void End() {
    has_ended_ = true;
    wake_.cancel();
    tick_.cancel();
    client_.Cancel();  // closes idle connections, so that the loop ends
  }

  Shared& shared_;
  const LoadOptions& options_;
  asio::io_context context_{1};
  HttpClient client_;
  int32_t room_;
  int32_t num_under_way_ = 0;
  asio::steady_timer wake_;
  asio::steady_timer tick_;
  int64_t ticked_ = 0;
  int64_t num_ticks_ = 0;
  bool is_cancelling_ = false;
  bool has_ended_ = false;
  double cpu_seconds_ = 0;
  std::vector<double> lags_ms_;
};

// Lets this process open `wanted` files more than it may need anyway.
absl::Status AllowFiles(int32_t wanted) {
  rlimit limit = {};
  getrlimit(RLIMIT_NOFILE, &limit);
  const rlim_t needed = static_cast<rlim_t>(wanted) + kSpareFiles;
  if (limit.rlim_cur >= needed) return absl::OkStatus();
  limit.rlim_cur = std::min(needed, limit.rlim_max);
  setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur >= needed) return absl::OkStatus();
  return ResourceExhausted(
      "{} connections need {} open files, this process may have {}: raise `ulimit -n` or lower "
      "--max-concurrency",
      wanted, needed, limit.rlim_max);
}

void ReportProgress(const Shared& shared,
                    const std::function<void(const LoadProgress&)>& on_progress) {
  on_progress({.total = static_cast<int64_t>(shared.specs.size()),
               .sent = shared.sent,
               .done = shared.done,
               .failed = shared.failed,
               .chunks = shared.chunks,
               .seconds = static_cast<double>(NowNanos() - shared.start) / 1e9});
}

ClientCost CostOf(const std::vector<std::unique_ptr<Sender>>& senders, const Shared& shared) {
  ClientCost cost;
  cost.num_threads = static_cast<int32_t>(senders.size());
  cost.wall_seconds = static_cast<double>(NowNanos() - shared.start) / 1e9;
  std::vector<double> lags;
  for (const auto& sender : senders) {
    cost.cpu_seconds += sender->cpu_seconds();
    cost.connections += sender->connections();
    lags.insert(lags.end(), sender->lags_ms().begin(), sender->lags_ms().end());
  }
  std::vector<double> late;
  for (const RequestRecord& record : shared.records) {
    if (record.outcome != RequestRecord::Outcome::kNotSent) late.push_back(record.late_ms());
  }
  const Samples lag(std::move(lags));
  const Samples lateness(std::move(late));
  const auto figure = [](const Samples& samples, double p) {
    return samples.count() > 0 ? samples.Percentile(p) : 0;
  };
  cost.lag_p50_ms = figure(lag, 50);
  cost.lag_p99_ms = figure(lag, 99);
  cost.lag_max_ms = figure(lag, 100);
  cost.late_p99_ms = figure(lateness, 99);
  cost.late_max_ms = figure(lateness, 100);
  return cost;
}

}  // namespace

absl::StatusOr<LoadResult> RunLoad(const LoadOptions& options, std::vector<RequestSpec> specs,
                                   const std::function<void(const LoadProgress&)>& on_progress) {
  ASSIGN_OR_RETURN(const HttpClient::Endpoints endpoints, Resolve(options.url));
  const auto num_specs = static_cast<int32_t>(std::min<size_t>(specs.size(), INT32_MAX));
  int32_t room = std::min(options.max_connections, num_specs);
  if (options.concurrency > 0) room = std::min(room, options.concurrency);
  room = std::max(room, 1);
  RETURN_IF_ERROR(AllowFiles(room));
  Shared shared;
  shared.specs = std::move(specs);
  shared.records.resize(shared.specs.size());
  const int32_t num_threads = std::clamp(options.num_threads, 1, room);
  std::vector<std::unique_ptr<Sender>> senders;
  for (int32_t i = 0; i < num_threads; ++i) {
    const int32_t share = room / num_threads + (i < room % num_threads ? 1 : 0);
    senders.push_back(std::make_unique<Sender>(shared, options, endpoints, share, share));
  }
  shared.num_running = num_threads;
  shared.start = NowNanos();
  std::vector<std::jthread> threads;
  for (const auto& sender : senders) threads.emplace_back([&sender] { sender->Run(); });
  const int64_t deadline = shared.start + absl::ToInt64Nanoseconds(options.deadline);
  {
    std::unique_lock lock(shared.mutex);
    while (!shared.changed.wait_for(lock, std::chrono::milliseconds(200),
                                    [&] { return shared.num_running == 0; })) {
      lock.unlock();
      if (Interrupted() || NowNanos() > deadline) shared.stop = true;
      if (on_progress) ReportProgress(shared, on_progress);
      lock.lock();
    }
  }
  threads.clear();
  if (on_progress) ReportProgress(shared, on_progress);
  LoadResult result;
  result.interrupted = shared.stop;
  result.client = CostOf(senders, shared);
  for (const RequestRecord& record : shared.records) {
    result.seconds = std::max(result.seconds, static_cast<double>(record.end_ns) / 1e9);
  }
  senders.clear();
  result.records = std::move(shared.records);
  return result;
}

}  // namespace polyreme::bench
