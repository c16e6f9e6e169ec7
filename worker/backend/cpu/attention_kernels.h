// Paged attention over one vector type V; see kernels.h.
//
// Milakov & Gimelshein 2018's online softmax over fixed tiles of the context, [64 i, 64 i + 64)
// from position 0. For each pair of token and head, tile by tile:
//   s[j] = sum over d of (scale q[d]) * K[j][d], one chain of FMAs, d ascending
//   m'   = max(m, max s), a = exp(m - m'), w[j] = exp(s[j] - m'), 0 beyond the token's position
//   l    = l a + sum w, in 16 lanes and a fixed tree;  o[d] = o[d] a + w[0] V[0][d] + w[1] V[1][d]
//   ..., one chain of FMAs
// and at the end y = o / l. Which tokens and heads are worked on together never enters, so a row's
// bits are the same in a prompt chunk, in a decode step and in any company. Both sums are products
// of product_kernels.h over a tile of keys turned into panels [position / 16][D][16] and a tile of
// values as panels [D / 16][position][16].
#pragma once

#include <stdint.h>

#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/product_kernels.h"
#include "worker/backend/cpu/row_kernels.h"

namespace polyreme::backend::cpu {

inline constexpr int64_t kTilePanels = kContextTile / kLanes;

template <class V, class Format>
class Attention {
 public:
  using Element = typename Format::Element;

  explicit Attention(const AttendTask& task)
      : task_(task),
        rows_(task.num_tokens * task.num_heads),
        dim_panels_((task.head_dim + kLanes - 1) / kLanes),
        stride_(dim_panels_ * kLanes) {}

  void Run() {
    Begin();
    const int64_t last = task_.first_position + task_.num_tokens - 1;
    for (int64_t start = 0; start <= last; start += kContextTile) {
      const int64_t held = last + 1 - start;
      LoadTile(start, held < kContextTile ? held : kContextTile);
      WalkTile(start);
    }
    End();
  }

 private:
  void Begin() {
    const V scale = V::Broadcast(task_.scale);
    for (int64_t r = 0; r < rows_; ++r) {
      max_[r] = -__builtin_inff();
      sum_[r] = 0.0f;
      const float* from = task_.queries + r / task_.num_heads * task_.query_stride +
                          r % task_.num_heads * task_.head_dim;
      for (int64_t d = 0; d < stride_; d += kLanes) {
        V::Mul(LoadSome<V>(from + d, task_.head_dim - d), scale).Store(query_ + r * stride_ + d);
        V::Zero().Store(output_ + r * stride_ + d);
      }
    }
  }

  void End() {
    for (int64_t r = 0; r < rows_; ++r) {
      const V sum = V::Broadcast(sum_[r]);
      float* to =
          task_.y + r / task_.num_heads * task_.y_stride + r % task_.num_heads * task_.head_dim;
      for (int64_t d = 0; d < task_.head_dim; d += kLanes) {
        StoreSome(V::Div(V::Load(output_ + r * stride_ + d), sum), task_.head_dim - d, to + d);
      }
    }
  }

  static V LoadElements(const Element* from, int64_t n) {
    if (n >= kLanes) return Format::Load(from);
    Element whole[kLanes] = {};
    for (int64_t i = 0; i < n; ++i) whole[i] = from[i];
    return Format::Load(whole);
  }

  // Elements from block 0 to a position's place.
  int64_t PlaceOf(int64_t position) const {
    const int64_t block = task_.blocks[position / task_.tokens_per_block];
    return (block * task_.tokens_per_block + position % task_.tokens_per_block) *
           task_.place_stride;
  }

  // Brings `held` positions from `start` on to float32: values as they are, keys transposed, 16
  // by 16.
  void LoadTile(int64_t start, int64_t held) {
    const auto* keys = static_cast<const Element*>(task_.keys);
    const auto* values = static_cast<const Element*>(task_.values);
    for (int64_t j0 = 0; j0 < held; j0 += kLanes) {
      const int64_t n = held - j0 < kLanes ? held - j0 : kLanes;
      int64_t places[kLanes];
      for (int64_t j = 0; j < n; ++j) places[j] = PlaceOf(start + j0 + j);
      for (int64_t p = 0; p < dim_panels_; ++p) {
        const int64_t d = p * kLanes;
        const int64_t width = task_.head_dim - d;
        V square[kLanes];
        for (int64_t j = 0; j < kLanes; ++j) {
          square[j] = j < n ? LoadElements(keys + places[j] + d, width) : V::Zero();
        }
        V::Transpose(square);
        for (int64_t i = 0; i < kLanes; ++i)
          square[i].Store(keys_ + j0 * stride_ + (d + i) * kLanes);
        for (int64_t j = 0; j < n; ++j) {
          LoadElements(values + places[j] + d, width)
              .Store(values_ + (p * kContextTile + j0 + j) * kLanes);
        }
      }
    }
  }

  // How many positions of the tile that begins at `start` row r attends to; may be negative or
  // beyond the tile.
  int64_t Reach(int64_t r, int64_t start) const {
    return task_.first_position + r / task_.num_heads + 1 - start;
  }

  void WalkTile(int64_t start) {
    int64_t first = 0;  // rows before it end before this tile
    while (Reach(first, start) <= 0) first += task_.num_heads;
    const int64_t most = Reach(rows_ - 1, start);
    const int64_t panels = most < kContextTile ? (most + kLanes - 1) / kLanes : kTilePanels;
    RunTiles<V, FormatF32<V>>({query_ + first * stride_, stride_, keys_, stride_ * kLanes,
                               task_.head_dim, true, scores_ + first * kContextTile, kContextTile},
                              rows_ - first, panels);
    for (int64_t r = first; r < rows_; ++r) Soften(r, Reach(r, start));
    for (int64_t r = first; r < rows_; r += V::kMaxTileRows) {
      const int64_t left = rows_ - r;
      AddValues(r, left < V::kMaxTileRows ? left : V::kMaxTileRows, start);
    }
  }

  // Scores of one row to weights, and what was summed so far to the new maximum.
  void Soften(int64_t r, int64_t reach) {
    float* s = scores_ + r * kContextTile;
    for (int64_t j = reach; j < kContextTile; ++j) s[j] = -__builtin_inff();
    V most = V::Load(s);
    for (int64_t j = kLanes; j < kContextTile; j += kLanes) most = V::Max(V::Load(s + j), most);
    const float tile_max = MaxOfLanes(most);
    const float next_max = max_[r] > tile_max ? max_[r] : tile_max;
    const V shift = V::Broadcast(next_max);
    V sum = V::Zero();
    for (int64_t j = 0; j < kContextTile; j += kLanes) {
      const V weight = Exp(V::Sub(V::Load(s + j), shift));
      weight.Store(s + j);
      sum = V::Add(sum, weight);
    }
    float decay[kLanes];
    Exp(V::Broadcast(max_[r] - next_max)).Store(decay);
    sum_[r] = sum_[r] * decay[0] + SumOfLanes(sum);
    max_[r] = next_max;
    const V by = V::Broadcast(decay[0]);
    for (int64_t d = 0; d < stride_; d += kLanes) {
      float* o = output_ + r * stride_ + d;
      V::Mul(V::Load(o), by).Store(o);
    }
  }

  // Adds the tile's values to a few rows: together as far as all of them reach, then each on its
  // own, so that a value beyond a row's reach is never touched.
  void AddValues(int64_t first, int64_t num_rows, int64_t start) {
    const auto add = [&](int64_t r, int64_t rows, int64_t from, int64_t to) {
      RunTiles<V, FormatF32<V>>(
          {scores_ + r * kContextTile + from, kContextTile, values_ + from * kLanes,
           kContextTile * kLanes, to - from, false, output_ + r * stride_, stride_},
          rows, dim_panels_);
    };
    int64_t common = Reach(first, start);
    if (common > kContextTile) common = kContextTile;
    add(first, num_rows, 0, common);
    for (int64_t r = first; r < first + num_rows; ++r) {
      const int64_t reach = Reach(r, start);
      const int64_t end = reach < kContextTile ? reach : kContextTile;
      if (end > common) add(r, 1, common, end);
    }
  }

  const AttendTask& task_;
  const int64_t rows_;
  const int64_t dim_panels_;
  const int64_t stride_;  // floats of a row of D, rounded up to whole vectors
  float max_[kAttendRows];
  float sum_[kAttendRows];
  alignas(64) float query_[kAttendRows * kMaxHeadDim];
  alignas(64) float output_[kAttendRows * kMaxHeadDim];
  alignas(64) float scores_[kAttendRows * kContextTile];
  alignas(64) float keys_[kContextTile * kMaxHeadDim];
  alignas(64) float values_[kContextTile * kMaxHeadDim];
};

template <class V, class Format>
void Attend(const AttendTask& task) {
  Attention<V, Format>(task).Run();
}

}  // namespace polyreme::backend::cpu
