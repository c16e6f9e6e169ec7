#include "deploy/sizing/sweep.h"

#include <fmt/format.h>

#include <algorithm>

#include "deploy/sizing/alternatives.h"
#include "deploy/sizing/table.h"

namespace polyreme::sizing {
namespace {

constexpr int64_t kSweepBatches[] = {1, 4, 16, 64, 256};
constexpr double kGiB = 0x1p30;

std::string NameOfRow(const SweepRow& row) {
  const LaunchSettings& s = row.settings;
  std::string name = fmt::format("tp{}pp{}", s.shards, s.stages);
  if (s.quantization != Quantization::kNone) name += " " + NameOf(s.quantization);
  return name;
}

const RankPlan& FullestRank(const LaunchPlan& plan) {
  return *std::max_element(plan.ranks.begin(), plan.ranks.end(),
                           [](const RankPlan& a, const RankPlan& b) {
                             return a.total_bytes - a.kv_bytes < b.total_bytes - b.kv_bytes;
                           });
}

const DecodePoint* Find(const Speed& speed, int64_t context, int64_t batch) {
  for (const DecodePoint& point : speed.decode) {
    if (point.context == context && point.batch == batch) return &point;
  }
  return nullptr;
}

// Letters, digits and '-' of a name, for files.
std::string FileName(std::string name) {
  for (char& c : name) {
    const bool fine = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                      c == '-' || c == '.';
    if (!fine) c = '-';
  }
  while (!name.empty() && (name[0] == '.' || name[0] == '-')) name.erase(0, 1);
  return name.substr(0, 60);
}

plot::Figure MemoryFigure(const std::string& model, const LaunchSettings& settings,
                          const std::vector<SweepRow>& rows) {
  plot::Figure figure;
  figure.title = fmt::format("{}: memory of the fullest of {} x {}", model, settings.world_size(),
                             settings.gpu.name);
  figure.y_label = "GiB";
  figure.kind = plot::Figure::Kind::kStackedBars;
  struct PartOf {
    const char* name;
    int64_t (*bytes)(const RankPlan& rank);
  };
  constexpr PartOf kParts[] = {
      {"attention", [](const RankPlan& r) { return r.memory.weights.attention; }},
      {"feed-forward", [](const RankPlan& r) { return r.memory.weights.ffn; }},
      {"embedding, head",
       [](const RankPlan& r) { return r.memory.weights.tables + r.memory.weights.vectors; }},
      {"step", [](const RankPlan& r) { return r.memory.step.device_bytes(); }},
      {"communicators, graphs, context",
       [](const RankPlan& r) {
         return r.memory.communicator_bytes + r.memory.recording_bytes + r.memory.context_bytes;
       }},
      {"KV cache", [](const RankPlan& r) { return r.kv_bytes; }},
  };
  for (const PartOf& part : kParts) {
    plot::Series series{.title = part.name, .x = {}, .y = {}};
    for (const SweepRow& row : rows) {
      series.y.push_back(static_cast<double>(part.bytes(FullestRank(row.plan))) / kGiB);
    }
    figure.series.push_back(std::move(series));
  }
  for (const SweepRow& row : rows) figure.categories.push_back(NameOfRow(row));
  figure.levels = {{settings.gpu.name, static_cast<double>(settings.gpu.memory_bytes) / kGiB}};
  return figure;
}

plot::Figure DecodeFigure(const std::string& model, const SweepRow& row) {
  plot::Figure figure;
  const LaunchSettings& s = row.settings;
  figure.title = fmt::format("{}: decode on {} x {}, {}", model, s.world_size(), s.gpu.name,
                             FlagsOf(s.shards, s.stages));
  figure.x_label = "sequences";
  figure.y_label = "tok/s of all";
  figure.log_x = figure.log_y = true;
  for (const int64_t context : {2048, 8192, 32768}) {
    plot::Series most{.title = fmt::format("{}, at most", Tokens(context)),
                      .x = {},
                      .y = {},
                      .style = plot::Series::Style::kLines};
    plot::Series likely{.title = fmt::format("{}, {}", Tokens(context),
                                             row.speed.measured ? "expected" : "predicted"),
                        .x = {},
                        .y = {}};
    for (const int64_t batch : kBatches) {
      const DecodePoint* const point = Find(row.speed, context, batch);
      if (point == nullptr || !point->fits) continue;
      most.x.push_back(static_cast<double>(batch));
      likely.x.push_back(static_cast<double>(batch));
      most.y.push_back(point->tokens_per_second.at_most);
      likely.y.push_back(point->tokens_per_second.expected);
    }
    if (most.x.empty()) continue;
    figure.series.push_back(std::move(most));
    figure.series.push_back(std::move(likely));
  }
  return figure;
}

}  // namespace

absl::StatusOr<std::vector<SweepRow>> Sweep(const LaunchSettings& settings) {
  std::vector<SweepRow> rows;
  for (const RankLayout& layout : LayoutsOf(settings.spec, settings.world_size())) {
    for (const Quantization quantization :
         {Quantization::kNone, Quantization::kFp8, Quantization::kW4}) {
      LaunchSettings s = settings;
      s.shards = layout.shards;
      s.stages = layout.stages;
      s.quantization = quantization;
      const bool own = s.shards == settings.shards && s.stages == settings.stages;
      if (!own) s.layers_per_stage.clear();
      ASSIGN_OR_RETURN(LaunchPlan plan, MakeLaunchPlan(s));
      Speed speed = SpeedOf(s, plan);
      rows.push_back({std::move(s), std::move(plan), std::move(speed)});
    }
  }
  if (rows.empty()) {
    return InvalidArgument("the model has no layout of {} ranks", settings.world_size());
  }
  return rows;
}

std::string SweepText(const std::string& model, const std::vector<SweepRow>& rows) {
  const LaunchSettings& first = rows[0].settings;
  std::vector<std::string> heads = {"layout", "context", "weights a rank", "KV tokens",
                                    "sequences"};
  for (const int64_t batch : kSweepBatches) heads.push_back(fmt::format("B={}", batch));
  Table table(std::move(heads));
  for (const SweepRow& row : rows) {
    const bool served = NotServed(row.settings).empty();
    for (const int64_t context : kContexts) {
      if (context > row.plan.limits.max_model_len) continue;
      std::vector<std::string> cells = {
          NameOfRow(row) + (served ? "" : " +"), Tokens(context),
          Gibibytes(FullestRank(row.plan).memory.weights.total()), Grouped(row.plan.kv_tokens()),
          fmt::format("{}", row.plan.fits ? row.plan.SequencesOf(context) : 0)};
      for (const int64_t batch : kSweepBatches) {
        const DecodePoint* const point = Find(row.speed, context, batch);
        cells.push_back(Rate(point->tokens_per_second.at_most) + (point->fits ? "" : "*"));
      }
      table.Add(std::move(cells));
    }
  }
  return fmt::format(
      "{} on {} x {}: decode tok/s at most\n(*: the cache or --max-num-seqs holds fewer; +: not "
      "served by this version)\n\n{}",
      model, first.world_size(), first.gpu.name, table.ToString());
}

Json SweepJson(const std::string& model, const std::vector<SweepRow>& rows) {
  Json list = Json::MakeArray();
  for (const SweepRow& row : rows) {
    Json decode = Json::MakeArray();
    for (const DecodePoint& point : row.speed.decode) {
      decode.Append(Json::MakeObject({{"context", point.context},
                                      {"batch", point.batch},
                                      {"fits", point.fits},
                                      {"at_most", point.tokens_per_second.at_most},
                                      {"expected", point.tokens_per_second.expected}}));
    }
    const LaunchSettings& s = row.settings;
    list.Append(Json::MakeObject({{"tensor_parallel_size", s.shards},
                                  {"pipeline_parallel_size", s.stages},
                                  {"quantization", NameOf(s.quantization)},
                                  {"served", NotServed(s).empty()},
                                  {"fits", row.plan.fits},
                                  {"kv_tokens", row.plan.kv_tokens()},
                                  {"decode", std::move(decode)}}));
  }
  return Json::MakeObject({{"model", model},
                           {"gpu", rows[0].settings.gpu.name},
                           {"gpus", rows[0].settings.world_size()},
                           {"rows", std::move(list)}});
}

std::vector<plot::Figure> SweepFigures(const std::string& model, const LaunchSettings& settings,
                                       const std::vector<SweepRow>& rows) {
  const std::string stem =
      FileName(fmt::format("{}-{}x{}", model, settings.world_size(), settings.gpu.name));
  std::vector<plot::Figure> figures = {MemoryFigure(model, settings, rows)};
  figures[0].name = stem + "-memory";
  for (const SweepRow& row : rows) {
    const LaunchSettings& s = row.settings;
    if (s.shards != settings.shards || s.stages != settings.stages ||
        s.quantization != settings.quantization) {
      continue;
    }
    plot::Figure figure = DecodeFigure(model, row);
    figure.name = stem + "-decode";
    if (!figure.series.empty()) figures.push_back(std::move(figure));
  }
  return figures;
}

}  // namespace polyreme::sizing
