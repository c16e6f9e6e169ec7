#include "coordinator/text/post_processor.h"

#include "coordinator/text/json_fields.h"

namespace polyreme::text {
namespace {

constexpr int32_t kMaxDepth = 8;

// The ids that one SpecialToken item of a template stands for.
absl::StatusOr<std::vector<TokenId>> IdsOf(const JsonFields& item, const JsonFields& special_tokens,
                                           const Vocabulary& vocabulary) {
  ASSIGN_OR_RETURN(const std::string name, item.String("id"));
  ASSIGN_OR_RETURN(const JsonFields special, special_tokens.Object(name));
  ASSIGN_OR_RETURN(const Json::Array* listed, special.Array("ids"));
  std::vector<TokenId> ids;
  for (size_t i = 0; i < listed->size(); ++i) {
    const Json& id = (*listed)[i];
    if (!id.is_int() || id.as_int() < 0 || id.as_int() >= vocabulary.size() ||
        vocabulary.TokenString(static_cast<TokenId>(id.as_int())) == nullptr) {
      return InvalidArgument("{}: expected the id of a token, got {}", special.PathTo("ids", i),
                             id.Dump());
    }
    ids.push_back(static_cast<TokenId>(id.as_int()));
  }
  return ids;
}

absl::StatusOr<PostProcessor> ReadTemplate(const JsonFields& fields, const Vocabulary& vocabulary) {
  RETURN_IF_ERROR(fields.AllowOnly({"type", "single", "pair", "special_tokens"}));
  ASSIGN_OR_RETURN(const Json::Array* items, fields.Array("single"));
  ASSIGN_OR_RETURN(const JsonFields special_tokens, fields.Object("special_tokens"));
  PostProcessor result;
  int32_t num_texts = 0;
  for (size_t i = 0; i < items->size(); ++i) {
    ASSIGN_OR_RETURN(const JsonFields item,
                     JsonFields::Of((*items)[i], fields.PathTo("single", i)));
    RETURN_IF_ERROR(item.AllowOnly({"SpecialToken", "Sequence"}));
    if (item.Find("Sequence") != nullptr) {
      ++num_texts;
      continue;
    }
    ASSIGN_OR_RETURN(const JsonFields special, item.Object("SpecialToken"));
    ASSIGN_OR_RETURN(const std::vector<TokenId> ids, IdsOf(special, special_tokens, vocabulary));
    std::vector<TokenId>& side = num_texts == 0 ? result.prefix : result.suffix;
    side.insert(side.end(), ids.begin(), ids.end());
  }
  if (num_texts != 1) {
    return InvalidArgument("{}: expected the text once, got it {} times", fields.PathTo("single"),
                           num_texts);
  }
  return result;
}

absl::StatusOr<PostProcessor> Read(const Json& json, const std::string& path,
                                   const Vocabulary& vocabulary, int32_t depth) {
  if (depth > kMaxDepth) return InvalidArgument("{}: nested too deep", path);
  ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(json, path));
  ASSIGN_OR_RETURN(const std::string type, fields.String("type"));
  if (type == "TemplateProcessing") return ReadTemplate(fields, vocabulary);
  if (type == "ByteLevel") return PostProcessor{};
  if (type != "Sequence") {
    return InvalidArgument(
        "{}: post-processor \"{}\" is not supported (known: TemplateProcessing, ByteLevel, "
        "Sequence)",
        path, type);
  }
  RETURN_IF_ERROR(fields.AllowOnly({"type", "processors"}));
  ASSIGN_OR_RETURN(const Json::Array* parts, fields.Array("processors"));
  PostProcessor result;
  for (size_t i = 0; i < parts->size(); ++i) {
    ASSIGN_OR_RETURN(PostProcessor outer,
                     Read((*parts)[i], fields.PathTo("processors", i), vocabulary, depth + 1));
    result.prefix.insert(result.prefix.begin(), outer.prefix.begin(), outer.prefix.end());
    result.suffix.insert(result.suffix.end(), outer.suffix.begin(), outer.suffix.end());
  }
  return result;
}

}  // namespace

absl::StatusOr<PostProcessor> PostProcessor::Make(const Json* json, const std::string& path,
                                                  const Vocabulary& vocabulary) {
  if (json == nullptr) return PostProcessor{};
  return Read(*json, path, vocabulary, 0);
}

}  // namespace polyreme::text
