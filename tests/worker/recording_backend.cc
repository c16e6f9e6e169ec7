#include "tests/worker/recording_backend.h"

#include <fmt/format.h>

#include <utility>
#include <vector>

namespace polyreme::run {
namespace {

// What all parts of one backend share: the recording in progress, if there is one.
class Recorder {
 public:
  explicit Recorder(Recordings& recordings) : recordings_(recordings) {}

  template <class... Args>
  void Log(fmt::format_string<Args...> format, Args&&... args) {
    if (active_) log_ += fmt::format(format, std::forward<Args>(args)...) + "\n";
  }
  // What may not happen inside a recording.
  void Forbid(const char* what) {
    if (active_) Blame(fmt::format("{} inside a recording", what));
  }
  void Run(const ReplayKey& key, absl::FunctionRef<void()> body) {
    if (!key.decode_only) return body();
    log_.clear();
    active_ = true;
    body();
    active_ = false;
    const auto [recorded, is_new] =
        recordings_.work.try_emplace({key.num_tokens, key.num_samples}, log_);
    if (is_new) {
      if (recordings_.sealed) Blame(fmt::format("{} rows were never recorded", key.num_tokens));
      return;
    }
    ++recordings_.num_replays;
    if (recorded->second != log_) {
      Blame(fmt::format("a step of {} rows differs from its recording:\n{}\nwas\n{}",
                        key.num_tokens, log_, recorded->second));
    }
  }
  Recordings& recordings() { return recordings_; }

 private:
  void Blame(std::string what) {
    if (recordings_.mistake.empty()) recordings_.mistake = std::move(what);
  }
  Recordings& recordings_;
  bool active_ = false;
  std::string log_;
};

class RecordingLane final : public Lane {
 public:
  RecordingLane(std::unique_ptr<Lane> lane, Recorder& recorder)
      : lane_(std::move(lane)), recorder_(recorder) {}
  bool ok() const override { return lane_->ok(); }
  absl::Status status() const override { return lane_->status(); }
  void Fail(absl::Status why) override { lane_->Fail(std::move(why)); }
  void SetFailureHook(std::function<void(const absl::Status&)> hook) override {
    lane_->SetFailureHook(std::move(hook));
  }
  TensorView Scratch(DType dtype, const Shape& shape) override {
    return lane_->Scratch(dtype, shape);
  }
  void Rewind() override {
    recorder_.Forbid("Rewind");
    lane_->Rewind();
  }
  int64_t SaveScratch() const override { return lane_->SaveScratch(); }
  void RestoreScratch(int64_t watermark) override { lane_->RestoreScratch(watermark); }
  LaneMark Mark() override { return lane_->Mark(); }
  // Couriers wait from threads of their own at any time, so that this cannot be forbidden.
  absl::Status Wait(LaneMark mark, absl::Time deadline) override {
    return lane_->Wait(mark, deadline);
  }
  void Replay(const ReplayKey& key, absl::FunctionRef<void()> body) override {
    recorder_.Run(key, body);
  }

 private:
  const std::unique_ptr<Lane> lane_;
  Recorder& recorder_;
};

class RecordingDevice final : public Device {
 public:
  RecordingDevice(Device& device, Recorder& recorder) : device_(device), recorder_(recorder) {}
  std::string name() const override { return device_.name(); }
  absl::StatusOr<Buffer> Allocate(int64_t bytes) override {
    recorder_.Forbid("Allocate");
    recorder_.recordings().device_bytes += bytes;
    return device_.Allocate(bytes);
  }
  absl::StatusOr<Buffer> AllocateHost(int64_t bytes) override {
    recorder_.Forbid("AllocateHost");
    recorder_.recordings().host_bytes += bytes;
    return device_.AllocateHost(bytes);
  }
  absl::StatusOr<std::unique_ptr<Lane>> MakeLane(int64_t scratch_bytes) override {
    recorder_.recordings().device_bytes += scratch_bytes;
    ASSIGN_OR_RETURN(std::unique_ptr<Lane> lane, device_.MakeLane(scratch_bytes));
    return std::make_unique<RecordingLane>(std::move(lane), recorder_);
  }
  absl::Status CopyFromHost(const void* from, int64_t bytes, void* to) override {
    return device_.CopyFromHost(from, bytes, to);
  }
  absl::Status CopyToHost(const void* from, int64_t bytes, void* to) override {
    return device_.CopyToHost(from, bytes, to);
  }
  void Upload(Lane& lane, const void* from, int64_t bytes, void* to) override {
    recorder_.Forbid("Upload");
    device_.Upload(lane, from, bytes, to);
  }
  void Download(Lane& lane, const void* from, int64_t bytes, void* to) override {
    recorder_.Forbid("Download");
    device_.Download(lane, from, bytes, to);
  }
  void Copy(Lane& lane, const void* from, int64_t bytes, void* to) override {
    recorder_.Forbid("Copy");
    device_.Copy(lane, from, bytes, to);
  }
  int64_t FreeBytes() const override { return device_.FreeBytes(); }
  int64_t TotalBytes() const override { return device_.TotalBytes(); }
  std::vector<int32_t> ReplayRows(int32_t max_rows) const override {
    std::vector<int32_t> rows;
    for (const int32_t n : {1, 2, 4, 7}) {
      if (n < max_rows) rows.push_back(n);
    }
    rows.push_back(max_rows);
    return rows;
  }

 private:
  Device& device_;
  Recorder& recorder_;
};

std::string Text(const ConstTensorView& view) {
  return fmt::format("{}{}{}", fmt::ptr(view.data), NameOf(view.dtype), view.shape.ToString());
}

std::string Text(const ops::StepBatch& b) {
  return fmt::format("{}/{}/{} {} {} {} {} {} {} {} {} {}", b.num_tokens, b.num_rows, b.num_samples,
                     fmt::ptr(b.tokens), fmt::ptr(b.positions), fmt::ptr(b.token_rows),
                     fmt::ptr(b.row_begins), fmt::ptr(b.row_slots), fmt::ptr(b.sample_tokens),
                     fmt::ptr(b.block_table), b.table_stride, b.tokens_per_block);
}

std::string Text(const ops::SampleBatch& b) {
  return fmt::format("{} {} {} {} {} {} {} {} {} {} {} {}", b.num_samples, b.vocabulary,
                     Text(b.logits), fmt::ptr(b.specs), fmt::ptr(b.bias_tokens),
                     fmt::ptr(b.bias_values), fmt::ptr(b.allowed_tokens), fmt::ptr(b.token_counts),
                     fmt::ptr(b.outputs), fmt::ptr(b.top_tokens), fmt::ptr(b.top_logprobs),
                     Text(b.workspace));
}

const void* Data(const weights::Weight& w) {
  return w.bytes.data();
}

// Logs what a kernel would be launched with: host spans and host_specs are no part of it.
class RecordingOps final : public ops::Ops {
 public:
  RecordingOps(ops::Ops& ops, Recorder& recorder) : ops_(ops), recorder_(recorder) {}
  DType activation_dtype() const override { return ops_.activation_dtype(); }

 private:
  void DoEmbed(Lane& lane, const ops::StepBatch& batch, const weights::Weight& table,
               int64_t first_row, TensorView y) override {
    recorder_.Log("Embed {} {} {} {}", Text(batch), fmt::ptr(Data(table)), first_row, Text(y));
    ops_.Embed(lane, batch, table, first_row, y);
  }
  void DoRmsNorm(Lane& lane, ConstTensorView x, ConstTensorView gain, float epsilon,
                 TensorView y) override {
    recorder_.Log("RmsNorm {} {} {} {}", Text(x), Text(gain), epsilon, Text(y));
    ops_.RmsNorm(lane, x, gain, epsilon, y);
  }
  void DoAddRmsNorm(Lane& lane, ConstTensorView delta, TensorView x, ConstTensorView gain,
                    float epsilon, TensorView y) override {
    recorder_.Log("AddRmsNorm {} {} {} {} {}", Text(delta), Text(x), Text(gain), epsilon, Text(y));
    ops_.AddRmsNorm(lane, delta, x, gain, epsilon, y);
  }
  void DoAdd(Lane& lane, ConstTensorView delta, TensorView x) override {
    recorder_.Log("Add {} {}", Text(delta), Text(x));
    ops_.Add(lane, delta, x);
  }
  void DoAddBias(Lane& lane, ConstTensorView bias, TensorView x) override {
    recorder_.Log("AddBias {} {}", Text(bias), Text(x));
    ops_.AddBias(lane, bias, x);
  }
  void DoMatMul(Lane& lane, ConstTensorView x, const weights::Weight& w, TensorView y) override {
    recorder_.Log("MatMul {} {} {}", Text(x), fmt::ptr(Data(w)), Text(y));
    ops_.MatMul(lane, x, w, y);
  }
  void DoNormHeads(Lane& lane, const ops::HeadLayout& heads, ConstTensorView q_gain,
                   ConstTensorView k_gain, float epsilon, TensorView qkv) override {
    recorder_.Log("NormHeads {} {} {} {}", Text(q_gain), Text(k_gain), epsilon, Text(qkv));
    ops_.NormHeads(lane, heads, q_gain, k_gain, epsilon, qkv);
  }
  void DoRotateAndStore(Lane& lane, const ops::StepBatch& batch, const ops::HeadLayout& heads,
                        const ops::RopeTable& rope, TensorView qkv,
                        const ops::LayerKv& kv) override {
    recorder_.Log("RotateAndStore {} {} {} {} {}", Text(batch), Text(rope.cos_sin), Text(qkv),
                  Text(kv.keys), Text(kv.values));
    ops_.RotateAndStore(lane, batch, heads, rope, qkv, kv);
  }
  void DoPrepareAttention(Lane& lane, const ops::StepBatch& batch,
                          const ops::HeadLayout& heads) override {
    recorder_.Forbid("PrepareAttention");
    ops_.PrepareAttention(lane, batch, heads);
  }
  void DoAttend(Lane& lane, const ops::StepBatch& batch, const ops::HeadLayout& heads,
                ConstTensorView qkv, const ops::LayerKv& kv, float scale, TensorView y) override {
    recorder_.Log("Attend {} {} {} {} {} {}", Text(batch), Text(qkv), Text(kv.keys),
                  Text(kv.values), scale, Text(y));
    ops_.Attend(lane, batch, heads, qkv, kv, scale, y);
  }
  void DoSiluGate(Lane& lane, ConstTensorView x, TensorView y) override {
    recorder_.Log("SiluGate {} {}", Text(x), Text(y));
    ops_.SiluGate(lane, x, y);
  }
  void DoGatherRows(Lane& lane, ConstTensorView x, const int32_t* rows, TensorView y) override {
    recorder_.Log("GatherRows {} {} {}", Text(x), fmt::ptr(rows), Text(y));
    ops_.GatherRows(lane, x, rows, y);
  }
  void DoCopyBlocks(Lane& lane, const ops::LayerKv& kv, const ops::BlockMove* moves,
                    int32_t num_moves) override {
    recorder_.Forbid("CopyBlocks");
    ops_.CopyBlocks(lane, kv, moves, num_moves);
  }
  void DoSample(Lane& lane, const ops::SampleBatch& batch) override {
    recorder_.Log("Sample {}", Text(batch));
    ops_.Sample(lane, batch);
  }

  ops::Ops& ops_;
  Recorder& recorder_;
};

class RecordingBackend final : public backend::Backend {
 public:
  RecordingBackend(std::unique_ptr<backend::Backend> backend, Recordings& recordings)
      : backend_(std::move(backend)),
        recorder_(recordings),
        device_(backend_->device(), recorder_),
        ops_(backend_->ops(), recorder_) {}
  std::string_view name() const override { return "recording"; }
  Device& device() override { return device_; }
  ops::Ops& ops() override { return ops_; }
  weights::WeightPacker& packer() override { return backend_->packer(); }

 private:
  const std::unique_ptr<backend::Backend> backend_;
  Recorder recorder_;
  RecordingDevice device_;
  RecordingOps ops_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<backend::Backend>> MakeRecordingBackend(Recordings& recordings,
                                                                       int32_t num_threads) {
  ASSIGN_OR_RETURN(std::unique_ptr<backend::Backend> backend,
                   backend::MakeBackend("cpu", {.num_threads = num_threads}));
  return std::make_unique<RecordingBackend>(std::move(backend), recordings);
}

}  // namespace polyreme::run
