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
//
// Key-value heads are walked inside a tile, not around the context: a place holds all heads side by
// side, so memory is read in one direction, which is what the processor reads fastest.
#pragma once

#include <stdint.h>

#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/product_kernels.h"
#include "worker/backend/cpu/row_kernels.h"

namespace polyreme::backend::cpu {

static_assert(kAttendTaskRows % kLanes == 0, "maxima are also taken sixteen at a time");
inline constexpr int64_t kTilePanels = kContextTile / kLanes;

template <class V, class Format>
class Attention {
 public:
  using Element = typename Format::Element;

  explicit Attention(const AttendTask& task)
      : task_(task),
        head_rows_(task.num_tokens * task.num_heads),
        rows_(head_rows_ * task.num_kv_heads),
        dim_panels_((task.head_dim + kLanes - 1) / kLanes),
        stride_(dim_panels_ * kLanes) {}

  void Run() {
    Begin();
    const int64_t length = task_.first_position + task_.num_tokens;
    FindPlaces(0, Held(0, length), next_places_);
    for (int64_t start = 0; start < length; start += kContextTile) {
      for (int64_t j = 0; j < kContextTile; ++j) places_[j] = next_places_[j];
      FindPlaces(start + kContextTile, Held(start + kContextTile, length), next_places_);
      for (int64_t g = 0; g < task_.num_kv_heads; ++g) {
        LoadTile(g, Held(start, length));
        WalkTile(g, start);
      }
    }
    End();
  }

 private:
  // Row r is a token and a query head of one key-value head: [kv head][token][head].
  int64_t TokenOf(int64_t r) const { return r % head_rows_ / task_.num_heads; }
  int64_t HeadOf(int64_t r) const {
    return r / head_rows_ * task_.num_heads + r % head_rows_ % task_.num_heads;
  }
  // How many positions of the tile that begins at `start` row r attends to; may be negative or
  // beyond the tile.
  int64_t Reach(int64_t r, int64_t start) const {
    return task_.first_position + TokenOf(r) + 1 - start;
  }

  void Begin() {
    for (int64_t r = 0; r < kAttendTaskRows; ++r) {
      max_[r] = next_max_[r] = -__builtin_inff();
      sum_[r] = 0.0f;
    }
    const V scale = V::Broadcast(task_.scale);
    for (int64_t r = 0; r < rows_; ++r) {
      const float* from =
          task_.queries + TokenOf(r) * task_.query_stride + HeadOf(r) * task_.head_dim;
      for (int64_t d = 0; d < stride_; d += kLanes) {
        V::Mul(LoadSome<V>(from + d, task_.head_dim - d), scale).Store(query_ + r * stride_ + d);
        V::Zero().Store(output_ + r * stride_ + d);
      }
    }
  }

  void End() {
    for (int64_t r = 0; r < rows_; ++r) {
      const V sum = V::Broadcast(sum_[r]);
      float* to = task_.y + TokenOf(r) * task_.y_stride + HeadOf(r) * task_.head_dim;
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

  // Positions that the tile from `start` on holds of a context of `length`.
  static int64_t Held(int64_t start, int64_t length) {
    const int64_t left = length > start ? length - start : 0;
    return left < kContextTile ? left : kContextTile;
  }

  // Elements from block 0 to the places of `held` positions from `start` on. Places behind them
  // repeat the last one that is known, so that each can be prefetched.
  void FindPlaces(int64_t start, int64_t held, int64_t* places) const {
    int64_t block = start / task_.tokens_per_block;
    int64_t within = start % task_.tokens_per_block;
    int64_t place = places[kContextTile - 1];
    for (int64_t j = 0; j < kContextTile; ++j) {
      if (j < held) {
        place = (task_.blocks[block] * task_.tokens_per_block + within) * task_.place_stride;
        if (++within == task_.tokens_per_block) {
          within = 0;
          ++block;
        }
      }
      places[j] = place;
    }
  }

  // Brings the tile's `held` positions of one head to float32: values as they are, keys transposed,
  // 16 by 16.
  void LoadTile(int64_t g, int64_t held) {
    const auto* keys = static_cast<const Element*>(task_.keys) + g * task_.head_dim;
    const auto* values = static_cast<const Element*>(task_.values) + g * task_.head_dim;
    for (int64_t j0 = 0; j0 < held; j0 += kLanes) {
      const int64_t n = held - j0 < kLanes ? held - j0 : kLanes;
      const int64_t square_index = g * kTilePanels + j0 / kLanes;
      for (int64_t p = 0; p < dim_panels_; ++p) {
        const int64_t d = p * kLanes;
        const int64_t width = task_.head_dim - d;
        Prefetch(square_index * kLanes + kLanes * p / dim_panels_,
                 square_index * kLanes + kLanes * (p + 1) / dim_panels_);
        const int64_t* places = places_ + j0;
        TransposeKeys(keys + d, places, n, width, keys_ + j0 * stride_ + d * kLanes);
        float* to = values_ + (p * kContextTile + j0) * kLanes;
        for (int64_t j = 0; j < n; ++j) {
          LoadElements(values + places[j] + d, width).Store(to + j * kLanes);
        }
      }
    }
  }

  static void TransposeKeys(const Element* keys, const int64_t* places, int64_t n, int64_t width,
                            float* to) {
    V square[kLanes];
    if (n == kLanes && width >= kLanes) {
#pragma GCC unroll 16
      for (int64_t j = 0; j < kLanes; ++j) square[j] = Format::Load(keys + places[j]);
    } else {
      for (int64_t j = 0; j < kLanes; ++j) {
        square[j] = j < n ? LoadElements(keys + places[j], width) : V::Zero();
      }
    }
    V::Transpose(square);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) square[i].Store(to + i * kLanes);
  }

  // Calls for a part of the next tile while this one is worked on. A unit is one head at one place;
  // in order of units, memory is touched in one direction.
  void Prefetch(int64_t first_unit, int64_t last_unit) const {
    const auto* keys = static_cast<const Element*>(task_.keys);
    const auto* values = static_cast<const Element*>(task_.values);
    constexpr int64_t kLineElements = 64 / static_cast<int64_t>(sizeof(Element));
    for (int64_t unit = first_unit; unit < last_unit; ++unit) {
      const int64_t at =
          next_places_[unit / task_.num_kv_heads] + unit % task_.num_kv_heads * task_.head_dim;
      for (int64_t d = 0; d < task_.head_dim; d += kLineElements) {
        __builtin_prefetch(keys + at + d, 0, 2);
        __builtin_prefetch(values + at + d, 0, 2);
      }
    }
  }

  void WalkTile(int64_t g, int64_t start) {
    const int64_t end = (g + 1) * head_rows_;
    int64_t first = g * head_rows_;  // rows before it end before this tile
    while (Reach(first, start) <= 0) first += task_.num_heads;
    const int64_t most = Reach(end - 1, start);
    const int64_t panels = most < kContextTile ? (most + kLanes - 1) / kLanes : kTilePanels;
    RunTiles<V, FormatF32<V>>({query_ + first * stride_, stride_, keys_, stride_ * kLanes,
                               task_.head_dim, true, Scores(first), kContextTile},
                              end - first, panels);
    Soften(first, end, start);
    for (int64_t r = first; r < end; r += V::kMaxTileRows) {
      const int64_t left = end - r;
      AddValues(r, left < V::kMaxTileRows ? left : V::kMaxTileRows, start);
    }
  }

  float* Scores(int64_t r) {
    return scores_ + r % head_rows_ * kContextTile;
  }

  // Scores of rows [first, end) to weights, and what was summed so far to the new maxima.
  void Soften(int64_t first, int64_t end, int64_t start) {
    for (int64_t r = first; r < end; ++r) {
      float* s = Scores(r);
      for (int64_t j = Reach(r, start); j < kContextTile; ++j) s[j] = -__builtin_inff();
      V most = V::Load(s);
      for (int64_t j = kLanes; j < kContextTile; j += kLanes) most = V::Max(V::Load(s + j), most);
      const float tile_max = V::Largest(most);
      next_max_[r] = max_[r] > tile_max ? max_[r] : tile_max;
    }
    // Rows beside [first, end) that share a vector with them: their maxima are equal, and their
    // decay is not used.
    for (int64_t r = first / kLanes * kLanes; r < end; r += kLanes) {
      const V next_max = V::Load(next_max_ + r);
      Exp(V::Sub(V::Load(max_ + r), next_max)).Store(decay_ + r);
      next_max.Store(max_ + r);
    }
    for (int64_t r = first; r < end; ++r) SoftenRow(r);
  }

  void SoftenRow(int64_t r) {
    float* s = Scores(r);
    const V shift = V::Broadcast(max_[r]);
    V sum = V::Zero();
    for (int64_t j = 0; j < kContextTile; j += kLanes) {
      const V weight = Exp(V::Sub(V::Load(s + j), shift));
      weight.Store(s + j);
      sum = V::Add(sum, weight);
    }
    const float decay = decay_[r];
    sum_[r] = sum_[r] * decay + V::Sum(sum);
    if (decay == 1.0f) return;
    const V by = V::Broadcast(decay);
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
          {Scores(r) + from, kContextTile, values_ + from * kLanes, kContextTile * kLanes,
           to - from, false, output_ + r * stride_, stride_},
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
  const int64_t head_rows_;  // rows of one key-value head
  const int64_t rows_;
  const int64_t dim_panels_;
  const int64_t stride_;  // floats of a row of D, rounded up to whole vectors
  int64_t places_[kContextTile];
  int64_t next_places_[kContextTile] = {};
  alignas(64) float max_[kAttendTaskRows];
  alignas(64) float next_max_[kAttendTaskRows];
  alignas(64) float decay_[kAttendTaskRows];
  float sum_[kAttendTaskRows];
  alignas(64) float query_[kAttendTaskRows * kMaxHeadDim];
  alignas(64) float output_[kAttendTaskRows * kMaxHeadDim];
  alignas(64) float scores_[kAttendRows * kContextTile];
  alignas(64) float keys_[kContextTile * kMaxHeadDim];
  alignas(64) float values_[kContextTile * kMaxHeadDim];
};

template <class V, class Format>
void Attend(const AttendTask& task) {
  Attention<V, Format>(task).Run();
}

}  // namespace polyreme::backend::cpu
