// Well-known dense models by name, so that they can be planned for before anything is downloaded.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "parallel/base/status.h"
#include "parallel/plan/model_spec.h"

namespace polyreme::sizing {

// The text of the preset's config.json, with the values that its authors published. NotFound lists
// the names there are. Upper and lower case are the same.
absl::StatusOr<std::string> PresetConfig(std::string_view name);
std::vector<std::string_view> PresetNames();

// MODEL of `polyreme plan`: a checkpoint's folder, a config.json, or a preset's name. name: how to
// call it in tables.
struct PlannedModel {
  std::string name;
  plan::ModelSpec spec;
};
absl::StatusOr<PlannedModel> FindModel(const std::string& model);

}  // namespace polyreme::sizing
