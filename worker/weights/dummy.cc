#include "worker/weights/dummy.h"

#include <cmath>
#include <cstring>

#include "absl/container/flat_hash_map.h"
#include "worker/weights/fingerprint.h"
#include "worker/weights/floats.h"

namespace polyreme::weights {
namespace {

constexpr double kGainScale = 0.1;
constexpr double kBiasScale = 0.02;
constexpr double kLogitsStd = 2.0;

// Of a matrix; the reasons stand in dummy.h.
double StdOf(const plan::ModelSpec& spec, const ExpectedTensor& tensor) {
  const auto is_called = [&](std::string_view end) { return tensor.name.ends_with(end); };
  const double head = kLogitsStd / std::sqrt(static_cast<double>(spec.width));
  if (tensor.name == kHeadName) return head;
  if (tensor.name == kEmbeddingName) return spec.tied_head ? head : 1.0;
  const double linear = 1.0 / std::sqrt(static_cast<double>(tensor.shape[1]));
  const bool is_branch_end = is_called(".o_proj.weight") || is_called(".down_proj.weight");
  return is_branch_end ? linear / std::sqrt(2.0 * static_cast<double>(spec.num_layers)) : linear;
}

template <class Bits, class Convert>
void Fill(const DummyValues& values, uint64_t begin, int64_t count, std::byte* out,
          const Convert& convert) {
  for (int64_t i = 0; i < count; ++i) {
    const Bits bits = convert(DummyValue(values, begin + static_cast<uint64_t>(i)));
    std::memcpy(out + i * static_cast<int64_t>(sizeof bits), &bits, sizeof bits);
  }
}

class DummySource final : public TensorSource {
 public:
  DummySource(const plan::ModelSpec& spec, std::string_view config_json, uint64_t seed)
      : spec_(spec), seed_(seed) {
    Fingerprint hash;
    hash.Add(std::string_view("dummy"));
    hash.Add(config_json);
    hash.Add(static_cast<int64_t>(seed));
    fingerprint_ = hash.ToString();
    for (ExpectedTensor& tensor : ExpectedTensors(spec)) {
      const DummyValues values = DummyValuesOf(spec, tensor, seed);
      std::string name = tensor.name;
      tensors_.emplace(std::move(name), Tensor{std::move(tensor.shape), values});
    }
  }

  const std::string& fingerprint() const override { return fingerprint_; }
  absl::Status Check(const plan::ModelSpec& spec) const override {
    CHECK(spec == spec_, "a dummy model is asked for another one's tensors");
    return absl::OkStatus();
  }
  absl::Status CheckUnchanged() const override { return absl::OkStatus(); }
  std::string Where(std::string_view name) const override {
    return fmt::format("dummy model of seed {}: {}", seed_, name);
  }
  DType TypeOf(std::string_view /*name*/) const override { return spec_.dtype; }
  const std::vector<int64_t>& ShapeOf(std::string_view name) const override {
    return Get(name).shape;
  }
  WeightSource::RowBlock BlockOf(std::string_view name, Range rows, Range columns) const override {
    const Tensor& tensor = Get(name);
    return {.rows = rows.size(),
            .generated = WeightSource::Generated{.values = tensor.values,
                                                 .first_row = rows.begin,
                                                 .first_col = columns.begin,
                                                 .full_cols = tensor.shape[1]}};
  }
  void AppendFloats(std::string_view name, Range elements, std::vector<float>& out) const override {
    std::vector<std::byte> stored(static_cast<size_t>(elements.size() * SizeOf(spec_.dtype)));
    FillDummy(Get(name).values, spec_.dtype, static_cast<uint64_t>(elements.begin), elements.size(),
              stored.data());
    AppendAsFloats(spec_.dtype, stored.data(), elements.size(), out);
  }

 private:
  struct Tensor {
    std::vector<int64_t> shape;
    DummyValues values;
  };
  const Tensor& Get(std::string_view name) const {
    const auto row = tensors_.find(std::string(name));
    CHECK(row != tensors_.end(), "{} is no tensor of {}", name, spec_.architecture);
    return row->second;
  }

  const plan::ModelSpec spec_;
  const uint64_t seed_;
  std::string fingerprint_;
  absl::flat_hash_map<std::string, Tensor> tensors_;
};

}  // namespace

DummyValues DummyValuesOf(const plan::ModelSpec& spec, const ExpectedTensor& tensor,
                          uint64_t seed) {
  DummyValues values;
  values.key = DummyKey(tensor.name.data(), tensor.name.size(), seed);
  if (tensor.shape.size() == 2) {
    values.scale = static_cast<float>(std::sqrt(3.0) * StdOf(spec, tensor));
  } else if (tensor.name.ends_with(".bias")) {
    values.scale = static_cast<float>(kBiasScale);
  } else {
    values.scale = static_cast<float>(kGainScale);
    values.offset = 1.0f;
  }
  return values;
}

void FillDummy(const DummyValues& values, DType dtype, uint64_t begin, int64_t count,
               std::byte* out) {
  switch (dtype) {
    case DType::kF32:
      return Fill<float>(values, begin, count, out, [](float value) { return value; });
    case DType::kF16:
      return Fill<uint16_t>(values, begin, count, out, DummyToF16);
    case DType::kBF16:
      return Fill<uint16_t>(values, begin, count, out, DummyToBf16);
    default:
      CHECK(false, "dummy values of {}", NameOf(dtype));
  }
}

std::unique_ptr<TensorSource> MakeDummySource(const plan::ModelSpec& spec,
                                              std::string_view config_json, uint64_t seed) {
  return std::make_unique<DummySource>(spec, config_json, seed);
}

}  // namespace polyreme::weights
