#include "deploy/bench/bench_coordinator.h"

#include <fmt/format.h>
#include <malloc.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "coordinator/engine/engine_core.h"
#include "coordinator/engine/null_link.h"
#include "coordinator/sched/scheduler.h"
#include "coordinator/text/byte_alphabet.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/utf8.h"
#include "parallel/base/json.h"
#include "parallel/wire/codec.h"

namespace polyreme::bench {
namespace {

constexpr int32_t kTokensPerBlock = 16;
constexpr int32_t kVocabulary = 256;
constexpr int32_t kWarmupSteps = 64;
// Of a step with hundreds of sequences: what a fast GPU's step may not wait for.
constexpr double kTargetMicroseconds = 150;

double MicrosecondsSince(absl::Time start) {
  return absl::ToDoubleMicroseconds(MonotonicNow() - start);
}

double Quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))];
}

int64_t HeapBytes() {
  return static_cast<int64_t>(mallinfo2().uordblks);
}

engine::EngineOptions OptionsFor(const BenchCoordinatorOptions& bench, int32_t context) {
  engine::EngineOptions options;
  const int32_t length = context + bench.num_steps + kWarmupSteps + 1024;
  options.limits = {.num_slots = bench.num_sequences,
                    .num_blocks = bench.num_sequences * (length / kTokensPerBlock + 2),
                    .tokens_per_block = kTokensPerBlock,
                    .max_step_tokens = 1 << 18,
                    .max_step_samples = bench.num_sequences,
                    .max_model_len = length,
                    .vocabulary = kVocabulary,
                    .max_steps_in_flight = 2};
  options.max_num_seqs = bench.num_sequences;
  options.max_num_batched_tokens = 1 << 18;
  options.max_waiting = bench.num_sequences;
  options.stream_capacity = 1 << 16;
  options.seed = 1;
  return options;
}

std::vector<TokenId> PromptOf(int32_t length) {
  std::vector<TokenId> prompt(static_cast<size_t>(length));
  for (int32_t i = 0; i < length; ++i) prompt[static_cast<size_t>(i)] = 'a' + i % 26;
  return prompt;
}

// Microseconds of each part of a step, one entry per step.
struct StepTimes {
  std::vector<double> plan, encode, decode, commit, whole;
  int64_t plan_bytes = 0;
  double heap_bytes_per_step = 0;
};

// Decodes without an engine around.
class ScheduledDecode {
 public:
  ScheduledDecode(const engine::EngineOptions& options, int32_t context)
      : blocks_(options.limits.num_blocks, options.limits.tokens_per_block),
        scheduler_(engine::EngineCore::LimitsOf(options), blocks_),
        link_(options.limits) {
    for (int32_t i = 0; i < options.max_num_seqs; ++i) {
      sched::SequenceOptions sequence;
      sequence.id = SequenceId{i + 1};
      sequence.prompt = PromptOf(context);
      sequence.stop.max_tokens = options.limits.max_model_len - context;
      sequence.stop.max_model_len = options.limits.max_model_len;
      const absl::Status admitted =
          scheduler_.Admit(std::make_unique<sched::Sequence>(std::move(sequence)));
      CHECK(admitted.ok(), "{}", Message(admitted));
    }
  }

  absl::Status WarmUp() {
    for (int32_t steady = 0; steady < kWarmupSteps;) {
      if (scheduler_.num_waiting() == 0) ++steady;
      RETURN_IF_ERROR(Step(nullptr));
    }
    return absl::OkStatus();
  }

  // `times` may be null.
  absl::Status Step(StepTimes* times) {
    while (scheduler_.num_in_flight() < 2) {
      const absl::Time begin = MonotonicNow();
      const step::StepPlan* plan = scheduler_.Plan();
      const double plan_us = MicrosecondsSince(begin);
      CHECK(plan != nullptr, "nothing to decode");
      in_flight_.push_back(plan->id);
      if (times != nullptr) {
        times->plan.push_back(plan_us);
        const absl::Time encoding = MonotonicNow();
        times->plan_bytes += std::ssize(wire::EncodePlan(*plan));
        times->encode.push_back(MicrosecondsSince(encoding));
      }
      RETURN_IF_ERROR(link_.Submit(*plan));
    }
    ASSIGN_OR_RETURN(const step::StepResult answer,
                     link_.Await(in_flight_.front(), absl::InfiniteFuture()));
    in_flight_.pop_front();
    if (times == nullptr) return scheduler_.Commit(answer).status();
    const std::string bytes = wire::EncodeResult(answer);
    const absl::Time decoding = MonotonicNow();
    ASSIGN_OR_RETURN(const step::StepResult result, wire::DecodeResult(bytes));
    times->decode.push_back(MicrosecondsSince(decoding));
    const absl::Time committing = MonotonicNow();
    RETURN_IF_ERROR(scheduler_.Commit(result).status());
    times->commit.push_back(MicrosecondsSince(committing));
    return absl::OkStatus();
  }

 private:
  sched::BlockAllocator blocks_;
  sched::Scheduler scheduler_;
  engine::NullLink link_;
  std::deque<StepId> in_flight_;
};

absl::StatusOr<StepTimes> MeasureSteps(const BenchCoordinatorOptions& bench, int32_t context) {
  ScheduledDecode decode(OptionsFor(bench, context), context);
  RETURN_IF_ERROR(decode.WarmUp());
  StepTimes times;
  for (auto* part : {&times.plan, &times.encode, &times.decode, &times.commit, &times.whole}) {
    part->reserve(static_cast<size_t>(bench.num_steps) + 1);
  }
  const int64_t heap_before = HeapBytes();
  for (int32_t i = 0; i < bench.num_steps; ++i) {
    RETURN_IF_ERROR(decode.Step(&times));
    times.whole.push_back(times.plan.back() + times.encode.back() + times.decode.back() +
                          times.commit.back());
  }
  times.heap_bytes_per_step = static_cast<double>(HeapBytes() - heap_before) / bench.num_steps;
  times.plan_bytes /= bench.num_steps;
  return times;
}

// Adds up the time that its workers take, to be taken off.
class TimedLink final : public engine::WorkerLink {
 public:
  explicit TimedLink(const step::StepLimits& limits) : link_(limits) {}
  absl::Status Submit(const step::StepPlan& plan) override {
    const absl::Time begin = MonotonicNow();
    absl::Status status = link_.Submit(plan);
    spent_us += MicrosecondsSince(begin);
    return status;
  }
  absl::StatusOr<step::StepResult> Await(StepId step, absl::Time deadline) override {
    const absl::Time begin = MonotonicNow();
    absl::StatusOr<step::StepResult> result = link_.Await(step, deadline);
    spent_us += MicrosecondsSince(begin);
    return result;
  }
  void Abort(Epoch epoch) noexcept override { link_.Abort(epoch); }

  double spent_us = 0;

 private:
  engine::NullLink link_;
};

// One token per byte.
absl::StatusOr<std::unique_ptr<const text::Tokenizer>> ByteTokenizer() {
  Json vocabulary = Json::MakeObject();
  for (int byte = 0; byte < 256; ++byte) {
    std::string character;
    text::AppendUtf8(text::AlphabetCharacter(static_cast<uint8_t>(byte)), character);
    vocabulary.Set(character, byte);
  }
  const Json byte_level =
      Json::MakeObject({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}});
  const Json tokenizer = Json::MakeObject(
      {{"pre_tokenizer", byte_level},
       {"decoder", Json::MakeObject({{"type", "ByteLevel"}})},
       {"model", Json::MakeObject(
                     {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", Json::MakeArray()}})}});
  return text::Tokenizer::LoadFromText(tokenizer.Dump());
}

void ReadAll(engine::TokenStream& stream) {
  while (stream.Poll().ready) {
  }
}

// Microseconds of the engine's rounds without the workers' time.
absl::StatusOr<std::vector<double>> MeasureRounds(const BenchCoordinatorOptions& bench,
                                                  int32_t context) {
  const engine::EngineOptions options = OptionsFor(bench, context);
  ASSIGN_OR_RETURN(const std::unique_ptr<const text::Tokenizer> tokenizer, ByteTokenizer());
  const engine::ModelLimits model = {.model_name = "null",
                                     .max_model_len = options.limits.max_model_len,
                                     .vocabulary = kVocabulary,
                                     .eos_tokens = {},
                                     .max_choices = 1,
                                     .max_logprobs = 0};
  TimedLink link(options.limits);
  const SystemClock clock;
  engine::Metrics metrics("null", engine::Metrics::Names::kOwn);
  const auto signals = std::make_shared<engine::EngineSignals>();
  engine::EngineCore core(options, model, {link, *tokenizer, clock, metrics, signals}, 1);
  std::vector<std::shared_ptr<engine::TokenStream>> streams;
  for (int32_t i = 0; i < bench.num_sequences; ++i) {
    engine::GenerateRequest request;
    request.prompt = PromptOf(context);
    request.max_tokens = options.limits.max_model_len - context;
    request.stop = {"no such text"};
    ASSIGN_OR_RETURN(text::StopMatcher stops, text::StopMatcher::Make(request.stop));
    streams.push_back(std::make_shared<engine::TokenStream>(options.stream_capacity));
    ++signals->num_queued;
    core.Accept({std::move(request), std::move(stops), streams.back(), clock.Now()});
  }
  std::vector<double> rounds;
  for (int32_t steady = -kWarmupSteps; steady < bench.num_steps;) {
    link.spent_us = 0;
    const absl::Time begin = MonotonicNow();
    RETURN_IF_ERROR(core.RunOnce());
    const double spent_us = MicrosecondsSince(begin) - link.spent_us;
    if (steady >= 0) rounds.push_back(spent_us);
    if (core.num_waiting() == 0) ++steady;
    for (const auto& stream : streams) ReadAll(*stream);
  }
  return rounds;
}

// Microseconds to copy so many bytes: less than that no encoder can take.
double CopyMicroseconds(int64_t num_bytes) {
  std::string from(static_cast<size_t>(num_bytes), 'x');
  std::string to(from.size(), 'y');
  std::vector<double> times;
  for (int i = 0; i < 101; ++i) {
    from[0] = static_cast<char>(i);
    const absl::Time begin = MonotonicNow();
    std::memcpy(to.data(), from.data(), from.size());
    times.push_back(MicrosecondsSince(begin));
    CHECK(to[0] == from[0]);
  }
  return Quantile(std::move(times), 0.5);
}

}  // namespace

absl::Status RunBenchCoordinator(const BenchCoordinatorOptions& options, std::string* table,
                                 TextTable* rows) {
  if (options.num_sequences < 1 || options.num_steps < 1) {
    return InvalidArgument("expected at least one sequence and one step, got {} and {}",
                           options.num_sequences, options.num_steps);
  }
  *table = fmt::format(
      "coordinator, null model: {} sequences in steady decode, {} steps, microseconds\n"
      "  target: {:.0f} a step (plan + encode + decode + commit) at the median\n\n"
      "{:>8} | {:>6} {:>7} {:>7} {:>7} | {:>7} {:>7} | {:>9} {:>9} | {:>10} {:>8} {:>9}\n",
      options.num_sequences, options.num_steps, kTargetMicroseconds, "context", "plan", "encode",
      "decode", "commit", "p50", "p99", "round p50", "round p99", "plan bytes", "copy us",
      "heap B/step");
  for (const int32_t context : options.context_tokens) {
    if (context < 1) return InvalidArgument("context: expected at least 1 token, got {}", context);
    ASSIGN_OR_RETURN(const StepTimes t, MeasureSteps(options, context));
    ASSIGN_OR_RETURN(const std::vector<double> rounds, MeasureRounds(options, context));
    *table += fmt::format(
        "{:>8} | {:>6.1f} {:>7.1f} {:>7.1f} {:>7.1f} | {:>7.1f} {:>7.1f} | {:>9.1f} {:>9.1f} | "
        "{:>10} {:>8.2f} {:>9.1f}\n",
        context, Quantile(t.plan, 0.5), Quantile(t.encode, 0.5), Quantile(t.decode, 0.5),
        Quantile(t.commit, 0.5), Quantile(t.whole, 0.5), Quantile(t.whole, 0.99),
        Quantile(rounds, 0.5), Quantile(rounds, 0.99), t.plan_bytes, CopyMicroseconds(t.plan_bytes),
        t.heap_bytes_per_step);
    if (rows == nullptr) continue;
    rows->columns = {
        {"context", 0},      {"plan_us", 1},     {"encode_us", 1},          {"decode_us", 1},
        {"commit_us", 1},    {"step_p50_us", 1}, {"step_p99_us", 1},        {"round_p50_us", 1},
        {"round_p99_us", 1}, {"plan_bytes", 0},  {"heap_bytes_per_step", 1}};
    rows->rows.push_back({fmt::format("context {}", context), Quantile(t.plan, 0.5),
                          Quantile(t.encode, 0.5), Quantile(t.decode, 0.5), Quantile(t.commit, 0.5),
                          Quantile(t.whole, 0.5), Quantile(t.whole, 0.99), Quantile(rounds, 0.5),
                          Quantile(rounds, 0.99), static_cast<double>(t.plan_bytes),
                          t.heap_bytes_per_step});
  }
  *table +=
      "\nround: the engine's whole round (plan, commit, text, stop strings, streams, metrics) "
      "without wire or workers\n";
  return absl::OkStatus();
}

}  // namespace polyreme::bench
