// All kernels of one vector type V; see kernels.h.
#pragma once

#include "worker/backend/cpu/attention_kernels.h"
#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/probe_kernels.h"
#include "worker/backend/cpu/product_kernels.h"
#include "worker/backend/cpu/row_kernels.h"

namespace polyreme::backend::cpu {

template <class V>
constexpr Kernels TableOf(const char* name) {
  return {
      .name = name,
      .product = {Product<V, FormatF32<V>>, Product<V, FormatF16<V>>, Product<V, FormatBf16<V>>},
      .attend = {Attend<V, FormatF32<V>>, Attend<V, FormatF16<V>>, Attend<V, FormatBf16<V>>},
      .rms_norm = RmsNormRow<V>,
      .add = AddRow<V>,
      .silu_gate = SiluGateRow<V>,
      .rotate = RotateHead<V>,
      .read_all = ReadAll<V>,
      .multiply_add = MultiplyAdd<V>,
  };
}

}  // namespace polyreme::backend::cpu
