// One answer that is made once and kept while it is made and after: for the client that asked, for
// others that ask the same, and for one that lost its connection and comes back.
//
//   Generation ──► Recorder ──► KeptAnswer ──► client, client, ...     each at its own pace
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "coordinator/api/http_message.h"
#include "coordinator/api/http_server.h"
#include "parallel/base/clock.h"

namespace polyreme::api {

// Any thread. What it calls of its keeper it calls without a lock.
class KeptAnswer : public std::enable_shared_from_this<KeptAnswer> {
 public:
  // How an answer has ended.
  enum class End {
    kComplete,  // it can be had again
    kNothing,   // it says nothing of the request's run, or there is none: the key is free again
    kTooLarge,  // it is not kept
  };
  struct Keeper {
    // Whether so many bytes more may be kept of this answer.
    std::function<bool(int64_t num_bytes)> reserve;
    // Before any client hears of the end; what is said of it again counts for nothing.
    std::function<void(End)> on_end;
    // The last bytes of a stream of which no more may be kept.
    std::string overflow;
  };

  // host: the request's own responder, on whose thread the answer is made, even when its client is
  // gone. abandoned_after: without any client for so long, the generation is cancelled.
  KeptAnswer(std::shared_ptr<HttpResponder> host, Keeper keeper, const Clock& clock,
             absl::Duration abandoned_after);

  // What the generation answers to. Once.
  std::shared_ptr<HttpResponder> MakeRecorder();
  // Sends the client all of the answer from the beginning, as it comes.
  enum class Hearing { kFirst, kAgain };
  void Follow(std::shared_ptr<HttpResponder> client, Hearing hearing);
  // Ends the generation, soon, if nobody has followed for too long.
  void CancelIfAbandoned();
  // Ends the generation. On no thread of the server, which has stopped.
  void Cancel();

 private:
  class Recorder;
  struct Follower;

  // Of the generation, through the recorder.
  void Send(HttpResponse response);
  void StartStream(HttpResponse head);
  void Write(std::string bytes);
  void Finish();
  void DoNotKeep();
  void Break();  // there will be no more
  void SetOnClosed(std::function<void()> on_closed);
  std::shared_ptr<HttpNotice> MakeNotice(std::function<void()> work);
  // There will be no more, for want of memory: all who wait are told by their connections' ends.
  void Cut() noexcept;

  bool IsPassingAnswer() const;
  bool IsAbandoned() const;
  void EndWith(End end);
  void WakeAll() noexcept;
  void Pump(const std::shared_ptr<Follower>& follower);
  void Leave(const std::shared_ptr<Follower>& follower);

  const Keeper keeper_;
  const Clock& clock_;
  const absl::Duration abandoned_after_;

  mutable std::mutex mutex_;  // guards all below
  std::shared_ptr<HttpResponder> host_;
  std::optional<HttpResponse> head_;  // without body
  bool is_stream_ = false;
  std::string body_;
  bool has_ended_ = false;
  bool is_cancelled_ = false;
  bool is_passing_ = false;  // what has ended it is not to be had again
  std::function<void()> on_closed_;
  std::list<std::shared_ptr<Follower>> followers_;
  absl::Time last_followed_;
};

}  // namespace polyreme::api
