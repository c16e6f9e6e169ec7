#include "deploy/sizing/claims.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "deploy/bench/roofline.h"
#include "deploy/sizing/table.h"
#include "parallel/base/json.h"
#include "parallel/base/limits.h"
#include "parallel/plan/config_reader.h"

namespace polyreme::sizing {
namespace {

constexpr double kGiB = 0x1p30;
constexpr size_t kMaxClaims = 10000;

struct KindRow {
  std::string_view name;
  Claim::Kind kind;
  std::string_view unit;
  enum class Bound : uint8_t { kAtLeast, kAtMost, kExactly } bound;
};
using Bound = KindRow::Bound;
constexpr KindRow kKinds[] = {
    {"memory_gib", Claim::Kind::kMemory, "GiB", Bound::kAtLeast},
    {"cache_gib", Claim::Kind::kCache, "GiB", Bound::kExactly},
    {"decode_tok_s", Claim::Kind::kDecode, "tok/s", Bound::kAtMost},
    {"first_token_s", Claim::Kind::kFirstToken, "s", Bound::kAtLeast},
    {"latency_s", Claim::Kind::kLatency, "s", Bound::kAtLeast},
    {"requests_s", Claim::Kind::kRequestRate, "requests/s", Bound::kAtMost},
    {"cache_growth_power", Claim::Kind::kCacheGrowth, "as a power of the length", Bound::kExactly},
    {"decode_ratio", Claim::Kind::kDecodeRatio, "times as fast", Bound::kAtMost},
    {"offload_s_per_token", Claim::Kind::kSecondsPerToken, "s a token", Bound::kAtLeast},
};

std::string_view NameOf(Bound bound) {
  switch (bound) {
    case Bound::kAtLeast:
      return "at least";
    case Bound::kAtMost:
      return "at most";
    case Bound::kExactly:
      return "exactly";
  }
  return "";
}

const KindRow& RowOf(Claim::Kind kind) {
  for (const KindRow& row : kKinds) {
    if (row.kind == kind) return row;
  }
  CHECK(false, "a claim of no kind");
  return kKinds[0];
}

absl::StatusOr<Claim> ReadClaim(const plan::ConfigReader& entry) {
  static const std::set<std::string, std::less<>> kKnown = {"says",   "kind", "value",  "gpu",
                                                            "dtype",  "bits", "batch",  "context",
                                                            "output", "rate", "against"};
  for (const auto& [key, value] : entry.object().members()) {
    if (!kKnown.contains(key)) {
      return InvalidArgument("{}: expected one of {}", entry.PathOf(key), fmt::join(kKnown, ", "));
    }
  }
  Claim claim;
  ASSIGN_OR_RETURN(claim.says, entry.String("says"));
  ASSIGN_OR_RETURN(const std::string kind, entry.String("kind"));
  const auto row = std::find_if(std::begin(kKinds), std::end(kKinds),
                                [&](const KindRow& r) { return r.name == kind; });
  if (row == std::end(kKinds)) {
    std::string names;
    for (const KindRow& r : kKinds) names += (names.empty() ? "" : ", ") + std::string(r.name);
    return InvalidArgument("{}: expected one of {}, got '{:.40}'", entry.PathOf("kind"), names,
                           kind);
  }
  claim.kind = row->kind;
  ASSIGN_OR_RETURN(claim.value, entry.Double("value", {0, 1e12}));
  ASSIGN_OR_RETURN(claim.gpu, entry.String("gpu"));
  ASSIGN_OR_RETURN(const auto dtype, entry.FindString("dtype"));
  if (dtype.has_value()) {
    ASSIGN_OR_RETURN(claim.dtype, ParseDType(*dtype));
    if (!IsFloat(claim.dtype)) {
      return InvalidArgument("{}: expected a type of floats, got {}", entry.PathOf("dtype"),
                             *dtype);
    }
  }
  ASSIGN_OR_RETURN(claim.bits_per_weight,
                   entry.DoubleOr("bits", {1, 64}, 8.0 * double(SizeOf(claim.dtype))));
  ASSIGN_OR_RETURN(claim.batch, entry.IntOr("batch", {1, 1 << 20}, 1));
  ASSIGN_OR_RETURN(claim.context, entry.IntOr("context", {1, limits::kMaxPositions}, 1));
  ASSIGN_OR_RETURN(claim.output, entry.IntOr("output", {0, limits::kMaxPositions}, 0));
  ASSIGN_OR_RETURN(claim.rate, entry.DoubleOr("rate", {0, 1e9}, 0));
  ASSIGN_OR_RETURN(const auto against, entry.FindString("against"));
  claim.against = against.value_or("");
  if (claim.kind == Claim::Kind::kDecodeRatio && claim.against.empty()) {
    return InvalidArgument("{}: expected this key with {}, it is missing", entry.PathOf("against"),
                           kind);
  }
  const bool needs_output =
      claim.kind == Claim::Kind::kLatency || claim.kind == Claim::Kind::kRequestRate;
  if (needs_output && claim.output == 0) {
    return InvalidArgument("{}: expected this key with {}, it is missing", entry.PathOf("output"),
                           kind);
  }
  return claim;
}

// What arithmetic says of one claim.
class Judge {
 public:
  // other: the GPU that it is claimed against; the same one, if none is.
  Judge(const Claim& claim, const plan::ModelSpec& spec, const Gpu& gpu, const Gpu& other)
      : claim_(claim),
        gpu_(gpu),
        other_(other),
        roofline_(spec, bench::ElementBytes{.layers = claim.bits_per_weight / 8,
                                            .tables = static_cast<double>(SizeOf(claim.dtype)),
                                            .cache = static_cast<double>(SizeOf(claim.dtype))}),
        rates_(RatesOf(gpu)) {}

  Judgement Run() const {
    Judgement judgement;
    judgement.bound = Limit();
    const KindRow& row = RowOf(claim_.kind);
    // Published figures are rounded.
    constexpr double kRounding = 0.01;
    const bool enough = claim_.value >= judgement.bound * (1 - kRounding);
    const bool little = claim_.value <= judgement.bound * (1 + kRounding);
    judgement.possible =
        (enough || row.bound == Bound::kAtMost) && (little || row.bound == Bound::kAtLeast);
    judgement.why = Why(judgement.possible);
    const double needed = MemoryGiB();
    const double there = static_cast<double>(gpu_.memory_bytes) / kGiB;
    if (IsOfOneRun() && needed > there) {
      judgement.possible = false;
      judgement.why +=
          claim_.kind == Claim::Kind::kMemory
              ? fmt::format("; the GPU has {:.1f}", there)
              : fmt::format("; and weights with this cache are {:.1f} GiB, the GPU has {:.1f}",
                            needed, there);
    }
    return judgement;
  }

 private:
  static bench::Rates RatesOf(const Gpu& gpu) {
    return {.bytes = gpu.bandwidth, .operations = gpu.operations};
  }
  // Of other GPUs a figure cannot be judged by memory: each serves what it has room for.
  bool IsOfOneRun() const {
    return claim_.kind != Claim::Kind::kSecondsPerToken && claim_.kind != Claim::Kind::kCache &&
           claim_.kind != Claim::Kind::kCacheGrowth && claim_.kind != Claim::Kind::kDecodeRatio;
  }
  double CacheGiB() const {
    return roofline_.cache_bytes_per_token() * static_cast<double>(claim_.batch * claim_.context) /
           kGiB;
  }
  double WeightGiB() const { return roofline_.resident_bytes() / kGiB; }
  double MemoryGiB() const { return WeightGiB() + CacheGiB(); }
  double StepSeconds() const { return StepSecondsOn(rates_); }
  double StepSecondsOn(const bench::Rates& rates) const {
    return roofline_.DecodeSeconds(rates, {}, claim_.batch, static_cast<double>(claim_.context));
  }
  double DecodeRate() const { return static_cast<double>(claim_.batch) / StepSeconds(); }
  // Over the link, one way.
  double OffloadSeconds() const {
    const double outside = MemoryGiB() * kGiB - static_cast<double>(gpu_.memory_bytes);
    return std::max(0.0, outside) / (gpu_.link / 2);
  }

  double Limit() const {
    switch (claim_.kind) {
      case Claim::Kind::kMemory:
        return MemoryGiB();
      case Claim::Kind::kCache:
        return CacheGiB();
      case Claim::Kind::kDecode:
        return DecodeRate();
      case Claim::Kind::kFirstToken:
        return roofline_.PromptSeconds(rates_, {}, claim_.context);
      case Claim::Kind::kLatency:
        return static_cast<double>(claim_.output) * StepSeconds();
      case Claim::Kind::kRequestRate:
        return claim_.rate > 0 ? claim_.rate / static_cast<double>(claim_.output)
                               : DecodeRate() / static_cast<double>(claim_.output);
      case Claim::Kind::kCacheGrowth:
        return 1;
      case Claim::Kind::kDecodeRatio:
        return StepSecondsOn(RatesOf(other_)) / StepSeconds();
      case Claim::Kind::kSecondsPerToken:
        return OffloadSeconds();
    }
    return 0;
  }

  std::string Why(bool possible) const {
    const auto bytes = roofline_.weight_bytes() + CacheGiB() * kGiB;  // that one decode step reads
    switch (claim_.kind) {
      case Claim::Kind::kMemory:
        return fmt::format("weights {:.1f} GiB, cache {:.1f} GiB", WeightGiB(), CacheGiB());
      case Claim::Kind::kCache:
        return fmt::format("{:.0f} bytes a token, and it grows with the length itself",
                           roofline_.cache_bytes_per_token());
      case Claim::Kind::kDecode:
        return fmt::format("needs {:.2f} TB/s of reads, the GPU has {:.2f}",
                           bytes * claim_.value / static_cast<double>(claim_.batch) / 1e12,
                           gpu_.bandwidth / 1e12);
      case Claim::Kind::kFirstToken:
        return fmt::format("{:.2e} operations need {:.0f} TFLOP/s, the GPU has {:.0f}",
                           roofline_.PromptOperations(claim_.context),
                           roofline_.PromptOperations(claim_.context) / claim_.value / 1e12,
                           gpu_.operations / 1e12);
      case Claim::Kind::kLatency:
        return fmt::format("{} steps that each read {:.1f} GB", claim_.output, bytes / 1e9);
      case Claim::Kind::kRequestRate:
        return possible ? "tokens per second over tokens of a request"
                        : fmt::format("{:g} tok/s over {} tokens of a request", claim_.rate,
                                      claim_.output);
      case Claim::Kind::kCacheGrowth:
        return fmt::format("{:.0f} bytes for each token, the last as the first",
                           roofline_.cache_bytes_per_token());
      case Claim::Kind::kDecodeRatio:
        return fmt::format(
            "reads {:.2f} times as fast and multiplies {:.2f} times: {}",
            gpu_.bandwidth / other_.bandwidth, gpu_.operations / other_.operations,
            claim_.value < 1 ? "slower only by its software, not by the GPU" : "no more than that");
      case Claim::Kind::kSecondsPerToken:
        return fmt::format("{:.1f} GiB do not fit and cross a link of {:.0f} GB/s for each token",
                           MemoryGiB() - static_cast<double>(gpu_.memory_bytes) / kGiB,
                           gpu_.link / 2 / 1e9);
    }
    return "";
  }

  const Claim& claim_;
  const Gpu& gpu_;
  const Gpu& other_;
  const bench::Roofline roofline_;
  const bench::Rates rates_;
};

}  // namespace

absl::StatusOr<std::vector<Claim>> ParseClaims(std::string_view json, std::string_view where) {
  absl::StatusOr<Json> file = Json::Parse(json);
  if (!file.ok()) return Annotate(file.status(), where);
  const Json* const list = file->Find("claims");
  if (list == nullptr || !list->is_array()) {
    return InvalidArgument("{}: expected an object with a list \"claims\"", where);
  }
  if (list->as_array().size() > kMaxClaims) {
    return InvalidArgument("{}: expected at most {} claims, got {}", where, kMaxClaims,
                           list->as_array().size());
  }
  std::vector<Claim> claims;
  for (size_t i = 0; i < list->as_array().size(); ++i) {
    const Json& object = list->as_array()[i];
    const std::string at = fmt::format("{}: claims[{}]", where, i);
    if (!object.is_object()) {
      return InvalidArgument("{}: expected an object, got {}", at, object.type_name());
    }
    ASSIGN_OR_RETURN(Claim claim, ReadClaim(plan::ConfigReader(object, at + ".")));
    claims.push_back(std::move(claim));
  }
  return claims;
}

absl::StatusOr<Judgement> JudgeClaim(const Claim& claim, const plan::ModelSpec& spec,
                                     const GpuTable& table) {
  ASSIGN_OR_RETURN(const Gpu gpu, table.Find(claim.gpu));
  Gpu other = gpu;
  if (!claim.against.empty()) {
    ASSIGN_OR_RETURN(other, table.Find(claim.against));
  }
  return Judge(claim, spec, gpu, other).Run();
}

absl::StatusOr<std::string> ClaimsText(const std::vector<Claim>& claims,
                                       const plan::ModelSpec& spec, const GpuTable& table) {
  std::string text =
      "| published | figure | arithmetic | possible? | why |\n|---|---|---|---|---|\n";
  for (const Claim& claim : claims) {
    ASSIGN_OR_RETURN(const Judgement judgement, JudgeClaim(claim, spec, table));
    const KindRow& row = RowOf(claim.kind);
    text += fmt::format("| {} | {:g} {} | {} {} | {} | {} |\n", claim.says, claim.value, row.unit,
                        NameOf(row.bound), Rate(judgement.bound),
                        judgement.possible ? "yes" : "**no**", judgement.why);
  }
  return text;
}

}  // namespace polyreme::sizing
