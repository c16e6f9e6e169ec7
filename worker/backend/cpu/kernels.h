// The inner loops of the CPU backend: one table of functions per instruction set, all from one
// source.
//
// kernels_<isa>.cc instantiates the templates of {row,product,attention}_kernels.h over that
// instruction set's vector of 16 floats. All three vectors do the same operations on the same lanes
// in the same order, so that the bits of a result do not depend on the machine. Those files are
// compiled for instructions that this machine may lack; therefore they, and this header, include
// nothing with inline code that the linker could share with the rest of the program.
#pragma once

#include <stdint.h>

namespace polyreme::backend::cpu {

enum class Isa : uint8_t { kScalar, kAvx2, kAvx512 };

// Storage of weights and cache.
enum class Storage : uint8_t { kF32, kF16, kBF16 };
inline constexpr int kNumStorages = 3;

// Floats of a vector, and outputs of one panel of a packed weight: [ceil(N / 16)][K][16], the last
// padded with zeros.
inline constexpr int64_t kLanes = 16;
// Panels and rows of x that one product task may be given.
inline constexpr int64_t kTaskPanels = 8;
inline constexpr int64_t kTaskRows = 96;
// Positions that attention takes at a time, counted from position 0; part of what defines its bits.
inline constexpr int64_t kContextTile = 64;
// Pairs of token and query head that one attention task may be given for each of its key-value
// heads, and for all of them; and the widest head.
inline constexpr int64_t kAttendRows = 48;
inline constexpr int64_t kAttendTaskRows = 4 * kAttendRows;
inline constexpr int64_t kMaxHeadDim = 256;

// y[t, n] = sum over k of x[t, k] * w[n, k] for some rows t and some panels n of a weight.
struct ProductTask {
  const float* x = nullptr;
  int64_t x_stride = 0;
  int64_t num_rows = 0;          // at most kTaskRows
  const void* panels = nullptr;  // the task's first panel
  int64_t num_panels = 0;        // at most kTaskPanels
  int64_t cols = 0;              // K
  const int64_t* segment_ends = nullptr;
  int64_t num_segments = 0;
  float* y = nullptr;  // at the first panel's first output
  int64_t y_stride = 0;
  int64_t num_outputs = 0;  // of the panels together, padding not counted
};

// Attention of consecutive tokens of one sequence, for some neighbouring key-value heads and query
// heads of each.
struct AttendTask {
  const float* queries =
      nullptr;  // [tokens, kv heads * heads, D]; a token's are query_stride apart
  int64_t query_stride = 0;
  int64_t num_tokens = 0;
  int64_t num_heads = 0;     // for each key-value head; tokens * heads is at most kAttendRows
  int64_t num_kv_heads = 0;  // tokens * heads * kv heads is at most kAttendTaskRows
  int64_t first_position = 0;
  int64_t head_dim = 0;        // D, at most kMaxHeadDim
  const void* keys = nullptr;  // block 0, place 0 of the first key-value head; the others follow it
  const void* values = nullptr;
  int64_t place_stride = 0;         // elements from one place to the next
  const int32_t* blocks = nullptr;  // of the sequence
  int64_t tokens_per_block = 0;
  float scale = 0;
  float* y = nullptr;  // as queries
  int64_t y_stride = 0;
};

struct Kernels {
  const char* name;
  void (*product[kNumStorages])(const ProductTask& task);
  void (*attend[kNumStorages])(const AttendTask& task);
  // Rows of n floats.
  void (*rms_norm)(const float* x, const float* gain, int64_t n, float epsilon, float* y);
  void (*add)(const float* delta, int64_t n, float* x);
  void (*silu_gate)(const float* gate, const float* up, int64_t n, float* y);
  // One head of D floats, in place; cos_sin: D/2 cosines, then D/2 sines.
  void (*rotate)(const float* cos_sin, int64_t head_dim, float* x);
  // The machine's own rates; see probe_kernels.h.
  float (*read_all)(const float* from, int64_t n);
  int64_t (*multiply_add)(int64_t rounds, float* result);
};

bool IsSupported(Isa isa);
Isa BestIsa();
const Kernels& KernelsOf(Isa isa);

const Kernels& ScalarKernels();
const Kernels& Avx2Kernels();
const Kernels& Avx512Kernels();

}  // namespace polyreme::backend::cpu
