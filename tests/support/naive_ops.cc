#include "tests/support/naive_ops.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "worker/weights/floats.h"

namespace polyreme::naive {
namespace {

// Of the numbers with `mantissa_bits` after the leading one and exponents from min_exponent on.
double RoundToGrid(double value, int mantissa_bits, int min_exponent) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int exponent = std::max(std::ilogb(value), min_exponent);
  const double step = std::ldexp(1.0, exponent - mantissa_bits);
  return std::nearbyint(value / step) * step;
}

void NormOneHead(Matrix& qkv, int64_t row, int64_t column, const Vector& gain, double epsilon) {
  double squares = 0;
  const auto width = static_cast<int64_t>(gain.size());
  for (int64_t d = 0; d < width; ++d) squares += qkv.at(row, column + d) * qkv.at(row, column + d);
  const double root = std::sqrt(squares / static_cast<double>(width) + epsilon);
  for (int64_t d = 0; d < width; ++d)
    qkv.at(row, column + d) *= gain[static_cast<size_t>(d)] / root;
}

}  // namespace

double RoundTo(DType dtype, double value) {
  switch (dtype) {
    case DType::kF32:
      return static_cast<double>(static_cast<float>(value));
    case DType::kBF16: {
      const double rounded = RoundToGrid(value, 7, -126);
      return std::abs(rounded) < 0x1p128 ? rounded : std::copysign(INFINITY, value);
    }
    case DType::kF16: {
      const double rounded = RoundToGrid(value, 10, -14);
      return std::abs(rounded) < 65536 ? rounded : std::copysign(INFINITY, value);
    }
    default:
      break;
  }
  CHECK(false, "{} is no float", NameOf(dtype));
}

std::vector<std::byte> ToBytes(DType dtype, absl::Span<const double> values) {
  std::vector<std::byte> bytes(values.size() * static_cast<size_t>(SizeOf(dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    const double value = RoundTo(dtype, values[i]);
    const auto bits = std::bit_cast<uint32_t>(static_cast<float>(value));
    if (dtype == DType::kF32) {
      std::memcpy(&bytes[4 * i], &bits, 4);
      continue;
    }
    auto half = static_cast<uint16_t>(bits >> 16);  // bfloat16: a rounded float32 cut in half
    if (dtype == DType::kF16) {
      const auto sign = static_cast<uint16_t>(half & 0x8000u);
      const double size = std::abs(value);
      if (std::isnan(value)) {
        half = 0x7e00;
      } else if (std::isinf(value)) {
        half = sign | 0x7c00u;
      } else if (size < 0x1p-14) {
        half = static_cast<uint16_t>(sign | static_cast<uint16_t>(size * 0x1p24));
      } else {
        const int exponent = std::ilogb(size);
        const double mantissa = (std::ldexp(size, -exponent) - 1.0) * 1024;
        half = static_cast<uint16_t>(sign | ((exponent + 15) << 10) | static_cast<int>(mantissa));
      }
    }
    std::memcpy(&bytes[2 * i], &half, 2);
  }
  return bytes;
}

std::vector<double> FromBytes(DType dtype, absl::Span<const std::byte> bytes) {
  std::vector<float> floats;
  weights::AppendAsFloats(dtype, bytes.data(), static_cast<int64_t>(bytes.size()) / SizeOf(dtype),
                          floats);
  return {floats.begin(), floats.end()};
}

Matrix Embed(absl::Span<const int32_t> tokens, const Matrix& table, int64_t first_row) {
  Matrix y(static_cast<int64_t>(tokens.size()), table.cols);
  for (int64_t t = 0; t < y.rows; ++t) {
    const int64_t row = tokens[static_cast<size_t>(t)] - first_row;
    if (row < 0 || row >= table.rows) continue;
    for (int64_t e = 0; e < y.cols; ++e) y.at(t, e) = table.at(row, e);
  }
  return y;
}

Matrix RmsNorm(const Matrix& x, const Vector& gain, double epsilon) {
  Matrix y = x;
  for (int64_t t = 0; t < y.rows; ++t) NormOneHead(y, t, 0, gain, epsilon);
  return y;
}

Matrix Add(const Matrix& x, const Matrix& delta) {
  Matrix y = x;
  for (size_t i = 0; i < y.values.size(); ++i) y.values[i] += delta.values[i];
  return y;
}

Matrix AddBias(const Matrix& x, const Vector& bias) {
  Matrix y = x;
  for (int64_t t = 0; t < y.rows; ++t) {
    for (int64_t n = 0; n < y.cols; ++n) y.at(t, n) += bias[static_cast<size_t>(n)];
  }
  return y;
}

Matrix MatMul(const Matrix& x, const Matrix& w) {
  Matrix y(x.rows, w.rows);
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t n = 0; n < w.rows; ++n) {
      for (int64_t k = 0; k < w.cols; ++k) y.at(t, n) += x.at(t, k) * w.at(n, k);
    }
  }
  return y;
}

Matrix SiluGate(const Matrix& x) {
  Matrix y(x.rows, x.cols / 2);
  for (int64_t t = 0; t < y.rows; ++t) {
    for (int64_t f = 0; f < y.cols; ++f) {
      const double gate = x.at(t, f);
      y.at(t, f) = gate / (1 + std::exp(-gate)) * x.at(t, y.cols + f);
    }
  }
  return y;
}

Matrix GatherRows(const Matrix& x, absl::Span<const int32_t> rows) {
  Matrix y(static_cast<int64_t>(rows.size()), x.cols);
  for (int64_t i = 0; i < y.rows; ++i) {
    for (int64_t e = 0; e < y.cols; ++e) y.at(i, e) = x.at(rows[static_cast<size_t>(i)], e);
  }
  return y;
}

Matrix NormHeads(const Matrix& qkv, const ops::HeadLayout& heads, const Vector& q_gain,
                 const Vector& k_gain, double epsilon) {
  Matrix y = qkv;
  for (int64_t t = 0; t < y.rows; ++t) {
    for (int64_t h = 0; h < heads.query_heads + heads.kv_heads; ++h) {
      NormOneHead(y, t, h * heads.head_dim, h < heads.query_heads ? q_gain : k_gain, epsilon);
    }
  }
  return y;
}

Matrix Rotate(const Matrix& qkv, absl::Span<const int32_t> positions, const ops::HeadLayout& heads,
              const Matrix& cos_sin) {
  Matrix y = qkv;
  const int64_t half = heads.head_dim / 2;
  for (int64_t t = 0; t < y.rows; ++t) {
    const int64_t position = positions[static_cast<size_t>(t)];
    for (int64_t h = 0; h < heads.query_heads + heads.kv_heads; ++h) {
      for (int64_t d = 0; d < half; ++d) {
        const int64_t a = h * heads.head_dim + d;
        const double cosine = cos_sin.at(position, d);
        const double sine = cos_sin.at(position, half + d);
        y.at(t, a) = qkv.at(t, a) * cosine - qkv.at(t, a + half) * sine;
        y.at(t, a + half) = qkv.at(t, a + half) * cosine + qkv.at(t, a) * sine;
      }
    }
  }
  return y;
}

Matrix Attend(const Matrix& qkv, int64_t first_position, const ops::HeadLayout& heads,
              const Matrix& keys, const Matrix& values, double scale) {
  Matrix y(qkv.rows, heads.query_heads * heads.head_dim);
  const int64_t group = heads.query_heads / heads.kv_heads;
  for (int64_t t = 0; t < qkv.rows; ++t) {
    for (int64_t h = 0; h < heads.query_heads; ++h) {
      const int64_t q = h * heads.head_dim;
      const int64_t kv = h / group * heads.head_dim;
      std::vector<double> scores;
      for (int64_t j = 0; j <= first_position + t; ++j) {
        double score = 0;
        for (int64_t d = 0; d < heads.head_dim; ++d) score += qkv.at(t, q + d) * keys.at(j, kv + d);
        scores.push_back(scale * score);
      }
      const double largest = *std::max_element(scores.begin(), scores.end());
      double sum = 0;
      for (double& score : scores) sum += score = std::exp(score - largest);
      for (int64_t j = 0; j <= first_position + t; ++j) {
        const double share = scores[static_cast<size_t>(j)] / sum;
        for (int64_t d = 0; d < heads.head_dim; ++d) y.at(t, q + d) += share * values.at(j, kv + d);
      }
    }
  }
  return y;
}

}  // namespace polyreme::naive
