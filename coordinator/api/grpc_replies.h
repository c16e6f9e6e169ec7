// Where the replies of a Generate call come from: from its own run, or, under an idempotency-key,
// from an answer that is kept for all who ask for it (decision 0012).
//
//   TokenStream ──► RunKept ──► KeptAnswer ──► KeptReplies ──► GenerateCall     once per client
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "coordinator/api/http_server.h"
#include "coordinator/api/task_pool.h"
#include "coordinator/engine/token_stream.h"
#include "parallel/base/status.h"
#include "proto/api.pb.h"

namespace polyreme::api {

// As a TokenStream to its consumer.
class ReplySource {
 public:
  enum class Polled { kNothingYet, kReply, kEnd };

  virtual ~ReplySource() = default;
  // kReply: `reply` is the next one. kEnd: `end` says how it has ended.
  virtual Polled Poll(v1::GenerateReply& reply, absl::Status& end) = 0;
  virtual void SetNotify(std::function<void()> notify) = 0;
  // The consumer is gone.
  virtual void Cancel() = 0;
};

// Of a run that is this call's alone.
std::shared_ptr<ReplySource> OwnReplies(std::shared_ptr<engine::TokenStream> stream,
                                        int32_t num_prompt_tokens);

// A client of a kept answer: takes its bytes apart. Any thread.
class KeptReplies final : public ReplySource,
                          public HttpResponder,
                          public std::enable_shared_from_this<KeptReplies> {
 public:
  // thread: a pool of one thread, which posted work runs on.
  explicit KeptReplies(std::shared_ptr<TaskPool> thread) : thread_(std::move(thread)) {}

  Polled Poll(v1::GenerateReply& reply, absl::Status& end) override;
  void SetNotify(std::function<void()> notify) override;
  void Cancel() override;

  // Of the kept answer.
  void Send(HttpResponse response) override;
  void StartStream(HttpResponse) override {}
  void Write(std::string bytes) override;
  void Finish() override;
  int64_t pending_bytes() const override;
  void SetOnRoom(std::function<void()> on_room) override;
  void SetOnClosed(std::function<void()> on_closed) override;
  void Post(std::function<void()> work) override;
  std::shared_ptr<HttpNotice> MakeNotice(std::function<void()> work) override;
  void Cut() noexcept override;

 private:
  // Shared, so that telling takes no memory.
  using Notify = std::shared_ptr<const std::function<void()>>;

  // Of the next frame, if all of it is there; else 0. mutex_ is held.
  size_t NextFrameBytes() const;
  void EndWith(absl::Status end);

  const std::shared_ptr<TaskPool> thread_;
  mutable std::mutex mutex_;
  std::string bytes_;  // guarded by mutex_, and so on; come and not yet taken, from begin_ on
  size_t begin_ = 0;
  bool is_over_ = false;  // nothing more comes
  absl::Status end_;      // behind all frames, if none of them is an end
  bool is_cancelled_ = false;
  Notify notify_;
  std::function<void()> on_room_;
  std::function<void()> on_closed_;
};

// Answers through `recorder` with what the stream brings.
void RunKept(std::shared_ptr<engine::TokenStream> stream, int32_t num_prompt_tokens,
             std::shared_ptr<HttpResponder> recorder);
// Answers with an error, or with an end.
void EndKept(const absl::Status& status, HttpResponder& recorder);
// The bytes that end a kept answer of this face with `status`.
std::string KeptEnd(const absl::Status& status);

}  // namespace polyreme::api
