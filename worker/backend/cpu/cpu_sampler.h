// Sampling on the CPU; see worker/ops/sampling.h.
#pragma once

#include "worker/backend/cpu/thread_pool.h"
#include "worker/ops/sampling.h"

namespace polyreme::backend {

// Rows are independent and shared out over the pool.
void SampleOnCpu(ThreadPool& pool, const ops::SampleBatch& batch);

}  // namespace polyreme::backend
