#include "parallel/wire/codec.h"

#include <algorithm>

#include "parallel/base/limits.h"
#include "proto/step.pb.h"

namespace polyreme::wire {
namespace {

namespace pb = ::polyreme::cluster::v1;
template <class T>
using Column = google::protobuf::RepeatedField<T>;

template <class Ids>
void PutIds(const Ids& ids, Column<int32_t>& column) {
  column.Reserve(static_cast<int>(ids.size()));
  for (const auto id : ids) column.AddAlreadyReserved(id.value);
}

template <class T>
void PutNumbers(const std::vector<T>& numbers, Column<T>& column) {
  column.Add(numbers.begin(), numbers.end());
}

template <class IdType>
std::vector<IdType> IdsOf(const Column<int32_t>& column) {
  std::vector<IdType> ids(static_cast<size_t>(column.size()));
  std::transform(column.begin(), column.end(), ids.begin(), [](int32_t v) { return IdType{v}; });
  return ids;
}

template <class T>
std::vector<T> NumbersOf(const Column<T>& column) {
  return {column.begin(), column.end()};
}

absl::Status CheckCount(std::string_view field, int64_t count, int64_t most) {
  if (count <= most) return absl::OkStatus();
  return InvalidArgument("{}: expected at most {} entries, got {}", field, most, count);
}

absl::Status CheckEqual(std::string_view field, std::initializer_list<int> counts) {
  for (const int count : counts) {
    if (count != *counts.begin()) {
      return InvalidArgument("{}: expected columns of {} entries, got one of {}", field,
                             *counts.begin(), count);
    }
  }
  return absl::OkStatus();
}

template <class Message>
absl::Status Parse(std::string_view bytes, std::string_view what, Message& message) {
  if (std::ssize(bytes) > limits::kMaxWireMessageBytes) {
    return InvalidArgument("{}: expected at most {} bytes, got {}", what,
                           limits::kMaxWireMessageBytes, bytes.size());
  }
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return InvalidArgument("{}: {} bytes are no such message", what, bytes.size());
  }
  return absl::OkStatus();
}

void Encode(const step::SamplingParams& p, pb::SamplingParams& out) {
  out.set_temperature(p.temperature);
  out.set_top_k(p.top_k);
  out.set_top_p(p.top_p);
  out.set_min_p(p.min_p);
  out.set_repetition_penalty(p.repetition_penalty);
  out.set_presence_penalty(p.presence_penalty);
  out.set_frequency_penalty(p.frequency_penalty);
  for (const auto& [token, bias] : p.logit_bias) {
    out.add_bias_tokens(token);
    out.add_bias_values(bias);
  }
  PutNumbers(p.allowed_tokens, *out.mutable_allowed_tokens());
  out.set_seed(p.seed);
  out.set_choice(p.choice);
  out.set_min_tokens(p.min_tokens);
  PutNumbers(p.stop_tokens, *out.mutable_stop_tokens());
  out.set_num_logprobs(p.num_logprobs);
}

absl::Status Decode(const pb::SamplingParams& in, step::SamplingParams& p) {
  RETURN_IF_ERROR(CheckEqual("logit_bias", {in.bias_tokens_size(), in.bias_values_size()}));
  RETURN_IF_ERROR(CheckCount("logit_bias", in.bias_tokens_size(), limits::kMaxLogitBias));
  RETURN_IF_ERROR(
      CheckCount("allowed_tokens", in.allowed_tokens_size(), limits::kMaxAllowedTokens));
  RETURN_IF_ERROR(CheckCount("stop_tokens", in.stop_tokens_size(), limits::kMaxStopTokens));
  p.temperature = in.temperature();
  p.top_k = in.top_k();
  p.top_p = in.top_p();
  p.min_p = in.min_p();
  p.repetition_penalty = in.repetition_penalty();
  p.presence_penalty = in.presence_penalty();
  p.frequency_penalty = in.frequency_penalty();
  p.logit_bias.reserve(static_cast<size_t>(in.bias_tokens_size()));
  for (int i = 0; i < in.bias_tokens_size(); ++i) {
    p.logit_bias.emplace_back(in.bias_tokens(i), in.bias_values(i));
  }
  p.allowed_tokens = NumbersOf(in.allowed_tokens());
  p.seed = in.seed();
  p.choice = in.choice();
  p.min_tokens = in.min_tokens();
  p.stop_tokens = NumbersOf(in.stop_tokens());
  p.num_logprobs = in.num_logprobs();
  return absl::OkStatus();
}

void Encode(const step::SlotOpen& opened, pb::SlotOpen& out) {
  out.set_slot(opened.slot.value);
  if (opened.fork_of.has_value()) out.set_fork_of(opened.fork_of->value);
  out.set_sequence(opened.sequence.value);
  PutNumbers(opened.tokens, *out.mutable_tokens());
  out.set_num_prompt_tokens(opened.num_prompt_tokens);
  PutIds(opened.blocks, *out.mutable_blocks());
  Encode(opened.sampling, *out.mutable_sampling());
}

absl::Status Decode(const pb::SlotOpen& in, step::SlotOpen& opened) {
  RETURN_IF_ERROR(CheckCount("tokens", in.tokens_size(), limits::kMaxPositions));
  RETURN_IF_ERROR(CheckCount("blocks", in.blocks_size(), limits::kMaxBlocks));
  opened.slot = SlotId{in.slot()};
  if (in.has_fork_of()) opened.fork_of = SlotId{in.fork_of()};
  opened.sequence = SequenceId{in.sequence()};
  opened.tokens = NumbersOf(in.tokens());
  opened.num_prompt_tokens = in.num_prompt_tokens();
  opened.blocks = IdsOf<BlockId>(in.blocks());
  return Annotate(Decode(in.sampling(), opened.sampling), "sampling");
}

void EncodeRows(const step::StepPlan& plan, pb::Rows& out) {
  const int count = static_cast<int>(plan.rows.size());
  out.mutable_slots()->Reserve(count);
  out.mutable_first_positions()->Reserve(count);
  out.mutable_num_tokens()->Reserve(count);
  for (int i = 0; i < count; ++i) {
    const step::StepRow& row = plan.rows[static_cast<size_t>(i)];
    out.add_slots(row.slot.value);
    out.add_first_positions(row.first_position);
    out.add_num_tokens(row.num_tokens);
    if (!row.first_token.has_value()) continue;
    out.add_source_rows(i);
    out.add_source_steps(row.first_token->step.value);
    out.add_source_samples(row.first_token->sample);
  }
}

absl::Status DecodeRows(const pb::Rows& in, std::vector<step::StepRow>& rows) {
  RETURN_IF_ERROR(CheckCount("rows", in.slots_size(), limits::kMaxSequences));
  RETURN_IF_ERROR(
      CheckEqual("rows", {in.slots_size(), in.first_positions_size(), in.num_tokens_size()}));
  RETURN_IF_ERROR(CheckEqual(
      "rows: sources", {in.source_rows_size(), in.source_steps_size(), in.source_samples_size()}));
  rows.resize(static_cast<size_t>(in.slots_size()));
  for (int i = 0; i < in.slots_size(); ++i) {
    step::StepRow& row = rows[static_cast<size_t>(i)];
    row.slot = SlotId{in.slots(i)};
    row.first_position = in.first_positions(i);
    row.num_tokens = in.num_tokens(i);
  }
  for (int i = 0; i < in.source_rows_size(); ++i) {
    const int32_t row = in.source_rows(i);
    if (row < 0 || row >= in.slots_size() || (i > 0 && row <= in.source_rows(i - 1))) {
      return InvalidArgument("rows: sources[{}]: expected ascending rows below {}, got {}", i,
                             in.slots_size(), row);
    }
    rows[static_cast<size_t>(row)].first_token =
        step::TokenSource{StepId{in.source_steps(i)}, in.source_samples(i)};
  }
  return absl::OkStatus();
}

void EncodeSamples(const step::StepPlan& plan, pb::Samples& out) {
  for (const step::Sample& sample : plan.samples) {
    out.add_kinds(static_cast<int32_t>(sample.kind));
    out.add_slots(sample.slot.value);
    out.add_token_indices(sample.token_index);
    out.add_targets(sample.target);
  }
}

absl::Status DecodeSamples(const pb::Samples& in, std::vector<step::Sample>& samples) {
  RETURN_IF_ERROR(CheckCount("samples", in.kinds_size(), limits::kMaxStepTokens));
  RETURN_IF_ERROR(CheckEqual(
      "samples", {in.kinds_size(), in.slots_size(), in.token_indices_size(), in.targets_size()}));
  samples.resize(static_cast<size_t>(in.kinds_size()));
  for (int i = 0; i < in.kinds_size(); ++i) {
    const int32_t last = static_cast<int32_t>(step::Sample::Kind::kVerify);
    if (in.kinds(i) < 0 || in.kinds(i) > last) {
      return InvalidArgument("samples[{}]: kind: expected 0 to {}, got {}", i, last, in.kinds(i));
    }
    samples[static_cast<size_t>(i)] = {static_cast<step::Sample::Kind>(in.kinds(i)),
                                       SlotId{in.slots(i)}, in.token_indices(i), in.targets(i)};
  }
  return absl::OkStatus();
}

absl::Status DecodeSampleResults(const pb::SampleResults& in,
                                 std::vector<step::SampleResult>& results) {
  RETURN_IF_ERROR(CheckCount("samples", in.tokens_size(), limits::kMaxStepTokens));
  RETURN_IF_ERROR(CheckEqual("samples", {in.tokens_size(), in.finite_size(), in.logprobs_size(),
                                         in.ranks_size(), in.num_top_size()}));
  RETURN_IF_ERROR(CheckEqual("samples: top", {in.top_tokens_size(), in.top_logprobs_size()}));
  results.resize(static_cast<size_t>(in.tokens_size()));
  int top = 0;
  for (int i = 0; i < in.tokens_size(); ++i) {
    const int32_t most = std::min<int32_t>(limits::kMaxLogprobs, in.top_tokens_size() - top);
    if (in.num_top(i) < 0 || in.num_top(i) > most) {
      return InvalidArgument("samples[{}]: num_top: expected 0 to {}, got {}", i, most,
                             in.num_top(i));
    }
    step::SampleResult& result = results[static_cast<size_t>(i)];
    result.token = in.tokens(i);
    result.finite = in.finite(i);
    result.logprob = in.logprobs(i);
    result.rank = in.ranks(i);
    result.top.resize(static_cast<size_t>(in.num_top(i)));
    for (step::TokenLogprob& entry : result.top) {
      entry = {in.top_tokens(top), in.top_logprobs(top)};
      ++top;
    }
  }
  return CheckEqual("samples: top", {top, in.top_tokens_size()});
}

absl::Status DecodeInto(const pb::StepPlan& in, step::StepPlan& plan) {
  RETURN_IF_ERROR(CheckCount("opened", in.opened_size(), limits::kMaxSequences));
  RETURN_IF_ERROR(CheckCount("appended", in.appended_size(), limits::kMaxSequences));
  RETURN_IF_ERROR(CheckCount("closed", in.closed_size(), limits::kMaxSequences));
  RETURN_IF_ERROR(CheckCount("copies", in.copies_from_size(), limits::kMaxStepTokens));
  RETURN_IF_ERROR(CheckCount("tokens", in.tokens_size(), limits::kMaxStepTokens));
  RETURN_IF_ERROR(CheckEqual("copies", {in.copies_from_size(), in.copies_to_size()}));
  plan.id = StepId{in.id()};
  plan.epoch = Epoch{in.epoch()};
  plan.opened.resize(static_cast<size_t>(in.opened_size()));
  for (int i = 0; i < in.opened_size(); ++i) {
    RETURN_IF_ERROR(Annotate(Decode(in.opened(i), plan.opened[static_cast<size_t>(i)]),
                             fmt::format("opened[{}]", i)));
  }
  for (const pb::SlotAppend& append : in.appended()) {
    plan.appended.push_back({SlotId{append.slot()}, IdsOf<BlockId>(append.blocks())});
  }
  plan.closed = IdsOf<SlotId>(in.closed());
  for (int i = 0; i < in.copies_from_size(); ++i) {
    plan.copies.push_back({BlockId{in.copies_from(i)}, BlockId{in.copies_to(i)}});
  }
  RETURN_IF_ERROR(DecodeRows(in.rows(), plan.rows));
  plan.tokens = NumbersOf(in.tokens());
  return DecodeSamples(in.samples(), plan.samples);
}

}  // namespace

std::string EncodePlan(const step::StepPlan& plan) {
  pb::StepPlan out;
  out.set_id(plan.id.value);
  out.set_epoch(plan.epoch.value);
  for (const step::SlotOpen& opened : plan.opened) Encode(opened, *out.add_opened());
  for (const step::SlotAppend& append : plan.appended) {
    pb::SlotAppend& added = *out.add_appended();
    added.set_slot(append.slot.value);
    PutIds(append.blocks, *added.mutable_blocks());
  }
  PutIds(plan.closed, *out.mutable_closed());
  for (const step::BlockCopy& copy : plan.copies) {
    out.add_copies_from(copy.from.value);
    out.add_copies_to(copy.to.value);
  }
  EncodeRows(plan, *out.mutable_rows());
  PutNumbers(plan.tokens, *out.mutable_tokens());
  EncodeSamples(plan, *out.mutable_samples());
  return out.SerializeAsString();
}

absl::StatusOr<step::StepPlan> DecodePlan(std::string_view bytes) {
  pb::StepPlan message;
  RETURN_IF_ERROR(Parse(bytes, "step plan", message));
  step::StepPlan plan;
  RETURN_IF_ERROR(Annotate(DecodeInto(message, plan), "step plan"));
  return plan;
}

std::string EncodeResult(const step::StepResult& result) {
  pb::StepResult out;
  out.set_id(result.id.value);
  out.set_epoch(result.epoch.value);
  pb::SampleResults& samples = *out.mutable_samples();
  for (const step::SampleResult& sample : result.samples) {
    samples.add_tokens(sample.token);
    samples.add_finite(sample.finite);
    samples.add_logprobs(sample.logprob);
    samples.add_ranks(sample.rank);
    samples.add_num_top(static_cast<int32_t>(sample.top.size()));
    for (const step::TokenLogprob& entry : sample.top) {
      samples.add_top_tokens(entry.token);
      samples.add_top_logprobs(entry.logprob);
    }
  }
  for (const step::RankTiming& timing : result.timings) {
    pb::RankTiming& added = *out.add_timings();
    added.set_rank(timing.rank.value);
    added.set_busy_ns(absl::ToInt64Nanoseconds(timing.busy));
    added.set_waiting_ns(absl::ToInt64Nanoseconds(timing.waiting));
  }
  return out.SerializeAsString();
}

absl::StatusOr<step::StepResult> DecodeResult(std::string_view bytes) {
  pb::StepResult message;
  RETURN_IF_ERROR(Parse(bytes, "step result", message));
  step::StepResult result;
  result.id = StepId{message.id()};
  result.epoch = Epoch{message.epoch()};
  RETURN_IF_ERROR(Annotate(DecodeSampleResults(message.samples(), result.samples), "step result"));
  RETURN_IF_ERROR(CheckCount("step result: timings", message.timings_size(), limits::kMaxRanks));
  for (const pb::RankTiming& timing : message.timings()) {
    result.timings.push_back({Rank{timing.rank()}, absl::Nanoseconds(timing.busy_ns()),
                              absl::Nanoseconds(timing.waiting_ns())});
  }
  return result;
}

}  // namespace polyreme::wire
