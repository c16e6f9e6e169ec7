#include <algorithm>
#include <cmath>

#include "coordinator/text/jinja_builtins.h"

namespace polyreme::text::jinja {
namespace {

// Python's json.dumps, with the options that Transformers' tojson passes on.
class JsonWriter {
 public:
  struct Style {
    bool ascii = false;
    bool sort_keys = false;
    bool indented = false;
    Text indent;  // of one level
    Text comma;
    Text colon;
  };

  JsonWriter(const Context& context, const Style& style)
      : context_(context), style_(style), out_(context.budget) {}

  absl::Status Write(const Value& value) {
    if (!context_.budget.Spend(1)) return context_.budget.status();
    if (value.is_none()) {
      Put("null");
    } else if (value.is_bool()) {
      Put(value.as_int() != 0 ? "true" : "false");
    } else if (value.is_int()) {
      Put(std::to_string(value.as_int()));
    } else if (value.is_float()) {
      Put(Number(value.as_double()));
    } else if (value.is_string()) {
      WriteText(value.text());
    } else if (value.is_list() && value.list().kind <= List::Kind::kTuple) {
      return WriteList(value.list());
    } else if (value.is_dict()) {
      return WriteDict(value.dict());
    } else {
      return InvalidArgument("object of type {} is not JSON serializable", value.TypeName());
    }
    return absl::OkStatus();
  }

  Text Take() { return out_.Take(); }

 private:
  void Put(std::string_view bytes) { out_.Append(bytes, Origin::kTemplate); }

  static std::string Number(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
    return ReprFloat(value);
  }

  std::string Escaped(uint32_t c) const {
    switch (c) {
      case '"':
        return "\\\"";
      case '\\':
        return "\\\\";
      case '\n':
        return "\\n";
      case '\r':
        return "\\r";
      case '\t':
        return "\\t";
      case '\f':
        return "\\f";
      case '\b':
        return "\\b";
      default:
        break;
    }
    if (c < 0x20 || (style_.ascii && c > 0x7E && c < 0x10000)) return fmt::format("\\u{:04x}", c);
    if (!style_.ascii || c <= 0x7E) return {};
    const uint32_t rest = c - 0x10000;
    return fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (rest >> 10), 0xDC00 + (rest & 0x3FF));
  }

  void WriteText(const Text& text) {
    Put("\"");
    text.ForEachRun([this](std::string_view bytes, Origin origin) {
      size_t plain = 0;
      for (size_t at = 0; at < bytes.size();) {
        const CodePoint c = DecodeAt(bytes, at);
        const std::string escaped = Escaped(c.value);
        if (!escaped.empty()) {
          out_.Append(bytes.substr(plain, at - plain), origin).Append(escaped, origin);
          plain = at + c.size;
        }
        at += c.size;
      }
      out_.Append(bytes.substr(plain), origin);
    });
    Put("\"");
  }

  void NewLine() {
    if (!style_.indented) return;
    Put("\n");
    for (int i = 0; i < level_; ++i) out_.Append(style_.indent);
  }

  absl::Status WriteList(const List& list) {
    if (list.items.empty()) {
      Put("[]");
      return absl::OkStatus();
    }
    Put("[");
    ++level_;
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) out_.Append(style_.comma);
      NewLine();
      RETURN_IF_ERROR(Write(list.items[i]));
    }
    --level_;
    NewLine();
    Put("]");
    return absl::OkStatus();
  }

  absl::Status WriteKey(const Value& key) {
    if (key.is_string()) {
      WriteText(key.text());
      return absl::OkStatus();
    }
    if (key.is_list()) {
      return InvalidArgument("keys must be str, int, float, bool or None, not {}", key.TypeName());
    }
    Put("\"");
    RETURN_IF_ERROR(Write(key));
    Put("\"");
    return absl::OkStatus();
  }

  absl::Status WriteDict(const Dict& dict) {
    if (dict.entries().empty()) {
      Put("{}");
      return absl::OkStatus();
    }
    std::vector<const Dict::Entry*> entries;
    for (const Dict::Entry& entry : dict.entries()) entries.push_back(&entry);
    if (style_.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(), [this](const auto* a, const auto* b) {
        return Compare(a->first, b->first, context_.budget) == std::partial_ordering::less;
      });
    }
    Put("{");
    ++level_;
    bool first = true;
    for (const Dict::Entry* entry : entries) {
      if (!first) out_.Append(style_.comma);
      first = false;
      NewLine();
      RETURN_IF_ERROR(WriteKey(entry->first));
      out_.Append(style_.colon);
      RETURN_IF_ERROR(Write(entry->second));
    }
    --level_;
    NewLine();
    Put("}");
    return absl::OkStatus();
  }

  const Context& context_;
  const Style& style_;
  TextBuilder out_;
  int level_ = 0;
};

constexpr int64_t kMaxIndent = 64;

Text Literal(std::string bytes) {
  return Text(std::move(bytes), Origin::kTemplate);
}

}  // namespace

absl::StatusOr<Value> ToJson(const Context& context, const Value& value,
                             const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound,
                   arguments.Bind("tojson", {"ensure_ascii", "indent", "separators", "sort_keys"}));
  JsonWriter::Style style;
  style.ascii = TruthOr(bound[0], false);
  style.sort_keys = TruthOr(bound[3], false);
  style.indented = !bound[1].is_undefined() && !bound[1].is_none();
  if (style.indented && bound[1].is_string()) {
    style.indent = bound[1].text();
  } else if (style.indented) {
    ASSIGN_OR_RETURN(const int64_t width, IntegerOr(bound[1], "indent", 0));
    if (width > kMaxIndent) {
      return InvalidArgument("expected an indent of at most {}, got {}", kMaxIndent, width);
    }
    style.indent = Literal(std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' '));
  }
  style.comma = Literal(style.indented ? "," : ", ");
  style.colon = Literal(": ");
  if (!bound[2].is_undefined() && !bound[2].is_none()) {
    ASSIGN_OR_RETURN(const auto separators, Iterate(context, bound[2]));
    if (separators.size() != 2 || !separators[0].is_string() || !separators[1].is_string()) {
      return InvalidArgument("expected two strings for 'separators'");
    }
    style.comma = separators[0].text();
    style.colon = separators[1].text();
  }
  JsonWriter writer(context, style);
  RETURN_IF_ERROR(writer.Write(value));
  return Value(writer.Take());
}

}  // namespace polyreme::text::jinja
