#include "parallel/comm/wait_board.h"

namespace polyreme::comm {

thread_local WaitBoard* WaitBoard::mine_ = nullptr;

}  // namespace polyreme::comm
