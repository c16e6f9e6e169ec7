#include "deploy/cli/build_info.h"

#include <elf.h>
#include <fmt/format.h>
#include <link.h>

#include <cstring>

namespace polyreme::cli {
namespace {

// Looks for the GNU build id among the notes of one loaded object; the first object is the
// executable.
int ReadBuildId(dl_phdr_info* info, size_t, void* out) {
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_NOTE) continue;
    const char* at = reinterpret_cast<const char*>(info->dlpi_addr + segment.p_vaddr);
    const char* const end = at + segment.p_memsz;
    while (at + sizeof(ElfW(Nhdr)) <= end) {
      const auto* note = reinterpret_cast<const ElfW(Nhdr)*>(at);
      const char* name = at + sizeof(*note);
      const char* data = name + (note->n_namesz + 3u) / 4u * 4u;
      if (note->n_type == NT_GNU_BUILD_ID && note->n_namesz == 4 &&
          std::memcmp(name, "GNU", 4) == 0) {
        for (size_t b = 0; b < note->n_descsz; ++b) {
          *static_cast<std::string*>(out) +=
              fmt::format("{:02x}", static_cast<unsigned>(static_cast<unsigned char>(data[b])));
        }
        return 1;
      }
      at = data + (note->n_descsz + 3u) / 4u * 4u;
    }
  }
  return 1;  // only the executable
}

}  // namespace

std::string BuildId() {
  std::string id;
  dl_iterate_phdr(ReadBuildId, &id);
  return id.empty() ? "unknown" : id;
}

}  // namespace polyreme::cli
