#include "worker/backend/cuda/attention.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <string_view>
#include <vector>

#include "worker/backend/cuda/attention_memory.h"
#include "worker/backend/cuda/cuda_status.h"
#include "worker/backend/cuda/decode_attention.h"
#include "worker/backend/cuda/flashinfer.h"
#include "worker/backend/cuda/paged_attention.h"
#include "worker/backend/cuda/workspace.h"

namespace polyreme::cuda {
namespace {

using backend::AttentionChoice;
using ops::StepBatch;

#ifdef POLYREME_FLASHINFER
constexpr bool kHaveFlashInfer = true;
#else
constexpr bool kHaveFlashInfer = false;
#endif
#ifdef POLYREME_FLASHINFER_HOPPER
constexpr bool kHaveHopper = true;
#else
constexpr bool kHaveHopper = false;
#endif

std::string_view NameOf(PromptPath path) {
  switch (path) {
    case PromptPath::kPlain:
      return "own prompts";
    case PromptPath::kFa2:
      return "FlashInfer (FA2) prompts";
    case PromptPath::kHopper:
      return "FlashInfer (Hopper) prompts";
  }
  return "";
}

Step StepOf(const StepBatch& batch) {
  Step step;
  step.num_tokens = batch.num_tokens;
  step.num_rows = batch.num_rows;
  step.tokens = batch.tokens;
  step.positions = batch.positions;
  step.token_rows = batch.token_rows;
  step.row_begins = batch.row_begins;
  step.row_slots = batch.row_slots;
  step.block_table = batch.block_table;
  step.table_stride = batch.table_stride;
  step.tokens_per_block = batch.tokens_per_block;
  return step;
}

absl::Status StatusOf(const FlashInferStatus& status, std::string_view what) {
  RETURN_IF_CUDA_ERROR(status.error, what);
  if (!status.ok()) return Internal("{}: FlashInfer says: {}", what, status.message);
  return absl::OkStatus();
}

int NumPages(int length, int tokens_per_block) {
  return (length + tokens_per_block - 1) / tokens_per_block;
}

// How a step's rows are shared out. The vectors keep their memory from step to step.
struct StepPlan {
  int num_tokens = -1;
  int num_rows = -1;
  bool decode_only = false;
  // Rows of one token that are not given to FlashInfer.
  std::vector<int32_t> singles;
  // Rows given to FlashInfer; for the FA2 path they follow each other, from first_token on.
  std::vector<int32_t> prompts;
  std::vector<int32_t> token_begins;  // [n + 1]
  std::vector<int32_t> token_counts;  // [n]
  std::vector<int32_t> page_begins;   // [n + 1]
  std::vector<int32_t> last_pages;    // [n] positions in the last page
  std::vector<int32_t> lengths;       // [n]
  int first_token = 0;
  // Where the same values lie on the device.
  const int32_t* device_singles = nullptr;
  const int32_t* device_prompts = nullptr;
  const int32_t* device_token_begins = nullptr;
  const int32_t* device_page_begins = nullptr;
  const int32_t* device_last_pages = nullptr;
  const int32_t* device_hopper = nullptr;
  Fa2Plan fa2;
  HopperPlan hopper;

  void Clear() {
    singles.clear(), prompts.clear(), token_begins.clear(), token_counts.clear();
    page_begins.clear(), last_pages.clear(), lengths.clear();
    first_token = 0;
  }
};

class Dispatcher final : public Attention {
 public:
  Dispatcher(const Options& options, bool allow_hopper)
      : options_(options),
        setup_{.choice = options.choice,
               .type = options.type,
               .compute_capability = options.compute_capability,
               .num_multiprocessors = options.num_multiprocessors,
               .have_fa2 = kHaveFlashInfer,
               .have_hopper = allow_hopper} {}

  const AttentionSetup& setup() const override { return setup_; }
  absl::Status Reserve(const ops::Workload& workload) override;
  absl::Status Plan(cudaStream_t stream, const StepBatch& batch, const Heads& heads) override;
  absl::Status Run(cudaStream_t stream, const StepBatch& batch, const Heads& heads, const void* qkv,
                   const Pool& pool, float scale, void* y) override;
  std::string Describe() const override;

 private:
  AttentionPaths PathsOf(const Heads& heads, int tokens_per_block) const {
    return AttentionPathsOf(setup_, heads, tokens_per_block);
  }
  AttentionParts PartsFor(const AttentionLimits& limits, const Heads& heads,
                          const AttentionPaths& paths) const {
    return AttentionPartsFor(setup_, limits, heads, paths);
  }
  absl::Status Take(const AttentionParts& parts);
  absl::StatusOr<int> DecodeBlocks(int head_dim);

  void ShareOutRows(const StepBatch& batch, const AttentionPaths& paths);
  int64_t StageRows(int32_t* host);
  FlashInferRows Rows(int tokens_per_block) const;
  Fa2Workspace Workspace(const Staging& staging) const;
  absl::Status PlanMixed(cudaStream_t stream, const StepBatch& batch, const Heads& heads,
                         const AttentionPaths& paths);
  DecodeAttentionArguments DecodeArguments(const StepBatch& batch, const Heads& heads) const;
  absl::Status RunMixed(cudaStream_t stream, const PagedAttentionArguments& arguments,
                        const StepBatch& batch, const AttentionPaths& paths);
  absl::Status RunSingles(cudaStream_t stream, const PagedAttentionArguments& arguments,
                          const StepBatch& batch, const AttentionPaths& paths);
  absl::Status RunPrompts(cudaStream_t stream, const PagedAttentionArguments& arguments,
                          const AttentionPaths& paths);

  const Options options_;
  const AttentionSetup setup_;
  bool reserved_ = false;
  AttentionParts parts_;
  std::unique_ptr<void, DeviceFree> device_;
  AttentionMemory memory_;
  std::array<Staging, 2> staging_;
  int next_staging_ = 0;
  std::map<int, int> decode_blocks_;  // by head width
  int num_decode_blocks_ = 0;         // of the planned step
  // In mixed steps rows of one token run beside the prompts.
  StreamHandle side_;
  EventHandle fork_;
  EventHandle join_;
  StepPlan plan_;
};

absl::Status Dispatcher::Reserve(const ops::Workload& workload) {
  const Heads heads = HeadsOf(workload.heads);
  const AttentionPaths paths = PathsOf(heads, workload.tokens_per_block);
  if (options_.choice == AttentionChoice::kFlashInfer && paths.prompts == PromptPath::kPlain) {
    return FailedPrecondition(
        "--attention-backend flashinfer: its kernels in this build serve head widths 64 and 128, "
        "the model's is {}; use auto or own",
        heads.head_dim);
  }
  if (heads.head_dim > kMaxPagedHeadDim) {
    return InvalidArgument("attention on a GPU serves head widths up to {}, the model's is {}",
                           kMaxPagedHeadDim, heads.head_dim);
  }
  RETURN_IF_ERROR(Take(PartsFor(AttentionLimitsOf(workload), heads, paths)));
  if (paths.fast_decode) RETURN_IF_ERROR(DecodeBlocks(heads.head_dim).status());
  reserved_ = true;
  return absl::OkStatus();
}

absl::Status Dispatcher::Take(const AttentionParts& parts) {
  if (device_ != nullptr && parts_.Holds(parts)) return absl::OkStatus();
  if (reserved_) {
    return Internal(
        "a step's attention needs {} bytes of memory, the largest step was said to need "
        "{}",
        parts.device_bytes(), parts_.device_bytes());
  }
  RETURN_IF_CUDA_ERROR(cudaDeviceSynchronize(), "before attention's memory is taken anew");
  if (side_ == nullptr) {
    cudaStream_t stream = nullptr;
    RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
    side_.reset(stream);
    ASSIGN_OR_RETURN(fork_, MakeEvent());
    ASSIGN_OR_RETURN(join_, MakeEvent());
    for (Staging& staging : staging_) {
      ASSIGN_OR_RETURN(staging.copied, MakeEvent());
    }
  }
  const AttentionParts wanted = AttentionParts::Max(parts_, parts);
  device_.reset();
  parts_ = {};
  void* memory = nullptr;
  const int64_t bytes = wanted.device_bytes();
  RETURN_IF_CUDA_ERROR(cudaMalloc(&memory, static_cast<size_t>(bytes)),
                       fmt::format("{} bytes of device memory for attention", bytes));
  device_.reset(memory);
  RETURN_IF_CUDA_ERROR(cudaMemset(memory, 0, static_cast<size_t>(bytes)), "attention's memory");
  for (Staging& staging : staging_) {
    void* host = nullptr;
    const auto host_bytes = static_cast<size_t>(wanted.host_bytes());
    RETURN_IF_CUDA_ERROR(cudaMallocHost(&host, host_bytes),
                         fmt::format("{} bytes of pinned memory for attention", host_bytes));
    staging.memory.reset(host);
    std::fill_n(static_cast<std::byte*>(host), host_bytes, std::byte{0});
    staging.used = false;
  }
  RETURN_IF_CUDA_ERROR(cudaDeviceSynchronize(), "attention's memory");
  parts_ = wanted;
  memory_ = AttentionMemory(memory, parts_);
  return absl::OkStatus();
}

absl::StatusOr<int> Dispatcher::DecodeBlocks(int head_dim) {
  const auto known = decode_blocks_.find(head_dim);
  if (known != decode_blocks_.end()) return known->second;
  int blocks = 0;
  RETURN_IF_CUDA_ERROR(DecodeAttentionBlocks(options_.type, head_dim, &blocks),
                       "the decode kernel's occupancy");
  blocks = std::min(blocks, 2 * options_.num_multiprocessors);
  decode_blocks_[head_dim] = blocks;
  return blocks;
}

// Which rows go to FlashInfer and which are singles. The FA2 path takes all rows from the first
// prompt to the last, because its rows must follow each other.
void Dispatcher::ShareOutRows(const StepBatch& batch, const AttentionPaths& paths) {
  plan_.Clear();
  const absl::Span<const int32_t> begins = batch.host_row_begins;
  const auto is_prompt = [&begins](int row) { return begins[row + 1] - begins[row] > 1; };
  int first = 0, last = batch.num_rows - 1;
  while (first < batch.num_rows && !is_prompt(first)) ++first;
  while (last > first && !is_prompt(last)) --last;
  const bool fa2 = paths.prompts == PromptPath::kFa2;
  plan_.first_token = fa2 && first < batch.num_rows ? begins[first] : 0;
  int32_t page = 0;
  for (int row = 0; row < batch.num_rows; ++row) {
    const int count = begins[row + 1] - begins[row];
    const bool between = row >= first && row <= last;
    if (count == 0) continue;
    if (paths.prompts == PromptPath::kPlain || !(count > 1 || (fa2 && between))) {
      if (count == 1) plan_.singles.push_back(row);
      continue;
    }
    const int length = batch.host_row_first_positions[row] + count;
    const int pages = NumPages(length, batch.tokens_per_block);
    plan_.prompts.push_back(row);
    plan_.token_begins.push_back(begins[row] - plan_.first_token);
    plan_.token_counts.push_back(count);
    plan_.page_begins.push_back(page);
    plan_.last_pages.push_back(length - (pages - 1) * batch.tokens_per_block);
    plan_.lengths.push_back(length);
    page += pages;
  }
  plan_.page_begins.push_back(page);
  plan_.token_begins.push_back(
      plan_.prompts.empty() ? 0 : plan_.token_begins.back() + plan_.token_counts.back());
}

// Writes the rows' arrays to `host` as they will lie on the device; returns their number of ints.
int64_t Dispatcher::StageRows(int32_t* host) {
  int64_t next = 0;
  const auto stage = [&](const std::vector<int32_t>& values) {
    std::copy(values.begin(), values.end(), host + next);
    const int32_t* const device = memory_.staged + next;
    next += std::ssize(values);
    return device;
  };
  plan_.device_singles = stage(plan_.singles);
  plan_.device_prompts = stage(plan_.prompts);
  plan_.device_token_begins = stage(plan_.token_begins);
  plan_.device_page_begins = stage(plan_.page_begins);
  plan_.device_last_pages = stage(plan_.last_pages);
  return next;
}

FlashInferRows Dispatcher::Rows(int tokens_per_block) const {
  FlashInferRows rows;
  rows.num_rows = static_cast<int>(plan_.prompts.size());
  rows.tokens_per_block = tokens_per_block;
  rows.token_begins = plan_.token_begins.data();
  rows.token_counts = plan_.token_counts.data();
  rows.page_begins = plan_.page_begins.data();
  rows.lengths = plan_.lengths.data();
  rows.device_token_begins = plan_.device_token_begins;
  rows.device_page_begins = plan_.device_page_begins;
  rows.device_last_page_lengths = plan_.device_last_pages;
  rows.device_pages = memory_.pages;
  return rows;
}

Fa2Workspace Dispatcher::Workspace(const Staging& staging) const {
  Fa2Workspace workspace;
  workspace.floats = memory_.fa2_floats;
  workspace.float_bytes = parts_.fa2_floats;
  workspace.ints = memory_.fa2_ints;
  workspace.host_ints = AttentionMemory(staging.memory.get(), parts_).fa2_ints;
  workspace.int_bytes = parts_.fa2_ints;
  return workspace;
}

DecodeAttentionArguments Dispatcher::DecodeArguments(const StepBatch& batch,
                                                     const Heads& heads) const {
  DecodeAttentionArguments arguments;
  arguments.type = options_.type;
  arguments.step = StepOf(batch);
  arguments.heads = heads;
  arguments.rows = plan_.decode_only ? nullptr : plan_.device_singles;
  arguments.num_rows = plan_.decode_only ? batch.num_rows : static_cast<int>(plan_.singles.size());
  arguments.num_blocks = num_decode_blocks_;
  arguments.plan = memory_.decode_plan;
  arguments.partials = memory_.partials;
  return arguments;
}

absl::Status Dispatcher::Plan(cudaStream_t stream, const StepBatch& batch, const Heads& heads) {
  const AttentionPaths paths = PathsOf(heads, batch.tokens_per_block);
  plan_.num_tokens = batch.num_tokens;
  plan_.num_rows = batch.num_rows;
  plan_.decode_only = batch.decode_only();
  if (batch.num_tokens == 0) return absl::OkStatus();
  if (plan_.decode_only) {
    plan_.Clear();
  } else {
    CHECK(std::ssize(batch.host_row_begins) == batch.num_rows + 1 &&
              std::ssize(batch.host_row_first_positions) == batch.num_rows,
          "attention of {} rows is planned without their host arrays", batch.num_rows);
    ShareOutRows(batch, paths);
  }
  AttentionLimits limits;
  limits.tokens = batch.num_tokens;
  limits.rows = batch.num_rows;
  limits.pages = plan_.prompts.empty() ? 0 : plan_.page_begins.back();
  RETURN_IF_ERROR(Take(PartsFor(limits, heads, paths)));
  if (paths.fast_decode) {
    ASSIGN_OR_RETURN(num_decode_blocks_, DecodeBlocks(heads.head_dim));
  }
  if (!plan_.decode_only) return PlanMixed(stream, batch, heads, paths);
  if (!paths.fast_decode) return absl::OkStatus();
  return CudaStatus(PlanDecode(stream, DecodeArguments(batch, heads)), "planning decode attention");
}

absl::Status Dispatcher::PlanMixed(cudaStream_t stream, const StepBatch& batch, const Heads& heads,
                                   const AttentionPaths& paths) {
  Staging& staging = staging_[static_cast<size_t>(next_staging_)];
  next_staging_ = 1 - next_staging_;
  if (staging.used) {
    RETURN_IF_CUDA_ERROR(cudaEventSynchronize(staging.copied.get()), "the plan of two steps ago");
  }
  auto* const host = static_cast<int32_t*>(staging.memory.get());
  int64_t bytes = StageRows(host) * int64_t{sizeof(int32_t)};
  const FlashInferRows rows = Rows(batch.tokens_per_block);
  if constexpr (kHaveHopper) {
    if (paths.prompts == PromptPath::kHopper && rows.num_rows > 0) {
      const int64_t before = bytes / int64_t{sizeof(int32_t)};
      plan_.hopper = PlanHopper(rows, heads, options_.num_multiprocessors, host + before);
      plan_.device_hopper = memory_.staged + before;
      bytes += HopperPlanBytes(plan_.hopper.num_tiles, plan_.hopper.num_multiprocessors);
    }
  }
  CHECK(bytes <= parts_.staged, "attention's plan has {} bytes, {} were taken", bytes,
        parts_.staged);
  RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(memory_.staged, host, static_cast<size_t>(bytes),
                                       cudaMemcpyHostToDevice, stream),
                       "copying attention's plan");
  absl::Status status;
  if constexpr (kHaveFlashInfer) {
    if (paths.prompts == PromptPath::kFa2 && rows.num_rows > 0) {
      status = StatusOf(PlanFa2(stream, rows, heads, Workspace(staging), &plan_.fa2),
                        "planning attention of prompts");
    }
  }
  RETURN_IF_CUDA_ERROR(cudaEventRecord(staging.copied.get(), stream), "marking attention's plan");
  staging.used = true;
  RETURN_IF_ERROR(status);
  RETURN_IF_CUDA_ERROR(GatherPages(stream, StepOf(batch), plan_.device_prompts,
                                   plan_.device_page_begins, rows.num_rows, memory_.pages),
                       "gathering the blocks of prompts");
  if (!paths.fast_decode || plan_.singles.empty()) return absl::OkStatus();
  return CudaStatus(PlanDecode(stream, DecodeArguments(batch, heads)), "planning decode attention");
}

absl::Status Dispatcher::Run(cudaStream_t stream, const StepBatch& batch, const Heads& heads,
                             const void* qkv, const Pool& pool, float scale, void* y) {
  CHECK(batch.num_tokens == plan_.num_tokens && batch.num_rows == plan_.num_rows,
        "attention of {} tokens in {} rows was planned, {} in {} came", plan_.num_tokens,
        plan_.num_rows, batch.num_tokens, batch.num_rows);
  if (batch.num_tokens == 0) return absl::OkStatus();
  PagedAttentionArguments arguments;
  arguments.type = options_.type;
  arguments.step = StepOf(batch);
  arguments.heads = heads;
  arguments.qkv = qkv;
  arguments.pool = pool;
  arguments.scale = scale;
  arguments.y = y;
  arguments.workspace = memory_.partials;
  const AttentionPaths paths = PathsOf(heads, batch.tokens_per_block);
  const bool of_type = pool.element == options_.type;
  if (!plan_.decode_only && of_type) return RunMixed(stream, arguments, batch, paths);
  if (plan_.decode_only && of_type && paths.fast_decode) {
    return CudaStatus(DecodeAttention(stream, DecodeArguments(batch, heads), qkv, pool, scale, y),
                      "decode attention");
  }
  if (plan_.decode_only) {
    arguments.num_splits =
        PagedAttentionSplits(batch.num_tokens, heads, options_.num_multiprocessors);
  }
  return CudaStatus(PagedAttention(stream, arguments), "paged attention");
}

absl::Status Dispatcher::RunMixed(cudaStream_t stream, const PagedAttentionArguments& arguments,
                                  const StepBatch& batch, const AttentionPaths& paths) {
  const bool prompts = !plan_.prompts.empty() || paths.prompts == PromptPath::kPlain;
  const bool singles = !plan_.singles.empty();
  const bool beside = prompts && singles;
  if (beside) {
    RETURN_IF_CUDA_ERROR(cudaEventRecord(fork_.get(), stream), "forking attention");
    RETURN_IF_CUDA_ERROR(cudaStreamWaitEvent(side_.get(), fork_.get(), 0), "forking attention");
  }
  absl::Status status;
  if (prompts) status = RunPrompts(stream, arguments, paths);
  if (singles && status.ok()) {
    status = RunSingles(beside ? side_.get() : stream, arguments, batch, paths);
  }
  if (beside) {
    RETURN_IF_CUDA_ERROR(cudaEventRecord(join_.get(), side_.get()), "joining attention");
    RETURN_IF_CUDA_ERROR(cudaStreamWaitEvent(stream, join_.get(), 0), "joining attention");
  }
  return status;
}

absl::Status Dispatcher::RunSingles(cudaStream_t stream, const PagedAttentionArguments& arguments,
                                    const StepBatch& batch, const AttentionPaths& paths) {
  if (paths.fast_decode) {
    return CudaStatus(DecodeAttention(stream, DecodeArguments(batch, arguments.heads),
                                      arguments.qkv, arguments.pool, arguments.scale, arguments.y),
                      "decode attention");
  }
  PagedAttentionArguments of_singles = arguments;
  of_singles.prompt_rows = false;
  if (paths.prompts == PromptPath::kFa2 && !plan_.prompts.empty()) {
    of_singles.skip_begin = plan_.first_token;
    of_singles.skip_end = plan_.first_token + plan_.token_begins.back();
  }
  return CudaStatus(PagedAttention(stream, of_singles), "paged attention of decode rows");
}

absl::Status Dispatcher::RunPrompts(cudaStream_t stream, const PagedAttentionArguments& arguments,
                                    const AttentionPaths& paths) {
  const Heads& heads = arguments.heads;
  FlashInferTensors tensors;
  tensors.type = arguments.type;
  tensors.heads = heads;
  tensors.pool = arguments.pool;
  tensors.scale = arguments.scale;
  tensors.num_tokens = arguments.step.num_tokens - plan_.first_token;
  const int64_t width = SizeOf(arguments.type);
  tensors.qkv =
      static_cast<const std::byte*>(arguments.qkv) + plan_.first_token * heads.columns() * width;
  tensors.y = static_cast<std::byte*>(arguments.y) +
              int64_t{plan_.first_token} * heads.query_heads * heads.head_dim * width;
  const FlashInferRows rows = Rows(arguments.step.tokens_per_block);
  if constexpr (kHaveHopper) {
    if (paths.prompts == PromptPath::kHopper) {
      return StatusOf(RunHopper(stream, rows, tensors, plan_.device_hopper, plan_.hopper),
                      "attention of prompts");
    }
  }
  if constexpr (kHaveFlashInfer) {
    if (paths.prompts == PromptPath::kFa2) {
      return StatusOf(RunFa2(stream, rows, tensors, Workspace(staging_[0]), plan_.fa2),
                      "attention of prompts");
    }
  }
  PagedAttentionArguments of_prompts = arguments;
  of_prompts.single_rows = false;
  return CudaStatus(PagedAttention(stream, of_prompts), "paged attention of prompts");
}

// Of the usual heads; others are served as PathsOf says.
std::string Dispatcher::Describe() const {
  const AttentionPaths paths = PathsOf({.query_heads = 8, .kv_heads = 8, .head_dim = 128}, 16);
  return fmt::format("{} decode, {}", paths.fast_decode ? "own" : "own plain",
                     NameOf(paths.prompts));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Attention>> Attention::Make(const Options& options) {
  if (options.choice == AttentionChoice::kFlashInfer) {
    if (!kHaveFlashInfer) {
      return FailedPrecondition(
          "--attention-backend flashinfer: this build has no FlashInfer (its wheel was not there "
          "when it was configured); use auto or own");
    }
    if (options.compute_capability < 80 || options.type == Element::kF32) {
      return FailedPrecondition(
          "--attention-backend flashinfer needs a GPU of compute capability 8.0 or newer and "
          "bfloat16 or float16; found {}.{} and {}; use auto or own",
          options.compute_capability / 10, options.compute_capability % 10,
          options.type == Element::kF32   ? "float32"
          : options.type == Element::kF16 ? "float16"
                                          : "bfloat16");
    }
  }
  // For comparing FlashInfer's two paths on one GPU.
  const char* const path = std::getenv("POLYREME_FLASHINFER_PATH");
  const bool fa2 = path != nullptr && std::string_view(path) == "fa2";
  return std::make_unique<Dispatcher>(options,
                                      kHaveHopper && options.compute_capability == 90 && !fa2);
}

}  // namespace polyreme::cuda
