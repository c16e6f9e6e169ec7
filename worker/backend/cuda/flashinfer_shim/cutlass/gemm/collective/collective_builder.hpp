// Stands before CUTLASS's own header of this name: FlashInfer's Hopper attention needs the layouts
// of shared memory that it hands on, and none of the matrix products that it also brings in, which
// are most of the time to compile.
#pragma once

#include "cute/atom/mma_traits_sm90_gmma.hpp"
#include "cute/tensor.hpp"
#include "cutlass/arch/memory_sm80.h"
#include "cutlass/arch/mma.h"
#include "cutlass/gemm/dispatch_policy.hpp"
#include "cutlass/gemm/gemm.h"
#include "cutlass/pipeline/sm90_pipeline.hpp"
// Last: it uses what stands above without including it.
#include "cutlass/gemm/collective/builders/sm90_common.inl"
