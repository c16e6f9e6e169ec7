// One running gRPC call each, as the callback API wants them. Only generate_service.cc and their
// own file include this.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "coordinator/api/backend.h"
#include "coordinator/api/errand.h"
#include "coordinator/api/grpc_replies.h"
#include "coordinator/api/idempotency.h"
#include "coordinator/api/task_pool.h"
#include "proto/api.grpc.pb.h"

namespace polyreme::api {

// As gRPC has it; the text of internal errors goes to the log instead.
grpc::Status ToGrpc(const absl::Status& status);

// Where calls do their work: never on a gRPC thread that others wait for, never under a stream's
// lock. Outlives the calls and the tasks of both pools.
struct GrpcWork {
  const ApiContext& context;
  TaskPool& pump;                        // carries pieces to calls
  const std::shared_ptr<TaskPool> kept;  // one thread, for kept answers; they may hold it longer
  std::atomic<int32_t> num_calls{0};     // of Generate, running
};

// Generate: tokenizes on the context's pool, then carries pieces from the engine, one write at a
// time.
//
// Owns itself until OnDone. The engine's notices may come later than that, and hold the call
// weakly. Flags are guarded by the mutex; gRPC is called outside of it, because a completion may
// run inside the call that caused it.
class GenerateCall final : public grpc::ServerWriteReactor<v1::GenerateReply>,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  // The request is copied: gRPC's own one is gone as soon as a cancelled call is done, tokenized or
  // not.
  GenerateCall(GrpcWork& work, const v1::GenerateRequest& request, absl::Time deadline)
      : work_(work), request_(request), deadline_(deadline) {}

  // Before Start: the call came with an idempotency-key of this id. context: its own.
  void UnderKey(grpc::CallbackServerContext* context, std::string id);
  // refusal: an error to answer with at once, or ok.
  void Start(const absl::Status& refusal);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  // Answers from what is kept under the call's key, if anything is.
  bool Rejoins();
  // Under a key: has the call answered from what is kept, and gives what that is to be recorded by,
  // if it is this call that runs.
  absl::StatusOr<std::shared_ptr<HttpResponder>> Admit();
  KeyedRequest Keyed() const;
  void ParseAndSubmit();
  enum class Hearing { kFirst, kAgain };
  void TakeFrom(std::shared_ptr<ReplySource> replies, Hearing hearing);
  void RequestPump() noexcept;
  void PumpOrEnd();
  void Pump();
  // Ends the call once; waits for a write that is under way.
  void End(const absl::Status& status);

  GrpcWork& work_;
  const v1::GenerateRequest request_;
  const absl::Time deadline_;
  grpc::CallbackServerContext* context_ = nullptr;  // under a key, until Finish
  std::string key_id_;                              // empty: without a key
  std::shared_ptr<GenerateCall> self_;              // until OnDone
  v1::GenerateReply reply_;                         // being written

  class PumpErrand final : public Errand {
   public:
    explicit PumpErrand(GenerateCall& call) : call_(call) {}
    void Run() override { call_.PumpOrEnd(); }
    void GiveUp() noexcept override {
      CHECK(false, "a call's end: out of memory, and nobody could make do without");
    }

   private:
    GenerateCall& call_;
  };
  PumpErrand pump_{*this};

  std::mutex mutex_;
  std::shared_ptr<ReplySource> replies_;  // guarded by mutex_
  bool is_writing_ = false;               // guarded by mutex_
  bool has_finished_ = false;             // guarded by mutex_; Finish was or is being called
  std::optional<absl::Status>
      end_;  // guarded by mutex_; Finish with this when nothing is being written
};

// A unary call that is computed on the pool.
class PoolCall final : public grpc::ServerUnaryReactor {
 public:
  void OnCancel() override {}  // what runs is short, and finishes the call
  void OnDone() override { delete this; }
  // Runs `compute` on the pool and answers with its status; at once when the pool is full.
  void Run(TaskPool& pool, std::function<absl::Status()> compute);
};

}  // namespace polyreme::api
