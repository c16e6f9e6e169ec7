#include "worker/backend/cpu/kernel_table.h"
#include "worker/backend/cpu/vector_scalar.h"

namespace polyreme::backend::cpu {

const Kernels& ScalarKernels() {
  static constexpr Kernels kTable = TableOf<VectorScalar>("scalar");
  return kTable;
}

}  // namespace polyreme::backend::cpu
