// Where a model's tensors come from: a checkpoint's files, or a dummy model's function (dummy.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/base/ids.h"
#include "parallel/base/status.h"
#include "parallel/plan/model_spec.h"
#include "worker/weights/checkpoint.h"
#include "worker/weights/weight.h"

namespace polyreme::weights {

enum class LoadFormat : uint8_t { kSafetensors, kDummy };
// "safetensors" or "dummy", as --load-format has them. InvalidArgument lists them.
absl::StatusOr<LoadFormat> ParseLoadFormat(std::string_view name);

// Immutable, any thread. Names are those of ExpectedTensors; asking for another is our own mistake.
class TensorSource {
 public:
  virtual ~TensorSource() = default;
  // Says which model this is; 16 hexadecimal digits (Checkpoint::fingerprint).
  virtual const std::string& fingerprint() const = 0;
  // Every tensor of the model is there with its shape and a float type, and there is no other:
  // DataLoss otherwise. To be called before any of the below.
  virtual absl::Status Check(const plan::ModelSpec& spec) const = 0;
  // DataLoss if what is behind it has changed since it was opened.
  virtual absl::Status CheckUnchanged() const = 0;

  virtual std::string Where(std::string_view name) const = 0;  // for messages
  virtual DType TypeOf(std::string_view name) const = 0;
  virtual const std::vector<int64_t>& ShapeOf(std::string_view name) const = 0;
  // Rows and columns of a matrix; what it points to lives as long as the source.
  virtual WeightSource::RowBlock BlockOf(std::string_view name, Range rows,
                                         Range columns) const = 0;
  // Appends elements of a vector, exactly as they are stored.
  virtual void AppendFloats(std::string_view name, Range elements,
                            std::vector<float>& out) const = 0;
};

// The tensors of a checkpoint, which must outlive the source.
std::unique_ptr<TensorSource> MakeCheckpointSource(const Checkpoint& checkpoint);

// What --load-format says: the checkpoint in `directory`, or the dummy model of the config.json
// there (no other file is read) with `seed`. Errors as Checkpoint::Open's. Checks nothing more.
absl::StatusOr<std::unique_ptr<TensorSource>> OpenTensorSource(const std::string& directory,
                                                               const plan::ModelSpec& spec,
                                                               LoadFormat format, uint64_t seed);

}  // namespace polyreme::weights
