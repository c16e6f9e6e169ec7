#include "deploy/bench/roofline.h"

namespace polyreme::bench {

Roofline::Roofline(const plan::ModelSpec& spec, int64_t weight_bytes, int64_t cache_bytes) {
  const auto embedding = static_cast<double>(plan::NumEmbeddingParameters(spec));
  const auto all = static_cast<double>(plan::NumParameters(spec));
  linear_ = static_cast<double>(spec.num_layers * plan::NumLayerParameters(spec));
  multiplied_ = linear_ + embedding;  // the head has the size of the embedding
  // Of an embedding that is not the head too, a step reads only its tokens' rows.
  weight_bytes_ = multiplied_ * static_cast<double>(weight_bytes);
  resident_bytes_ = all * static_cast<double>(weight_bytes);
  cache_bytes_ =
      static_cast<double>(2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * cache_bytes);
  attention_ = 4.0 * static_cast<double>(spec.num_layers * spec.num_query_heads * spec.head_dim);
}

double Roofline::DecodeSeconds(const Rates& rates, const Layout& layout, int64_t batch,
                               double context) const {
  const auto ranks = static_cast<double>(layout.ranks());
  const auto rounds = static_cast<double>(std::min<int64_t>(batch, layout.stages));
  const double rows = static_cast<double>(batch) / rounds;  // of a micro-batch
  const Cost products = {weight_bytes_ / ranks, 2 * multiplied_ * rows / ranks};
  const Cost attention = {rows * context * cache_bytes_ / ranks,
                          rows * context * attention_ / ranks};
  const double stage = products.SecondsAtBest(rates) + attention.SecondsAtBest(rates);
  return static_cast<double>(layout.stages) * stage;
}

double Roofline::PromptOperations(int64_t tokens) const {
  const auto length = static_cast<double>(tokens);
  return 2 * linear_ * length + attention_ * length * length / 2;
}

double Roofline::PromptSeconds(const Rates& rates, const Layout& layout, int64_t tokens) const {
  const auto ranks = static_cast<double>(layout.ranks());
  return Cost{weight_bytes_ / ranks, PromptOperations(tokens) / ranks}.SecondsAtBest(rates);
}

int64_t Roofline::Concurrency(double cache_tokens, int64_t tokens, int64_t most) const {
  const auto fit = static_cast<int64_t>(cache_tokens / static_cast<double>(tokens));
  return std::clamp<int64_t>(fit, 1, most);
}

double Roofline::OfflineSeconds(const Rates& rates, const Layout& layout, int64_t input,
                                int64_t output, int64_t concurrent) const {
  const double context = static_cast<double>(input) + static_cast<double>(output) / 2;
  const double step = DecodeSeconds(rates, layout, concurrent, context);
  const double prompt =
      PromptOperations(input) / static_cast<double>(layout.ranks()) / rates.operations;
  return prompt + static_cast<double>(output) * step / static_cast<double>(concurrent);
}

}  // namespace polyreme::bench
