#define PCRE2_CODE_UNIT_WIDTH 8
#include "coordinator/text/regex.h"

#include <pcre2.h>

#include <string>

#include "coordinator/text/regex_syntax.h"
#include "coordinator/text/utf8.h"
#include "parallel/base/limits.h"

namespace polyreme::text {
namespace {

constexpr size_t kMaxPatternBytes = 64 << 10;
constexpr size_t kJitStackStart = 32 << 10;
constexpr size_t kJitStackMax = 1 << 20;
// Enough for a backtrack at each byte of a longest prompt; what needs more is an expression gone
// wrong.
constexpr uint32_t kMatchLimit = static_cast<uint32_t>(4 * limits::kMaxPromptBytes);
constexpr uint32_t kHeapLimitKib = 512 << 10;

std::string ErrorText(int code) {
  PCRE2_UCHAR buffer[256];
  const int size = pcre2_get_error_message(code, buffer, sizeof(buffer));
  return size < 0 ? fmt::format("error {}", code)
                  : std::string(reinterpret_cast<const char*>(buffer), size);
}

template <auto kFree>
struct FreeWith {
  template <class T>
  void operator()(T* p) const {
    kFree(p);
  }
};

}  // namespace

struct Regex::Code {
  std::string pattern;
  std::unique_ptr<pcre2_code, FreeWith<pcre2_code_free>> code;
};

struct RegexScratch::Memory {
  // A null stack (no executable memory here) only means that PCRE2's interpreter matches.
  std::unique_ptr<pcre2_jit_stack, FreeWith<pcre2_jit_stack_free>> stack;
  std::unique_ptr<pcre2_match_context, FreeWith<pcre2_match_context_free>> context;
  std::unique_ptr<pcre2_match_data, FreeWith<pcre2_match_data_free>> data;
};

RegexScratch::RegexScratch() : memory_(std::make_unique<Memory>()) {
  memory_->stack.reset(pcre2_jit_stack_create(kJitStackStart, kJitStackMax, nullptr));
  memory_->context.reset(pcre2_match_context_create(nullptr));
  memory_->data.reset(pcre2_match_data_create(1, nullptr));
  CHECK(memory_->context != nullptr && memory_->data != nullptr, "out of memory for PCRE2");
  pcre2_set_match_limit(memory_->context.get(), kMatchLimit);
  pcre2_set_heap_limit(memory_->context.get(), kHeapLimitKib);
  pcre2_jit_stack_assign(memory_->context.get(), nullptr, memory_->stack.get());
}

RegexScratch::~RegexScratch() = default;

Regex::Regex(std::unique_ptr<Code> code) : code_(std::move(code)) {}
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;
Regex::~Regex() = default;

absl::StatusOr<Regex> Regex::Compile(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return InvalidArgument("regular expression of {} bytes is longer than the limit of {}",
                           pattern.size(), kMaxPatternBytes);
  }
  ASSIGN_OR_RETURN(const std::string translated, TranslateRegex(pattern));
  return CompileWith(translated, PCRE2_UCP | PCRE2_MULTILINE);
}

absl::StatusOr<Regex> Regex::CompileLiteral(std::string_view text) {
  if (text.empty()) return InvalidArgument("expected text to split at, got none");
  return CompileWith(text, PCRE2_LITERAL);
}

absl::StatusOr<Regex> Regex::CompileWith(std::string_view pattern, uint32_t options) {
  const std::unique_ptr<pcre2_compile_context, FreeWith<pcre2_compile_context_free>> context(
      pcre2_compile_context_create(nullptr));
  CHECK(context != nullptr, "out of memory for PCRE2");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto code = std::make_unique<Code>();
  code->pattern = std::string(pattern);
  code->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                 PCRE2_UTF | options, &error, &offset, context.get()));
  if (code->code == nullptr) {
    return InvalidArgument("regular expression \"{}\", byte {}: {}", pattern, offset,
                           ErrorText(error));
  }
  // Where the kernel forbids executable memory the interpreter does the same, about five times
  // slower.
  (void)pcre2_jit_compile(code->code.get(), PCRE2_JIT_COMPLETE);
  return Regex(std::move(code));
}

absl::Status Regex::Split(std::string_view text, RegexScratch& scratch,
                          std::vector<RegexSpan>& spans) const {
  spans.clear();
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  RegexScratch::Memory& memory = *scratch.memory_;
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(memory.data.get());
  size_t covered = 0;  // the end of the last span
  size_t last_match_end = std::string_view::npos;
  for (size_t at = 0; at <= text.size();) {
    const auto match = [&](uint32_t options) {
      return pcre2_match(code_->code.get(), subject, text.size(), at, PCRE2_NO_UTF_CHECK | options,
                         memory.data.get(), memory.context.get());
    };
    int result = match(0);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(PCRE2_NO_JIT);
    if (result == PCRE2_ERROR_NOMATCH) break;
    if (result < 0) {
      return ResourceExhausted("regular expression \"{}\" on {} bytes: {}", code_->pattern,
                               text.size(), ErrorText(result));
    }
    const size_t begin = bounds[0];
    const size_t end = bounds[1];
    // An empty match right behind a match is none, or we would stay here for ever.
    if (begin == end && end == last_match_end) {
      at += at < text.size() ? FirstCodePoint(text.substr(at)).num_bytes : 1;
      continue;
    }
    if (covered < begin)
      spans.push_back({static_cast<uint32_t>(covered), static_cast<uint32_t>(begin), false});
    spans.push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(end), true});
    covered = at = last_match_end = end;
  }
  if (covered < text.size()) {
    spans.push_back({static_cast<uint32_t>(covered), static_cast<uint32_t>(text.size()), false});
  }
  return absl::OkStatus();
}

}  // namespace polyreme::text
