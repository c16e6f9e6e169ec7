// What a model's steps cannot do without, and how long that takes at best: the figures that every
// measured one stands beside. Pure arithmetic.
//
// Decode: the weights are read once per step and each sequence's cache once, one after the other.
// Prompts: their multiplications. What an engine is judged on is not in it: launches, sums over
// ranks, sampling, gaps.
#pragma once

#include <algorithm>
#include <cstdint>

#include "parallel/plan/model_spec.h"

namespace polyreme::bench {

// Per second and rank.
struct Rates {
  double bytes = 0;       // read from memory
  double operations = 0;  // of multiply-adds, two each
  double attention = 0;   // of a prompt's attention; 0: as `operations`

  double OfAttention() const { return attention > 0 ? attention : operations; }
};

// Bytes of one element.
struct ElementBytes {
  double layers = 2;  // of the layers' weights
  double tables = 2;  // of embedding and head
  double cache = 2;
};

// What a piece of work cannot do without.
struct Cost {
  double bytes = 0;
  double operations = 0;
  double SecondsAtBest(const Rates& rates) const {
    return std::max(bytes / rates.bytes, operations / rates.operations);
  }
};

struct Layout {
  int32_t shards = 1;
  int32_t stages = 1;
  int32_t ranks() const { return shards * stages; }
};

class Roofline {
 public:
  // Bytes of one element of a weight, and of the cache.
  Roofline(const plan::ModelSpec& spec, int64_t weight_bytes, int64_t cache_bytes)
      : Roofline(spec,
                 ElementBytes{static_cast<double>(weight_bytes), static_cast<double>(weight_bytes),
                              static_cast<double>(cache_bytes)}) {}
  Roofline(const plan::ModelSpec& spec, const ElementBytes& bytes);

  double weight_bytes() const { return weight_bytes_; }  // read by a decode step
  double resident_bytes() const { return resident_bytes_; }
  double cache_bytes_per_token() const { return cache_bytes_; }

  // One token more for each of `batch` sequences of `context` tokens. With stages the batch is
  // dealt into as many micro-batches, each of which reads the weights.
  double DecodeSeconds(const Rates& rates, const Layout& layout, int64_t batch,
                       double context) const;
  // What such a step reads and multiplies in all, over all ranks.
  Cost DecodeCost(int64_t batch, int32_t stages, double context) const;
  // A prompt from nothing: 2 operations for each weight and token, and causal attention.
  double PromptOperations(int64_t tokens) const;
  double PromptSeconds(const Rates& rates, const Layout& layout, int64_t tokens) const;
  // Of a prompt that goes through a pipeline in `chunks` equal pieces: the part of its time that
  // the stages stand idle, (stages - 1) / (chunks + stages - 1).
  static double PipelineBubble(const Layout& layout, int64_t chunks);
  // Sequences of so many tokens that the cache has room for, at most `most`.
  int64_t Concurrency(double cache_tokens, int64_t tokens, int64_t most) const;
  // Seconds for each of very many sequences of `input` prompt and `output` drawn tokens, of which
  // `concurrent` are decoded at once; a sequence's cache is half of its output long on average.
  double OfflineSeconds(const Rates& rates, const Layout& layout, int64_t input, int64_t output,
                        int64_t concurrent) const;

 private:
  double PromptProducts(int64_t tokens) const;
  double PromptAttention(int64_t tokens) const;

  double linear_ = 0;      // weights of the layers
  double multiplied_ = 0;  // the head's too
  double weight_bytes_ = 0;
  double resident_bytes_ = 0;
  double cache_bytes_ = 0;
  double attention_ = 0;  // operations of a token for each position that it attends to
};

}  // namespace polyreme::bench
