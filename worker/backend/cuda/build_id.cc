// Compiled into the program and into the plugin.
#include "worker/backend/cuda/plugin.h"

namespace polyreme::cuda {

const char* PluginBuildId() {
  return POLYREME_BUILD_ID;
}

}  // namespace polyreme::cuda
