#include "deploy/bench/roofline.h"

namespace polyreme::bench {

Roofline::Roofline(const plan::ModelSpec& spec, const ElementBytes& bytes) {
  const auto embedding = static_cast<double>(plan::NumEmbeddingParameters(spec));
  const double tables = spec.tied_head ? embedding : 2 * embedding;
  const auto all = static_cast<double>(plan::NumParameters(spec));
  linear_ = static_cast<double>(spec.num_layers * plan::NumLayerParameters(spec));
  multiplied_ = linear_ + embedding;  // the head has the size of the embedding
  // Of an embedding that is not the head too, a step reads only its tokens' rows.
  weight_bytes_ = linear_ * bytes.layers + embedding * bytes.tables;
  resident_bytes_ = (all - tables) * bytes.layers + tables * bytes.tables;
  cache_bytes_ =
      static_cast<double>(2 * spec.num_layers * spec.num_kv_heads * spec.head_dim) * bytes.cache;
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

double Roofline::PromptProducts(int64_t tokens) const {
  return 2 * linear_ * static_cast<double>(tokens);
}

Cost Roofline::DecodeCost(int64_t batch, int32_t stages, double context) const {
  const auto rows = static_cast<double>(batch);
  const auto rounds = static_cast<double>(std::min<int64_t>(batch, stages));
  return {rounds * weight_bytes_ + rows * context * cache_bytes_,
          2 * multiplied_ * rows + rows * context * attention_};
}

double Roofline::PromptAttention(int64_t tokens) const {
  const auto length = static_cast<double>(tokens);
  return attention_ * length * length / 2;
}

double Roofline::PromptOperations(int64_t tokens) const {
  return PromptProducts(tokens) + PromptAttention(tokens);
}

double Roofline::PromptSeconds(const Rates& rates, const Layout& layout, int64_t tokens) const {
  const auto ranks = static_cast<double>(layout.ranks());
  const double multiplying =
      PromptProducts(tokens) / rates.operations + PromptAttention(tokens) / rates.OfAttention();
  return std::max(weight_bytes_ / rates.bytes, multiplying) / ranks;
}

double Roofline::PipelineBubble(const Layout& layout, int64_t chunks) {
  const auto idle = static_cast<double>(layout.stages - 1);
  return idle / (static_cast<double>(chunks) + idle);
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
      (PromptProducts(input) / rates.operations + PromptAttention(input) / rates.OfAttention()) /
      static_cast<double>(layout.ranks());
  return prompt + static_cast<double>(output) * step / static_cast<double>(concurrent);
}

}  // namespace polyreme::bench
