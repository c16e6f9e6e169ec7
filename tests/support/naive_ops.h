// The definition of each op: double precision, plain loops, written to be read. Letters as in
// worker/ops/ops.h.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "parallel/tensor/tensor.h"
#include "worker/ops/batch.h"

namespace polyreme::naive {

// Row-major.
struct Matrix {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<double> values;

  Matrix() = default;
  Matrix(int64_t num_rows, int64_t num_cols)
      : rows(num_rows), cols(num_cols), values(static_cast<size_t>(num_rows * num_cols)) {}
  double& at(int64_t r, int64_t c) { return values[static_cast<size_t>(r * cols + c)]; }
  double at(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * cols + c)]; }
};
using Vector = std::vector<double>;

// The nearest value that `dtype` can hold, ties to even.
double RoundTo(DType dtype, double value);
// Each value rounded, as the bytes of a tensor of that type.
std::vector<std::byte> ToBytes(DType dtype, absl::Span<const double> values);
std::vector<double> FromBytes(DType dtype, absl::Span<const std::byte> bytes);

Matrix Embed(absl::Span<const int32_t> tokens, const Matrix& table, int64_t first_row);
Matrix RmsNorm(const Matrix& x, const Vector& gain, double epsilon);
Matrix Add(const Matrix& x, const Matrix& delta);
Matrix AddBias(const Matrix& x, const Vector& bias);
Matrix MatMul(const Matrix& x, const Matrix& w);
Matrix SiluGate(const Matrix& x);
Matrix GatherRows(const Matrix& x, absl::Span<const int32_t> rows);
Matrix NormHeads(const Matrix& qkv, const ops::HeadLayout& heads, const Vector& q_gain,
                 const Vector& k_gain, double epsilon);
// cos_sin [positions, D] as in ops::RopeTable. Values stay as they are.
Matrix Rotate(const Matrix& qkv, absl::Span<const int32_t> positions, const ops::HeadLayout& heads,
              const Matrix& cos_sin);
// Attention of the rows of qkv, which stand at first_position, first_position + 1, ... of one
// sequence, whose keys and values [positions, G D] are given from position 0 on. Returns [T, H D].
Matrix Attend(const Matrix& qkv, int64_t first_position, const ops::HeadLayout& heads,
              const Matrix& keys, const Matrix& values, double scale);

}  // namespace polyreme::naive
