// Products over one vector type V; see kernels.h.
//
// Each output is one chain of FMAs over k ascending per segment, and the segments' sums are added
// in the tree
// ((s0+s1)+(s2+s3))+((s4+s5)+(s6+s7)), or the branch of it that 1, 2 or 4 segments make; another
// number of segments is added from left to right. Tiles, blocks of k and stored partial sums never
// change that order, so the bits of an output depend on nothing but its row of x and its row of w.
//
// Register tile, m rows of x by p panels:        panel 0        panel 1
//                                      k ->  w[16] w[16] ..  w[16] w[16] ..
//                        x row 0  x[k]         sum[0][0]       sum[0][1]
//                        x row 1  x[k]         sum[1][0]       sum[1][1]
//                        ...
// Per k: p vectors of w are loaded (and widened), m scalars of x broadcast, m * p FMAs done.
#pragma once

#include <stdint.h>

#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/row_kernels.h"

namespace polyreme::backend::cpu {

// Panels taken at once when there are more rows than one register tile has, and the most floats of
// sums at once.
inline constexpr int64_t kNarrowPanels = 2;
inline constexpr int64_t kTaskFloats = kTaskRows * kNarrowPanels * kLanes;
// k taken at once when panels are first unpacked to float32: two panels of it fill most of a
// first-level cache.
inline constexpr int64_t kUnpackDepth = 256;

// How a storage format's elements become a vector.
template <class V>
struct FormatF32 {
  using Element = float;
  static V Load(const float* from) { return V::Load(from); }
};
template <class V>
struct FormatF16 {
  using Element = uint16_t;
  static V Load(const uint16_t* from) { return V::LoadF16(from); }
};
template <class V>
struct FormatBf16 {
  using Element = uint16_t;
  static V Load(const uint16_t* from) { return V::LoadBf16(from); }
};

// sums[t, p] (+)= x[t, 0..count) times panels[p][0..count). Kept sums are continued, fresh ones
// start at zero.
template <class Element>
struct TileArgs {
  const float* x;
  int64_t x_stride;
  const Element* panels;
  int64_t panel_stride;  // elements from one panel to the next
  int64_t count;
  bool fresh;
  float* sums;
  int64_t sums_stride;  // floats from one row to the next; panels lie 16 apart
};

template <class V, class Format, int kRows, int kPanels>
void Tile(const TileArgs<typename Format::Element>& a) {
  V sum[kRows][kPanels];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) {
      sum[m][p] = a.fresh ? V::Zero() : V::Load(a.sums + m * a.sums_stride + p * kLanes);
    }
  }
  const float* x = a.x;
  const auto* panels = a.panels;
  for (int64_t k = 0; k < a.count; ++k) {
    V w[kPanels];
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) w[p] = Format::Load(panels + p * a.panel_stride + k * kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const V element = V::Broadcast(x[m * a.x_stride + k]);
#pragma GCC unroll 16
      for (int p = 0; p < kPanels; ++p) sum[m][p] = V::Fma(element, w[p], sum[m][p]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) sum[m][p].Store(a.sums + m * a.sums_stride + p * kLanes);
  }
}

// Runs the tile of `rows` rows and as many panels as it takes at once; returns that number of
// panels.
template <class V, class Format, int kRows>
int64_t RunTile(const TileArgs<typename Format::Element>& a, int64_t rows, int64_t panels) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return RunTile<V, Format, kRows - 1>(a, rows, panels);
  }
  constexpr int kMost = V::PanelsForRows(kRows);
  if constexpr (kMost >= 8) {
    if (panels >= 8) return Tile<V, Format, kRows, 8>(a), 8;
  }
  if constexpr (kMost >= 4) {
    if (panels >= 4) return Tile<V, Format, kRows, 4>(a), 4;
  }
  if constexpr (kMost >= 2) {
    if (panels >= 2) return Tile<V, Format, kRows, 2>(a), 2;
  }
  return Tile<V, Format, kRows, 1>(a), 1;
}

// The same for any number of rows and panels, in tiles of nearly equal height.
template <class V, class Format>
void RunTiles(const TileArgs<typename Format::Element>& whole, int64_t rows, int64_t panels) {
  const int64_t tiles = (rows + V::kMaxTileRows - 1) / V::kMaxTileRows;
  int64_t row = 0;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t height = (rows - row) / (tiles - i);
    TileArgs<typename Format::Element> a = whole;
    a.x += row * whole.x_stride;
    a.sums += row * whole.sums_stride;
    for (int64_t done = 0; done < panels;) {
      const int64_t ran = RunTile<V, Format, V::kMaxTileRows>(a, height, panels - done);
      a.panels += ran * whole.panel_stride;
      a.sums += ran * kLanes;
      done += ran;
    }
    row += height;
  }
}

// Adds up the segments of one block of outputs, each a plane of floats.
template <class V>
class SegmentTree {
 public:
  explicit SegmentTree(int64_t num_segments)
      : num_segments_(num_segments), binary_((num_segments & (num_segments - 1)) == 0) {}

  // `plane` holds the sums of the next segment; after the last one, the total.
  void Add(float* plane, int64_t floats) {
    const int64_t index = next_++;
    int level = 0;
    if (binary_) {
      for (; ((index >> level) & 1) != 0; ++level) AddPlane(kept_[level], plane, floats);
    } else if (index > 0) {
      AddPlane(kept_[0], plane, floats);
    }
    if (next_ == num_segments_) return;
    for (int64_t i = 0; i < floats; i += kLanes) V::Load(plane + i).Store(kept_[level] + i);
  }

 private:
  static void AddPlane(const float* left, float* plane, int64_t floats) {
    for (int64_t i = 0; i < floats; i += kLanes) {
      V::Add(V::Load(left + i), V::Load(plane + i)).Store(plane + i);
    }
  }

  static constexpr int kLevels = 3;  // of a tree of eight
  int64_t num_segments_;
  bool binary_;
  int64_t next_ = 0;
  alignas(64) float kept_[kLevels][kTaskFloats];
};

// count k of some panels to float32, panel by panel.
template <class V, class Format>
void Unpack(const typename Format::Element* panels, int64_t panel_stride, int64_t num_panels,
            int64_t count, float* to) {
  for (int64_t p = 0; p < num_panels; ++p) {
    const typename Format::Element* panel = panels + p * panel_stride;
    for (int64_t i = 0; i < count * kLanes; i += kLanes) Format::Load(panel + i).Store(to + i);
    to += count * kLanes;
  }
}

// The outputs of a few panels, from all segments, into sums [rows, panels, 16].
template <class V, class Format>
void SumColumns(const ProductTask& task, const typename Format::Element* panels, int64_t num_panels,
                float* sums) {
  alignas(64) float unpacked[kNarrowPanels * kUnpackDepth * kLanes];
  const bool unpack = task.num_rows > 2 * V::kMaxTileRows && num_panels <= kNarrowPanels;
  const int64_t stride = num_panels * kLanes;
  SegmentTree<V> tree(task.num_segments);
  int64_t k = 0;
  for (int64_t s = 0; s < task.num_segments; ++s) {
    const int64_t end = task.segment_ends[s];
    bool fresh = true;  // an empty segment still has a sum, of zero
    while (fresh || k < end) {
      const int64_t left = end - k;
      const int64_t count = unpack && left > kUnpackDepth ? kUnpackDepth : left;
      const auto* from = panels + k * kLanes;
      if (unpack) {
        Unpack<V, Format>(from, task.cols * kLanes, num_panels, count, unpacked);
        RunTiles<V, FormatF32<V>>(
            {task.x + k, task.x_stride, unpacked, count * kLanes, count, fresh, sums, stride},
            task.num_rows, num_panels);
      } else {
        RunTiles<V, Format>(
            {task.x + k, task.x_stride, from, task.cols * kLanes, count, fresh, sums, stride},
            task.num_rows, num_panels);
      }
      fresh = false;
      k += count;
    }
    tree.Add(sums, task.num_rows * stride);
  }
}

template <class V, class Format>
void Product(const ProductTask& task) {
  alignas(64) float sums[kTaskFloats];
  const auto* panels = static_cast<const typename Format::Element*>(task.panels);
  const int64_t most = task.num_rows <= V::kMaxTileRows ? kTaskPanels : kNarrowPanels;
  for (int64_t first = 0; first < task.num_panels; first += most) {
    const int64_t left = task.num_panels - first;
    const int64_t num_panels = left < most ? left : most;
    SumColumns<V, Format>(task, panels + first * task.cols * kLanes, num_panels, sums);
    for (int64_t t = 0; t < task.num_rows; ++t) {
      const float* row = sums + t * num_panels * kLanes;
      for (int64_t p = 0; p < num_panels; ++p) {
        const int64_t output = (first + p) * kLanes;
        StoreSome(V::Load(row + p * kLanes), task.num_outputs - output,
                  task.y + t * task.y_stride + output);
      }
    }
  }
}

}  // namespace polyreme::backend::cpu
