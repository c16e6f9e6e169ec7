#include "worker/backend/cpu/kernel_table.h"
#include "worker/backend/cpu/vector_avx512.h"

namespace polyreme::backend::cpu {

const Kernels& Avx512Kernels() {
  static constexpr Kernels kTable = TableOf<VectorAvx512>("AVX-512");
  return kTable;
}

}  // namespace polyreme::backend::cpu
