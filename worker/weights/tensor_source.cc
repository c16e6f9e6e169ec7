#include "worker/weights/tensor_source.h"

#include "absl/container/flat_hash_set.h"
#include "parallel/base/file.h"
#include "parallel/base/limits.h"
#include "worker/weights/dummy.h"
#include "worker/weights/floats.h"
#include "worker/weights/tensor_names.h"

namespace polyreme::weights {
namespace {

std::string ShowShape(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t extent : shape) text += (text.empty() ? "" : ", ") + std::to_string(extent);
  return "[" + text + "]";
}

class CheckpointSource final : public TensorSource {
 public:
  explicit CheckpointSource(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}
  explicit CheckpointSource(std::unique_ptr<const Checkpoint> own)
      : own_(std::move(own)), checkpoint_(*own_) {}

  const std::string& fingerprint() const override { return checkpoint_.fingerprint(); }
  absl::Status Check(const plan::ModelSpec& spec) const override;
  absl::Status CheckUnchanged() const override { return checkpoint_.CheckUnchanged(); }
  std::string Where(std::string_view name) const override { return Get(name).Where(); }
  DType TypeOf(std::string_view name) const override {
    const Checkpoint::Tensor& tensor = Get(name);
    const absl::StatusOr<DType> dtype = ParseDType(tensor.entry->dtype);
    CHECK(dtype.ok(), "{} was checked", tensor.Where());
    return *dtype;
  }
  const std::vector<int64_t>& ShapeOf(std::string_view name) const override {
    return Get(name).entry->shape;
  }
  WeightSource::RowBlock BlockOf(std::string_view name, Range rows, Range columns) const override {
    const int64_t element = SizeOf(TypeOf(name));
    const int64_t stride = ShapeOf(name)[1] * element;
    return {.data = Get(name).data() + rows.begin * stride + columns.begin * element,
            .rows = rows.size(),
            .row_stride_bytes = stride};
  }
  void AppendFloats(std::string_view name, Range elements, std::vector<float>& out) const override {
    const DType dtype = TypeOf(name);
    AppendAsFloats(dtype, Get(name).data() + elements.begin * SizeOf(dtype), elements.size(), out);
  }

 private:
  const Checkpoint::Tensor& Get(std::string_view name) const {
    const Checkpoint::Tensor* tensor = checkpoint_.Find(name);
    CHECK(tensor != nullptr, "{} was checked", name);
    return *tensor;
  }

  const std::unique_ptr<const Checkpoint> own_;  // or null
  const Checkpoint& checkpoint_;
};

absl::Status CheckpointSource::Check(const plan::ModelSpec& spec) const {
  const std::vector<ExpectedTensor> expected = ExpectedTensors(spec);
  absl::flat_hash_set<std::string_view> known;
  for (const ExpectedTensor& want : expected) {
    known.insert(want.name);
    const Checkpoint::Tensor* tensor = checkpoint_.Find(want.name);
    if (tensor == nullptr) {
      return DataLoss("{}: {}: expected this tensor, it is missing", checkpoint_.directory(),
                      want.name);
    }
    if (tensor->entry->shape != want.shape) {
      return DataLoss("{}: expected shape {}, got {}", tensor->Where(), ShowShape(want.shape),
                      ShowShape(tensor->entry->shape));
    }
    const absl::StatusOr<DType> dtype = ParseDType(tensor->entry->dtype);
    if (!dtype.ok() || !IsFloat(*dtype)) {
      return DataLoss("{}: expected F32, F16 or BF16, got {}", tensor->Where(),
                      tensor->entry->dtype);
    }
  }
  for (const Checkpoint::Tensor& tensor : checkpoint_.tensors()) {
    if (known.contains(std::string_view(tensor.entry->name))) continue;
    if (IsIgnorable(tensor.entry->name, spec)) continue;
    return DataLoss("{}: this tensor is not part of {}", tensor.Where(), spec.architecture);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LoadFormat> ParseLoadFormat(std::string_view name) {
  if (name == "safetensors") return LoadFormat::kSafetensors;
  if (name == "dummy") return LoadFormat::kDummy;
  return InvalidArgument("expected a load format of safetensors or dummy, got '{:.40}'", name);
}

std::unique_ptr<TensorSource> MakeCheckpointSource(const Checkpoint& checkpoint) {
  return std::make_unique<CheckpointSource>(checkpoint);
}

absl::StatusOr<std::unique_ptr<TensorSource>> OpenTensorSource(const std::string& directory,
                                                               const plan::ModelSpec& spec,
                                                               LoadFormat format, uint64_t seed) {
  if (format == LoadFormat::kSafetensors) {
    ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::Open(directory));
    return std::make_unique<CheckpointSource>(
        std::make_unique<const Checkpoint>(std::move(checkpoint)));
  }
  ASSIGN_OR_RETURN(const std::string config,
                   ReadFile(directory + "/config.json", limits::kMaxConfigFileBytes));
  return MakeDummySource(spec, config, seed);
}

}  // namespace polyreme::weights
