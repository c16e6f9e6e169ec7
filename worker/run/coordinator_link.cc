#include "worker/run/coordinator_link.h"

#include <poll.h>

#include <algorithm>
#include <utility>

#include "parallel/base/clock.h"

namespace polyreme::run {
namespace {

// Between two attempts at a coordinator that takes a call and is gone again.
constexpr absl::Duration kRedialPause = absl::Milliseconds(50);

}  // namespace

CoordinatorLink::CoordinatorLink(std::string address, std::string job_token, JoinInfo identity)
    : address_(std::move(address)),
      job_token_(std::move(job_token)),
      identity_(std::move(identity)) {}

absl::Status CoordinatorLink::DialIn(absl::Time deadline, Effort effort) {
  for (;;) {
    auto client = std::make_shared<ClusterClient>(address_, job_token_);
    const absl::StatusOr<JoinedCluster> joined = client->Join(identity_, deadline);
    absl::Status status = joined.status();
    if (status.ok()) {
      identity_.known_incarnation = joined->incarnation;
      status = client->Attach(identity_.rank, joined->ticket);
    }
    if (status.ok()) {
      const std::lock_guard lock(mutex_);
      client_ = std::move(client);
      if (loaded_.has_value()) SayLoaded();
      return absl::OkStatus();
    }
    if (effort == Effort::kOnce || !absl::IsUnavailable(status) || MonotonicNow() >= deadline) {
      return status;
    }
    poll(nullptr, 0, static_cast<int>(absl::ToInt64Milliseconds(kRedialPause)));
  }
}

std::shared_ptr<ClusterClient> CoordinatorLink::client() const {
  const std::lock_guard lock(mutex_);
  CHECK(client_ != nullptr, "nobody has dialled in");
  return client_;
}

void CoordinatorLink::TellLoaded(absl::StatusOr<LoadedReport> loaded,
                                 std::function<int32_t()> num_blocks_held) {
  const std::lock_guard lock(mutex_);
  num_blocks_held_ = std::move(num_blocks_held);
  loaded_ = std::move(loaded);
  SayLoaded();
}

// A send that fails means that the stream is gone; the next coordinator is told again.
void CoordinatorLink::SayLoaded() {
  if (!loaded_->ok()) return client_->SendFailed(Epoch{0}, loaded_->status()).IgnoreError();
  LoadedReport report = **loaded_;
  report.num_blocks_held = num_blocks_held_();
  client_->SendLoaded(report).IgnoreError();
}

bool CoordinatorLink::has_loaded() const {
  const std::lock_guard lock(mutex_);
  return loaded_.has_value() && loaded_->ok();
}

absl::Status CoordinatorLink::Admit(Epoch epoch) {
  if (epoch <= identity_.known_epoch) {
    return FailedPrecondition("epoch {} is to start, but this rank has heard of epoch {}",
                              epoch.value, identity_.known_epoch.value);
  }
  NoteEpoch(epoch);
  return absl::OkStatus();
}

void CoordinatorLink::NoteEpoch(Epoch epoch) {
  identity_.known_epoch = std::max(identity_.known_epoch, epoch);
}

}  // namespace polyreme::run
