// Arithmetic that host and device must do alike, to the bit: nvcc fuses a * b + c where it may,
// these it must not.
#pragma once

#include <cstring>

#ifdef __CUDACC__
#define POLYREME_HOST_DEVICE __host__ __device__
#else
#define POLYREME_HOST_DEVICE
#endif

namespace polyreme::backend {

POLYREME_HOST_DEVICE inline double Multiply(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

POLYREME_HOST_DEVICE inline double Plus(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}

POLYREME_HOST_DEVICE inline float Multiply(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

POLYREME_HOST_DEVICE inline float Plus(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

POLYREME_HOST_DEVICE inline float Divide(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

// std::bit_cast, for C++17 and devices.
template <class To, class From>
POLYREME_HOST_DEVICE inline To BitsAs(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace polyreme::backend
