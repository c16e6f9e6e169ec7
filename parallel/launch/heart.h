// The beats of a child process, over a pipe to its agent: that it runs, whether it has served, and
// what its successor must know to take its place. A child that falls silent is stopped, hangs as a
// whole, or says of itself that what matters in it stands still; it is killed by its agent.
//
// One line a beat: "beat <serving>", or "note <text>".
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "absl/time/time.h"

namespace polyreme::launch {

inline constexpr char kHeartVariable[] = "POLYREME_HEART_FD";
inline constexpr char kNoteVariable[] = "POLYREME_NOTE";
// Exit code of a child that asks to be replaced (EX_TEMPFAIL).
inline constexpr int kReplaceMe = 75;
inline constexpr absl::Duration kHeartbeatInterval = absl::Milliseconds(250);

// The child's side.
class Heart {
 public:
  // Beats into the pipe that the agent has left in the environment; without one it does nothing.
  static std::unique_ptr<Heart> Start();
  ~Heart();
  void SetServing();
  // Asked before each beat, from now on: what stands still in this process, or "" if nothing does.
  // While something does there are no beats. Must not wait. nullptr: nothing is asked.
  void SetComplaint(std::function<std::string()> complaint);
  // At most 1 KiB, one line.
  void SetNote(std::string_view note);

 private:
  explicit Heart(int fd);
  void Beat();
  bool IsWell();  // mutex_ is held
  void Write(const std::string& line);

  const int fd_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool serving_ = false;                    // guarded by mutex_, and so on
  std::function<std::string()> complaint_;  // nullptr: none
  bool complains_ = false;
  bool ending_ = false;
  std::thread thread_;
};

// What the process before this one of the same rank has noted; nullopt: this is the first.
std::optional<std::string> NoteOfPredecessor();

// The agent's side: reads what has come and judges silence by the agent's own clock.
class HeartMonitor {
 public:
  // Takes a pipe's lines; `now` is when they were read.
  void Take(std::string_view bytes, absl::Time now);
  // A child was started at `now`.
  void Reset(absl::Time now);
  // The child has begun to beat and beats no more; or the successor of one that has served does not
  // begin. How long the first process of a rank may take is the join timeout's business.
  bool IsSilent(absl::Time now) const;
  // The agent itself did not run for so long: that is nobody's silence.
  void Forgive(absl::Duration lost) { last_ += lost; }
  absl::Duration silence(absl::Time now) const { return now - last_; }
  bool has_served() const { return has_served_; }
  const std::string& note() const { return note_; }

 private:
  absl::Duration Patience() const;

  std::string partial_;
  std::string note_;
  bool has_served_ = false;
  bool beats_ = false;
  absl::Time last_;
  absl::Duration longest_gap_;
};

}  // namespace polyreme::launch
