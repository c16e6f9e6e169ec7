#include "coordinator/text/tokenizer_parts.h"

#include <algorithm>
#include <string>
#include <utility>

#include "coordinator/text/json_fields.h"
#include "parallel/base/json.h"

namespace polyreme::text {
namespace {

constexpr int32_t kMaxDecoderDepth = 8;

absl::Status ReadVocabulary(const JsonFields& model, Vocabulary& vocabulary) {
  ASSIGN_OR_RETURN(const JsonFields entries, model.Object("vocab"));
  if (entries.json().members().empty())
    return InvalidArgument("{}: expected tokens, got none", entries.path());
  for (const auto& [token, id] : entries.json().members()) {
    if (!id.is_int()) {
      return InvalidArgument("{}: token \"{}\": expected an integer, got {}", entries.path(), token,
                             id.Dump());
    }
    if (absl::Status added = vocabulary.Add(token, id.as_int()); !added.ok())
      return Annotate(added, entries.path());
  }
  return absl::OkStatus();
}

// Collects the added tokens of both files and gives each its place in the vocabulary.
class AddedTokenReader {
 public:
  explicit AddedTokenReader(TokenizerParts& parts) : parts_(parts) {}

  absl::Status ReadFile(const JsonFields& file) {
    if (file.Find("added_tokens") == nullptr) return absl::OkStatus();
    ASSIGN_OR_RETURN(const Json::Array* listed, file.Array("added_tokens"));
    for (size_t i = 0; i < listed->size(); ++i) {
      const std::string path = file.PathTo("added_tokens", i);
      ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of((*listed)[i], path));
      ASSIGN_OR_RETURN(AddedToken token, AddedToken::Read(fields));
      ASSIGN_OR_RETURN(const int64_t id, fields.Integer("id"));
      RETURN_IF_ERROR(Add(std::move(token), id, path));
    }
    return absl::OkStatus();
  }

  // What the configuration names and tokenizer.json does not, Transformers adds; so do we.
  absl::Status ReadConfig(const TokenizerConfig& config) {
    for (const AddedToken& token : config.added_tokens) {
      RETURN_IF_ERROR(Add(token, token.id, "tokenizer_config.json: added_tokens_decoder"));
    }
    for (const std::optional<AddedToken>* named :
         {&config.bos, &config.eos, &config.unk, &config.pad}) {
      if (*named) RETURN_IF_ERROR(AddSpecial(**named));
    }
    for (const AddedToken& token : config.other_special_tokens) RETURN_IF_ERROR(AddSpecial(token));
    return absl::OkStatus();
  }

 private:
  absl::Status Add(AddedToken token, int64_t id, const std::string& path) {
    if (absl::Status added = parts_.vocabulary.Add(token.content, id); !added.ok())
      return Annotate(added, path);
    token.id = static_cast<TokenId>(id);
    if (contents_.try_emplace(token.content, token.id).second)
      parts_.added_tokens.push_back(std::move(token));
    return absl::OkStatus();
  }

  absl::Status AddSpecial(const AddedToken& token) {
    const std::optional<TokenId> id = parts_.vocabulary.Find(token.content);
    return Add(token, id.value_or(parts_.vocabulary.size()), "tokenizer_config.json");
  }

  TokenizerParts& parts_;
  StringMap<TokenId> contents_;
};

// Only decoders that read the byte alphabet and nothing else: Fuse joins what we never part.
absl::Status CheckDecoder(const Json& json, const std::string& path, int32_t depth,
                          int32_t& num_byte_levels) {
  if (depth > kMaxDecoderDepth) return InvalidArgument("{}: nested too deep", path);
  ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(json, path));
  ASSIGN_OR_RETURN(const std::string type, fields.String("type"));
  if (type == "ByteLevel") {
    ++num_byte_levels;
  } else if (type == "Sequence") {
    ASSIGN_OR_RETURN(const Json::Array* parts, fields.Array("decoders"));
    for (size_t i = 0; i < parts->size(); ++i) {
      RETURN_IF_ERROR(
          CheckDecoder((*parts)[i], fields.PathTo("decoders", i), depth + 1, num_byte_levels));
    }
  } else if (type != "Fuse") {
    return InvalidArgument("{}: decoder \"{}\" is not supported (known: ByteLevel, Fuse, Sequence)",
                           path, type);
  }
  return absl::OkStatus();
}

absl::Status CheckDecoder(const JsonFields& file) {
  ASSIGN_OR_RETURN(const JsonFields decoder, file.Object("decoder"));
  int32_t num_byte_levels = 0;
  RETURN_IF_ERROR(CheckDecoder(decoder.json(), decoder.path(), 0, num_byte_levels));
  if (num_byte_levels == 1) return absl::OkStatus();
  return InvalidArgument("{}: expected ByteLevel once, got it {} times", decoder.path(),
                         num_byte_levels);
}

absl::Status CheckModelType(const JsonFields& model) {
  // Old files leave the type out; what has merges is BPE.
  ASSIGN_OR_RETURN(const std::string type, model.String("type", "BPE"));
  if (type == "BPE") return absl::OkStatus();
  return InvalidArgument("{}: model \"{}\" is not supported (known: BPE)", model.PathTo("type"),
                         type);
}

absl::Status CheckHoles(const Vocabulary& vocabulary, int32_t model_size) {
  const std::optional<TokenId> hole = vocabulary.FirstHole();
  if (!hole || *hole >= model_size) return absl::OkStatus();
  return InvalidArgument("tokenizer.json: model.vocab: ids go up to {}, but no token has id {}",
                         model_size - 1, *hole);
}

}  // namespace

absl::StatusOr<TokenizerParts> TokenizerParts::Read(std::string_view tokenizer_json,
                                                    std::string_view tokenizer_config_json) {
  TokenizerParts parts;
  ASSIGN_OR_RETURN(parts.config, TokenizerConfig::Parse(tokenizer_config_json));
  const absl::StatusOr<Json> json = Json::Parse(tokenizer_json);
  if (!json.ok()) return Annotate(json.status(), "tokenizer.json");
  ASSIGN_OR_RETURN(const JsonFields file, JsonFields::Of(*json, "tokenizer.json"));
  RETURN_IF_ERROR(file.AllowOnly({"version", "truncation", "padding", "added_tokens", "normalizer",
                                  "pre_tokenizer", "post_processor", "decoder", "model"}));
  ASSIGN_OR_RETURN(const JsonFields model, file.Object("model"));
  RETURN_IF_ERROR(CheckModelType(model));
  RETURN_IF_ERROR(CheckDecoder(file));
  ASSIGN_OR_RETURN(parts.normalizer,
                   Normalizer::Make(file.Find("normalizer"), file.PathTo("normalizer")));
  ASSIGN_OR_RETURN(parts.pre_tokenizer,
                   PreTokenizer::Make(file.Find("pre_tokenizer"), file.PathTo("pre_tokenizer")));
  RETURN_IF_ERROR(ReadVocabulary(model, parts.vocabulary));
  const int32_t model_size = parts.vocabulary.size();
  AddedTokenReader added_tokens(parts);
  RETURN_IF_ERROR(added_tokens.ReadFile(file));
  RETURN_IF_ERROR(added_tokens.ReadConfig(parts.config));
  RETURN_IF_ERROR(CheckHoles(parts.vocabulary, model_size));
  for (const AddedToken& token : parts.added_tokens) {
    if (token.special) parts.special_ids.push_back(token.id);
  }
  std::sort(parts.special_ids.begin(), parts.special_ids.end());
  ASSIGN_OR_RETURN(parts.bpe, Bpe::Make(model, parts.vocabulary, parts.special_ids));
  ASSIGN_OR_RETURN(parts.post_processor,
                   PostProcessor::Make(file.Find("post_processor"), file.PathTo("post_processor"),
                                       parts.vocabulary));
  return parts;
}

}  // namespace polyreme::text
