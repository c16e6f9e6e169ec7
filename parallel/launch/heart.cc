#include "parallel/launch/heart.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "parallel/base/clock.h"
#include "parallel/base/log.h"
#include "parallel/base/status.h"

namespace polyreme::launch {
namespace {

// Eight times the longest pause between two beats that was seen, within these.
constexpr absl::Duration kPatienceMin = absl::Seconds(4);
constexpr absl::Duration kPatienceMax = absl::Seconds(8);
constexpr int kPauses = 8;

}  // namespace

std::unique_ptr<Heart> Heart::Start() {
  const char* const text = std::getenv(kHeartVariable);
  int fd = text == nullptr ? -1 : std::atoi(text);
  if (fd > 2 && fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) fd = -1;
  return std::unique_ptr<Heart>(new Heart(fd > 2 ? fd : -1));
}

Heart::Heart(int fd) : fd_(fd), thread_([this] { Beat(); }) {}

Heart::~Heart() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

// Non-blocking: a full pipe has beats enough.
void Heart::Write(const std::string& line) {
  if (fd_ >= 0 && write(fd_, line.data(), line.size()) < 0) return;
}

void Heart::Beat() {
  std::unique_lock lock(mutex_);
  while (!ending_) {
    if (IsWell()) Write(serving_ ? "beat 1\n" : "beat 0\n");
    changed_.wait_for(lock, absl::ToChronoNanoseconds(kHeartbeatInterval));
  }
}

bool Heart::IsWell() {
  const std::string complaint = complaint_ ? complaint_() : "";
  const bool complains = !complaint.empty();
  if (complains && !complains_) LogError("{}: no more beats until it goes on", complaint);
  complains_ = complains;
  return !complains;
}

void Heart::SetComplaint(std::function<std::string()> complaint) {
  const std::lock_guard lock(mutex_);
  complaint_ = std::move(complaint);
}

void Heart::SetServing() {
  const std::lock_guard lock(mutex_);
  serving_ = true;
  Write("beat 1\n");
}

void Heart::SetNote(std::string_view note) {
  CHECK(note.size() <= 1024 && note.find('\n') == std::string_view::npos);
  const std::lock_guard lock(mutex_);
  Write("note " + std::string(note) + "\n");
}

std::optional<std::string> NoteOfPredecessor() {
  const char* const note = std::getenv(kNoteVariable);
  if (note == nullptr) return std::nullopt;
  return note;
}

void HeartMonitor::Reset(absl::Time now) {
  partial_.clear();
  beats_ = false;
  last_ = now;
  longest_gap_ = absl::ZeroDuration();
}

void HeartMonitor::Take(std::string_view bytes, absl::Time now) {
  if (bytes.empty()) return;
  if (beats_) longest_gap_ = std::max(longest_gap_, now - last_);
  beats_ = true;
  last_ = now;
  partial_ += bytes;
  for (size_t end = partial_.find('\n'); end != std::string::npos; end = partial_.find('\n')) {
    const std::string_view line(partial_.data(), end);
    if (line == "beat 1") has_served_ = true;
    if (line.starts_with("note ")) note_ = line.substr(5);
    partial_.erase(0, end + 1);
  }
}

absl::Duration HeartMonitor::Patience() const {
  return std::clamp(kPauses * longest_gap_, kPatienceMin, kPatienceMax);
}

bool HeartMonitor::IsSilent(absl::Time now) const {
  if (!beats_) return has_served_ && now - last_ > kPatienceMax;
  return now - last_ > Patience();
}

}  // namespace polyreme::launch
