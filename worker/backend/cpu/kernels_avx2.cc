#include "worker/backend/cpu/kernel_table.h"
#include "worker/backend/cpu/vector_avx2.h"

namespace polyreme::backend::cpu {

const Kernels& Avx2Kernels() {
  static constexpr Kernels kTable = TableOf<VectorAvx2>("AVX2");
  return kTable;
}

}  // namespace polyreme::backend::cpu
