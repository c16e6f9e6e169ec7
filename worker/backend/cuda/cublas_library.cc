#include "worker/backend/cuda/cublas_library.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace polyreme::cuda {
namespace {

// Of x, w and y. Lanes and weights give 64; the library would assume 256.
constexpr uint32_t kAlignment = 16;

absl::StatusOr<CublasFunctions> FindFunctions(const DynamicLibrary& library) {
  CublasFunctions f;
  RETURN_IF_ERROR(library.Find("cublasLtGetVersion", f.get_version));
  RETURN_IF_ERROR(library.Find("cublasLtGetStatusString", f.get_status_string));
  RETURN_IF_ERROR(library.Find("cublasLtCreate", f.create));
  RETURN_IF_ERROR(library.Find("cublasLtDestroy", f.destroy));
  RETURN_IF_ERROR(library.Find("cublasLtMatmulDescCreate", f.desc_create));
  RETURN_IF_ERROR(library.Find("cublasLtMatmulDescDestroy", f.desc_destroy));
  RETURN_IF_ERROR(library.Find("cublasLtMatmulDescSetAttribute", f.desc_set));
  RETURN_IF_ERROR(library.Find("cublasLtMatrixLayoutCreate", f.layout_create));
  RETURN_IF_ERROR(library.Find("cublasLtMatrixLayoutDestroy", f.layout_destroy));
  RETURN_IF_ERROR(library.Find("cublasLtMatrixLayoutSetAttribute", f.layout_set));
  RETURN_IF_ERROR(library.Find("cublasLtMatmulPreferenceCreate", f.preference_create));
  RETURN_IF_ERROR(library.Find("cublasLtMatmulPreferenceDestroy", f.preference_destroy));
  RETURN_IF_ERROR(library.Find("cublasLtMatmulPreferenceSetAttribute", f.preference_set));
  RETURN_IF_ERROR(library.Find("cublasLtMatmulAlgoGetHeuristic", f.get_heuristic));
  RETURN_IF_ERROR(library.Find("cublasLtMatmulAlgoCheck", f.check_algorithm));
  RETURN_IF_ERROR(library.Find("cublasLtMatmul", f.matmul));
  return f;
}

cudaDataType_t TypeOf(Element element) {
  if (element == Element::kF32) return CUDA_R_32F;
  return element == Element::kF16 ? CUDA_R_16F : CUDA_R_16BF;
}

cublasLtMatmulAlgo_t Unpacked(const CublasAlgorithm& algorithm) {
  cublasLtMatmulAlgo_t unpacked;
  std::memcpy(&unpacked, &algorithm, sizeof(unpacked));
  return unpacked;
}

}  // namespace

CublasLibrary::CublasLibrary(DynamicLibrary library, const CublasFunctions& functions)
    : library_(std::move(library)), functions_(functions) {
  const size_t version = functions_.get_version();
  version_ = fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

CublasLibrary::~CublasLibrary() {
  if (handle_ != nullptr) functions_.destroy(handle_);
  // Unloading it would pull kernels from under whatever the device still runs.
  library_.Leak();
}

absl::StatusOr<std::unique_ptr<CublasLibrary>> CublasLibrary::Load() {
  const std::string names[] = {"libcublasLt.so.13", "libcublasLt.so.12",
                               "/usr/local/cuda/lib64/libcublasLt.so.13",
                               "/usr/local/cuda/lib64/libcublasLt.so.12"};
  ASSIGN_OR_RETURN(DynamicLibrary library,
                   DynamicLibrary::OpenFirst("cublasLt of CUDA 12 or 13 (on LD_LIBRARY_PATH, "
                                             "known to ldconfig, or in /usr/local/cuda/lib64)",
                                             names));
  absl::StatusOr<CublasFunctions> functions = FindFunctions(library);
  if (!functions.ok()) return std::move(functions).status();
  return std::unique_ptr<CublasLibrary>(new CublasLibrary(std::move(library), *functions));
}

absl::StatusOr<std::string> CublasLibrary::FindVersion() {
  ASSIGN_OR_RETURN(const std::unique_ptr<CublasLibrary> library, Load());
  return library->version();
}

absl::StatusOr<std::unique_ptr<CublasLibrary>> CublasLibrary::Open() {
  ASSIGN_OR_RETURN(std::unique_ptr<CublasLibrary> library, Load());
  const cublasStatus_t status = library->functions_.create(&library->handle_);
  if (status != CUBLAS_STATUS_SUCCESS) {
    return FailedPrecondition("cublasLt {} ({}) does not start on this GPU and driver: {}",
                              library->version_, library->library_.name(),
                              library->functions_.get_status_string(status));
  }
  return library;
}

absl::Status CublasLibrary::StatusOf(cublasStatus_t status, std::string_view what) const {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return Internal("{}: cublasLt {} says: {}", what, version_, functions_.get_status_string(status));
}

absl::StatusOr<std::unique_ptr<CublasProduct>> CublasProduct::Make(const CublasLibrary& library,
                                                                   Element type, int64_t n,
                                                                   int64_t k, Element out) {
  std::unique_ptr<CublasProduct> product(new CublasProduct(library));
  RETURN_IF_ERROR(
      Annotate(product->Describe(type, n, k, out), fmt::format("product of N {} K {}", n, k)));
  return product;
}

CublasProduct::~CublasProduct() {
  const CublasFunctions& f = library_.functions();
  if (preference_ != nullptr) f.preference_destroy(preference_);
  for (const cublasLtMatrixLayout_t layout : {w_, x_, y_}) {
    if (layout != nullptr) f.layout_destroy(layout);
  }
  if (desc_ != nullptr) f.desc_destroy(desc_);
}

absl::Status CublasProduct::Describe(Element type, int64_t n, int64_t k, Element out) {
  const CublasFunctions& f = library_.functions();
  const auto check = [&](cublasStatus_t status) {
    return library_.StatusOf(status, "describing it");
  };
  // CUBLAS_COMPUTE_32F: float32 sums, and for float32 operands no TF32.
  RETURN_IF_ERROR(check(f.desc_create(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F)));
  const cublasOperation_t transposed = CUBLAS_OP_T;
  RETURN_IF_ERROR(
      check(f.desc_set(desc_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed))));
  rows_ = 1;
  const auto un = static_cast<uint64_t>(n);
  const auto uk = static_cast<uint64_t>(k);
  RETURN_IF_ERROR(check(f.layout_create(&w_, TypeOf(type), uk, un, k)));
  RETURN_IF_ERROR(check(f.layout_create(&x_, TypeOf(type), uk, 1, k)));
  RETURN_IF_ERROR(check(f.layout_create(&y_, TypeOf(out), un, 1, n)));
  RETURN_IF_ERROR(check(f.preference_create(&preference_)));
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    return check(f.preference_set(preference_, attribute, &value, sizeof(value)));
  };
  const uint64_t workspace = CublasLibrary::kWorkspaceBytes;
  RETURN_IF_ERROR(prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace));
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    RETURN_IF_ERROR(prefer(attribute, kAlignment));
  }
  // Where K is split: partial sums of float32 side by side in the workspace, added by a second step
  // in a fixed order. So no atomics, and no rounding to the type of y in between, as the other two
  // schemes do. (The library promises the same bits on each run besides, for the same GPU and
  // version.)
  const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  return prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes);
}

absl::Status CublasProduct::SetRows(int64_t rows) {
  if (rows == rows_) return absl::OkStatus();
  const auto count = static_cast<uint64_t>(rows);
  for (const cublasLtMatrixLayout_t layout : {x_, y_}) {
    RETURN_IF_ERROR(library_.StatusOf(
        library_.functions().layout_set(layout, CUBLASLT_MATRIX_LAYOUT_COLS, &count, sizeof(count)),
        "setting the rows of a product"));
  }
  rows_ = rows;
  return absl::OkStatus();
}

bool CublasProduct::Takes(const void* x, const void* w, const void* y) {
  for (const void* pointer : {x, w, y}) {
    if (reinterpret_cast<uintptr_t>(pointer) % kAlignment != 0) return false;
  }
  return true;
}

std::vector<CublasAlgorithm> CublasProduct::Candidates(int64_t rows, int max_count) {
  if (!SetRows(rows).ok()) return {};
  std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(max_count));
  int count = 0;
  const cublasStatus_t status = library_.functions().get_heuristic(
      library_.handle(), desc_, w_, x_, y_, y_, preference_, max_count, results.data(), &count);
  std::vector<CublasAlgorithm> algorithms;
  if (status != CUBLAS_STATUS_SUCCESS) return algorithms;
  results.resize(static_cast<size_t>(std::clamp(count, 0, max_count)));
  for (const cublasLtMatmulHeuristicResult_t& result : results) {
    if (result.state != CUBLAS_STATUS_SUCCESS ||
        result.workspaceSize > CublasLibrary::kWorkspaceBytes) {
      continue;
    }
    std::memcpy(&algorithms.emplace_back(), &result.algo, sizeof(result.algo));
  }
  return algorithms;
}

bool CublasProduct::Supports(const CublasAlgorithm& algorithm, int64_t rows) {
  if (!SetRows(rows).ok()) return false;
  const cublasLtMatmulAlgo_t unpacked = Unpacked(algorithm);
  cublasLtMatmulHeuristicResult_t result = {};
  const cublasStatus_t status = library_.functions().check_algorithm(
      library_.handle(), desc_, w_, x_, y_, y_, &unpacked, &result);
  return status == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= CublasLibrary::kWorkspaceBytes;
}

absl::Status CublasProduct::Run(cudaStream_t stream, const CublasAlgorithm& algorithm,
                                const void* x, int64_t rows, const void* w, void* y,
                                void* workspace) {
  RETURN_IF_ERROR(SetRows(rows));
  const cublasLtMatmulAlgo_t unpacked = Unpacked(algorithm);
  const float one = 1.0f;
  const float zero = 0.0f;
  const cublasStatus_t status =
      library_.functions().matmul(library_.handle(), desc_, &one, w, w_, x, x_, &zero, y, y_, y, y_,
                                  &unpacked, workspace, CublasLibrary::kWorkspaceBytes, stream);
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return library_.StatusOf(status, fmt::format("product of {} rows", rows));
}

}  // namespace polyreme::cuda
