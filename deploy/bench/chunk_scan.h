// Tells the chunks of a stream that carry text and nothing else without parsing them: they come
// tens of thousands a second, and the client must not be what is measured.
#pragma once

#include <string_view>

namespace polyreme::bench {

// Whether `json` has the shape of a chunk that only brings text: one "choices" array with a
// non-empty "text" or "content" string in its first choice, and no member but null for
// "finish_reason", "usage" and "error". False says nothing: then it has to be parsed. Looks only at
// keys and brackets outside of strings, and never reads beyond `json`.
bool IsPlainTextChunk(std::string_view json);

}  // namespace polyreme::bench
