// Contexts x batches x layouts x quantisations of one model on one kind of GPU, as a table and as
// figures.
#pragma once

#include <string>
#include <vector>

#include "deploy/plot/gnuplot.h"
#include "deploy/sizing/launch_plan.h"
#include "deploy/sizing/speed.h"
#include "parallel/base/json.h"

namespace polyreme::sizing {

struct SweepRow {
  LaunchSettings settings;
  LaunchPlan plan;
  Speed speed;
};

// All layouts of the settings' number of GPUs, each with weights as they are, in 8 and in 4 bits.
// InvalidArgument: the model has no layout of so many.
absl::StatusOr<std::vector<SweepRow>> Sweep(const LaunchSettings& settings);

std::string SweepText(const std::string& model, const std::vector<SweepRow>& rows);
Json SweepJson(const std::string& model, const std::vector<SweepRow>& rows);
// Memory of the fullest rank by part, against the card; tok/s against the batch, of the settings'
// own layout.
std::vector<plot::Figure> SweepFigures(const std::string& model, const LaunchSettings& settings,
                                       const std::vector<SweepRow>& rows);

}  // namespace polyreme::sizing
