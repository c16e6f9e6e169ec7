// A launch's plan as text for people and JSON for programs.
#pragma once

#include <string>

#include "deploy/sizing/alternatives.h"
#include "deploy/sizing/launch_plan.h"
#include "deploy/sizing/recommend.h"
#include "deploy/sizing/speed.h"
#include "parallel/base/json.h"

namespace polyreme::sizing {

struct PlanReport {
  std::string model;  // what it is called
  LaunchSettings settings;
  LaunchPlan plan;
  Speed speed;                // on a GPU
  Alternatives alternatives;  // where it does not fit
  std::string currency = {};  // of prices
};

// The first line says whether it fits; if not, by how many bytes and on which rank.
std::string PlanText(const PlanReport& report);
Json PlanJson(const PlanReport& report);

// The first line, without its end.
std::string Verdict(const PlanReport& report);

std::string RecommendText(const std::string& model, const Role& role, const Recommendations& found,
                          double budget, const GpuTable& table);
Json RecommendJson(const std::string& model, const Role& role, const Recommendations& found,
                   double budget);

}  // namespace polyreme::sizing
