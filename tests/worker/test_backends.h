// The backends that whole models and runners are tried on: the CPU's, and the GPU's where there is
// one. Whoever links this says once, before its tests, what of it does not run here and why.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/tensor/tensor.h"
#include "worker/backend/backend.h"

namespace polyreme {

struct TestBackend {
  std::string name;             // of the test's instance: "cpu", "cuda_f32"
  std::string device = "cpu";   // as backend::MakeBackend takes it
  DType dtype = DType::kF32;    // it computes in
  int32_t max_ranks = 1 << 20;  // on the GPU one rank has one GPU
  bool staged = false;          // all ranks on one GPU, joined by StagedFactory

  bool on_gpu() const { return device != "cpu"; }
  backend::BackendOptions options() const {
    backend::BackendOptions options;
    options.dtype = dtype;
    return options;
  }
  // Largest difference of logits, relative to the largest logit, that is put down to the order of
  // sums and, below float32, to rounding.
  double tolerance() const;
};
void PrintTo(const TestBackend& backend, std::ostream* out);

// "cpu", and where there is a GPU "cuda_f32", "cuda_f16" and "cuda_bf16".
std::vector<TestBackend> TestBackends();
// "staged_cpu", and where there is a GPU "staged_f32": ranks that share it.
std::vector<TestBackend> StagedBackends();
// Those of TestBackends that compute in float32.
std::vector<TestBackend> Float32Backends();

// A file of the source tree; POLYREME_SOURCE_DIR in the environment says where that is now.
std::string SourcePath(std::string_view relative);

}  // namespace polyreme
