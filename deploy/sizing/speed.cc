#include "deploy/sizing/speed.h"

#include <fmt/format.h>

#include <algorithm>

#include "deploy/sizing/measured.h"

namespace polyreme::sizing {
namespace {

struct OfflineShape {
  int64_t input;
  int64_t output;
};
constexpr OfflineShape kOfflineShapes[] = {
    {128, 2048}, {1024, 128}, {1024, 1024}, {8192, 1024}, {32768, 1024}};

bench::Layout LayoutOf(const LaunchSettings& settings) {
  return {settings.shards, settings.stages};
}

// A share was measured against measured rates. Where a GPU's own rates are its maker's, the part of
// those that the measured GPU's own rates were is taken off too.
double ShareFor(const LaunchSettings& settings, Work work, int64_t size) {
  const MeasuredGpu* measured = MeasuredFamily(settings.gpu.family);
  if (measured == nullptr) measured = &NearestMeasured();
  const double share = ShareOf(*measured, settings.shards, settings.stages, work, size).share;
  if (settings.gpu.measured_bandwidth > 0 && settings.gpu.measured_operations > 0) return share;
  static const GpuTable* const table = new GpuTable();
  const absl::StatusOr<Gpu> of = table->Find(measured->gpu);
  CHECK(of.ok(), "{}", Message(of.status()));
  const double bytes = of->best_bandwidth() / of->bandwidth;
  const double operations = of->best_operations() / of->operations;
  switch (work) {
    case Work::kDecode:
      return share * bytes;
    case Work::kPrompt:
      return share * operations;
    case Work::kOffline:
      return share * std::min(bytes, operations);
  }
  return share;
}

std::string BasisOf(const Gpu& gpu) {
  const MeasuredGpu* const measured = MeasuredFamily(gpu.family);
  if (measured == nullptr) {
    const MeasuredGpu& from = NearestMeasured();
    return fmt::format(
        "predicted: no GPU of family {} was measured; the share of its makers' rates that {} "
        "reached on {} ({}) is assumed",
        gpu.family, from.gpu, from.date, from.table);
  }
  return fmt::format("expected: roofline x the share that {} reached with {} on {} ({})",
                     measured->gpu, measured->model, measured->date, measured->table);
}

// Weights that a decode step reads, of the heaviest stage over the mean.
double StageImbalance(const LaunchPlan& plan) {
  const plan::Topology& topology = plan.shards.topology();
  if (topology.stages() == 1) return 1;
  double sum = 0, most = 0;
  for (int32_t stage = 0; stage < topology.stages(); ++stage) {
    const RankPlan& rank = plan.ranks[static_cast<size_t>(topology.RankAt({stage, 0}).value)];
    double bytes = static_cast<double>(rank.memory.weights.attention + rank.memory.weights.ffn);
    // The last stage reads the head; the first looks up an embedding's rows.
    if (rank.shard.has_head) bytes += static_cast<double>(rank.memory.weights.tables);
    sum += bytes;
    most = std::max(most, bytes);
  }
  return most / (sum / topology.stages());
}

}  // namespace

bench::Roofline RooflineOf(const LaunchSettings& settings) {
  const auto dense = static_cast<double>(SizeOf(settings.dtype));
  return bench::Roofline(
      settings.spec,
      bench::ElementBytes{.layers = BitsPerWeight(settings.quantization, settings.dtype) / 8,
                          .tables = dense,
                          .cache = static_cast<double>(SizeOf(settings.kv_dtype))});
}

bench::Rates RatesOf(const LaunchSettings& settings) {
  const Gpu& gpu = settings.gpu;
  const bool fp8 = settings.quantization == Quantization::kFp8 && gpu.fp8_operations > 0;
  return {.bytes = gpu.best_bandwidth(),
          .operations = fp8 ? gpu.fp8_operations : gpu.best_operations(),
          .attention = gpu.best_operations()};
}

Estimate DecodeRate(const LaunchSettings& settings, int64_t batch, double context) {
  const double seconds =
      RooflineOf(settings).DecodeSeconds(RatesOf(settings), LayoutOf(settings), batch, context);
  const double rate = static_cast<double>(batch) / seconds;
  return {rate, rate * ShareFor(settings, Work::kDecode, batch)};
}

Estimate OfflineRate(const LaunchSettings& settings, int64_t input, int64_t output,
                     int64_t concurrent) {
  const double seconds = RooflineOf(settings).OfflineSeconds(RatesOf(settings), LayoutOf(settings),
                                                             input, output, concurrent);
  const double rate = static_cast<double>(output) / seconds;
  return {rate, rate * ShareFor(settings, Work::kOffline, output)};
}

double PromptSecondsExpected(const LaunchSettings& settings, int64_t tokens) {
  const bench::Layout layout = LayoutOf(settings);
  const double at_best = RooflineOf(settings).PromptSeconds(RatesOf(settings), layout, tokens);
  const int64_t chunks = std::max<int64_t>(1, (tokens + settings.step.max_num_batched_tokens - 1) /
                                                  settings.step.max_num_batched_tokens);
  const double busy = 1 - bench::Roofline::PipelineBubble(layout, chunks);
  return at_best / busy / ShareFor(settings, Work::kPrompt, tokens);
}

Speed SpeedOf(const LaunchSettings& settings, const LaunchPlan& plan) {
  const bench::Layout layout = LayoutOf(settings);
  const bench::Roofline roofline = RooflineOf(settings);
  Speed speed;
  speed.rates = RatesOf(settings);
  speed.rates_measured = settings.gpu.measured_bandwidth > 0;
  speed.measured = MeasuredFamily(settings.gpu.family) != nullptr;
  speed.basis = BasisOf(settings.gpu);
  speed.stage_imbalance = StageImbalance(plan);
  const int64_t longest = plan.limits.max_model_len;
  for (const int64_t context : kContexts) {
    if (context > longest) continue;
    for (const int64_t batch : kBatches) {
      const bool fits =
          plan.fits && batch <= plan.limits.num_slots && batch <= plan.SequencesOf(context);
      speed.decode.push_back(
          {context, batch, fits, DecodeRate(settings, batch, static_cast<double>(context))});
    }
    const int64_t chunks =
        (context + plan.limits.max_step_tokens - 1) / plan.limits.max_step_tokens;
    speed.prompts.push_back({context, roofline.PromptSeconds(speed.rates, layout, context),
                             PromptSecondsExpected(settings, context),
                             bench::Roofline::PipelineBubble(layout, chunks)});
  }
  for (const OfflineShape& shape : kOfflineShapes) {
    const int64_t tokens = shape.input + shape.output;
    if (tokens > longest) continue;
    const bool fits = plan.fits && plan.SequencesOf(tokens) > 0;
    const int64_t concurrent =
        roofline.Concurrency(static_cast<double>(plan.kv_tokens()), tokens, plan.limits.num_slots);
    speed.offline.push_back({shape.input, shape.output, concurrent, fits,
                             OfflineRate(settings, shape.input, shape.output, concurrent)});
  }
  return speed;
}

}  // namespace polyreme::sizing
