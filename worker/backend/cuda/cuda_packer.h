// Weights as the GPU's products read them: [N, K] row-major in the backend's type.
//
// Bytes travel as they stand in the file, through pinned double buffers, one pair and one stream
// for each of several copying threads, and are converted on the device. Dummy weights are made
// there.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "parallel/base/status.h"
#include "parallel/tensor/device.h"
#include "worker/weights/weight.h"

namespace polyreme::cuda {

// Weights come from `allocate` (ResourceExhausted is passed on), which must outlive the packer with
// all that it needs; vectors too. dtype: F32, F16 or BF16. Pack returns when the weight is complete
// on the device: InvalidArgument with the number of values that do not fit float16. Segments are
// kept and mean nothing. Threads and 12 x 2 x 2 MiB of pinned memory are taken by the first Pack
// that uploads, and given back by ReleaseStaging or with the packer. One caller at a time.
absl::StatusOr<std::unique_ptr<weights::WeightPacker>> MakeCudaPacker(
    int device_index, DType dtype, std::function<absl::StatusOr<Buffer>(int64_t)> allocate);

}  // namespace polyreme::cuda
