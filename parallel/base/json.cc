#include "parallel/base/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <unordered_set>

namespace polyreme {
namespace {

// Builds a Json from nlohmann's events. Keeps its own stack, so depth is bounded by us and not by
// the C++ stack.
class Builder final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Builder(const Json::ParseOptions& options)
      : depth_max_(options.depth_max), values_max_(options.values_max) {}

  bool null() override { return Add(Json()); }
  bool boolean(bool value) override { return Add(Json(value)); }
  bool number_integer(int64_t value) override { return Add(Json(value)); }
  bool number_unsigned(uint64_t value) override {
    if (value <= static_cast<uint64_t>(INT64_MAX)) return Add(Json(static_cast<int64_t>(value)));
    return Add(Json(static_cast<double>(value)));
  }
  bool number_float(double value, const std::string& text) override {
    if (!std::isfinite(value)) return Refuse(fmt::format("number {:.40} is out of range", text));
    return Add(Json(value));
  }
  bool string(std::string& value) override { return Add(Json(std::move(value))); }
  bool binary(binary_t&) override { return Refuse("binary value"); }
  bool start_object(size_t) override { return Open(Json::MakeObject()); }
  bool start_array(size_t) override { return Open(Json::MakeArray()); }
  bool end_object() override { return CloseTop(); }
  bool end_array() override { return CloseTop(); }
  bool key(std::string& value) override {
    Frame& top = stack_.back();
    if (!top.keys.insert(value).second) {
      return Refuse(fmt::format("duplicate key '{:.80}'", value));
    }
    top.key = std::move(value);
    return true;
  }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    if (error_.empty()) {
      // nlohmann's text names the position and what it expected; its own prefix is noise to a user.
      std::string what = error.what();
      if (const size_t at = what.find("parse error"); at != std::string::npos) what.erase(0, at);
      error_ = fmt::format("{} (byte {})", what, position);
    }
    return false;
  }

  Json TakeResult() { return std::move(result_); }
  const std::string& error() const { return error_; }

 private:
  struct Frame {
    Json value;
    std::string key;
    std::unordered_set<std::string> keys;
  };

  bool Refuse(std::string why) {
    error_ = std::move(why);
    return false;
  }
  bool Count() {
    if (++num_values_ <= values_max_) return true;
    return Refuse(fmt::format("more than {} values", values_max_));
  }
  bool Open(Json container) {
    if (!Count()) return false;
    if (std::ssize(stack_) >= depth_max_) {
      return Refuse(fmt::format("nested deeper than {} levels", depth_max_));
    }
    stack_.push_back(Frame{std::move(container), {}, {}});
    return true;
  }
  bool CloseTop() {
    Json done = std::move(stack_.back().value);
    stack_.pop_back();
    return Put(std::move(done));
  }
  bool Add(Json value) { return Count() && Put(std::move(value)); }
  bool Put(Json value) {
    if (stack_.empty()) {
      result_ = std::move(value);
      return true;
    }
    Frame& top = stack_.back();
    if (top.value.is_object()) {
      top.value.members().emplace_back(std::move(top.key), std::move(value));
    } else {
      top.value.Append(std::move(value));
    }
    return true;
  }

  const int32_t depth_max_;
  const int64_t values_max_;
  int64_t num_values_ = 0;
  std::vector<Frame> stack_;
  Json result_;
  std::string error_;
};

// The length of the UTF-8 sequence at `text`, 0 if it is invalid (overlong, surrogate, beyond
// U+10FFFF).
size_t Utf8Length(std::string_view text) {
  const auto byte = [&](size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const auto tail = [&](size_t i) { return (byte(i) & 0xC0u) == 0x80u; };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return tail(1) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    if (!tail(1) || !tail(2)) return 0;
    if (lead == 0xE0 && byte(1) < 0xA0) return 0;
    if (lead == 0xED && byte(1) > 0x9F) return 0;
    return 3;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    if (!tail(1) || !tail(2) || !tail(3)) return 0;
    if (lead == 0xF0 && byte(1) < 0x90) return 0;
    if (lead == 0xF4 && byte(1) > 0x8F) return 0;
    return 4;
  }
  return 0;
}

void DumpString(std::string_view text, std::string& out) {
  out += '"';
  while (!text.empty()) {
    const unsigned char c = static_cast<unsigned char>(text[0]);
    const size_t length = Utf8Length(text);
    if (length == 0) {
      out += "\xEF\xBF\xBD";
    } else if (c == '"') {
      out += "\\\"";
    } else if (c == '\\') {
      out += "\\\\";
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '\b') {
      out += "\\b";
    } else if (c == '\f') {
      out += "\\f";
    } else if (c < 0x20) {
      out += fmt::format("\\u{:04x}", c);
    } else {
      out.append(text.substr(0, length));
    }
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  out += '"';
}

void DumpDouble(double value, std::string& out) {
  if (!std::isfinite(value)) {
    out += "null";
    return;
  }
  char buffer[32];
  const auto [end, error] = std::to_chars(buffer, buffer + sizeof(buffer), value);
  CHECK(error == std::errc());
  const std::string_view text(buffer, static_cast<size_t>(end - buffer));
  out += text;
  // A double stays a double when read again: 1.0, not 1.
  if (text.find_first_of(".e") == std::string_view::npos) out += ".0";
}

void DumpTo(const Json& value, Json::Style style, std::string& out) {
  const std::string_view comma = style == Json::Style::kPython ? ", " : ",";
  const std::string_view colon = style == Json::Style::kPython ? ": " : ":";
  if (value.is_null()) {
    out += "null";
  } else if (value.is_bool()) {
    out += value.as_bool() ? "true" : "false";
  } else if (value.is_int()) {
    out += std::to_string(value.as_int());
  } else if (value.is_double()) {
    DumpDouble(value.as_double(), out);
  } else if (value.is_string()) {
    DumpString(value.as_string(), out);
  } else if (value.is_array()) {
    out += '[';
    bool first = true;
    for (const Json& item : value.as_array()) {
      if (!first) out += comma;
      first = false;
      DumpTo(item, style, out);
    }
    out += ']';
  } else {
    out += '{';
    bool first = true;
    for (const auto& [key, item] : value.members()) {
      if (!first) out += comma;
      first = false;
      DumpString(key, out);
      out += colon;
      DumpTo(item, style, out);
    }
    out += '}';
  }
}

}  // namespace

absl::StatusOr<Json> Json::Parse(std::string_view text, const ParseOptions& options) {
  if (std::ssize(text) > options.bytes_max) {
    return InvalidArgument("JSON of {} bytes is longer than the limit of {}", text.size(),
                           options.bytes_max);
  }
  if (text.starts_with("\xEF\xBB\xBF"))
    return InvalidArgument("JSON starts with a byte order mark");
  Builder builder(options);
  try {
    if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) {
      return InvalidArgument("invalid JSON: {}", builder.error());
    }
  } catch (const std::bad_alloc&) {
    throw;  // not the text's fault
  } catch (const std::exception& error) {
    return InvalidArgument("invalid JSON: {}", error.what());
  }
  return builder.TakeResult();
}

std::string_view Json::type_name() const {
  constexpr std::string_view kNames[] = {"null",     "a boolean", "an integer", "a number",
                                         "a string", "an array",  "an object"};
  return kNames[value_.index()];
}

const Json* Json::Find(std::string_view key) const {
  if (!is_object()) return nullptr;
  for (const Member& member : members()) {
    if (member.first == key) return &member.second;
  }
  return nullptr;
}

Json& Json::Set(std::string key, Json value) {
  for (Member& member : members()) {
    if (member.first == key) {
      member.second = std::move(value);
      return *this;
    }
  }
  members().emplace_back(std::move(key), std::move(value));
  return *this;
}

std::string Json::Dump(Style style) const {
  std::string out;
  DumpTo(*this, style, out);
  return out;
}

bool operator==(const Json& a, const Json& b) {
  if (a.is_number() && b.is_number() && a.is_int() != b.is_int()) {
    return a.as_double() == b.as_double();
  }
  if (a.value_.index() != b.value_.index()) return false;
  if (a.is_array()) return a.as_array() == b.as_array();
  if (a.is_object()) return a.members() == b.members();
  if (a.is_bool()) return a.as_bool() == b.as_bool();
  if (a.is_int()) return a.as_int() == b.as_int();
  if (a.is_double()) return a.as_double() == b.as_double();
  if (a.is_string()) return a.as_string() == b.as_string();
  return true;
}

}  // namespace polyreme
