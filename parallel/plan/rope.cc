#include "parallel/plan/rope.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <optional>
#include <string>
#include <string_view>

#include "parallel/base/limits.h"

namespace polyreme::plan {
namespace {

constexpr DoubleBounds kThetaBounds{1.0, 1e12};
constexpr DoubleBounds kFactorBounds{1.0, 1e6};
constexpr DoubleBounds kPositiveBounds{1e-6, 1e6};
constexpr IntBounds kPositionBounds{1, limits::kMaxPositions};

constexpr std::array<std::string_view, 15> kKnownKeys = {
    "rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor",
    "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale",
    "mscale_all_dim", "truncate", "partial_rotary_factor",
    // Written by vLLM's recipes and by converters; says nothing that the others do not.
    "finetuned"};

absl::Status CheckKeys(const ConfigReader& rope) {
  for (const Json::Member& member : rope.object().members()) {
    if (std::find(kKnownKeys.begin(), kKnownKeys.end(), member.first) != kKnownKeys.end()) continue;
    if (member.second.is_null()) continue;
    return InvalidArgument("{}: this key is not implemented", rope.PathOf(member.first));
  }
  ASSIGN_OR_RETURN(const double partial, rope.DoubleOr("partial_rotary_factor", {0.0, 1.0}, 1.0));
  if (partial != 1.0) {
    return InvalidArgument("{}: expected 1, got {}: partial rotation is not implemented",
                           rope.PathOf("partial_rotary_factor"), partial);
  }
  return absl::OkStatus();
}

absl::StatusOr<RopeSpec::Type> ParseType(const ConfigReader& rope) {
  ASSIGN_OR_RETURN(std::optional<std::string> name, rope.FindString("rope_type"));
  std::string_view key = "rope_type";
  if (!name.has_value()) {
    key = "type";
    ASSIGN_OR_RETURN(name, rope.FindString("type"));
  }
  if (!name.has_value() || *name == "default") return RopeSpec::Type::kDefault;
  if (*name == "linear") return RopeSpec::Type::kLinear;
  if (*name == "llama3") return RopeSpec::Type::kLlama3;
  if (*name == "yarn") return RopeSpec::Type::kYarn;
  return InvalidArgument("{}: expected default, linear, llama3 or yarn, got '{:.40}'",
                         rope.PathOf(key), *name);
}

// Peng et al. 2023, section 3.4: how much sharper attention gets as the context is stretched.
double YarnScale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

absl::Status ParseLlama3(const ConfigReader& rope, RopeSpec& spec) {
  ASSIGN_OR_RETURN(spec.factor, rope.Double("factor", kFactorBounds));
  ASSIGN_OR_RETURN(spec.low_freq_factor, rope.Double("low_freq_factor", kPositiveBounds));
  ASSIGN_OR_RETURN(spec.high_freq_factor, rope.Double("high_freq_factor", kPositiveBounds));
  if (spec.high_freq_factor <= spec.low_freq_factor) {
    return InvalidArgument("{}: expected more than low_freq_factor ({}), got {}",
                           rope.PathOf("high_freq_factor"), spec.low_freq_factor,
                           spec.high_freq_factor);
  }
  ASSIGN_OR_RETURN(spec.original_max_positions,
                   rope.Int("original_max_position_embeddings", kPositionBounds));
  return absl::OkStatus();
}

absl::Status ParseYarn(const ConfigReader& rope, int64_t max_positions, RopeSpec& spec) {
  ASSIGN_OR_RETURN(spec.original_max_positions,
                   rope.IntOr("original_max_position_embeddings", kPositionBounds, max_positions));
  ASSIGN_OR_RETURN(spec.factor, rope.Double("factor", kFactorBounds));
  ASSIGN_OR_RETURN(spec.beta_fast, rope.DoubleOr("beta_fast", kPositiveBounds, 32.0));
  ASSIGN_OR_RETURN(spec.beta_slow, rope.DoubleOr("beta_slow", kPositiveBounds, 1.0));
  ASSIGN_OR_RETURN(spec.truncate, rope.BoolOr("truncate", true));
  ASSIGN_OR_RETURN(const double mscale, rope.DoubleOr("mscale", {0.0, 1e3}, 0.0));
  ASSIGN_OR_RETURN(const double mscale_all_dim, rope.DoubleOr("mscale_all_dim", {0.0, 1e3}, 0.0));
  const double absent =
      mscale != 0.0 && mscale_all_dim != 0.0
          ? YarnScale(spec.factor, mscale) / YarnScale(spec.factor, mscale_all_dim)
          : YarnScale(spec.factor, 1.0);
  ASSIGN_OR_RETURN(spec.attention_factor,
                   rope.DoubleOr("attention_factor", kPositiveBounds, absent));
  return absl::OkStatus();
}

// The dimension (of head_dim) whose wave turns `rotations` times within the original context.
double YarnDimension(const RopeSpec& spec, double head_dim, double rotations) {
  const double wave =
      static_cast<double>(spec.original_max_positions) / (rotations * 2.0 * std::numbers::pi);
  return head_dim * std::log(wave) / (2.0 * std::log(spec.theta));
}

void ScaleLlama3(const RopeSpec& spec, std::vector<double>& frequencies) {
  const double original = static_cast<double>(spec.original_max_positions);
  for (double& frequency : frequencies) {
    const double wavelength = 2.0 * std::numbers::pi / frequency;
    if (wavelength < original / spec.high_freq_factor) continue;
    if (wavelength > original / spec.low_freq_factor) {
      frequency /= spec.factor;
      continue;
    }
    const double keep = (original / wavelength - spec.low_freq_factor) /
                        (spec.high_freq_factor - spec.low_freq_factor);
    frequency = (1.0 - keep) * frequency / spec.factor + keep * frequency;
  }
}

void ScaleYarn(const RopeSpec& spec, int64_t head_dim, std::vector<double>& frequencies) {
  const double dim = static_cast<double>(head_dim);
  double begin = YarnDimension(spec, dim, spec.beta_fast);
  double end = YarnDimension(spec, dim, spec.beta_slow);
  if (spec.truncate) {
    begin = std::floor(begin);
    end = std::ceil(end);
  }
  begin = std::max(begin, 0.0);
  end = std::min(end, dim - 1.0);
  if (begin == end) end += 0.001;  // as Transformers: no division by zero
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - begin) / (end - begin), 0.0, 1.0);
    frequencies[i] = frequencies[i] / spec.factor * ramp + frequencies[i] * (1.0 - ramp);
  }
}

}  // namespace

absl::StatusOr<RopeSpec> ParseRope(const ConfigReader& config, const RopeDefaults& defaults) {
  RopeSpec spec;
  const Json* object = config.Find("rope_parameters");
  std::string_view name = "rope_parameters";
  const Json* older = config.Find("rope_scaling");
  // People add rope_scaling by hand to stretch a model: in a file that also has its successor,
  // Transformers' versions disagree about which counts.
  if (object != nullptr && older != nullptr && older->Dump() != object->Dump()) {
    return InvalidArgument("{}: expected it to be absent or equal beside rope_parameters, got {:.80}",
                           config.PathOf("rope_scaling"), older->Dump());
  }
  if (object == nullptr) {
    object = older;
    name = "rope_scaling";
  }
  const Json empty = Json::MakeObject();
  if (object == nullptr) object = &empty;
  if (!object->is_object()) {
    return InvalidArgument("{}: expected an object, got {}", config.PathOf(name),
                           object->type_name());
  }
  const ConfigReader rope(*object, config.PathOf(name) + ".");
  RETURN_IF_ERROR(CheckKeys(rope));
  ASSIGN_OR_RETURN(std::optional<double> theta, rope.FindDouble("rope_theta", kThetaBounds));
  if (!theta.has_value()) {
    ASSIGN_OR_RETURN(theta, config.FindDouble("rope_theta", kThetaBounds));
  }
  if (!theta.has_value() && defaults.theta == 0.0) {
    return InvalidArgument("{}: expected this key, it is missing", config.PathOf("rope_theta"));
  }
  spec.theta = theta.value_or(defaults.theta);
  ASSIGN_OR_RETURN(spec.type, ParseType(rope));
  switch (spec.type) {
    case RopeSpec::Type::kDefault:
      break;
    case RopeSpec::Type::kLinear: {
      ASSIGN_OR_RETURN(spec.factor, rope.Double("factor", kFactorBounds));
      break;
    }
    case RopeSpec::Type::kLlama3:
      RETURN_IF_ERROR(ParseLlama3(rope, spec));
      break;
    case RopeSpec::Type::kYarn:
      if (spec.theta <= 1.0) {
        return InvalidArgument("{}: expected more than 1 with yarn", config.PathOf("rope_theta"));
      }
      RETURN_IF_ERROR(ParseYarn(rope, defaults.max_positions, spec));
      break;
  }
  return spec;
}

std::vector<double> InverseFrequencies(const RopeSpec& spec, int64_t head_dim) {
  std::vector<double> frequencies(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(head_dim);
    frequencies[i] = 1.0 / std::pow(spec.theta, exponent);
  }
  if (spec.type == RopeSpec::Type::kLinear) {
    for (double& frequency : frequencies) frequency /= spec.factor;
  }
  if (spec.type == RopeSpec::Type::kLlama3) ScaleLlama3(spec, frequencies);
  if (spec.type == RopeSpec::Type::kYarn) ScaleYarn(spec, head_dim, frequencies);
  return frequencies;
}

std::vector<float> RopeTable(const RopeSpec& spec, int64_t head_dim, int64_t positions) {
  const std::vector<double> frequencies = InverseFrequencies(spec, head_dim);
  const size_t half = frequencies.size();
  std::vector<float> table(static_cast<size_t>(positions) * 2 * half);
  for (int64_t position = 0; position < positions; ++position) {
    float* row = table.data() + static_cast<size_t>(position) * 2 * half;
    for (size_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(frequencies[i]) * static_cast<float>(position);
      row[i] = static_cast<float>(std::cos(static_cast<double>(angle)) * spec.attention_factor);
      row[half + i] =
          static_cast<float>(std::sin(static_cast<double>(angle)) * spec.attention_factor);
    }
  }
  return table;
}

}  // namespace polyreme::plan
