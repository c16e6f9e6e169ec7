// What a collective and an op agree on: an element type, a shape, and borrowed row-major memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>

#include "absl/types/span.h"
#include "parallel/base/status.h"

namespace polyreme {

enum class DType : uint8_t { kF32, kF16, kBF16, kI64, kI32, kU32, kI8, kU8 };

int64_t SizeOf(DType dtype);           // bytes of one element
std::string_view NameOf(DType dtype);  // "float32", "bfloat16", ...
// From PyTorch's and safetensors' spellings ("bfloat16", "BF16", ...). InvalidArgument otherwise.
absl::StatusOr<DType> ParseDType(std::string_view name);
inline bool IsFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

// Up to four extents, outermost first.
class Shape {
 public:
  static constexpr int kMaxRank = 4;

  Shape() = default;
  Shape(std::initializer_list<int64_t> extents);
  explicit Shape(absl::Span<const int64_t> extents);

  int rank() const { return rank_; }
  int64_t operator[](int axis) const {
    CHECK(axis >= 0 && axis < rank_);
    return extents_[static_cast<size_t>(axis)];
  }
  int64_t num_elements() const;
  std::string ToString() const;  // "[3, 64]"
  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  int rank_ = 0;
  std::array<int64_t, kMaxRank> extents_{};
};

// Borrowed, row-major, contiguous. On a device the pointer is a device pointer; nobody here reads
// it.
template <class Void>
struct BasicTensorView {
  Void* data = nullptr;
  DType dtype = DType::kF32;
  Shape shape;

  int64_t num_elements() const { return shape.num_elements(); }
  int64_t bytes() const { return num_elements() * SizeOf(dtype); }
  int64_t rows() const { return shape[0]; }
  // Elements of one row of axis 0.
  int64_t row_elements() const { return shape[0] == 0 ? 0 : num_elements() / shape[0]; }

  // The elements as T; CHECKs only the size of the element.
  template <class T>
  auto* As() const {
    CHECK(static_cast<int64_t>(sizeof(T)) == SizeOf(dtype));
    if constexpr (std::is_const_v<Void>) {
      return static_cast<const T*>(data);
    } else {
      return static_cast<T*>(data);
    }
  }
  // Rows [begin, end) of axis 0.
  BasicTensorView Rows(int64_t begin, int64_t end) const;

  operator BasicTensorView<const void>() const requires(!std::is_const_v<Void>) {
    return {data, dtype, shape};
  }
};
using TensorView = BasicTensorView<void>;
using ConstTensorView = BasicTensorView<const void>;

template <class Void>
BasicTensorView<Void> BasicTensorView<Void>::Rows(int64_t begin, int64_t end) const {
  CHECK(shape.rank() >= 1 && 0 <= begin && begin <= end && end <= shape[0]);
  std::array<int64_t, Shape::kMaxRank> extents{};
  int64_t row = 1;
  for (int i = 0; i < shape.rank(); ++i) {
    extents[static_cast<size_t>(i)] = shape[i];
    if (i > 0) row *= shape[i];
  }
  extents[0] = end - begin;
  using Byte = std::conditional_t<std::is_const_v<Void>, const std::byte, std::byte>;
  return {static_cast<Byte*>(data) + begin * row * SizeOf(dtype), dtype,
          Shape(absl::MakeConstSpan(extents.data(), static_cast<size_t>(shape.rank())))};
}

}  // namespace polyreme
