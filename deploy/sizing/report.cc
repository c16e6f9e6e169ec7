#include "deploy/sizing/report.h"

#include <fmt/format.h>

#include <algorithm>

#include "deploy/sizing/table.h"

namespace polyreme::sizing {
namespace {

std::string Where(const LaunchSettings& s) {
  if (!s.on_gpu) return fmt::format("{} rank(s) on CPU", s.world_size());
  return fmt::format("{} x {}", s.world_size(), s.gpu.name);
}

std::string TypesOf(const LaunchSettings& s) {
  std::string types(polyreme::NameOf(s.dtype));
  if (s.quantization != Quantization::kNone) types = NameOf(s.quantization) + " weights";
  types += s.kv_dtype == DType::kU8 ? ", fp8 cache"
                                    : fmt::format(", {} cache", polyreme::NameOf(s.kv_dtype));
  return types;
}

std::string ModelText(const PlanReport& report) {
  const plan::ModelSpec& spec = report.settings.spec;
  const LaunchPlan& plan = report.plan;
  int64_t kv = 0;
  for (const RankPlan& rank : plan.ranks) {
    if (rank.place.shard == 0) kv += rank.memory.kv_bytes_per_block;
  }
  kv = kv * plan.shards.topology().shards() / plan.shards.kv_repeats() /
       plan.limits.tokens_per_block;
  return fmt::format(
      "model      {} parameters: {} layers, width {}, {} query and {} key-value heads of {}, {} "
      "feed-forward columns, {} vocabulary rows{}\ncache      {} bytes a token in all, {} tokens a "
      "block\nlaunch     {}, {}, contexts of {}, {} sequences, {} tokens a step\n",
      Grouped(plan::NumParameters(spec)), spec.num_layers, spec.width, spec.num_query_heads,
      spec.num_kv_heads, spec.head_dim, spec.ffn_width, spec.vocabulary,
      spec.tied_head ? " (head tied)" : "", Grouped(kv), plan.limits.tokens_per_block,
      plan.shards.topology().ToString(), TypesOf(report.settings),
      Tokens(plan.limits.max_model_len), plan.limits.num_slots, plan.limits.max_step_tokens);
}

std::string MemoryText(const PlanReport& report) {
  Table weights({"rank", "attention", "feed-forward", "tables", "norms, rope", "weights",
                 "KV a token", "KV a block"});
  Table parts({"rank", "weights", "KV", "step", "communicators", "recordings", "context", "total",
               "bytes", "of the GPU"});
  Table step({"rank", "arena", "inputs", "sampler", "feedback", "workspace", "pinned on the host"});
  for (const RankPlan& rank : report.plan.ranks) {
    const run::RankMemory& m = rank.memory;
    const std::string name = fmt::format("{}", rank.rank.value);
    weights.Add({name, Gibibytes(m.weights.attention), Gibibytes(m.weights.ffn),
                 Gibibytes(m.weights.tables), Gibibytes(m.weights.vectors),
                 Gibibytes(m.weights.total()),
                 Grouped(m.kv_bytes_per_block / report.plan.limits.tokens_per_block),
                 Grouped(m.kv_bytes_per_block)});
    step.Add({name, Gibibytes(m.step.arena_bytes), Gibibytes(m.step.input_bytes),
              Gibibytes(m.step.sampler_bytes), Gibibytes(m.step.feedback_bytes),
              Gibibytes(m.step.workspace_bytes), Gibibytes(m.step.host_bytes)});
    parts.Add({name, Gibibytes(m.weights.total()), Gibibytes(rank.kv_bytes),
               Gibibytes(m.step.device_bytes()), Gibibytes(m.communicator_bytes),
               Gibibytes(m.recording_bytes), Gibibytes(m.context_bytes),
               Gibibytes(rank.total_bytes), Grouped(rank.total_bytes),
               report.plan.device_bytes > 0
                   ? fmt::format("{:.1f} %", 100.0 * static_cast<double>(rank.total_bytes) /
                                                 static_cast<double>(report.plan.device_bytes))
                   : "-"});
  }
  return "\nbytes of each rank (communicators, recordings and context: allowed for, at most)\n" +
         parts.ToString() + "\nweights by part\n" + weights.ToString() + "\nthe largest step\n" +
         step.ToString();
}

std::string CacheText(const LaunchPlan& plan) {
  std::string text = fmt::format("\ncache: {} blocks, {} tokens", Grouped(plan.limits.num_blocks),
                                 Grouped(plan.kv_tokens()));
  text += plan.limiting_rank >= 0 ? fmt::format(", limited by rank {}\n", plan.limiting_rank)
                                  : ": more are never needed\n";
  Table sequences({"sequences of", "2K", "8K", "32K", "64K", "128K"});
  std::vector<std::string> row = {"at once"};
  for (const int64_t tokens : {2048, 8192, 32768, 65536, 131072}) {
    row.push_back(tokens > plan.limits.max_model_len
                      ? "-"
                      : fmt::format("{}", plan.fits ? plan.SequencesOf(tokens) : 0));
  }
  sequences.Add(std::move(row));
  return text + sequences.ToString() +
         fmt::format("(-: longer than --max-model-len; --max-num-seqs lets {} run at once)\n",
                     plan.limits.num_slots);
}

std::string DecodeText(const Speed& speed, const char* kind) {
  std::vector<std::string> heads = {"context"};
  for (const int64_t batch : kBatches) heads.push_back(fmt::format("B={}", batch));
  Table at_most(heads), expected(std::move(heads));
  for (const int64_t context : kContexts) {
    std::vector<std::string> most = {Tokens(context)}, likely = {Tokens(context)};
    for (const DecodePoint& point : speed.decode) {
      if (point.context != context) continue;
      const char* const mark = point.fits ? "" : "*";
      most.push_back(Rate(point.tokens_per_second.at_most) + mark);
      likely.push_back(Rate(point.tokens_per_second.expected) + mark);
    }
    if (most.size() == 1) continue;
    at_most.Add(std::move(most));
    expected.Add(std::move(likely));
  }
  return fmt::format(
      "\ndecode, tok/s of all sequences, at most (*: the cache or --max-num-seqs holds fewer)\n{}"
      "\ndecode, tok/s, {}\n{}",
      at_most.ToString(), kind, expected.ToString());
}

std::string MoneyOf(const PlanReport& report) {
  return report.currency.empty() ? "unit of money" : report.currency;
}

// price: of all GPUs together, per hour.
int64_t TokensPerMoney(const OfflinePoint& point, double price) {
  return static_cast<int64_t>(point.tokens_per_second.expected * 3600 / price);
}

std::string SpeedText(const PlanReport& report) {
  const Speed& speed = report.speed;
  const char* const kind = speed.measured ? "expected" : "predicted";
  std::string text = fmt::format(
      "\nspeed: rooflines from {} reads at {:.0f} GB/s and products at {:.0f} TFLOP/s\n{}\n",
      speed.rates_measured ? "measured" : "its maker's", speed.rates.bytes / 1e9,
      speed.rates.operations / 1e12, speed.basis);
  text += DecodeText(speed, kind);
  Table prompts({"prompt of", "tok/s at most", "seconds at least", fmt::format("seconds {}", kind),
                 "bubble"});
  for (const PromptPoint& point : speed.prompts) {
    prompts.Add({Tokens(point.tokens),
                 Rate(static_cast<double>(point.tokens) / point.seconds_at_most),
                 Seconds(point.seconds_at_most), Seconds(point.seconds_expected),
                 fmt::format("{:.1f} %", 100 * point.bubble)});
  }
  text += "\none prompt alone (at most, at least: without the pipeline's bubble)\n" +
          prompts.ToString();
  std::vector<std::string> heads = {"offline, in/out", "at once", "output tok/s at most",
                                    fmt::format("output tok/s {}", kind)};
  const double price = report.settings.world_size() * report.settings.gpu.price_per_hour;
  if (price > 0) heads.push_back(fmt::format("output tokens per {}", MoneyOf(report)));
  Table offline(std::move(heads));
  for (const OfflinePoint& point : speed.offline) {
    const char* const mark = point.fits ? "" : "*";
    std::vector<std::string> row = {fmt::format("{}/{}", point.input, point.output),
                                    fmt::format("{}", point.concurrent),
                                    Rate(point.tokens_per_second.at_most) + mark,
                                    Rate(point.tokens_per_second.expected) + mark};
    if (price > 0) row.push_back(Grouped(TokensPerMoney(point, price)) + mark);
    offline.Add(std::move(row));
  }
  text += "\n" + offline.ToString();
  if (report.settings.stages > 1) {
    text += fmt::format(
        "\npipeline: the heaviest stage reads {:.1f} % more than the mean, so steady decode "
        "reaches "
        "{:.1f} % of the rates above;\nfewer than {} sequences leave stages idle ({:.0f} % at "
        "one)\n",
        100 * (speed.stage_imbalance - 1), 100 / speed.stage_imbalance, report.settings.stages,
        100.0 * (report.settings.stages - 1) / report.settings.stages);
  }
  return text;
}

std::string AlternativesText(const PlanReport& report) {
  const Alternatives& found = report.alternatives;
  if (found.launches.empty()) return "\nnothing near it fits either\n";
  Table table({"the nearest that fit, cheapest first", found.by_price ? "per hour" : "GB of GPUs",
               "KV tokens"});
  for (const Alternative& launch : found.launches) {
    table.Add({launch.change, report.settings.on_gpu ? fmt::format("{:.2f}", launch.cost) : "-",
               Grouped(launch.kv_tokens)});
  }
  return "\n" + table.ToString();
}

Json PartsJson(const RankPlan& rank, const LaunchPlan& plan) {
  const run::RankMemory& m = rank.memory;
  const auto range = [](Range r) { return Json(Json::Array{Json(r.begin), Json(r.end)}); };
  return Json::MakeObject(
      {{"rank", rank.rank.value},
       {"stage", rank.place.stage},
       {"shard", rank.place.shard},
       {"layers", range(rank.shard.layers)},
       {"query_heads", range(rank.shard.query_heads)},
       {"kv_heads", range(rank.shard.kv_heads)},
       {"ffn_columns", range(rank.shard.ffn_columns)},
       {"vocab_rows", range(rank.shard.vocab_rows)},
       {"has_embedding", rank.shard.has_embedding},
       {"has_head", rank.shard.has_head},
       {"weights", Json::MakeObject({{"attention_bytes", m.weights.attention},
                                     {"ffn_bytes", m.weights.ffn},
                                     {"table_bytes", m.weights.tables},
                                     {"vector_bytes", m.weights.vectors},
                                     {"total_bytes", m.weights.total()}})},
       {"kv_bytes_per_token", m.kv_bytes_per_block / plan.limits.tokens_per_block},
       {"kv_bytes_per_block", m.kv_bytes_per_block},
       {"kv_bytes", rank.kv_bytes},
       {"step", Json::MakeObject({{"arena_bytes", m.step.arena_bytes},
                                  {"input_bytes", m.step.input_bytes},
                                  {"sampler_bytes", m.step.sampler_bytes},
                                  {"feedback_bytes", m.step.feedback_bytes},
                                  {"workspace_bytes", m.step.workspace_bytes},
                                  {"host_bytes", m.step.host_bytes}})},
       {"communicator_bytes", m.communicator_bytes},
       {"recording_bytes", m.recording_bytes},
       {"context_bytes", m.context_bytes},
       {"total_bytes", rank.total_bytes}});
}

Json EstimateJson(const Estimate& estimate) {
  return Json::MakeObject({{"at_most", estimate.at_most}, {"expected", estimate.expected}});
}

Json SpeedJson(const PlanReport& report) {
  const Speed& speed = report.speed;
  Json decode = Json::MakeArray(), prompts = Json::MakeArray(), offline = Json::MakeArray();
  for (const DecodePoint& point : speed.decode) {
    decode.Append(Json::MakeObject({{"context", point.context},
                                    {"batch", point.batch},
                                    {"fits", point.fits},
                                    {"tokens_per_second", EstimateJson(point.tokens_per_second)}}));
  }
  for (const PromptPoint& point : speed.prompts) {
    prompts.Append(Json::MakeObject({{"tokens", point.tokens},
                                     {"seconds_at_least", point.seconds_at_most},
                                     {"seconds_expected", point.seconds_expected},
                                     {"bubble", point.bubble}}));
  }
  const double price = report.settings.world_size() * report.settings.gpu.price_per_hour;
  for (const OfflinePoint& point : speed.offline) {
    Json row =
        Json::MakeObject({{"input", point.input},
                          {"output", point.output},
                          {"concurrent", point.concurrent},
                          {"fits", point.fits},
                          {"output_tokens_per_second", EstimateJson(point.tokens_per_second)}});
    if (price > 0) row.Set("output_tokens_per_currency_unit", TokensPerMoney(point, price));
    offline.Append(std::move(row));
  }
  return Json::MakeObject({{"bytes_per_second", speed.rates.bytes},
                           {"flops", speed.rates.operations},
                           {"rates_measured", speed.rates_measured},
                           {"kind", speed.measured ? "expected" : "predicted"},
                           {"basis", speed.basis},
                           {"stage_imbalance", speed.stage_imbalance},
                           {"decode", std::move(decode)},
                           {"prompts", std::move(prompts)},
                           {"offline", std::move(offline)}});
}

}  // namespace

std::string Verdict(const PlanReport& report) {
  const LaunchSettings& s = report.settings;
  const std::string launch =
      fmt::format("{} on {} ({})", report.model, Where(s), FlagsOf(s.shards, s.stages));
  if (report.plan.fits) {
    return fmt::format("fits: {}, {} tokens of cache", launch, Grouped(report.plan.kv_tokens()));
  }
  return fmt::format(
      "does not fit: {} lacks {} bytes ({}) on rank {} for one sequence of {} tokens", launch,
      Grouped(report.plan.missing_bytes), Gibibytes(report.plan.missing_bytes),
      report.plan.missing_rank, report.plan.limits.max_model_len);
}

std::string PlanText(const PlanReport& report) {
  std::string text = Verdict(report) + "\n";
  if (!report.plan.fits) text += AlternativesText(report);
  for (const std::string& why : NotServed(report.settings)) text += "not served: " + why + "\n";
  text += "\n" + ModelText(report) + "\nwho holds what (bytes as stored)\n" +
          report.plan.shards.Explain() + MemoryText(report) + CacheText(report.plan);
  if (report.settings.on_gpu) text += SpeedText(report);
  return text;
}

Json PlanJson(const PlanReport& report) {
  const LaunchSettings& s = report.settings;
  Json ranks = Json::MakeArray(), alternatives = Json::MakeArray(), not_served = Json::MakeArray();
  for (const RankPlan& rank : report.plan.ranks) ranks.Append(PartsJson(rank, report.plan));
  for (const Alternative& launch : report.alternatives.launches) {
    alternatives.Append(Json::MakeObject(
        {{"change", launch.change}, {"cost", launch.cost}, {"kv_tokens", launch.kv_tokens}}));
  }
  for (const std::string& why : NotServed(s)) not_served.Append(why);
  Json json = Json::MakeObject({{"model", report.model},
                                {"fits", report.plan.fits},
                                {"verdict", Verdict(report)},
                                {"parameters", plan::NumParameters(s.spec)},
                                {"tensor_parallel_size", s.shards},
                                {"pipeline_parallel_size", s.stages},
                                {"gpu", s.on_gpu ? Json(s.gpu.name) : Json()},
                                {"gpu_bytes", report.plan.device_bytes},
                                {"dtype", polyreme::NameOf(s.dtype)},
                                {"quantization", NameOf(s.quantization)},
                                {"max_model_len", report.plan.limits.max_model_len},
                                {"max_num_seqs", report.plan.limits.num_slots},
                                {"max_num_batched_tokens", report.plan.limits.max_step_tokens},
                                {"num_blocks", report.plan.limits.num_blocks},
                                {"kv_tokens", report.plan.kv_tokens()},
                                {"ranks", std::move(ranks)},
                                {"not_served", std::move(not_served)}});
  if (!report.plan.fits) {
    json.Set("missing_bytes", report.plan.missing_bytes);
    json.Set("missing_rank", report.plan.missing_rank);
    json.Set("alternatives", std::move(alternatives));
    json.Set("cost_unit", report.alternatives.by_price ? "per hour" : "GB of GPU memory");
  }
  if (s.on_gpu) json.Set("speed", SpeedJson(report));
  return json;
}

std::string RecommendText(const std::string& model, const Role& role, const Recommendations& found,
                          double budget, const GpuTable& table) {
  const std::string unit =
      found.by_price ? (table.currency().empty() ? "per hour" : table.currency() + " per hour")
                     : "GPU(s)";
  if (found.launches.empty()) {
    return fmt::format("nothing within {:g} {} serves {} as {}: {}\nrole {}: {}\n", budget, unit,
                       model, role.name, found.why_none, role.name, role.sentence);
  }
  const Recommendation& best = found.launches[0];
  std::string text =
      fmt::format("{}: {} x {} with {}: {}\nrole {}: {}\n\n", role.name, best.settings.world_size(),
                  best.settings.gpu.name, FlagsOf(best.settings.shards, best.settings.stages),
                  best.reason, role.name, role.sentence);
  Table rows({"launch", "flags", found.by_price ? "per hour" : "GPUs", "KV tokens", "tok/s each",
              "tok/s in all", "first token", "offline tok/s"});
  for (const Recommendation& launch : found.launches) {
    rows.Add({fmt::format("{} x {}", launch.settings.world_size(), launch.settings.gpu.name),
              FlagsOf(launch.settings.shards, launch.settings.stages),
              fmt::format("{:g}", launch.cost), Grouped(launch.kv_tokens), Rate(launch.each),
              Rate(launch.all), Seconds(launch.prompt_seconds),
              launch.offline > 0 ? Rate(launch.offline) : "-"});
  }
  return text + rows.ToString() +
         "\nspeeds: expected where a GPU of the family was measured, else predicted from it "
         "(polyreme plan MODEL --gpu ... says which)\n";
}

Json RecommendJson(const std::string& model, const Role& role, const Recommendations& found,
                   double budget) {
  Json launches = Json::MakeArray();
  for (const Recommendation& launch : found.launches) {
    launches.Append(Json::MakeObject({{"gpu", launch.settings.gpu.name},
                                      {"gpus", launch.settings.world_size()},
                                      {"tensor_parallel_size", launch.settings.shards},
                                      {"pipeline_parallel_size", launch.settings.stages},
                                      {"cost", launch.cost},
                                      {"kv_tokens", launch.kv_tokens},
                                      {"tokens_per_second_each", launch.each},
                                      {"tokens_per_second", launch.all},
                                      {"first_token_seconds", launch.prompt_seconds},
                                      {"offline_tokens_per_second", launch.offline},
                                      {"reason", launch.reason}}));
  }
  return Json::MakeObject({{"model", model},
                           {"role", role.name},
                           {"budget", budget},
                           {"budget_unit", found.by_price ? "per hour" : "GPUs"},
                           {"launches", std::move(launches)},
                           {"why_none", found.why_none}});
}

}  // namespace polyreme::sizing
