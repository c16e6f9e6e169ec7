// The workers of a cluster as threads of this process: whole ranks with runners and step loops,
// plans in, results out.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "parallel/base/bounded_queue.h"
#include "parallel/base/status.h"
#include "parallel/comm/process_group.h"
#include "parallel/comm/thread_transport.h"
#include "parallel/launch/rendezvous.h"
#include "parallel/plan/shard_plan.h"
#include "parallel/step/step_plan.h"
#include "worker/backend/backend.h"
#include "worker/run/model_runner.h"
#include "worker/run/step_loop.h"
#include "worker/weights/tensor_source.h"

namespace polyreme::bench {

struct RankThreadsOptions {
  int32_t stages = 1;
  int32_t shards = 1;
  int32_t num_threads = 1;         // of each rank
  int64_t head_chunk_samples = 3;  // small, so that tests cross chunks
  step::StepLimits limits;
  std::string device = "cpu";       // a backend's name; "cuda": rank r has GPU r, NCCL joins them
  backend::BackendOptions backend;  // num_threads and device_index are set here
  weights::LoadFormat format = weights::LoadFormat::kSafetensors;
  uint64_t seed = 0;                            // of a dummy model
  absl::Duration patience = absl::Seconds(10);  // for a step's answer
  // How they meet and talk, but for NCCL. Borrowed; null: in a place of their own.
  comm::ProcessGroup::Kind transport = comm::ProcessGroup::Kind::kThreads;
  launch::Rendezvous* meet = nullptr;
};

class RankThreads {
 public:
  // The checkpoint's directory. The first error of any rank.
  static absl::StatusOr<std::unique_ptr<RankThreads>> Start(const std::string& directory,
                                                            const RankThreadsOptions& options);
  ~RankThreads();

  absl::Status Submit(const step::StepPlan& plan);
  // The oldest step's result, samples and timings of all ranks merged.
  absl::StatusOr<step::StepResult> Await();
  int32_t world_size() const { return static_cast<int32_t>(ranks_.size()); }
  run::RunnerStats stats(int32_t rank) const;
  int64_t weight_bytes(int32_t rank) const;
  // Device::UsedBytes of its device: all that the rank took, on CPU.
  int64_t used_bytes(int32_t rank) const;
  backend::DeviceKind device_kind(int32_t rank) const;
  void Abort(int32_t rank, const absl::Status& why);
  // What a rank's answers were, one after another; DeadlineExceeded if there is none within the
  // patience.
  absl::StatusOr<step::StepResult> AnswerOf(int32_t rank);

 private:
  // In order of making.
  struct RankState {
    std::unique_ptr<backend::Backend> backend;
    weights::ShardWeights weights;
    std::unique_ptr<kv::KvCache> cache;
    std::unique_ptr<comm::ProcessGroup> group;
    std::unique_ptr<run::ModelRunner> runner;
    std::unique_ptr<BoundedQueue<absl::StatusOr<step::StepResult>>> answers;
    std::unique_ptr<run::StepLoop> loop;
  };

  RankThreads() = default;
  absl::Status StartRank(const weights::TensorSource& source, const plan::ShardPlan& plan,
                         const RankThreadsOptions& options, Rank self);
  absl::Status Join(const plan::Topology& topology, const RankThreadsOptions& options, Rank self);

  plan::ModelSpec spec_;
  absl::Duration patience_;
  bool failed_ = false;  // an answer was an error, or did not come
  comm::ThreadHub hub_;
  launch::InMemoryRendezvous meet_;
  std::vector<RankState> ranks_;
};

}  // namespace polyreme::bench
