// cublasLt, opened at run time, and one product of it.
#pragma once

#include <cublasLt.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "parallel/base/dynamic_library.h"
#include "parallel/base/status.h"
#include "worker/backend/cuda/element.h"

namespace polyreme::cuda {

// The functions of cublasLt that we call, as its header declares them.
struct CublasFunctions {
  decltype(&cublasLtGetVersion) get_version = nullptr;
  decltype(&cublasLtGetStatusString) get_status_string = nullptr;
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&cublasLtMatrixLayoutSetAttribute) layout_set = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) get_heuristic = nullptr;
  decltype(&cublasLtMatmulAlgoCheck) check_algorithm = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
};

// The bytes of a cublasLtMatmulAlgo_t: plain data that the same library on the same GPU
// understands again.
using CublasAlgorithm = std::array<uint64_t, 8>;
static_assert(sizeof(CublasAlgorithm) == sizeof(cublasLtMatmulAlgo_t));

// The library with a handle on the current device. Needs nothing of the device until used.
class CublasLibrary {
 public:
  static constexpr size_t kWorkspaceBytes = size_t{kProductWorkspaceBytes};

  // FailedPrecondition: what was looked for, and what the loader said; or what an old library
  // lacks.
  static absl::StatusOr<std::unique_ptr<CublasLibrary>> Open();
  // "13.1.0" of the library that would be opened, for reports. Errors as Open.
  static absl::StatusOr<std::string> FindVersion();
  ~CublasLibrary();
  CublasLibrary(const CublasLibrary&) = delete;
  CublasLibrary& operator=(const CublasLibrary&) = delete;

  const std::string& version() const { return version_; }
  const CublasFunctions& functions() const { return functions_; }
  cublasLtHandle_t handle() const { return handle_; }
  // Ok, or Internal with the library's word for it.
  absl::Status StatusOf(cublasStatus_t status, std::string_view what) const;

 private:
  CublasLibrary(DynamicLibrary library, const CublasFunctions& functions);
  static absl::StatusOr<std::unique_ptr<CublasLibrary>> Load();

  DynamicLibrary library_;
  CublasFunctions functions_;
  std::string version_;
  cublasLtHandle_t handle_ = nullptr;
};

// y[T, N] = x[T, K] · wᵀ for one N, K and pair of types, any T. Row-major y is column-major
// N x T: (w as column-major K x N) transposed, times (x as column-major K x T). Arithmetic is
// float32 from products of the operands' type; float32 operands are never rounded to TF32.
// One thread at a time. The library must outlive it.
class CublasProduct {
 public:
  static absl::StatusOr<std::unique_ptr<CublasProduct>> Make(const CublasLibrary& library,
                                                             Element type, int64_t n, int64_t k,
                                                             Element out);
  ~CublasProduct();
  CublasProduct(const CublasProduct&) = delete;
  CublasProduct& operator=(const CublasProduct&) = delete;

  // Pointers that algorithms may be used with.
  static bool Takes(const void* x, const void* w, const void* y);

  // Up to max_count algorithms for `rows`, the library's best guess first; none where it has none.
  // Work on the host only.
  std::vector<CublasAlgorithm> Candidates(int64_t rows, int max_count);
  // Whether an algorithm (of a file, or chosen for another number of rows) serves `rows`.
  bool Supports(const CublasAlgorithm& algorithm, int64_t rows);
  // workspace: CublasLibrary::kWorkspaceBytes at a multiple of 256. Neither allocates nor waits;
  // may be captured.
  absl::Status Run(cudaStream_t stream, const CublasAlgorithm& algorithm, const void* x,
                   int64_t rows, const void* w, void* y, void* workspace);

 private:
  explicit CublasProduct(const CublasLibrary& library) : library_(library) {}
  absl::Status Describe(Element type, int64_t n, int64_t k, Element out);
  absl::Status SetRows(int64_t rows);

  const CublasLibrary& library_;
  cublasLtMatmulDesc_t desc_ = nullptr;
  cublasLtMatrixLayout_t w_ = nullptr;
  cublasLtMatrixLayout_t x_ = nullptr;
  cublasLtMatrixLayout_t y_ = nullptr;
  cublasLtMatmulPreference_t preference_ = nullptr;
  int64_t rows_ = 0;  // that x_ and y_ are set to
};

}  // namespace polyreme::cuda
