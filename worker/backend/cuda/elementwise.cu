#include "worker/backend/cuda/elementwise.h"

#include <algorithm>
#include <type_traits>

#include "worker/backend/cuda/element_vector.cuh"

namespace polyreme::cuda {
namespace {

// Threads of the kernels that give each thread one place: small, so that even one row spreads over
// many multiprocessors.
constexpr int kThreads = 128;
constexpr int kMaxNormThreads = 1024;

// Rows that do not fit one block are cut into chunks of a block's width, all in grid.x: its limit
// is 2^31 - 1, that of grid.y 65535.
struct RowGrid {
  RowGrid(int64_t rows, int64_t items_per_row)
      : chunks(static_cast<int>(CeilDiv(items_per_row, kThreads))),
        blocks(static_cast<unsigned>(rows * chunks)) {}
  int chunks;
  unsigned blocks;
};

struct RowPlace {
  int64_t row;
  int64_t item;
};
__device__ __forceinline__ RowPlace PlaceOf(int chunks) {
  const unsigned row = blockIdx.x / chunks;
  return {row, static_cast<int64_t>(blockIdx.x - row * chunks) * kThreads + threadIdx.x};
}

__device__ __forceinline__ int64_t ColumnsOf(const Heads& heads) {
  return static_cast<int64_t>(heads.query_heads + 2 * heads.kv_heads) * heads.head_dim;
}

// Calls f with the number of elements per access, wide where all rows and pointers allow.
template <class F>
cudaError_t WithWidth(bool wide, F f) {
  if (wide) return f(std::integral_constant<int, kWide>{});
  return f(std::integral_constant<int, 1>{});
}

template <class T, class U, int V>
__global__ void EmbedKernel(const int32_t* tokens, const U* table, int64_t first_row,
                            int64_t num_rows, int64_t width, int chunks, T* y) {
  const RowPlace place = PlaceOf(chunks);
  const int64_t column = place.item * V;
  if (column >= width) return;
  const int64_t row = tokens[place.row] - first_row;
  float values[V] = {};
  if (row >= 0 && row < num_rows) Load<U, V>(table + row * width + column, values);
  Store<T, V>(values, y + place.row * width + column);
}

// The sum over a block, in every thread; one barrier. Call it once per kernel.
__device__ __forceinline__ float BlockSum(float value) {
  __shared__ float of_warps[32];
  const int lane = threadIdx.x % 32;
  value = WarpSum(value);
  if (lane == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  const int num_warps = blockDim.x / 32;
  return WarpSum(lane < num_warps ? of_warps[lane] : 0.0f);
}

// One block per row, the row in registers: each thread holds up to `kPacks` packs of it. `delta`
// is added first where kAdd. Everything is loaded before the barrier, the gains too, so that a
// lone row waits for memory once.
template <class T, bool kAdd, int kPacks>
__global__ void __launch_bounds__(kMaxNormThreads)
    NormKernel(const T* delta, const T* x, const float* gain, float epsilon, int width, T* sums,
               T* y) {
  constexpr int V = kWide;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * width;
  float values[kPacks][V] = {};
  float gains[kPacks][V];
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int column = (p * blockDim.x + threadIdx.x) * V;
    if (column >= width) continue;
    Load<T, V>(x + row + column, values[p]);
    Load<float, V>(gain + column, gains[p]);
    if (kAdd) {
      float added[V];
      Load<T, V>(delta + row + column, added);
#pragma unroll
      for (int i = 0; i < V; ++i) values[p][i] = RoundTo<T>(values[p][i] + added[i]);
      Store<T, V>(values[p], sums + row + column);
    }
  }
  float squares = 0;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
#pragma unroll
    for (int i = 0; i < V; ++i) squares = fmaf(values[p][i], values[p][i], squares);
  }
  const float inverse = 1.0f / sqrtf(BlockSum(squares) / static_cast<float>(width) + epsilon);
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int column = (p * blockDim.x + threadIdx.x) * V;
    if (column >= width) continue;
    float normed[V];
#pragma unroll
    for (int i = 0; i < V; ++i) normed[i] = values[p][i] * inverse * gains[p][i];
    Store<T, V>(normed, y + row + column);
  }
}

// Any width and alignment: reads the row twice. A thread reads again only what it wrote itself.
template <class T, bool kAdd>
__global__ void NormAnyKernel(const T* delta, const T* x, const float* gain, float epsilon,
                              int64_t width, T* sums, T* y) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * width;
  float squares = 0;
  for (int64_t c = threadIdx.x; c < width; c += blockDim.x) {
    float value = ToFloat(x[row + c]);
    if (kAdd) {
      const T sum = FromFloat<T>(value + ToFloat(delta[row + c]));
      sums[row + c] = sum;
      value = ToFloat(sum);
    }
    squares = fmaf(value, value, squares);
  }
  const float inverse = 1.0f / sqrtf(BlockSum(squares) / static_cast<float>(width) + epsilon);
  const T* summed = kAdd ? sums : x;
  for (int64_t c = threadIdx.x; c < width; c += blockDim.x) {
    y[row + c] = FromFloat<T>(ToFloat(summed[row + c]) * inverse * gain[c]);
  }
}

template <class T, bool kAdd>
cudaError_t LaunchNorm(cudaStream_t stream, const T* delta, const T* x, const float* gain,
                       float epsilon, int64_t rows, int64_t width, T* sums, T* y) {
  const auto blocks = static_cast<unsigned>(rows);
  const int64_t packs = width / kWide;
  const bool wide =
      width % kWide == 0 && Aligned(x) && Aligned(y) && Aligned(gain) && (!kAdd || Aligned(delta));
  const auto threads_for = [](int64_t items) {
    return static_cast<unsigned>(
        std::min<int64_t>(kMaxNormThreads, std::max<int64_t>(1, CeilDiv(items, 32)) * 32));
  };
  if (wide && packs <= kMaxNormThreads) {
    NormKernel<T, kAdd, 1><<<blocks, threads_for(packs), 0, stream>>>(
        delta, x, gain, epsilon, static_cast<int>(width), sums, y);
  } else if (wide && packs <= 2 * kMaxNormThreads) {
    NormKernel<T, kAdd, 2><<<blocks, threads_for(CeilDiv(packs, 2)), 0, stream>>>(
        delta, x, gain, epsilon, static_cast<int>(width), sums, y);
  } else {
    NormAnyKernel<T, kAdd>
        <<<blocks, threads_for(width), 0, stream>>>(delta, x, gain, epsilon, width, sums, y);
  }
  return cudaGetLastError();
}

template <class T, int V>
__global__ void AddKernel(const T* delta, T* x, int64_t count) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V;
  if (at >= count) return;
  float values[V];
  float added[V];
  Load<T, V>(x + at, values);
  Load<T, V>(delta + at, added);
#pragma unroll
  for (int i = 0; i < V; ++i) values[i] += added[i];
  Store<T, V>(values, x + at);
}

template <class T, int V>
__global__ void AddBiasKernel(const float* bias, int64_t width, int chunks, T* x) {
  const RowPlace place = PlaceOf(chunks);
  const int64_t column = place.item * V;
  if (column >= width) return;
  T* at = x + place.row * width + column;
  float values[V];
  float added[V];
  Load<T, V>(at, values);
  Load<float, V>(bias + column, added);
#pragma unroll
  for (int i = 0; i < V; ++i) values[i] += added[i];
  Store<T, V>(values, at);
}

// One warp per head; a lane reads again only what is its own.
template <class T, int V>
__global__ void NormHeadsKernel(Heads heads, const float* q_gain, const float* k_gain,
                                float epsilon, int64_t num_warps, T* qkv) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (warp >= num_warps) return;
  const int lane = threadIdx.x % 32;
  const int normed_heads = heads.query_heads + heads.kv_heads;
  const int head = static_cast<int>(warp % normed_heads);
  const int width = heads.head_dim;
  T* x = qkv + warp / normed_heads * ColumnsOf(heads) + static_cast<int64_t>(head) * width;
  const float* gain = head < heads.query_heads ? q_gain : k_gain;
  float squares = 0;
  for (int c = lane * V; c < width; c += 32 * V) {
    float values[V];
    Load<T, V>(x + c, values);
#pragma unroll
    for (int i = 0; i < V; ++i) squares = fmaf(values[i], values[i], squares);
  }
  const float inverse = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(width) + epsilon);
  for (int c = lane * V; c < width; c += 32 * V) {
    float values[V];
    float gains[V];
    Load<T, V>(x + c, values);
    Load<float, V>(gain + c, gains);
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] *= inverse * gains[i];
    Store<T, V>(values, x + c);
  }
}

// Each thread holds V pairs of one head: elements i.. and D/2 + i... Query and key heads are
// rotated and written back, key and value heads go to the pool, in its own type, from what the
// activations' type holds.
template <class T, class U, int V>
__global__ void RotateAndStoreKernel(Step step, Heads heads, const float* cos_sin, int chunks,
                                     T* qkv, U* keys, U* values) {
  const RowPlace place = PlaceOf(chunks);
  const int half = heads.head_dim / 2;
  const int packs = half / V;
  const int item = static_cast<int>(place.item);
  const int head = item / packs;
  if (head >= heads.query_heads + 2 * heads.kv_heads) return;
  const int64_t position = step.positions[place.row];
  if (position < 0) return;
  const int offset = (item - head * packs) * V;
  T* x = qkv + place.row * ColumnsOf(heads) + static_cast<int64_t>(head) * heads.head_dim + offset;
  float first[V];
  float second[V];
  Load<T, V>(x, first);
  Load<T, V>(x + half, second);
  const int stored_head = head - heads.query_heads;
  if (stored_head < heads.kv_heads) {
    float cosines[V];
    float sines[V];
    Load<float, V>(cos_sin + position * heads.head_dim + offset, cosines);
    Load<float, V>(cos_sin + position * heads.head_dim + half + offset, sines);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float a = first[i];
      const float b = second[i];
      first[i] = RoundTo<T>(a * cosines[i] - b * sines[i]);
      second[i] = RoundTo<T>(b * cosines[i] + a * sines[i]);
    }
    Store<T, V>(first, x);
    Store<T, V>(second, x + half);
  }
  if (stored_head < 0) return;
  const int64_t slot = step.row_slots[step.token_rows[place.row]];
  const int64_t block =
      step.block_table[slot * step.table_stride + position / step.tokens_per_block];
  const int64_t token = block * step.tokens_per_block + position % step.tokens_per_block;
  const bool is_key = stored_head < heads.kv_heads;
  const int64_t kv_head = is_key ? stored_head : stored_head - heads.kv_heads;
  U* to = (is_key ? keys : values) + (token * heads.kv_heads + kv_head) * heads.head_dim + offset;
  Store<U, V>(first, to);
  Store<U, V>(second, to + half);
}

template <class T, int V>
__global__ void SiluGateKernel(const T* x, int64_t width, int chunks, T* y) {
  const RowPlace place = PlaceOf(chunks);
  const int64_t column = place.item * V;
  if (column >= width) return;
  const T* gate = x + place.row * 2 * width + column;
  float gates[V];
  float ups[V];
  Load<T, V>(gate, gates);
  Load<T, V>(gate + width, ups);
#pragma unroll
  for (int i = 0; i < V; ++i) gates[i] = gates[i] / (1.0f + expf(-gates[i])) * ups[i];
  Store<T, V>(gates, y + place.row * width + column);
}

template <class Word>
__global__ void GatherRowsKernel(const Word* x, const int32_t* rows, int64_t words, int chunks,
                                 Word* y) {
  const RowPlace place = PlaceOf(chunks);
  if (place.item >= words) return;
  y[place.row * words + place.item] = x[rows[place.row] * words + place.item];
}

// Each thread has one place within a block and makes all moves there, in their order: a block that
// one move reads and a later one overwrites needs no care.
__global__ void CopyBlocksKernel(uint4* keys, uint4* values, int64_t words, const int32_t* moves,
                                 int num) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= 2 * words) return;
  uint4* pool = at < words ? keys : values;
  const int64_t word = at < words ? at : at - words;
  for (int i = 0; i < num; ++i) {
    pool[moves[2 * i + 1] * words + word] = pool[moves[2 * i] * words + word];
  }
}

unsigned BlocksFor(int64_t items) {
  return static_cast<unsigned>(CeilDiv(items, kThreads));
}

}  // namespace

cudaError_t Embed(cudaStream_t stream, Element type, const int32_t* tokens, const void* table,
                  Element table_type, int64_t first_row, int64_t num_rows, int64_t T, int64_t E,
                  void* y) {
  if (T == 0 || E == 0) return cudaSuccess;
  return WithType(type, [&](auto out) {
    return WithType(table_type, [&](auto in) {
      return WithWidth(E % kWide == 0 && Aligned(table) && Aligned(y), [&](auto width) {
        using Out = decltype(out);
        using In = decltype(in);
        constexpr int V = decltype(width)::value;
        const RowGrid grid(T, E / V);
        EmbedKernel<Out, In, V>
            <<<grid.blocks, kThreads, 0, stream>>>(tokens, static_cast<const In*>(table), first_row,
                                                   num_rows, E, grid.chunks, static_cast<Out*>(y));
        return cudaGetLastError();
      });
    });
  });
}

cudaError_t RmsNorm(cudaStream_t stream, Element type, const void* x, const float* gain,
                    float epsilon, int64_t T, int64_t E, void* y) {
  if (T == 0 || E == 0) return cudaSuccess;
  return WithType(type, [&](auto element) {
    using Type = decltype(element);
    return LaunchNorm<Type, false>(stream, nullptr, static_cast<const Type*>(x), gain, epsilon, T,
                                   E, nullptr, static_cast<Type*>(y));
  });
}

cudaError_t AddRmsNorm(cudaStream_t stream, Element type, const void* delta, void* x,
                       const float* gain, float epsilon, int64_t T, int64_t E, void* y) {
  if (T == 0 || E == 0) return cudaSuccess;
  return WithType(type, [&](auto element) {
    using Type = decltype(element);
    return LaunchNorm<Type, true>(stream, static_cast<const Type*>(delta), static_cast<Type*>(x),
                                  gain, epsilon, T, E, static_cast<Type*>(x),
                                  static_cast<Type*>(y));
  });
}

cudaError_t Add(cudaStream_t stream, Element type, const void* delta, void* x, int64_t count) {
  if (count == 0) return cudaSuccess;
  return WithType(type, [&](auto element) {
    return WithWidth(count % kWide == 0 && Aligned(delta) && Aligned(x), [&](auto width) {
      using Type = decltype(element);
      constexpr int V = decltype(width)::value;
      AddKernel<Type, V><<<BlocksFor(count / V), kThreads, 0, stream>>>(
          static_cast<const Type*>(delta), static_cast<Type*>(x), count);
      return cudaGetLastError();
    });
  });
}

cudaError_t AddBias(cudaStream_t stream, Element type, const float* bias, int64_t T, int64_t N,
                    void* x) {
  if (T == 0 || N == 0) return cudaSuccess;
  return WithType(type, [&](auto element) {
    return WithWidth(N % kWide == 0 && Aligned(bias) && Aligned(x), [&](auto width) {
      using Type = decltype(element);
      constexpr int V = decltype(width)::value;
      const RowGrid grid(T, N / V);
      AddBiasKernel<Type, V>
          <<<grid.blocks, kThreads, 0, stream>>>(bias, N, grid.chunks, static_cast<Type*>(x));
      return cudaGetLastError();
    });
  });
}

cudaError_t NormHeads(cudaStream_t stream, Element type, const Heads& heads, const float* q_gain,
                      const float* k_gain, float epsilon, int64_t T, void* qkv) {
  const int64_t warps = T * (heads.query_heads + heads.kv_heads);
  if (warps == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>(CeilDiv(warps, kThreads / 32));
  const bool wide = heads.head_dim % 4 == 0 && Aligned(q_gain) && Aligned(k_gain) && Aligned(qkv);
  return WithType(type, [&](auto element) {
    using Type = decltype(element);
    auto* data = static_cast<Type*>(qkv);
    if (wide) {
      NormHeadsKernel<Type, 4>
          <<<blocks, kThreads, 0, stream>>>(heads, q_gain, k_gain, epsilon, warps, data);
    } else {
      NormHeadsKernel<Type, 1>
          <<<blocks, kThreads, 0, stream>>>(heads, q_gain, k_gain, epsilon, warps, data);
    }
    return cudaGetLastError();
  });
}

cudaError_t RotateAndStore(cudaStream_t stream, Element type, const Step& step, const Heads& heads,
                           const float* cos_sin, void* qkv, const Pool& pool) {
  if (step.num_tokens == 0 || heads.columns() == 0) return cudaSuccess;
  const int half = heads.head_dim / 2;
  const bool wide = half % kWide == 0 && Aligned(cos_sin) && Aligned(qkv) && Aligned(pool.keys) &&
                    Aligned(pool.values);
  return WithType(type, [&](auto element) {
    return WithType(pool.element, [&](auto stored) {
      return WithWidth(wide, [&](auto width) {
        using Type = decltype(element);
        using Stored = decltype(stored);
        constexpr int V = decltype(width)::value;
        const RowGrid grid(step.num_tokens,
                           int64_t{heads.query_heads + 2 * heads.kv_heads} * (half / V));
        RotateAndStoreKernel<Type, Stored, V><<<grid.blocks, kThreads, 0, stream>>>(
            step, heads, cos_sin, grid.chunks, static_cast<Type*>(qkv),
            static_cast<Stored*>(pool.keys), static_cast<Stored*>(pool.values));
        return cudaGetLastError();
      });
    });
  });
}

cudaError_t SiluGate(cudaStream_t stream, Element type, const void* x, int64_t T, int64_t F,
                     void* y) {
  if (T == 0 || F == 0) return cudaSuccess;
  return WithType(type, [&](auto element) {
    return WithWidth(F % kWide == 0 && Aligned(x) && Aligned(y), [&](auto width) {
      using Type = decltype(element);
      constexpr int V = decltype(width)::value;
      const RowGrid grid(T, F / V);
      SiluGateKernel<Type, V><<<grid.blocks, kThreads, 0, stream>>>(
          static_cast<const Type*>(x), F, grid.chunks, static_cast<Type*>(y));
      return cudaGetLastError();
    });
  });
}

cudaError_t GatherRows(cudaStream_t stream, const void* x, const int32_t* rows, int64_t num_rows,
                       int64_t row_bytes, void* y) {
  if (num_rows == 0 || row_bytes == 0) return cudaSuccess;
  const auto gather = [&](auto word) {
    using Word = decltype(word);
    const auto words = row_bytes / static_cast<int64_t>(sizeof(Word));
    const RowGrid grid(num_rows, words);
    GatherRowsKernel<Word><<<grid.blocks, kThreads, 0, stream>>>(
        static_cast<const Word*>(x), rows, words, grid.chunks, static_cast<Word*>(y));
    return cudaGetLastError();
  };
  if (row_bytes % 16 == 0 && Aligned(x) && Aligned(y)) return gather(uint4{});
  if (row_bytes % 4 == 0 && Aligned(x, 4) && Aligned(y, 4)) return gather(uint32_t{});
  return gather(uint16_t{});
}

cudaError_t CopyBlocks(cudaStream_t stream, void* keys, void* values, int64_t block_bytes,
                       const int32_t* moves, int num) {
  if (num == 0 || block_bytes == 0) return cudaSuccess;
  const int64_t words = block_bytes / 16;
  CopyBlocksKernel<<<BlocksFor(2 * words), kThreads, 0, stream>>>(
      static_cast<uint4*>(keys), static_cast<uint4*>(values), words, moves, num);
  return cudaGetLastError();
}

}  // namespace polyreme::cuda
