#include "coordinator/api/health_service.h"

#include <optional>
#include <utility>
#include <vector>

#include "parallel/base/clock.h"
#include "parallel/base/limits.h"

namespace polyreme::api {
namespace {

constexpr std::string_view kGeneration = "polyreme.v1.Generation";
constexpr absl::Duration kLookInterval = absl::Milliseconds(250);

}  // namespace

// Writes a status whenever it is another one than the last written. The service's set owns it until
// gRPC is done with it. gRPC is never called under a lock, because what it completes may run inside
// the call.
class HealthService::Watcher final : public grpc::ServerWriteReactor<Response>,
                                     public std::enable_shared_from_this<Watcher> {
 public:
  Watcher(HealthService& service, std::string name) : service_(service), name_(std::move(name)) {}

  const std::string& name() const { return name_; }

  void Update(Response::ServingStatus status) {
    {
      const std::lock_guard lock(mutex_);
      latest_ = status;
      if (is_writing_ || has_ended_ || written_ == latest_) return;
      is_writing_ = true;
      written_ = latest_;
      response_.set_status(status);
    }
    StartWrite(&response_);
  }

  // Ends the call once; waits for a write that is under way.
  void End(const grpc::Status& status) {
    bool finishes = false;
    {
      const std::lock_guard lock(mutex_);
      has_ended_ = true;
      finishes = !is_writing_ && !has_finished_;
      has_finished_ |= finishes;
    }
    if (finishes) Finish(status);
  }

  void OnWriteDone(bool ok) override {
    Response::ServingStatus latest;
    bool goes_on = false;
    {
      const std::lock_guard lock(mutex_);
      is_writing_ = false;
      latest = *latest_;
      goes_on = ok && !has_ended_;
    }
    goes_on ? Update(latest)
            : End(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the watch has ended"));
  }
  void OnCancel() override {
    End(grpc::Status(grpc::StatusCode::CANCELLED, "the watcher is gone"));
  }
  void OnDone() override { service_.Remove(shared_from_this()); }

 private:
  HealthService& service_;
  const std::string name_;
  Response response_;  // being written
  std::mutex mutex_;
  std::optional<Response::ServingStatus> latest_;   // guarded by mutex_
  std::optional<Response::ServingStatus> written_;  // guarded by mutex_
  bool is_writing_ = false;                         // guarded by mutex_
  bool has_ended_ = false;                          // guarded by mutex_
  bool has_finished_ = false;  // guarded by mutex_; Finish was or is being called
};

HealthService::HealthService(const GenerationBackend& backend)
    : backend_(backend), thread_([this] {
        while (!ticks_.closed()) {
          ticks_.WaitUntil(MonotonicNow() + kLookInterval);
          for (const auto& watcher : Watchers()) watcher->Update(StatusOf(watcher->name()));
        }
      }) {}

HealthService::~HealthService() {
  Stop();
}

void HealthService::Stop() {
  ticks_.Close(Cancelled("the server has stopped"));
  if (thread_.joinable()) thread_.join();
  {
    const std::lock_guard lock(mutex_);
    has_stopped_ = true;
  }
  for (const auto& watcher : Watchers()) {
    watcher->End(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server has stopped"));
  }
}

HealthService::Response::ServingStatus HealthService::StatusOf(const std::string& service) const {
  if (!service.empty() && service != kGeneration) return Response::SERVICE_UNKNOWN;
  return backend_.health().serving ? Response::SERVING : Response::NOT_SERVING;
}

std::vector<std::shared_ptr<HealthService::Watcher>> HealthService::Watchers() {
  const std::lock_guard lock(mutex_);
  return {watchers_.begin(), watchers_.end()};
}

void HealthService::Remove(const std::shared_ptr<Watcher>& watcher) {
  const std::lock_guard lock(mutex_);
  watchers_.erase(watcher);
}

grpc::ServerUnaryReactor* HealthService::Check(grpc::CallbackServerContext* context,
                                               const Request* request, Response* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  response->set_status(StatusOf(request->service()));
  if (response->status() == Response::SERVICE_UNKNOWN) {
    reactor->Finish(
        grpc::Status(grpc::StatusCode::NOT_FOUND, "expected \"\" or polyreme.v1.Generation"));
  } else {
    reactor->Finish(grpc::Status::OK);
  }
  return reactor;
}

grpc::ServerWriteReactor<HealthService::Response>* HealthService::Watch(
    grpc::CallbackServerContext*, const Request* request) {
  const auto watcher = std::make_shared<Watcher>(*this, request->service());
  bool is_refused = false;
  {
    const std::lock_guard lock(mutex_);
    is_refused = has_stopped_ || std::ssize(watchers_) >= limits::kMaxGrpcCalls;
    watchers_.insert(watcher);
  }
  if (is_refused) {
    watcher->End(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "too many watch already"));
  } else {
    watcher->Update(StatusOf(watcher->name()));
  }
  return watcher.get();
}

}  // namespace polyreme::api
