// Milakov & Gimelshein 2018's online softmax over tiles of the context, in float32.
//
// A block of four warps serves a window of consecutive tokens and some heads of one kv head: up to
// 16 query rows (pairs of token and head), which share the tiles of keys and values brought to
// shared memory as float32. In the scores a lane is a position, in the sums a lane is four columns;
// warp w has the query rows w, w + 4, w + 8 and w + 12.
#include "worker/backend/cuda/paged_attention.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math.h>

namespace polyreme::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kQueryRows = 16;
constexpr int kRowsPerWarp = kQueryRows / kWarps;
constexpr int kMaxTile = 32;
constexpr int kColumnParts = kMaxPagedHeadDim / 128;  // a lane has 4 columns of each 128
constexpr int kMaxSplits = 64;
constexpr float kLog2E = 1.4426950408889634f;

struct Parameters {
  PagedAttentionArguments a;
  int window;           // tokens of a block
  int heads_per_block;  // of one kv head
  int head_tiles;       // blocks per kv head
  int tile;             // positions brought at a time, 16 or 32
  int stride;           // floats of a row in shared memory
  bool vectors;         // four elements at a time
};

__device__ __forceinline__ float ToFloat(float x) {
  return x;
}
__device__ __forceinline__ float ToFloat(__half x) {
  return __half2float(x);
}
__device__ __forceinline__ float ToFloat(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ void Put(float x, float* to) {
  *to = x;
}
__device__ __forceinline__ void Put(float x, __half* to) {
  *to = __float2half_rn(x);
}
__device__ __forceinline__ void Put(float x, __nv_bfloat16* to) {
  *to = __float2bfloat16_rn(x);
}

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T x[4];
};

// Elements [column, column + 4) of a row of `width`, zeros behind its end.
template <class T>
__device__ __forceinline__ float4 LoadFour(const T* row, int column, int width, bool vectors) {
  if (vectors) {
    const Four<T> v = *reinterpret_cast<const Four<T>*>(row + column);
    return make_float4(ToFloat(v.x[0]), ToFloat(v.x[1]), ToFloat(v.x[2]), ToFloat(v.x[3]));
  }
  float v[4];
  for (int i = 0; i < 4; ++i) v[i] = column + i < width ? ToFloat(row[column + i]) : 0.0f;
  return make_float4(v[0], v[1], v[2], v[3]);
}

__device__ __forceinline__ float WarpMax(float x) {
  for (int k = 16; k > 0; k /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, k));
  return x;
}
__device__ __forceinline__ float WarpSum(float x) {
  for (int k = 16; k > 0; k /= 2) x += __shfl_xor_sync(~0u, x, k);
  return x;
}

struct Shared {
  float* queries;   // [kQueryRows, stride]
  float* tile;      // [tile, stride], keys, then values
  float* weights;   // [kQueryRows, kMaxTile]
  int64_t* places;  // [kMaxTile] tokens from the pool's beginning
};

__device__ __forceinline__ Shared CarveShared(const Parameters& p, float* memory) {
  Shared s;
  s.queries = memory;
  s.tile = s.queries + kQueryRows * p.stride;
  s.weights = s.tile + p.tile * p.stride;
  s.places = reinterpret_cast<int64_t*>(s.weights + kQueryRows * kMaxTile);
  return s;
}

// The query rows of one sequence: tokens [begin, end), `num_heads` heads from first_head on.
struct Group {
  int begin;
  int end;
  int slot;
  int kv_head;
  int first_head;  // among all query heads
  int num_heads;
  __device__ int rows() const { return (end - begin) * num_heads; }
  __device__ int Token(int r) const { return begin + r / num_heads; }
  __device__ int Head(int r) const { return first_head + r % num_heads; }
};

template <class E>
__device__ void LoadTile(const Parameters& p, const void* pool, int kv_head, int held,
                         const Shared& s) {
  const int G = p.a.heads.kv_heads, D = p.a.heads.head_dim;
  const E* from = static_cast<const E*>(pool);
  for (int j = static_cast<int>(threadIdx.x) / 32; j < held; j += kWarps) {
    const E* row = from + (s.places[j] * G + kv_head) * D;
    for (int c = 4 * (static_cast<int>(threadIdx.x) % 32); c < D; c += 128) {
      *reinterpret_cast<float4*>(s.tile + j * p.stride + c) = LoadFour(row, c, D, p.vectors);
    }
  }
}

// What a warp keeps of its query rows.
struct State {
  float max[kRowsPerWarp];
  float sum[kRowsPerWarp];  // this lane's positions
  float4 y[kRowsPerWarp][kColumnParts];
};

// Scores of the tile that begins at position `start`; leaves the weights in shared memory and
// scales what was summed before.
__device__ void Score(const Parameters& p, const Group& g, int start, int held, const Shared& s,
                      State& state) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float dot[kRowsPerWarp] = {};
  if (lane < held) {
    for (int c = 0; c < p.a.heads.head_dim; c += 4) {
      const float4 k = *reinterpret_cast<const float4*>(s.tile + lane * p.stride + c);
#pragma unroll
      for (int i = 0; i < kRowsPerWarp; ++i) {
        const float4 q =
            *reinterpret_cast<const float4*>(s.queries + (i * kWarps + warp) * p.stride + c);
        dot[i] += q.x * k.x + q.y * k.y + q.z * k.z + q.w * k.w;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kRowsPerWarp; ++i) {
    const int r = i * kWarps + warp;
    if (r >= g.rows()) break;
    const bool seen = lane < held && start + lane <= p.a.step.positions[g.Token(r)];
    const float score = seen ? dot[i] : -INFINITY;
    const float max = fmaxf(state.max[i], WarpMax(score));
    // A score that is not a number stays one.
    const float weight = score == -INFINITY ? 0.0f : exp2f(score - max);
    const float fade = state.max[i] == -INFINITY ? 1.0f : exp2f(state.max[i] - max);
    state.max[i] = max;
    state.sum[i] = state.sum[i] * fade + weight;
    s.weights[r * kMaxTile + lane] = weight;
#pragma unroll
    for (int part = 0; part < kColumnParts; ++part) {
      float4& y = state.y[i][part];
      y.x *= fade, y.y *= fade, y.z *= fade, y.w *= fade;
    }
  }
}

// Adds the tile's values. Positions without weight are left out, not multiplied by zero: what a
// token does not see may be anything.
__device__ void AddValues(const Parameters& p, const Group& g, int held, const Shared& s,
                          State& state) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int j = 0; j < held; ++j) {
    float4 v[kColumnParts] = {};
#pragma unroll
    for (int part = 0; part < kColumnParts; ++part) {
      const int c = 128 * part + 4 * lane;
      if (c < p.a.heads.head_dim) {
        v[part] = *reinterpret_cast<const float4*>(s.tile + j * p.stride + c);
      }
    }
#pragma unroll
    for (int i = 0; i < kRowsPerWarp; ++i) {
      const int r = i * kWarps + warp;
      if (r >= g.rows()) break;
      const float weight = s.weights[r * kMaxTile + j];
      if (weight == 0.0f) continue;
#pragma unroll
      for (int part = 0; part < kColumnParts; ++part) {
        float4& y = state.y[i][part];
        y.x += weight * v[part].x, y.y += weight * v[part].y;
        y.z += weight * v[part].z, y.w += weight * v[part].w;
      }
    }
  }
}

// Partial results of (token, head, split): D sums, then maximum and sum of weights.
__device__ __forceinline__ float* PartialOf(const Parameters& p, int token, int head, int split) {
  const int64_t row = static_cast<int64_t>(token) * p.a.heads.query_heads + head;
  return p.a.workspace + (row * p.a.num_splits + split) * (p.a.heads.head_dim + 2);
}

template <class T>
__device__ void Store(const Parameters& p, const Group& g, const State& state) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int D = p.a.heads.head_dim;
#pragma unroll
  for (int i = 0; i < kRowsPerWarp; ++i) {
    const int r = i * kWarps + warp;
    if (r >= g.rows()) break;
    const float sum = WarpSum(state.sum[i]);
    const int token = g.Token(r), head = g.Head(r);
    T* y =
        static_cast<T*>(p.a.y) + (static_cast<int64_t>(token) * p.a.heads.query_heads + head) * D;
    float* partial = p.a.num_splits > 1 ? PartialOf(p, token, head, blockIdx.z) : nullptr;
#pragma unroll
    for (int part = 0; part < kColumnParts; ++part) {
      const float4& from = state.y[i][part];
      const float values[4] = {from.x, from.y, from.z, from.w};
      for (int e = 0; e < 4; ++e) {
        const int c = 128 * part + 4 * lane + e;
        if (c >= D) continue;
        if (partial != nullptr) {
          partial[c] = values[e];
        } else {
          Put(sum == 0.0f ? 0.0f : values[e] / sum, y + c);
        }
      }
    }
    if (partial != nullptr && lane == 0) {
      partial[D] = state.max[i];
      partial[D + 1] = sum;
    }
  }
}

// All threads of the block together.
template <class T, class E>
__device__ void Attend(const Parameters& p, const Group& g, const Shared& s) {
  const Step& step = p.a.step;
  const int D = p.a.heads.head_dim, warp = threadIdx.x / 32;
  const T* qkv = static_cast<const T*>(p.a.qkv);
  const int64_t columns = static_cast<int64_t>(p.a.heads.query_heads + 2 * p.a.heads.kv_heads) * D;
  __syncthreads();  // the queries of the group before have been read
  for (int r = warp; r < g.rows(); r += kWarps) {
    const T* q = qkv + g.Token(r) * columns + static_cast<int64_t>(g.Head(r)) * D;
    for (int c = 4 * (threadIdx.x % 32); c < D; c += 128) {
      float4 v = LoadFour(q, c, D, p.vectors);
      const float scale = p.a.scale * kLog2E;
      v.x *= scale, v.y *= scale, v.z *= scale, v.w *= scale;
      *reinterpret_cast<float4*>(s.queries + r * p.stride + c) = v;
    }
  }
  State state;
  for (int i = 0; i < kRowsPerWarp; ++i) {
    state.max[i] = -INFINITY;
    state.sum[i] = 0;
    for (int part = 0; part < kColumnParts; ++part) state.y[i][part] = make_float4(0, 0, 0, 0);
  }
  const int length = step.positions[g.end - 1] + 1;
  const int tiles = (length + p.tile - 1) / p.tile;
  const int tiles_per_split = (tiles + p.a.num_splits - 1) / p.a.num_splits;
  const int first = static_cast<int>(blockIdx.z) * tiles_per_split * p.tile;
  const int last = min(length, first + tiles_per_split * p.tile);
  const int32_t* blocks = step.block_table + static_cast<int64_t>(g.slot) * step.table_stride;
  for (int start = first; start < last; start += p.tile) {
    const int held = min(p.tile, last - start);
    __syncthreads();  // the values before have been read
    if (static_cast<int>(threadIdx.x) < held) {
      const int position = start + threadIdx.x;
      s.places[threadIdx.x] =
          static_cast<int64_t>(blocks[position / step.tokens_per_block]) * step.tokens_per_block +
          position % step.tokens_per_block;
    }
    __syncthreads();
    LoadTile<E>(p, p.a.pool.keys, g.kv_head, held, s);
    __syncthreads();
    Score(p, g, start, held, s, state);
    __syncthreads();
    LoadTile<E>(p, p.a.pool.values, g.kv_head, held, s);
    __syncthreads();
    AddValues(p, g, held, s, state);
  }
  Store<T>(p, g, state);
}

template <class T, class E>
__global__ void __launch_bounds__(kThreads) PagedKernel(Parameters p) {
  extern __shared__ float4 memory[];
  const Shared s = CarveShared(p, reinterpret_cast<float*>(memory));
  const Step& step = p.a.step;
  // Rows of queries that are not there are multiplied too, and never used; zeros keep the checkers
  // of uninitialised memory quiet.
  for (int i = threadIdx.x; i < kQueryRows * p.stride; i += kThreads) s.queries[i] = 0;
  const int group = p.a.heads.query_heads / p.a.heads.kv_heads;
  const int within = static_cast<int>(blockIdx.y) % p.head_tiles * p.heads_per_block;
  Group g;
  g.kv_head = blockIdx.y / p.head_tiles;
  g.first_head = g.kv_head * group + within;
  g.num_heads = min(p.heads_per_block, group - within);
  const int last = min(static_cast<int>(blockIdx.x + 1) * p.window, step.num_tokens);
  for (int t = blockIdx.x * p.window; t < last; t = g.end) {
    const int row = step.token_rows[t];
    g.begin = t;
    g.end = min(last, step.row_begins[row + 1]);
    g.slot = step.row_slots[row];
    const bool single = step.row_begins[row + 1] - step.row_begins[row] == 1;
    const bool skipped =
        (t >= p.a.skip_begin && t < p.a.skip_end) || !(single ? p.a.single_rows : p.a.prompt_rows);
    if (!skipped) Attend<T, E>(p, g, s);
  }
}

// A block for each token and head.
template <class T>
__global__ void __launch_bounds__(kThreads) MergeSplits(Parameters p) {
  const int H = p.a.heads.query_heads, D = p.a.heads.head_dim;
  const int token = blockIdx.x / H, head = blockIdx.x % H;
  float max = -INFINITY, sum = 0;
  for (int i = 0; i < p.a.num_splits; ++i) max = fmaxf(max, PartialOf(p, token, head, i)[D]);
  __shared__ float shares[kMaxSplits];
  for (int i = 0; i < p.a.num_splits; ++i) {
    const float* partial = PartialOf(p, token, head, i);
    const float share = partial[D] == -INFINITY ? 0.0f : exp2f(partial[D] - max);
    sum += partial[D + 1] * share;
    if (threadIdx.x == 0) shares[i] = share;
  }
  __syncthreads();
  T* y = static_cast<T*>(p.a.y) + static_cast<int64_t>(blockIdx.x) * D;
  for (int c = threadIdx.x; c < D; c += kThreads) {
    float total = 0;
    for (int i = 0; i < p.a.num_splits; ++i) total += PartialOf(p, token, head, i)[c] * shares[i];
    Put(sum == 0.0f ? 0.0f : total / sum, y + c);
  }
}

__global__ void __launch_bounds__(kThreads)
    GatherPagesKernel(Step step, const int32_t* rows, const int32_t* page_begins, int32_t* pages) {
  const int begin = page_begins[blockIdx.x], end = page_begins[blockIdx.x + 1];
  const int32_t* from =
      step.block_table + static_cast<int64_t>(step.row_slots[rows[blockIdx.x]]) * step.table_stride;
  for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += kThreads) {
    pages[i] = from[i - begin];
  }
}

template <class T, class E>
cudaError_t Launch(cudaStream_t stream, const Parameters& p) {
  const Heads& heads = p.a.heads;
  const int T_ = p.a.step.num_tokens;
  const dim3 grid((T_ + p.window - 1) / p.window, heads.kv_heads * p.head_tiles, p.a.num_splits);
  const size_t bytes = sizeof(float) * ((kQueryRows + p.tile) * p.stride + kQueryRows * kMaxTile) +
                       sizeof(int64_t) * kMaxTile;
  PagedKernel<T, E><<<grid, kThreads, bytes, stream>>>(p);
  if (p.a.num_splits > 1) {
    MergeSplits<T><<<T_ * heads.query_heads, kThreads, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

template <class T>
cudaError_t LaunchForPool(cudaStream_t stream, const Parameters& p) {
  switch (p.a.pool.element) {
    case Element::kF32:
      return Launch<T, float>(stream, p);
    case Element::kF16:
      return Launch<T, __half>(stream, p);
    case Element::kBF16:
      return Launch<T, __nv_bfloat16>(stream, p);
  }
  return cudaErrorInvalidValue;
}

bool Aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

}  // namespace

int PagedAttentionSplits(int num_tokens, const Heads& heads, int num_multiprocessors) {
  const int blocks = num_tokens * heads.kv_heads;
  const int splits = 4 * num_multiprocessors / (blocks > 0 ? blocks : 1);
  return splits < 1 ? 1 : splits > kMaxSplits ? kMaxSplits : splits;
}

cudaError_t PagedAttention(cudaStream_t stream, const PagedAttentionArguments& arguments) {
  const Heads& heads = arguments.heads;
  if (arguments.step.num_tokens == 0) return cudaSuccess;
  if (heads.head_dim > kMaxPagedHeadDim || arguments.num_splits > kMaxSplits) {
    return cudaErrorInvalidValue;
  }
  Parameters p = {};
  p.a = arguments;
  const int group = heads.query_heads / heads.kv_heads;
  p.heads_per_block = group < kQueryRows ? group : kQueryRows;
  p.head_tiles = (group + p.heads_per_block - 1) / p.heads_per_block;
  const bool decode_only = arguments.step.num_tokens == arguments.step.num_rows;
  p.window = decode_only ? 1 : kQueryRows / p.heads_per_block;
  p.tile = heads.head_dim > 128 ? 16 : 32;
  p.stride = (heads.head_dim + 3) / 4 * 4 + 4;
  p.vectors = heads.head_dim % 4 == 0 && Aligned(arguments.qkv) && Aligned(arguments.pool.keys) &&
              Aligned(arguments.pool.values);
  switch (arguments.type) {
    case Element::kF32:
      return LaunchForPool<float>(stream, p);
    case Element::kF16:
      return LaunchForPool<__half>(stream, p);
    case Element::kBF16:
      return LaunchForPool<__nv_bfloat16>(stream, p);
  }
  return cudaErrorInvalidValue;
}

cudaError_t GatherPages(cudaStream_t stream, const Step& step, const int32_t* rows,
                        const int32_t* page_begins, int num_rows, int32_t* pages) {
  if (num_rows == 0) return cudaSuccess;
  GatherPagesKernel<<<num_rows, kThreads, 0, stream>>>(step, rows, page_begins, pages);
  return cudaGetLastError();
}

}  // namespace polyreme::cuda
