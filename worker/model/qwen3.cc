// Qwen3: Llama's page with queries and keys normalised, head by head, before they are turned.
//
// Letters: T tokens, E width; held here: H / G query / key-value heads of D each, F feed-forward
// columns.
#include "worker/model/decoder.h"
#include "worker/model/model.h"

namespace polyreme::model {
namespace {

class Qwen3Layers final : public LayerStack {
 public:
  explicit Qwen3Layers(Decoder decoder) : d_(std::move(decoder)) {}

  void Forward(Lane& lane, const ops::StepBatch& batch, const kv::KvCache& cache,
               TensorView x) const override {
    ops::Ops& ops = *d_.ops;
    const int64_t watermark = lane.SaveScratch();
    const DecoderScratch s = MakeScratch(d_, lane, batch.num_tokens);
    const Norm& first = d_.layers[0].attention_norm;
    ops.RmsNorm(lane, x, first.gain, first.epsilon, s.h);  // [T, E]
    for (size_t i = 0; i < d_.layers.size(); ++i) {
      const DecoderLayer& w = d_.layers[i];
      const ops::LayerKv& kv = cache.Layer(static_cast<int64_t>(i));
      w.qkv.Apply(lane, batch, s.h, s.qkv);  // [T, (H + 2G) D]
      ops.NormHeads(lane, d_.heads, w.q_norm, w.k_norm, d_.epsilon, s.qkv);
      ops.RotateAndStore(lane, batch, d_.heads, d_.rope, s.qkv, kv);
      ops.Attend(lane, batch, d_.heads, s.qkv, kv, d_.scale, s.attended);  // [T, H D]
      w.attention_out.ApplySumAddNorm(lane, batch, s.attended, {x, w.ffn_norm, s.h});

      w.gate_up.Apply(lane, batch, s.h, s.gate_up);  // [T, 2F]
      ops.SiluGate(lane, s.gate_up, s.gated);        // [T, F]
      w.down.ApplySumAddNorm(lane, batch, s.gated, {x, d_.NormAfter(i), s.h});
    }
    lane.RestoreScratch(watermark);
  }

  const ops::HeadLayout& heads() const override { return d_.heads; }

 private:
  const Decoder d_;
};

}  // namespace

std::unique_ptr<LayerStack> MakeQwen3(const weights::ShardWeights& weights, Tools tools) {
  return std::make_unique<Qwen3Layers>(BindDecoder(weights, tools));
}

}  // namespace polyreme::model
