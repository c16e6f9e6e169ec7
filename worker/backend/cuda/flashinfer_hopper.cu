// FlashInfer's Hopper path (wgmma, Q by TMA). A unit of its own: its types clash with those of the
// FA2 path, and it is the longest to compile.
//
// FlashInfer's cutlass_utils.cuh brings in most of CUTLASS; what the attention needs of it stands
// here instead, and in flashinfer_shim/.
#define FLASHINFER_CUTLASS_UTILS_CUH_
#include <cutlass/cutlass.h>
#include <cutlass/numeric_types.h>
#include <cute/tensor.hpp>
// The order matters: the headers below use what stands above.
#include <flashinfer/attention/mask.cuh>

#include <flashinfer/attention/hopper/default_params.cuh>

#include <flashinfer/attention/hopper/prefill_sm90.cuh>

#include <flashinfer/attention/hopper/variants.cuh>

#include <algorithm>
#include <exception>
#include <utility>
#include <vector>

#include "worker/backend/cuda/flashinfer.h"

namespace polyreme::cuda {
namespace {

namespace fi = flashinfer;
constexpr int kTile = kHopperTile;
constexpr int kHeadDim = 128;

// Where the plan's arrays lie: the borders of each multiprocessor's tiles, then the arrays.
struct PlanArrays {
  int32_t* borders;  // [multiprocessors + 1]
  int32_t* tiles;    // tile within its row
  int32_t* token_begins;
  int32_t* page_begins;
  int32_t* token_counts;
  int32_t* lengths;
  int32_t* heads;
  int32_t* rows;
};
PlanArrays CarvePlan(int32_t* ints, const HopperPlan& plan) {
  int32_t* next = ints + plan.num_multiprocessors + 1;
  const auto take = [&] { return std::exchange(next, next + plan.num_tiles); };
  PlanArrays arrays;
  arrays.borders = ints;
  arrays.tiles = take();
  arrays.token_begins = take();
  arrays.page_begins = take();
  arrays.token_counts = take();
  arrays.lengths = take();
  arrays.heads = take();
  arrays.rows = take();
  return arrays;
}

// One tile of the plan while its place is not yet known.
struct Tile {
  int32_t row;
  int32_t tile;
  int32_t head;
  int32_t multiprocessor;
};

// FlashInfer's estimate of a tile's time: twice its tokens and the positions that it sees.
int64_t CostOf(const FlashInferRows& rows, int row, int tile) {
  const int64_t seen = rows.lengths[row] - rows.token_counts[row] + int64_t{tile + 1} * kTile;
  return 2 * kTile + std::min<int64_t>(seen, rows.lengths[row]);
}

// The heads one after the other, so that those at work at one time share keys and values.
std::vector<Tile> AssignTiles(const FlashInferRows& rows, const Heads& heads,
                              int num_multiprocessors) {
  std::vector<int> order(rows.num_rows);
  for (int i = 0; i < rows.num_rows; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return rows.lengths[a] > rows.lengths[b]; });
  // (work so far, multiprocessor), the least on top.
  std::vector<std::pair<int64_t, int>> load(num_multiprocessors);
  for (int i = 0; i < num_multiprocessors; ++i) load[i] = {0, i};
  const auto more = [](const auto& a, const auto& b) { return a > b; };
  std::make_heap(load.begin(), load.end(), more);
  std::vector<Tile> tiles;
  for (int head = 0; head < heads.query_heads; ++head) {
    for (const int row : order) {
      for (int tile = (rows.token_counts[row] + kTile - 1) / kTile - 1; tile >= 0; --tile) {
        std::pop_heap(load.begin(), load.end(), more);
        tiles.push_back({row, tile, head, load.back().second});
        load.back().first += CostOf(rows, row, tile);
        std::push_heap(load.begin(), load.end(), more);
      }
    }
  }
  return tiles;
}

template <class T>
FlashInferStatus Run(cudaStream_t stream, const FlashInferRows& rows,
                     const FlashInferTensors& tensors, const int32_t* device_ints,
                     const HopperPlan& plan) {
  const Heads& heads = tensors.heads;
  const int64_t token_stride = static_cast<int64_t>(heads.kv_heads) * kHeadDim;
  fi::BatchPrefillPagedParams<T, T, T, int32_t> params{};
  params.q_ptr = static_cast<T*>(const_cast<void*>(tensors.qkv));
  params.k_ptr = static_cast<T*>(tensors.pool.keys);
  params.v_ptr = static_cast<T*>(tensors.pool.values);
  params.o_ptr = static_cast<T*>(tensors.y);
  params.q_stride_n = heads.columns();
  params.o_stride_n = static_cast<int64_t>(heads.query_heads) * kHeadDim;
  params.k_stride_n = params.v_stride_n = token_stride;
  params.q_stride_h = params.o_stride_h = params.k_stride_h = params.v_stride_h = kHeadDim;
  params.k_page_stride = params.v_page_stride = rows.tokens_per_block * token_stride;
  params.nnz_qo = tensors.num_tokens;
  params.num_qo_heads = heads.query_heads;
  params.num_kv_heads = heads.kv_heads;
  params.group_size = heads.query_heads / heads.kv_heads;
  params.page_size = rows.tokens_per_block;
  params.window_left = -1;
  params.causal = true;
  params.additional_params.sm_scale = tensors.scale;
  const PlanArrays arrays = CarvePlan(const_cast<int32_t*>(device_ints), plan);
  params.work_indptr = arrays.borders;
  params.qo_tile_indices = arrays.tiles;
  params.qo_indptr = arrays.token_begins;
  params.kv_indptr = arrays.page_begins;
  params.qo_lens = arrays.token_counts;
  params.kv_lens = arrays.lengths;
  params.head_indices = arrays.heads;
  params.batch_indices = arrays.rows;
  params.kv_indices = const_cast<int32_t*>(rows.device_pages);
  try {
    return {fi::BatchPrefillWithPagedKVCacheDispatched<
                kHeadDim, kHeadDim, fi::MaskMode::kCausal, /*LEFT_SLIDING_WINDOW=*/false,
                /*SAME_SCHEDULE_FOR_ALL_HEADS=*/false, fi::DefaultAttention</*softcap=*/false>>(
                params, /*enable_pdl=*/false, stream),
            ""};
  } catch (const std::exception& e) {
    return {cudaSuccess, e.what()};
  }
}

}  // namespace

HopperPlan PlanHopper(const FlashInferRows& rows, const Heads& heads, int num_multiprocessors,
                      int32_t* host_ints) {
  const std::vector<Tile> tiles = AssignTiles(rows, heads, num_multiprocessors);
  HopperPlan plan;
  plan.num_tiles = static_cast<int>(tiles.size());
  plan.num_multiprocessors = num_multiprocessors;
  const PlanArrays arrays = CarvePlan(host_ints, plan);
  std::fill(arrays.borders, arrays.borders + num_multiprocessors + 1, 0);
  for (const Tile& tile : tiles) ++arrays.borders[tile.multiprocessor + 1];
  for (int i = 0; i < num_multiprocessors; ++i) arrays.borders[i + 1] += arrays.borders[i];
  std::vector<int32_t> next(arrays.borders, arrays.borders + num_multiprocessors);
  for (const Tile& tile : tiles) {
    const int32_t i = next[tile.multiprocessor]++;
    arrays.tiles[i] = tile.tile;
    arrays.token_begins[i] = rows.token_begins[tile.row];
    arrays.page_begins[i] = rows.page_begins[tile.row];
    arrays.token_counts[i] = rows.token_counts[tile.row];
    arrays.lengths[i] = rows.lengths[tile.row];
    arrays.heads[i] = tile.head;
    arrays.rows[i] = tile.row;
  }
  return plan;
}

FlashInferStatus RunHopper(cudaStream_t stream, const FlashInferRows& rows,
                           const FlashInferTensors& tensors, const int32_t* device_ints,
                           const HopperPlan& plan) {
  return tensors.type == Element::kBF16
             ? Run<cutlass::bfloat16_t>(stream, rows, tensors, device_ints, plan)
             : Run<cutlass::half_t>(stream, rows, tensors, device_ints, plan);
}

}  // namespace polyreme::cuda
