// Dummy models: real sizes, random weights, no files (--load-format dummy), and their way into
// files (--save-checkpoint).
//
// Serving one: OpenTensorSource(directory, spec, LoadFormat::kDummy, seed) (tensor_source.h) in
// place of Checkpoint::Open, its fingerprint() where the checkpoint's was, and LoadShard of it. All
// ranks must be given the same seed; the fingerprint, a hash of config.json and the seed, tells.
//
// Scales, so that activations stay near 1 through any depth and logits look like a model's:
//   norm gains              1 + 0.1 u: every linear layer reads rows of mean square about 1
//   q, k, v, gate, up       std 1 / sqrt(fan in): outputs of std 1, scores of std 1 after 1 /
//   sqrt(D) o, down                 the same / sqrt(2 layers): all branches together add less than
//   a variance
//                           of 1 to the residual stream
//   embedding               std 1: of the same weight in the stream as all branches together, so
//                           that both the token and every layer show in the logits
//   head                    std 2 / sqrt(width): logits of std 2
//   embedding, tied         as the head: at std 1 a token's own logit, about sqrt(width), would
//                           always win; the branches then outweigh it in the stream, and norms hide
//                           its size
//   biases                  0.02 u
// u is uniform in (-1, 1): a std of s is a scale of sqrt(3) s.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "parallel/base/status.h"
#include "parallel/plan/model_spec.h"
#include "worker/weights/dummy_values.h"
#include "worker/weights/tensor_names.h"
#include "worker/weights/tensor_source.h"

namespace polyreme::weights {

// How the values of a tensor of ExpectedTensors(spec) are made.
DummyValues DummyValuesOf(const plan::ModelSpec& spec, const ExpectedTensor& tensor, uint64_t seed);

// Elements [begin, begin + count) of a tensor in `dtype` (F32, F16 or BF16), to `out`, which need
// not be aligned.
void FillDummy(const DummyValues& values, DType dtype, uint64_t begin, int64_t count,
               std::byte* out);

// config_json: the text of the model's config.json; only its bytes count, for the fingerprint.
// Tensors are of spec.dtype.
std::unique_ptr<TensorSource> MakeDummySource(const plan::ModelSpec& spec,
                                              std::string_view config_json, uint64_t seed);

struct SaveOptions {
  uint64_t seed = 0;
  int32_t num_threads = 0;                 // 0: as many as the machine has processors
  int64_t max_file_bytes = 5'000'000'000;  // of tensors; a larger tensor has a file of its own
  // Called after each piece that was written, from any of the writing threads, one at a time;
  // may be empty.
  std::function<void(int64_t done, int64_t total)> progress;
};

// Writes the dummy model of model_directory/config.json as a Hugging Face checkpoint:
// model-0000i-of-0000n.safetensors, their index, and copies of config.json, generation_config.json
// and the files of the tokenizer, as far as they are there. Loading it gives the weights that
// --load-format dummy makes, bit for bit. `directory` is made if need be; files that are there
// under these names are replaced, each by a rename, the index last. AlreadyExists if `directory` is
// model_directory or holds another checkpoint (other .safetensors); ResourceExhausted when the disk
// is full, with what is needed and free; FailedPrecondition names what cannot be written. On an
// error no temporary is left. Blocking.
absl::Status SaveDummyCheckpoint(const plan::ModelSpec& spec, const std::string& model_directory,
                                 const std::string& directory, const SaveOptions& options);

}  // namespace polyreme::weights
