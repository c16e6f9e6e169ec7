// Flash decoding (Dao et al. 2023) on m16n8k16 products: the query heads of one kv head are the n8,
// a tile of 16 positions is the m16 of S = K Qᵀ, sixteen columns of the head are the m16 of Yᵀ =
// Vᵀ Sᵀ. Each of a block's four warps walks every fourth tile of the block's share with a ring of
// its own, filled by cp.async, so that the loop over tiles knows no barrier; at the end of a row's
// kv head the warps merge. The ring is filled across such ends.
#include "worker/backend/cuda/decode_attention.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math.h>

#include "worker/backend/cuda/decode_instructions.cuh"

namespace polyreme::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kTile = kDecodeTile;
constexpr int kMaxGroup = kDecodeMaxGroup;
constexpr int kMinShare = 8;  // tiles: two for each warp
constexpr int kPlanThreads = 256;
constexpr int kMaxBlocks = 1024;
constexpr float kLog2E = 1.4426950408889634f;

// A row of the step that is served here.
struct alignas(16) Row {
  int token;
  int slot;
  int length;      // positions that it sees; 0: padding
  int first_tile;  // tiles of all rows before
};
// Where a block's share begins, and how many tiles it has.
struct alignas(16) Share {
  int row;  // index of Row
  int kv_head;
  int tile;
  int count;
  Row first;  // rows[row]
};
// In device memory: this, the shares of num_blocks, the rows.
struct alignas(16) PlanHeader {
  int tiles_per_share;
};

static_assert(sizeof(PlanHeader) == kDecodeHeaderBytes && sizeof(Share) == kDecodeShareBytes &&
                  sizeof(Row) == kDecodeRowBytes,
              "AttentionParts are of these sizes");

struct Plan {
  PlanHeader* header;
  Share* shares;
  Row* rows;
};
__host__ __device__ inline Plan CarvePlan(void* memory, int num_blocks) {
  Plan plan;
  plan.header = static_cast<PlanHeader*>(memory);
  plan.shares = reinterpret_cast<Share*>(plan.header + 1);
  plan.rows = reinterpret_cast<Row*>(plan.shares + num_blocks);
  return plan;
}
__device__ __forceinline__ int TilesOf(const Row& row) {
  return (row.length + kTile - 1) / kTile;
}

// The block's inclusive sum over its threads, in place.
__device__ void InclusiveSum(int* values) {
  const int i = threadIdx.x;
  for (int k = 1; k < kPlanThreads; k *= 2) {
    const int before = i >= k ? values[i - k] : 0;
    __syncthreads();
    values[i] += before;
    __syncthreads();
  }
}

// The row that `flat` on the line of tiles belongs to: the last one that begins at or before it
// (rows without tiles begin where the next one does).
__device__ int FindRow(const Row* rows, int num_rows, int kv_heads, int flat) {
  int low = 0, high = num_rows - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (rows[middle].first_tile * kv_heads <= flat) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

__global__ void __launch_bounds__(kPlanThreads) PlanKernel(DecodeAttentionArguments a) {
  __shared__ int sums[kPlanThreads];
  const Plan plan = CarvePlan(a.plan, a.num_blocks);
  const int kv_heads = a.heads.kv_heads;
  int tiles_before = 0;
  for (int base = 0; base < a.num_rows; base += kPlanThreads) {
    const int i = base + threadIdx.x;
    Row row = {};
    if (i < a.num_rows) {
      const int of_step = a.rows != nullptr ? a.rows[i] : i;
      row.token = a.step.row_begins[of_step];
      row.slot = a.step.row_slots[of_step];
      row.length = a.step.positions[row.token] + 1;
    }
    sums[threadIdx.x] = TilesOf(row);
    __syncthreads();
    InclusiveSum(sums);
    row.first_tile = tiles_before + sums[threadIdx.x] - TilesOf(row);
    if (i < a.num_rows) plan.rows[i] = row;
    tiles_before += sums[kPlanThreads - 1];
    __syncthreads();
  }
  const int total = tiles_before * kv_heads;
  const int per_share = max(kMinShare, (total + a.num_blocks - 1) / a.num_blocks);
  if (threadIdx.x == 0) plan.header->tiles_per_share = per_share;
  for (int b = threadIdx.x; b < a.num_blocks; b += kPlanThreads) {
    Share share = {};
    // No product that could overflow: shares behind the end have none.
    const bool any = b <= (total - 1) / per_share && total > 0;
    if (any) {
      const int flat = b * per_share;
      share.row = FindRow(plan.rows, a.num_rows, kv_heads, flat);
      share.first = plan.rows[share.row];
      const int within = flat - share.first.first_tile * kv_heads;
      const int tiles = TilesOf(share.first);
      share.kv_head = within / tiles;
      share.tile = within % tiles;
      share.count = min(per_share, total - flat);
    }
    plan.shares[b] = share;
  }
}

struct Parameters {
  Plan plan;
  const void* qkv;
  const void* keys;
  const void* values;
  void* y;
  float* partials;  // [num_rows G + num_blocks, group, D] sums, then (maximum, sum of weights)
  float2* partial_weights;
  const int32_t* block_table;
  int table_stride;
  int tiles_per_block_shift;
  int num_blocks;
  int query_heads;
  int kv_heads;
  int group;
  float scale_log2;
};

// The next row that has tiles.
__device__ __forceinline__ Row NextRow(const Parameters& p, int& index) {
  Row row;
  do {
    row = p.plan.rows[++index];
  } while (row.length == 0);
  return row;
}

// Sizes in shared memory of a kernel for heads of kD columns with rings of kStages tiles.
template <int kD, int kStages>
struct Layout {
  static constexpr int kRowBytes = 2 * kD;
  static constexpr int kTileBytes = kTile * kRowBytes;
  static constexpr int kRingBytes = kStages * 2 * kTileBytes;  // keys and values
  // Of merging: heads are kD + 4 floats apart, for the banks' sake.
  static constexpr int kMergeStride = kD + 4;
  static constexpr int kMergeOffset = kWarps * kRingBytes;
  static constexpr int kWeightsOffset =
      kMergeOffset + kWarps * kMaxGroup * kMergeStride * static_cast<int>(sizeof(float));
  static constexpr int kBytes =
      kWeightsOffset + kWarps * kMaxGroup * static_cast<int>(sizeof(float2));
  // Where 16-byte part `part` of row `row` lies in a tile: swizzled, so that ldmatrix's eight rows
  // meet different banks.
  static __device__ __forceinline__ unsigned Offset(int row, int part) {
    return static_cast<unsigned>(row * kRowBytes + ((part ^ (row & 7)) << 4));
  }
};

// A warp's way through the block's share, in front of the arithmetic: brings tile after tile to the
// ring.
template <class T, int kD, int kStages>
class Fetcher {
 public:
  using Sizes = Layout<kD, kStages>;

  __device__ Fetcher(const Parameters& p, const Share& share, int warp, unsigned ring)
      : p_(p),
        ring_(ring),
        index_(share.row),
        kv_head_(share.kv_head),
        tile_(share.tile),
        left_(share.count),
        row_(share.first) {
    Advance(warp);
  }

  // Starts the next tile's copies, if there is one; a group of cp.async either way.
  __device__ __forceinline__ void Fetch(int stage) {
    if (left_ > 0) {
      constexpr int kParts = Sizes::kRowBytes / 16;  // of a row; a lane has one
      constexpr int kRowsAtOnce = 32 / kParts;
      const int lane = threadIdx.x % 32, part = lane % kParts;
      const int64_t token_stride = static_cast<int64_t>(p_.kv_heads) * kD;
      const int64_t place =
          (((static_cast<int64_t>(block_) << p_.tiles_per_block_shift) + tile_in_block()) * kTile) *
              token_stride +
          kv_head_ * kD + part * 8;
      const T* keys = static_cast<const T*>(p_.keys) + place;
      const T* values = static_cast<const T*>(p_.values) + place;
      // Places behind the sequence are not read: stale ones may hold anything, even NaN.
      const int held = row_.length - tile_ * kTile;
      const unsigned to = ring_ + stage * 2 * Sizes::kTileBytes;
#pragma unroll
      for (int i = 0; i < kTile / kRowsAtOnce; ++i) {
        const int j = i * kRowsAtOnce + lane / kParts;
        const int bytes = j < held ? 16 : 0;
        const int64_t offset = j < held ? j * token_stride : 0;
        CopyAsync(to + Sizes::Offset(j, part), keys + offset, bytes);
        CopyAsync(to + Sizes::kTileBytes + Sizes::Offset(j, part), values + offset, bytes);
      }
      Advance(kWarps);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }

 private:
  __device__ __forceinline__ int tile_in_block() const {
    return tile_ & ((1 << p_.tiles_per_block_shift) - 1);
  }
  // Goes `by` tiles on and looks the block up, a turn before it is needed.
  __device__ __forceinline__ void Advance(int by) {
    left_ -= by;
    if (left_ <= 0) return;
    tile_ += by;
    for (int tiles = TilesOf(row_); tile_ >= tiles; tiles = TilesOf(row_)) {
      tile_ -= tiles;
      if (++kv_head_ == p_.kv_heads) {
        kv_head_ = 0;
        row_ = NextRow(p_, index_);
      }
    }
    block_ = p_.block_table[static_cast<int64_t>(row_.slot) * p_.table_stride +
                            (tile_ >> p_.tiles_per_block_shift)];
  }

  const Parameters& p_;
  unsigned ring_;
  int index_;
  int kv_head_;
  int tile_;
  int left_;  // tiles of the share from here on
  Row row_;
  int block_ = 0;
};

// A warp's sums for the query heads of one kv head: a thread has heads 2 (lane % 4) and the next,
// of columns 16 i + lane / 4 and 8 further.
template <class T, int kD, int kStages>
struct State {
  using Sizes = Layout<kD, kStages>;
  unsigned q[kD / 16][2];
  float y[kD / 16][4];
  float max[2];
  float sum[2];  // of this thread's positions

  __device__ __forceinline__ void Begin(const Parameters& p, const Row& row, int kv_head) {
    const int lane = threadIdx.x % 32;
    const int64_t columns = static_cast<int64_t>(p.query_heads + 2 * p.kv_heads) * kD;
    const T* from = static_cast<const T*>(p.qkv) + row.token * columns +
                    static_cast<int64_t>(kv_head * p.group + lane / 4) * kD + lane % 4 * 2;
    const bool there = lane / 4 < p.group;
#pragma unroll
    for (int i = 0; i < kD / 16; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        q[i][half] = there ? *reinterpret_cast<const unsigned*>(from + i * 16 + half * 8) : 0;
        y[i][2 * half] = y[i][2 * half + 1] = 0;
      }
    }
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }

  // `held` of the tile's positions count.
  __device__ __forceinline__ void AddTile(unsigned keys, int held, float scale_log2) {
    const int lane = threadIdx.x % 32;
    const unsigned values = keys + Sizes::kTileBytes;
    float s[4] = {};
#pragma unroll
    for (int i = 0; i < kD / 16; ++i) {
      unsigned a[4];
      LoadMatrices<false>(a, keys + Sizes::Offset(lane % 16, i * 2 + lane / 16));
      Math<T>::Multiply(s, a, q[i][0], q[i][1]);
    }
    if (lane / 4 >= held) s[0] = s[1] = -INFINITY;
    if (lane / 4 + 8 >= held) s[2] = s[3] = -INFINITY;
    float fade[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float tile_max = fmaxf(s[j], s[j + 2]);
#pragma unroll
      for (int k = 4; k < 32; k *= 2) {
        tile_max = fmaxf(tile_max, __shfl_xor_sync(~0u, tile_max, k));
      }
      const float new_max = fmaxf(max[j], tile_max * scale_log2);
      fade[j] = exp2f(max[j] - new_max);
      max[j] = new_max;
      s[j] = exp2f(s[j] * scale_log2 - new_max);
      s[j + 2] = exp2f(s[j + 2] * scale_log2 - new_max);
      sum[j] = sum[j] * fade[j] + s[j] + s[j + 2];
    }
    const unsigned b0 = Transpose8x8(Math<T>::Pack(s[0], s[1]));
    const unsigned b1 = Transpose8x8(Math<T>::Pack(s[2], s[3]));
#pragma unroll
    for (int i = 0; i < kD / 16; ++i) {
      y[i][0] *= fade[0], y[i][1] *= fade[1], y[i][2] *= fade[0], y[i][3] *= fade[1];
      unsigned a[4];
      LoadMatrices<true>(
          a, values + Sizes::Offset((lane & 7) + (lane >> 4 << 3), i * 2 + (lane >> 3 & 1)));
      Math<T>::Multiply(y[i], a, b0, b1);
    }
  }

  // To shared memory [warp][head]; see Merge.
  __device__ __forceinline__ void Leave(unsigned char* memory) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int k = 4; k < 32; k *= 2) sum[j] += __shfl_xor_sync(~0u, sum[j], k);
    }
    float* to = reinterpret_cast<float*>(memory + Sizes::kMergeOffset);
#pragma unroll
    for (int i = 0; i < kD / 16; ++i) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int head = lane % 4 * 2 + (c & 1);
        to[(warp * kMaxGroup + head) * Sizes::kMergeStride + i * 16 + lane / 4 + (c >> 1) * 8] =
            y[i][c];
      }
    }
    auto* weights = reinterpret_cast<float2*>(memory + Sizes::kWeightsOffset);
    if (lane < 4) {
      for (int j = 0; j < 2; ++j) {
        weights[warp * kMaxGroup + lane * 2 + j] = make_float2(max[j], sum[j]);
      }
    }
  }
};

// Puts the four warps' sums together and stores them: to y if they are all there is of the row's kv
// head, else to partial result `partial`.
template <class T, int kD, int kStages>
__device__ void Merge(const Parameters& p, const unsigned char* memory, const Row& row, int kv_head,
                      bool whole, int partial) {
  using Sizes = Layout<kD, kStages>;
  const auto* sums = reinterpret_cast<const float*>(memory + Sizes::kMergeOffset);
  const auto* weights = reinterpret_cast<const float2*>(memory + Sizes::kWeightsOffset);
  const int d = threadIdx.x % kD;
  for (int h = static_cast<int>(threadIdx.x) / kD; h < p.group; h += kThreads / kD) {
    float max = -INFINITY, sum = 0, total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) max = fmaxf(max, weights[w * kMaxGroup + h].x);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float2 of_warp = weights[w * kMaxGroup + h];
      const float share = of_warp.x == -INFINITY ? 0.0f : exp2f(of_warp.x - max);
      sum += of_warp.y * share;
      total += sums[(w * kMaxGroup + h) * Sizes::kMergeStride + d] * share;
    }
    if (whole) {
      const int64_t to = static_cast<int64_t>(row.token) * p.query_heads + kv_head * p.group + h;
      static_cast<T*>(p.y)[to * kD + d] = Math<T>::Round(total / sum);
    } else {
      const int64_t to = static_cast<int64_t>(partial) * p.group + h;
      p.partials[to * kD + d] = total;
      if (d == 0) p.partial_weights[to] = make_float2(max, sum);
    }
  }
}

// Partial results are numbered by (row and kv head) + block: both grow along the line, at least one
// of them from each piece to the next.
__device__ __forceinline__ int PartialIndex(const Parameters& p, int row, int kv_head, int block) {
  return row * p.kv_heads + kv_head + block;
}

template <class T, int kD, int kStages>
__global__ void __launch_bounds__(kThreads) DecodeKernel(const __grid_constant__ Parameters p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  using Sizes = Layout<kD, kStages>;
  extern __shared__ __align__(128) unsigned char memory[];
  const Share share = p.plan.shares[blockIdx.x];
  if (share.count == 0) return;
  const int warp = threadIdx.x / 32;
  const unsigned ring =
      static_cast<unsigned>(__cvta_generic_to_shared(memory)) + warp * Sizes::kRingBytes;
  Fetcher<T, kD, kStages> fetcher(p, share, warp, ring);
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) fetcher.Fetch(stage);

  Row row = share.first;
  int index = share.row, kv_head = share.kv_head, tile = share.tile;
  int stage = 0;
  for (int done = 0; done < share.count;) {
    const int tiles = TilesOf(row);
    const int count = min(share.count - done, tiles - tile);
    State<T, kD, kStages> state;
    state.Begin(p, row, kv_head);
    for (int j = (warp - done) & (kWarps - 1); j < count; j += kWarps) {
      fetcher.Fetch(stage == 0 ? kStages - 1 : stage - 1);
      asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 1) : "memory");
      __syncwarp();
      state.AddTile(ring + stage * 2 * Sizes::kTileBytes,
                    min(kTile, row.length - (tile + j) * kTile), p.scale_log2);
      __syncwarp();
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    state.Leave(memory);
    __syncthreads();
    Merge<T, kD, kStages>(p, memory, row, kv_head, count == tiles,
                          PartialIndex(p, index, kv_head, blockIdx.x));
    __syncthreads();
    done += count;
    tile = 0;
    if (done < share.count && ++kv_head == p.kv_heads) {
      kv_head = 0;
      row = NextRow(p, index);
    }
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// A block for each row and query head, a thread for each column: puts partial results together,
// and zeros for rows that see nothing.
template <class T, int kD>
__global__ void __launch_bounds__(kD) MergePartials(const __grid_constant__ Parameters p) {
  __shared__ float2 weights[kMaxBlocks];
  const Row row = p.plan.rows[blockIdx.x];
  const int per_share = p.plan.header->tiles_per_share;
  const int head = blockIdx.y, kv_head = head / p.group;
  T* y = static_cast<T*>(p.y) + (static_cast<int64_t>(row.token) * p.query_heads + head) * kD;
  if (row.length == 0) {
    y[threadIdx.x] = Math<T>::Round(0.0f);
    return;
  }
  const int tiles = TilesOf(row);
  const int flat = row.first_tile * p.kv_heads + kv_head * tiles;
  const int first = flat / per_share, last = (flat + tiles - 1) / per_share;
  if (first == last) return;  // whole already
  const int64_t base =
      static_cast<int64_t>(PartialIndex(p, blockIdx.x, kv_head, first)) * p.group + head % p.group;
  const int count = last - first + 1;
  for (int i = threadIdx.x; i < count; i += kD) {
    weights[i] = p.partial_weights[base + static_cast<int64_t>(i) * p.group];
  }
  __syncthreads();
  float max = -INFINITY, sum = 0, total = 0;
  for (int i = 0; i < count; ++i) max = fmaxf(max, weights[i].x);
#pragma unroll 8
  for (int i = 0; i < count; ++i) {
    const float share = weights[i].x == -INFINITY ? 0.0f : exp2f(weights[i].x - max);
    sum += weights[i].y * share;
    total += p.partials[(base + static_cast<int64_t>(i) * p.group) * kD + threadIdx.x] * share;
  }
  y[threadIdx.x] = Math<T>::Round(total / sum);
}

// Rings of three tiles where two blocks of them fit on a multiprocessor (sm_90), else of two.
constexpr int kDeep = 3;
constexpr int kShallow = 2;

template <class T, int kD, int kStages>
cudaError_t Occupancy(int* per_multiprocessor) {
  const auto kernel = DecodeKernel<T, kD, kStages>;
  constexpr int kBytes = Layout<kD, kStages>::kBytes;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(per_multiprocessor, kernel, kThreads,
                                                       kBytes);
}

cudaError_t Attribute(cudaDeviceAttr attribute, int* value) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error != cudaSuccess ? error : cudaDeviceGetAttribute(value, attribute, device);
}

// Of the current device. Not a question to the driver on each call: a process has one.
bool Deep(int head_dim) {
  static const int bytes = [] {
    int value = 0;
    return Attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, &value) == cudaSuccess ? value
                                                                                         : 0;
  }();
  const int block = head_dim == 128 ? Layout<128, kDeep>::kBytes : Layout<64, kDeep>::kBytes;
  return 2 * (block + 1024) <= bytes;
}

template <class T, int kD>
cudaError_t Launch(cudaStream_t stream, const Parameters& p, int num_rows) {
  if (Deep(kD)) {
    DecodeKernel<T, kD, kDeep><<<p.num_blocks, kThreads, Layout<kD, kDeep>::kBytes, stream>>>(p);
  } else {
    DecodeKernel<T, kD, kShallow>
        <<<p.num_blocks, kThreads, Layout<kD, kShallow>::kBytes, stream>>>(p);
  }
  MergePartials<T, kD><<<dim3(num_rows, p.query_heads), kD, 0, stream>>>(p);
  return cudaGetLastError();
}

template <class T, int kD>
cudaError_t BlocksPerMultiprocessor(int* blocks) {
  return Deep(kD) ? Occupancy<T, kD, kDeep>(blocks) : Occupancy<T, kD, kShallow>(blocks);
}

int ShiftOf(int tiles_per_block) {
  int shift = 0;
  while (1 << shift < tiles_per_block) ++shift;
  return shift;
}

}  // namespace

cudaError_t DecodeAttentionBlocks(Element type, int head_dim, int* blocks) {
  int per_multiprocessor = 0, multiprocessors = 0;
  cudaError_t error = Attribute(cudaDevAttrMultiProcessorCount, &multiprocessors);
  if (error != cudaSuccess) return error;
  const bool bf16 = type == Element::kBF16;
  if (head_dim == 128) {
    error = bf16 ? BlocksPerMultiprocessor<__nv_bfloat16, 128>(&per_multiprocessor)
                 : BlocksPerMultiprocessor<__half, 128>(&per_multiprocessor);
  } else {
    error = bf16 ? BlocksPerMultiprocessor<__nv_bfloat16, 64>(&per_multiprocessor)
                 : BlocksPerMultiprocessor<__half, 64>(&per_multiprocessor);
  }
  if (error != cudaSuccess) return error;
  // More than two do not read faster, and make more pieces.
  const int per = per_multiprocessor < 1 ? 1 : per_multiprocessor > 2 ? 2 : per_multiprocessor;
  *blocks = per * multiprocessors < kMaxBlocks ? per * multiprocessors : kMaxBlocks;
  return cudaSuccess;
}

cudaError_t PlanDecode(cudaStream_t stream, const DecodeAttentionArguments& arguments) {
  PlanKernel<<<1, kPlanThreads, 0, stream>>>(arguments);
  return cudaGetLastError();
}

cudaError_t DecodeAttention(cudaStream_t stream, const DecodeAttentionArguments& arguments,
                            const void* qkv, const Pool& pool, float scale, void* y) {
  const Heads& heads = arguments.heads;
  Parameters p = {};
  p.plan = CarvePlan(arguments.plan, arguments.num_blocks);
  p.qkv = qkv;
  p.keys = pool.keys;
  p.values = pool.values;
  p.y = y;
  p.num_blocks = arguments.num_blocks;
  p.query_heads = heads.query_heads;
  p.kv_heads = heads.kv_heads;
  p.group = heads.query_heads / heads.kv_heads;
  p.scale_log2 = scale * kLog2E;
  const int64_t pieces = int64_t{arguments.num_rows} * heads.kv_heads + arguments.num_blocks;
  p.partials = arguments.partials;
  p.partial_weights =
      reinterpret_cast<float2*>(arguments.partials + pieces * p.group * heads.head_dim);
  p.block_table = arguments.step.block_table;
  p.table_stride = arguments.step.table_stride;
  p.tiles_per_block_shift = ShiftOf(arguments.step.tokens_per_block / kTile);
  const bool bf16 = arguments.type == Element::kBF16;
  if (heads.head_dim == 128) {
    return bf16 ? Launch<__nv_bfloat16, 128>(stream, p, arguments.num_rows)
                : Launch<__half, 128>(stream, p, arguments.num_rows);
  }
  return bf16 ? Launch<__nv_bfloat16, 64>(stream, p, arguments.num_rows)
              : Launch<__half, 64>(stream, p, arguments.num_rows);
}

}  // namespace polyreme::cuda
