// Strings of the template interpreter: UTF-8 bytes that remember which of them the template itself
// wrote.
//
// A chat template mixes its own literals (`<|im_start|>`) with what users send. Special tokens may
// be recognised in the former only, so each byte carries its origin through every operation:
// concatenation, slices, split, replace. Source of the idea: taint tracking; the threat is a
// message that forges a turn.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/base/limits.h"
#include "parallel/base/status.h"

namespace polyreme::text::jinja {

// What one rendering may cost. Exhaustion is remembered: work stops early wherever it is noticed,
// and the interpreter turns status() into the result. Not for sharing between threads.
class Budget {
 public:
  // Charges steps of evaluation. False once exhausted.
  bool Spend(int64_t steps);
  // Charges the scan of so many bytes of text, far cheaper than steps.
  bool SpendScan(size_t bytes) { return Spend(static_cast<int64_t>(bytes / kScanBytesPerStep)); }
  // Charges a copy of so many bytes into a string that would then have `size_after` bytes.
  bool SpendBytes(size_t bytes, size_t size_after);
  // Charges a list of so many items.
  bool SpendItems(size_t items) { return Spend(static_cast<int64_t>(items)); }

  bool exhausted() const { return !status_.ok(); }
  const absl::Status& status() const { return status_; }

 private:
  static constexpr size_t kScanBytesPerStep = 256;

  int64_t steps_left_ = limits::kMaxTemplateSteps;
  int64_t bytes_left_ = limits::kMaxTemplateWorkBytes;
  absl::Status status_;
};

enum class Origin : uint8_t {
  kContent,   // sent by a user, or computed from it
  kTemplate,  // written by the template's author
};

// An immutable string. Copies and slices share the bytes.
class Text {
 public:
  Text() = default;
  Text(std::string bytes, Origin origin);

  std::string_view view() const;
  std::string str() const { return std::string(view()); }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  // Bytes [begin, end), clipped to the text. O(1).
  Text Slice(size_t begin, size_t end) const;
  // Calls visit(bytes, origin) for each maximal run of one origin, in order.
  template <class Visit>
  void ForEachRun(Visit visit) const {
    if (empty()) return;
    size_t at = begin_;
    for (size_t i = FirstRun(); at < begin_ + size_; ++i) {
      const Run& run = rep_->runs[i];
      const size_t end = run.end < begin_ + size_ ? run.end : begin_ + size_;
      visit(std::string_view(rep_->bytes).substr(at, end - at), run.origin);
      at = end;
    }
  }

  friend bool operator==(const Text& a, const Text& b) { return a.view() == b.view(); }

 private:
  friend class TextBuilder;
  struct Run {
    size_t end;  // exclusive; runs cover the bytes in order
    Origin origin;
  };
  struct Rep {
    std::string bytes;
    std::vector<Run> runs;
  };

  size_t FirstRun() const;  // the run that holds byte begin_

  std::shared_ptr<const Rep> rep_;
  size_t begin_ = 0;
  size_t size_ = 0;
};

// Grows one Text, charging each byte. Once the budget is exhausted it appends nothing more.
class TextBuilder {
 public:
  explicit TextBuilder(Budget& budget) : budget_(budget) {}

  TextBuilder& Append(std::string_view bytes, Origin origin);
  TextBuilder& Append(const Text& text);
  size_t size() const { return rep_.bytes.size(); }
  // The text so far; the builder is empty afterwards.
  Text Take();

 private:
  Budget& budget_;
  Text::Rep rep_;
};

// One code point of valid or invalid UTF-8: a bad byte counts as one character, its value the
// byte's.
struct CodePoint {
  uint32_t value = 0;
  size_t size = 0;  // in bytes; 0 at the end of the text
};
CodePoint DecodeAt(std::string_view text, size_t offset);
std::string EncodeUtf8(uint32_t code_point);

// Number of characters; byte offset of character `index` (the size of the text if there are fewer).
int64_t CountCharacters(std::string_view text);
size_t OffsetOf(std::string_view text, int64_t index);

// As Python's str.isspace() of one character.
bool IsSpace(uint32_t code_point);
// As Python's str.isprintable() of one character.
bool IsPrintable(uint32_t code_point);

// First occurrence of `needle` at or after `from`, or npos. Linear time whatever the texts.
size_t FindText(std::string_view text, std::string_view needle, size_t from = 0);

}  // namespace polyreme::text::jinja
