#include "parallel/tensor/tensor.h"

#include <fmt/format.h>

namespace polyreme {
namespace {

struct DTypeRow {
  DType dtype;
  int64_t bytes;
  std::string_view name;         // PyTorch's
  std::string_view safetensors;  // the file format's
};
constexpr DTypeRow kDTypes[] = {
    {DType::kF32, 4, "float32", "F32"},   {DType::kF16, 2, "float16", "F16"},
    {DType::kBF16, 2, "bfloat16", "BF16"}, {DType::kI64, 8, "int64", "I64"},
    {DType::kI32, 4, "int32", "I32"},     {DType::kU32, 4, "uint32", "U32"},
    {DType::kI8, 1, "int8", "I8"},        {DType::kU8, 1, "uint8", "U8"},
};

const DTypeRow& RowOf(DType dtype) { return kDTypes[static_cast<size_t>(dtype)]; }

}  // namespace

int64_t SizeOf(DType dtype) { return RowOf(dtype).bytes; }
std::string_view NameOf(DType dtype) { return RowOf(dtype).name; }

absl::StatusOr<DType> ParseDType(std::string_view name) {
  std::string_view bare = name;
  if (bare.starts_with("torch.")) bare.remove_prefix(6);
  for (const DTypeRow& row : kDTypes) {
    if (bare == row.name || bare == row.safetensors) return row.dtype;
  }
  if (bare == "half") return DType::kF16;
  if (bare == "float") return DType::kF32;
  return InvalidArgument(
      "expected a dtype such as float32, float16 or bfloat16, got '{:.40}'", name);
}

Shape::Shape(std::initializer_list<int64_t> extents)
    : Shape(absl::MakeConstSpan(extents.begin(), extents.size())) {}

Shape::Shape(absl::Span<const int64_t> extents) : rank_(static_cast<int>(extents.size())) {
  CHECK(rank_ <= kMaxRank, "a shape has at most {} axes, got {}", kMaxRank, rank_);
  for (size_t i = 0; i < extents.size(); ++i) {
    CHECK(extents[i] >= 0);
    extents_[i] = extents[i];
  }
}

int64_t Shape::num_elements() const {
  int64_t product = 1;
  for (int i = 0; i < rank_; ++i) product *= extents_[static_cast<size_t>(i)];
  return product;
}

std::string Shape::ToString() const {
  return fmt::format("[{}]", fmt::join(extents_.begin(), extents_.begin() + rank_, ", "));
}

}  // namespace polyreme
