// Fused weights are stacked row by row straight from the mapped files: q, k and v of this rank's
// heads; gate and up of its columns. What is summed over shards is cut by columns, and carries the
// segments of its sum.
#include "worker/weights/shard_loader.h"

#include <algorithm>
#include <functional>
#include <map>

#include "worker/weights/tensor_names.h"

namespace polyreme::weights {
namespace {

// Rows of a matrix, or elements of a vector.
struct Part {
  std::string name;
  Range rows;
};

// What a shard is put together from. One walk (FillLayer, FillTables) asks for it, whether bytes
// are read or only counted.
class Parts {
 public:
  virtual ~Parts() = default;
  // The parts' rows, one after another.
  virtual absl::StatusOr<Weight> StackRows(absl::Span<const Part> parts) = 0;
  // All rows, columns [columns.begin, columns.end).
  virtual absl::StatusOr<Weight> CutColumns(const std::string& name, Range columns,
                                            std::vector<int64_t> segment_ends) = 0;
  // Rows of a table; zeros where `rows` reaches beyond it.
  virtual absl::StatusOr<Weight> PaddedRows(std::string_view name, Range rows) = 0;
  // The parts' elements, one after another, as float32.
  virtual absl::StatusOr<Vector> JoinVectors(absl::Span<const Part> parts) = 0;
  virtual absl::StatusOr<Vector> WholeVector(std::string_view name) = 0;
  // plan::RopeTable.
  virtual absl::StatusOr<Vector> Rope(const plan::ModelSpec& spec, int64_t positions) = 0;
};

// What one rank reads, tensor by tensor. Names, shapes and types have been checked.
class Loader final : public Parts {
 public:
  // total: bytes that will be read, for the progress; an estimate.
  Loader(const TensorSource& tensors, const LoadOptions& options, int64_t total,
         WeightPacker& packer)
      : tensors_(tensors), options_(options), total_(total), packer_(packer) {}

  absl::StatusOr<Weight> StackRows(absl::Span<const Part> parts) override;
  absl::StatusOr<Weight> CutColumns(const std::string& name, Range columns,
                                    std::vector<int64_t> segment_ends) override;
  absl::StatusOr<Weight> PaddedRows(std::string_view name, Range rows) override;
  absl::StatusOr<Vector> JoinVectors(absl::Span<const Part> parts) override;
  absl::StatusOr<Vector> WholeVector(std::string_view name) override;
  absl::StatusOr<Vector> Rope(const plan::ModelSpec& spec, int64_t positions) override {
    return Upload(plan::RopeTable(spec.rope, spec.head_dim, positions));
  }

  int64_t bytes_read() const { return done_; }

 private:
  Range AllColumnsOf(std::string_view name) const { return {0, tensors_.ShapeOf(name)[1]}; }
  // first: the tensor to be named by errors.
  absl::StatusOr<Weight> Pack(const WeightSource& source, std::string_view first);
  absl::StatusOr<Vector> Upload(absl::Span<const float> values);
  void Count(int64_t bytes) {
    done_ += bytes;
    if (options_.progress) options_.progress(std::min(done_, total_), total_);
  }

  const TensorSource& tensors_;
  const LoadOptions& options_;
  const int64_t total_;
  WeightPacker& packer_;
  int64_t done_ = 0;
};

// Weights and vectors that have sizes and no memory.
class Counter final : public Parts {
 public:
  using PackedBytes = absl::FunctionRef<int64_t(int64_t rows, int64_t cols, DType stored)>;
  Counter(const plan::ModelSpec& spec, PackedBytes packed_bytes)
      : dtype_(spec.dtype), packed_bytes_(packed_bytes) {
    plan::ModelSpec one_layer = spec;
    one_layer.num_layers = 1;
    for (ExpectedTensor& tensor : ExpectedTensors(one_layer)) {
      shapes_.emplace(std::move(tensor.name), std::move(tensor.shape));
    }
  }

  absl::StatusOr<Weight> StackRows(absl::Span<const Part> parts) override {
    int64_t rows = 0;
    for (const Part& part : parts) rows += part.rows.size();
    return Pack(rows, ShapeOf(parts[0].name)[1]);
  }
  absl::StatusOr<Weight> CutColumns(const std::string& name, Range columns,
                                    std::vector<int64_t> /*segment_ends*/) override {
    return Pack(ShapeOf(name)[0], columns.size());
  }
  absl::StatusOr<Weight> PaddedRows(std::string_view name, Range rows) override {
    return Pack(rows.size(), ShapeOf(name)[1]);
  }
  absl::StatusOr<Vector> JoinVectors(absl::Span<const Part> parts) override {
    int64_t size = 0;
    for (const Part& part : parts) size += part.rows.size();
    return Floats(size);
  }
  absl::StatusOr<Vector> WholeVector(std::string_view name) override {
    return Floats(ShapeOf(name)[0]);
  }
  absl::StatusOr<Vector> Rope(const plan::ModelSpec& spec, int64_t positions) override {
    return Floats(positions * spec.head_dim);
  }

 private:
  static Buffer Sized(int64_t bytes) {
    return Buffer(nullptr, bytes, [](void*) {});
  }
  static Vector Floats(int64_t size) {
    return {Sized(size * static_cast<int64_t>(sizeof(float))), size};
  }
  Weight Pack(int64_t rows, int64_t cols) const {
    Weight weight;
    weight.rows = rows;
    weight.cols = cols;
    weight.bytes = Sized(packed_bytes_(rows, cols, dtype_));
    return weight;
  }
  const std::vector<int64_t>& ShapeOf(std::string_view name) const {
    const auto found = shapes_.find(name);
    CHECK(found != shapes_.end(), "the model has no tensor {}", name);
    return found->second;
  }

  const DType dtype_;
  const PackedBytes packed_bytes_;
  std::map<std::string, std::vector<int64_t>, std::less<>> shapes_;
};

absl::StatusOr<Weight> Loader::Pack(const WeightSource& source, std::string_view first) {
  absl::StatusOr<Weight> weight = packer_.Pack(source);
  if (!weight.ok()) return Annotate(weight.status(), tensors_.Where(first));
  int64_t rows = 0;
  for (const WeightSource::RowBlock& block : source.blocks) {
    if (!block.is_zero()) rows += block.rows;
  }
  Count(rows * source.cols * SizeOf(source.dtype));
  return weight;
}

absl::StatusOr<Weight> Loader::StackRows(absl::Span<const Part> parts) {
  const std::string& first = parts[0].name;
  WeightSource source;
  source.dtype = tensors_.TypeOf(first);
  source.cols = AllColumnsOf(first).size();
  for (const Part& part : parts) {
    if (tensors_.TypeOf(part.name) != source.dtype) {
      return InvalidArgument("{}: expected {} as {} is, got {}", tensors_.Where(part.name),
                             SafetensorsName(source.dtype), first,
                             SafetensorsName(tensors_.TypeOf(part.name)));
    }
    source.blocks.push_back(tensors_.BlockOf(part.name, part.rows, AllColumnsOf(part.name)));
  }
  return Pack(source, first);
}

absl::StatusOr<Weight> Loader::CutColumns(const std::string& name, Range columns,
                                          std::vector<int64_t> segment_ends) {
  WeightSource source;
  source.dtype = tensors_.TypeOf(name);
  source.cols = columns.size();
  source.segment_ends = std::move(segment_ends);
  source.blocks.push_back(tensors_.BlockOf(name, {0, tensors_.ShapeOf(name)[0]}, columns));
  return Pack(source, name);
}

absl::StatusOr<Weight> Loader::PaddedRows(std::string_view name, Range rows) {
  WeightSource source;
  source.dtype = tensors_.TypeOf(name);
  source.cols = AllColumnsOf(name).size();
  const int64_t held = tensors_.ShapeOf(name)[0];
  const Range real{std::min(rows.begin, held), std::min(rows.end, held)};
  if (!real.empty()) source.blocks.push_back(tensors_.BlockOf(name, real, AllColumnsOf(name)));
  if (real.size() < rows.size()) source.blocks.push_back({.rows = rows.size() - real.size()});
  return Pack(source, name);
}

absl::StatusOr<Vector> Loader::Upload(absl::Span<const float> values) {
  Vector vector;
  vector.size = std::ssize(values);
  ASSIGN_OR_RETURN(vector.bytes, packer_.PackVector(values));
  return vector;
}

absl::StatusOr<Vector> Loader::JoinVectors(absl::Span<const Part> parts) {
  std::vector<float> values;
  int64_t bytes = 0;
  for (const Part& part : parts) {
    tensors_.AppendFloats(part.name, part.rows, values);
    bytes += part.rows.size() * SizeOf(tensors_.TypeOf(part.name));
  }
  absl::StatusOr<Vector> vector = Upload(values);
  if (!vector.ok()) return Annotate(vector.status(), tensors_.Where(parts[0].name));
  Count(bytes);
  return vector;
}

absl::StatusOr<Vector> Loader::WholeVector(std::string_view name) {
  const Part whole{.name = std::string(name), .rows = {0, tensors_.ShapeOf(name)[0]}};
  return JoinVectors(absl::MakeConstSpan(&whole, 1));
}

// The axes of one rank, as rows and columns of its tensors.
struct Slices {
  Range query, kv, ffn;                               // rows of q; of k and v; of gate and up
  std::vector<int64_t> query_segments, ffn_segments;  // of o's and down's sums
};

Slices SlicesOf(const plan::ModelSpec& spec, const plan::ShardPlan& plan, Rank rank) {
  const plan::Shard& shard = plan.ShardOf(rank);
  const int32_t shards = plan.topology().shards();
  const int32_t index = plan.topology().PlaceOf(rank).shard;
  const auto in_rows = [&](Range heads) {
    return Range{heads.begin * spec.head_dim, heads.end * spec.head_dim};
  };
  return {
      .query = in_rows(shard.query_heads),
      .kv = in_rows(shard.kv_heads),
      .ffn = shard.ffn_columns,
      .query_segments = plan::SumSegmentEnds(spec.num_query_heads * spec.head_dim, shards, index),
      .ffn_segments = plan::SumSegmentEnds(spec.ffn_width, shards, index)};
}

absl::StatusOr<LayerWeights> FillLayer(const plan::ModelSpec& spec, const Slices& slices,
                                       int64_t layer, Parts& parts) {
  const auto name = [&](std::string_view part) { return LayerTensor(layer, part); };
  LayerWeights w;
  ASSIGN_OR_RETURN(w.attention_norm, parts.WholeVector(name("input_layernorm.weight")));
  ASSIGN_OR_RETURN(w.qkv, parts.StackRows({{name("self_attn.q_proj.weight"), slices.query},
                                           {name("self_attn.k_proj.weight"), slices.kv},
                                           {name("self_attn.v_proj.weight"), slices.kv}}));
  if (spec.qkv_bias) {
    ASSIGN_OR_RETURN(w.qkv_bias, parts.JoinVectors({{name("self_attn.q_proj.bias"), slices.query},
                                                    {name("self_attn.k_proj.bias"), slices.kv},
                                                    {name("self_attn.v_proj.bias"), slices.kv}}));
  }
  if (spec.qk_norm) {
    ASSIGN_OR_RETURN(w.q_norm, parts.WholeVector(name("self_attn.q_norm.weight")));
    ASSIGN_OR_RETURN(w.k_norm, parts.WholeVector(name("self_attn.k_norm.weight")));
  }
  ASSIGN_OR_RETURN(w.attention_out, parts.CutColumns(name("self_attn.o_proj.weight"), slices.query,
                                                     slices.query_segments));
  if (spec.attention_out_bias) {
    ASSIGN_OR_RETURN(w.attention_out_bias, parts.WholeVector(name("self_attn.o_proj.bias")));
  }
  ASSIGN_OR_RETURN(w.ffn_norm, parts.WholeVector(name("post_attention_layernorm.weight")));
  ASSIGN_OR_RETURN(w.gate_up, parts.StackRows({{name("mlp.gate_proj.weight"), slices.ffn},
                                               {name("mlp.up_proj.weight"), slices.ffn}}));
  ASSIGN_OR_RETURN(w.down,
                   parts.CutColumns(name("mlp.down_proj.weight"), slices.ffn, slices.ffn_segments));
  if (spec.mlp_bias) {
    ASSIGN_OR_RETURN(w.gate_up_bias, parts.JoinVectors({{name("mlp.gate_proj.bias"), slices.ffn},
                                                        {name("mlp.up_proj.bias"), slices.ffn}}));
    ASSIGN_OR_RETURN(w.down_bias, parts.WholeVector(name("mlp.down_proj.bias")));
  }
  return w;
}

// All but the layers.
absl::Status FillTables(const plan::ModelSpec& spec, Parts& parts, ShardWeights& weights) {
  const plan::Shard& shard = weights.shard;
  ASSIGN_OR_RETURN(weights.rope, parts.Rope(spec, weights.rope_positions));
  if (shard.has_embedding) {
    ASSIGN_OR_RETURN(weights.embedding, parts.PaddedRows(kEmbeddingName, shard.vocab_rows));
  }
  if (!shard.has_head) return absl::OkStatus();
  ASSIGN_OR_RETURN(weights.final_norm, parts.WholeVector(kFinalNormName));
  if (spec.tied_head && shard.has_embedding) return absl::OkStatus();
  ASSIGN_OR_RETURN(weights.own_head,
                   parts.PaddedRows(spec.tied_head ? kEmbeddingName : kHeadName, shard.vocab_rows));
  return absl::OkStatus();
}

struct StagingRelease {
  WeightPacker& packer;
  ~StagingRelease() { packer.ReleaseStaging(); }
};

int64_t BytesOf(const std::optional<Weight>& weight) {
  return weight.has_value() ? weight->bytes.bytes() : 0;
}

WeightBytes BytesOf(const LayerWeights& w) {
  WeightBytes bytes;
  bytes.attention = w.qkv.bytes.bytes() + w.attention_out.bytes.bytes();
  bytes.ffn = w.gate_up.bytes.bytes() + w.down.bytes.bytes();
  for (const Vector* vector : {&w.attention_norm, &w.ffn_norm, &w.q_norm, &w.k_norm, &w.qkv_bias,
                               &w.attention_out_bias, &w.gate_up_bias, &w.down_bias}) {
    bytes.vectors += vector->bytes.bytes();
  }
  return bytes;
}

}  // namespace

absl::StatusOr<ShardWeights> LoadShard(const TensorSource& source, const plan::ModelSpec& spec,
                                       const plan::ShardPlan& plan, const LoadOptions& options,
                                       WeightPacker& packer) {
  RETURN_IF_ERROR(source.Check(spec));
  const StagingRelease release{packer};
  ShardWeights weights;
  weights.spec = spec;
  weights.shard = plan.ShardOf(options.rank);
  weights.rope_positions = options.positions;
  Loader loader(source, options, weights.shard.weight_bytes, packer);
  const Slices slices = SlicesOf(spec, plan, options.rank);
  RETURN_IF_ERROR(FillTables(spec, loader, weights));
  for (int64_t layer = weights.shard.layers.begin; layer < weights.shard.layers.end; ++layer) {
    if (options.cancelled && options.cancelled()) return Cancelled("loading was stopped");
    ASSIGN_OR_RETURN(LayerWeights w, FillLayer(spec, slices, layer, loader));
    weights.layers.push_back(std::move(w));
  }
  RETURN_IF_ERROR(source.CheckUnchanged());
  weights.checkpoint_bytes_read = loader.bytes_read();
  if (options.progress) options.progress(weights.shard.weight_bytes, weights.shard.weight_bytes);
  return weights;
}

absl::StatusOr<ShardWeights> LoadShard(const Checkpoint& checkpoint, const plan::ModelSpec& spec,
                                       const plan::ShardPlan& plan, const LoadOptions& options,
                                       WeightPacker& packer) {
  return LoadShard(*MakeCheckpointSource(checkpoint), spec, plan, options, packer);
}

WeightBytes ShardBytes(
    const plan::ModelSpec& spec, const plan::ShardPlan& plan, Rank rank, int64_t positions,
    absl::FunctionRef<int64_t(int64_t rows, int64_t cols, DType stored)> packed_bytes) {
  Counter counter(spec, packed_bytes);
  ShardWeights weights;
  weights.spec = spec;
  weights.shard = plan.ShardOf(rank);
  weights.rope_positions = positions;
  CHECK(FillTables(spec, counter, weights).ok());
  WeightBytes bytes = weights.bytes();
  // Layers are alike.
  absl::StatusOr<LayerWeights> layer = FillLayer(spec, SlicesOf(spec, plan, rank), 0, counter);
  CHECK(layer.ok());
  const WeightBytes of_layer = BytesOf(*layer);
  const int64_t num_layers = weights.shard.layers.size();
  bytes.attention += num_layers * of_layer.attention;
  bytes.ffn += num_layers * of_layer.ffn;
  bytes.vectors += num_layers * of_layer.vectors;
  return bytes;
}

WeightBytes ShardWeights::bytes() const {
  WeightBytes sum;
  sum.tables = BytesOf(embedding) + BytesOf(own_head);
  sum.vectors = final_norm.bytes.bytes() + rope.bytes.bytes();
  for (const LayerWeights& layer : layers) {
    const WeightBytes of_layer = BytesOf(layer);
    sum.attention += of_layer.attention;
    sum.ffn += of_layer.ffn;
    sum.vectors += of_layer.vectors;
  }
  return sum;
}

}  // namespace polyreme::weights
