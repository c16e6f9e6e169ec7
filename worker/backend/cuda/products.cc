#include "worker/backend/cuda/products.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "absl/functional/function_ref.h"
#include "parallel/base/clock.h"
#include "parallel/base/file.h"
#include "parallel/base/log.h"
#include "worker/backend/cuda/cublas_library.h"
#include "worker/backend/cuda/cuda_status.h"
#include "worker/backend/cuda/gemv.h"
#include "worker/backend/cuda/products_table.h"

namespace polyreme::cuda {
namespace {

using Kind = ProductChoice::Kind;

// Above this many rows a product is bound by arithmetic: the library's first guesses are close
// together, and each run is long.
constexpr int64_t kManyRows = 512;
// Timing stops here; what is left over takes the library's guess, and is timed by a later start.
constexpr absl::Duration kPatience = absl::Seconds(20);

DType DTypeOf(Element element) {
  if (element == Element::kF32) return DType::kF32;
  return element == Element::kF16 ? DType::kF16 : DType::kBF16;
}

struct CudaFree {
  void operator()(void* memory) const { (void)cudaFree(memory); }
};
using DeviceMemory = std::unique_ptr<void, CudaFree>;

absl::StatusOr<DeviceMemory> TakeDeviceMemory(int64_t bytes, std::string_view what) {
  void* memory = nullptr;
  RETURN_IF_CUDA_ERROR(cudaMalloc(&memory, static_cast<size_t>(bytes)),
                       fmt::format("taking {} bytes for {}", bytes, what));
  return DeviceMemory(memory);
}

struct EventDestroy {
  void operator()(cudaEvent_t event) const { (void)cudaEventDestroy(event); }
};
using Event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, EventDestroy>;
struct GraphDestroy {
  void operator()(cudaGraph_t graph) const { (void)cudaGraphDestroy(graph); }
};
struct GraphExecDestroy {
  void operator()(cudaGraphExec_t graph) const { (void)cudaGraphExecDestroy(graph); }
};
using Graph = std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, GraphDestroy>;
using GraphExec = std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, GraphExecDestroy>;

// Times products as a recorded step runs them: launches one after another in a graph, so that what
// a launch costs the host does not count.
class Timer {
 public:
  struct Task {
    int launches = 2;          // in the graph
    int repeats = 5;           // of the graph; the median counts
    double give_up_above = 0;  // microseconds of a launch; 0: never
  };

  static absl::StatusOr<std::unique_ptr<Timer>> Make(cudaStream_t stream, Element type,
                                                     int64_t x_elements, int64_t y_bytes);
  cudaStream_t stream() const { return stream_; }
  void* x() const { return x_.get(); }
  void* y() const { return y_.get(); }
  // So many that weights of this size, one after another, have gone from the L2 cache when their
  // turn comes again.
  int LaunchesFor(int64_t weight_bytes) const {
    return static_cast<int>(std::clamp<int64_t>(3 * l2_bytes_ / weight_bytes + 1, 2, 16));
  }
  // Microseconds of one launch; nullopt where `launch` refuses or takes longer than asked for.
  // launch(i) queues the i-th. Errors are the device's.
  absl::StatusOr<std::optional<double>> Time(const Task& task,
                                             absl::FunctionRef<absl::Status(int)> launch);

 private:
  explicit Timer(cudaStream_t stream) : stream_(stream) {}
  absl::StatusOr<GraphExec> Record(int launches, absl::FunctionRef<absl::Status(int)> launch);
  absl::StatusOr<double> TimeOnce(cudaGraphExec_t graph);

  cudaStream_t stream_;
  int64_t l2_bytes_ = 0;
  DeviceMemory x_;
  DeviceMemory y_;
  Event begin_;
  Event end_;
};

absl::StatusOr<std::unique_ptr<Timer>> Timer::Make(cudaStream_t stream, Element type,
                                                   int64_t x_elements, int64_t y_bytes) {
  std::unique_ptr<Timer> timer(new Timer(stream));
  ASSIGN_OR_RETURN(timer->x_, TakeDeviceMemory(x_elements * SizeOf(type), "timing products"));
  ASSIGN_OR_RETURN(timer->y_, TakeDeviceMemory(y_bytes, "timing products"));
  RETURN_IF_CUDA_ERROR(FillForTiming(stream, type, x_elements, timer->x()), "filling x");
  for (Event* event : {&timer->begin_, &timer->end_}) {
    cudaEvent_t made = nullptr;
    RETURN_IF_CUDA_ERROR(cudaEventCreate(&made), "making an event");
    event->reset(made);
  }
  int device = 0;
  int l2_bytes = 0;
  RETURN_IF_CUDA_ERROR(cudaGetDevice(&device), "asking for the device");
  RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, device),
                       "asking for the L2 cache's size");
  timer->l2_bytes_ = l2_bytes;
  return timer;
}

absl::StatusOr<GraphExec> Timer::Record(int launches, absl::FunctionRef<absl::Status(int)> launch) {
  RETURN_IF_CUDA_ERROR(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
                       "recording products");
  absl::Status launched;
  for (int i = 0; i < launches && launched.ok(); ++i) launched = launch(i);
  cudaGraph_t captured = nullptr;
  const absl::Status ended =
      CudaStatus(cudaStreamEndCapture(stream_, &captured), "recording products");
  const Graph graph(captured);
  RETURN_IF_ERROR(launched);
  RETURN_IF_ERROR(ended);
  cudaGraphExec_t made = nullptr;
  RETURN_IF_CUDA_ERROR(cudaGraphInstantiate(&made, captured, 0), "instantiating products");
  GraphExec exec(made);
  RETURN_IF_CUDA_ERROR(cudaGraphUpload(made, stream_), "uploading products");
  return exec;
}

absl::StatusOr<double> Timer::TimeOnce(cudaGraphExec_t graph) {
  RETURN_IF_CUDA_ERROR(cudaEventRecord(begin_.get(), stream_), "timing");
  RETURN_IF_CUDA_ERROR(cudaGraphLaunch(graph, stream_), "replaying products");
  RETURN_IF_CUDA_ERROR(cudaEventRecord(end_.get(), stream_), "timing");
  RETURN_IF_CUDA_ERROR(cudaEventSynchronize(end_.get()), "running products");
  float milliseconds = 0;
  RETURN_IF_CUDA_ERROR(cudaEventElapsedTime(&milliseconds, begin_.get(), end_.get()), "timing");
  return 1e3 * static_cast<double>(milliseconds);
}

absl::StatusOr<std::optional<double>> Timer::Time(const Task& task,
                                                  absl::FunctionRef<absl::Status(int)> launch) {
  // Once outside the recording: loads the kernels, which a recording may not.
  if (!launch(0).ok()) return std::nullopt;
  RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_), "running a product");
  absl::StatusOr<GraphExec> graph = Record(task.launches, launch);
  if (!graph.ok()) return std::nullopt;
  std::vector<double> times;
  for (int i = 0; i <= task.repeats; ++i) {
    ASSIGN_OR_RETURN(const double whole, TimeOnce(graph->get()));
    const double each = whole / task.launches;
    if (i > 0) times.push_back(each);  // the first warms up
    if (i == 0 && task.give_up_above > 0 && each > task.give_up_above) return std::nullopt;
  }
  std::nth_element(times.begin(), times.begin() + task.repeats / 2, times.end());
  return times[static_cast<size_t>(task.repeats / 2)];
}

// The file that keeps the table of this GPU, driver and library. Several ranks may read and write
// at once: whole files are put in place of each other. That it cannot be read or written is no
// error: it is only written anew, or not.
class TableFile {
 public:
  // Of the current device. No file where `directory` is empty.
  static absl::StatusOr<TableFile> ForThisGpu(const std::string& directory,
                                              std::string_view library_version);
  const std::string& path() const { return path_; }
  // Empty where there is no file. An error says why the file is of no use.
  absl::StatusOr<ProductTable> Read() const;
  // Keeps `table` besides what the file has.
  void Add(const ProductTable& table) const;

 private:
  std::string path_;
  std::string identity_;
};

absl::StatusOr<TableFile> TableFile::ForThisGpu(const std::string& directory,
                                                std::string_view library_version) {
  TableFile file;
  int device = 0;
  int driver = 0;
  cudaDeviceProp properties = {};
  RETURN_IF_CUDA_ERROR(cudaGetDevice(&device), "asking for the device");
  RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, device), "asking for its properties");
  RETURN_IF_CUDA_ERROR(cudaDriverGetVersion(&driver), "asking for the driver's version");
  file.identity_ = fmt::format("{}-sm{}{}-x{}-cuda{}.{}-cublaslt{}", properties.name,
                               properties.major, properties.minor, properties.multiProcessorCount,
                               driver / 1000, driver / 10 % 100, library_version);
  if (directory.empty()) return file;
  std::string name = file.identity_;
  for (char& c : name) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       c == '.' || c == '-';
    if (!plain) c = '-';
  }
  file.path_ = fmt::format("{}/products-{}.json", directory, name);
  return file;
}

absl::StatusOr<ProductTable> TableFile::Read() const {
  constexpr int64_t kMaxBytes = int64_t{16} << 20;
  if (path_.empty() || !FileExists(path_)) return ProductTable();
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path_, kMaxBytes));
  return ParseProductTable(text, identity_);
}

void TableFile::Add(const ProductTable& table) const {
  if (path_.empty()) return;
  ProductTable all = table;
  absl::StatusOr<ProductTable> before = Read();  // what other ranks have added meanwhile, too
  if (before.ok()) all.merge(*before);
  const std::filesystem::path path = path_;
  const std::string temporary =
      fmt::format("{}.{}.{}", path_, getpid(), reinterpret_cast<uintptr_t>(&all));
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
  out << ToText(all, identity_);
  out.close();
  if (out) std::filesystem::rename(temporary, path, error);
  if (out && !error) return;
  std::error_code ignored;
  std::filesystem::remove(temporary, ignored);
  LogWarning("cannot write {}: the next start will time products again", path_);
}

// N, K and the type of y.
using ShapeKey = std::tuple<int64_t, int64_t, Element>;

// The weights of one shape, and the most rows that they will see.
struct Group {
  std::vector<const void*> weights;
  int64_t max_rows = 0;
};

// A shape's algorithms by bucket of rows. `cublas` is null where the library does not describe it.
struct Entry {
  std::unique_ptr<CublasProduct> cublas;
  std::array<std::optional<ProductChoice>, kRowBuckets.size()> choices;
};

class TunedProducts final : public Products {
 public:
  TunedProducts(Element type, Options options, std::unique_ptr<CublasLibrary> library)
      : type_(type), options_(std::move(options)), library_(std::move(library)) {}

  absl::Status Tune(cudaStream_t stream, absl::Span<const Shape> shapes) override;
  int64_t workspace_bytes() const override { return CublasLibrary::kWorkspaceBytes; }
  absl::Status Run(cudaStream_t stream, const void* x, int64_t T, const void* w, int64_t n,
                   int64_t k, void* y, Element out) override;

 private:
  // One product and bucket that has to be timed.
  struct Missing {
    ShapeKey shape;
    const Group* group;
    size_t bucket;
    int64_t rows() const { return std::min(kRowBuckets[bucket], group->max_rows); }
  };

  Entry& EntryOf(const ShapeKey& shape);
  ProductKey TableKey(const ShapeKey& shape, size_t bucket) const;
  absl::Status TakeWorkspace();
  absl::Status RunChoice(cudaStream_t stream, const ProductChoice& choice, Entry& entry,
                         const void* x, int64_t rows, const void* w, const ShapeKey& shape,
                         void* y);
  ProductChoice Guess(Entry& entry, const void* x, int64_t rows, const void* w,
                      const ShapeKey& shape) const;
  bool Serves(const ProductChoice& choice, Entry& entry, int64_t rows) const;
  std::vector<Missing> TakeKnown(const std::map<ShapeKey, Group>& groups,
                                 const ProductTable& known);
  std::vector<ProductChoice> Candidates(Entry& entry, const Missing& missing, const void* x) const;
  absl::StatusOr<ProductChoice> Fastest(Timer& timer, const Missing& missing);
  absl::StatusOr<std::unique_ptr<Timer>> MakeTimer(cudaStream_t stream,
                                                   const std::vector<Missing>& missing) const;
  absl::StatusOr<ProductTable> TimeAll(cudaStream_t stream, std::vector<Missing> missing);

  const Element type_;
  const Options options_;
  const std::unique_ptr<CublasLibrary> library_;
  std::map<ShapeKey, Entry> entries_;
  DeviceMemory workspace_;
};

Entry& TunedProducts::EntryOf(const ShapeKey& shape) {
  const auto found = entries_.find(shape);
  if (found != entries_.end()) return found->second;
  Entry& entry = entries_[shape];
  const auto [n, k, out] = shape;
  absl::StatusOr<std::unique_ptr<CublasProduct>> made =
      CublasProduct::Make(*library_, type_, n, k, out);
  if (made.ok()) {
    entry.cublas = *std::move(made);
  } else {
    LogWarning("{}; our plain kernel serves it", Message(made.status()));
  }
  return entry;
}

ProductKey TunedProducts::TableKey(const ShapeKey& shape, size_t bucket) const {
  const auto [n, k, out] = shape;
  return {DTypeOf(type_), DTypeOf(out), n, k, kRowBuckets[bucket]};
}

absl::Status TunedProducts::TakeWorkspace() {
  if (workspace_ != nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(workspace_, TakeDeviceMemory(workspace_bytes(), "cublasLt's workspace"));
  return absl::OkStatus();
}

absl::Status TunedProducts::RunChoice(cudaStream_t stream, const ProductChoice& choice,
                                      Entry& entry, const void* x, int64_t rows, const void* w,
                                      const ShapeKey& shape, void* y) {
  const auto [n, k, out] = shape;
  switch (choice.kind) {
    case Kind::kGemv:
      return CudaStatus(Gemv(stream, choice.variant, type_, x, rows, w, n, k, y, out), "GEMV");
    case Kind::kCublas:
      return entry.cublas->Run(stream, choice.algorithm, x, rows, w, y, workspace_.get());
    case Kind::kPlain:
      break;
  }
  return CudaStatus(PlainProduct(stream, type_, x, rows, w, n, k, y, out), "plain product");
}

// What to do without timing. The variants of GEMV are those that were best on an H200 for such
// shapes.
ProductChoice TunedProducts::Guess(Entry& entry, const void* x, int64_t rows, const void* w,
                                   const ShapeKey& shape) const {
  const auto [n, k, out] = shape;
  ProductChoice choice;
  if (GemvTakes(type_, x, rows, w, k)) {
    choice.kind = Kind::kGemv;
    choice.variant = k >= 8192 ? 4 : n >= 16384 ? 2 : 3;
    return choice;
  }
  if (entry.cublas == nullptr) return choice;
  const std::vector<CublasAlgorithm> algorithms = entry.cublas->Candidates(rows, 1);
  if (algorithms.empty()) return choice;
  choice.kind = Kind::kCublas;
  choice.algorithm = algorithms[0];
  return choice;
}

absl::Status TunedProducts::Run(cudaStream_t stream, const void* x, int64_t T, const void* w,
                                int64_t n, int64_t k, void* y, Element out) {
  if (T == 0 || n == 0) return absl::OkStatus();
  const ShapeKey shape = {n, k, out};
  Entry& entry = EntryOf(shape);
  std::optional<ProductChoice>& choice = entry.choices[BucketOf(T)];
  const bool for_cublas = CublasProduct::Takes(x, w, y);
  if (!choice.has_value()) {
    if (!for_cublas) return RunChoice(stream, ProductChoice{}, entry, x, T, w, shape, y);
    RETURN_IF_ERROR(TakeWorkspace());
    choice = Guess(entry, x, T, w, shape);
  }
  const bool takes = choice->kind == Kind::kGemv     ? GemvTakes(type_, x, T, w, k)
                     : choice->kind == Kind::kCublas ? for_cublas
                                                     : true;
  if (!takes) return RunChoice(stream, ProductChoice{}, entry, x, T, w, shape, y);
  const absl::Status status = RunChoice(stream, *choice, entry, x, T, w, shape, y);
  if (status.ok() || choice->kind != Kind::kCublas) return status;
  // The library has refused, on the host, an algorithm that was chosen for another number of rows
  // of this bucket: nothing was launched. Its guess for this number, then our own kernel.
  for (const CublasAlgorithm& algorithm : entry.cublas->Candidates(T, 4)) {
    choice->algorithm = algorithm;
    if (RunChoice(stream, *choice, entry, x, T, w, shape, y).ok()) return absl::OkStatus();
  }
  LogWarning("{}; our plain kernel serves {} x {} from now on", Message(status), n, k);
  choice = ProductChoice{};
  return RunChoice(stream, *choice, entry, x, T, w, shape, y);
}

bool TunedProducts::Serves(const ProductChoice& choice, Entry& entry, int64_t rows) const {
  switch (choice.kind) {
    case Kind::kGemv:
      return type_ != Element::kF32 && rows <= kGemvMaxRows && choice.variant < kGemvVariants;
    case Kind::kCublas:
      return entry.cublas != nullptr && entry.cublas->Supports(choice.algorithm, rows);
    case Kind::kPlain:
      break;
  }
  return false;  // whether the library still has nothing to offer is asked anew: it costs nothing
}

std::vector<TunedProducts::Missing> TunedProducts::TakeKnown(
    const std::map<ShapeKey, Group>& groups, const ProductTable& known) {
  std::vector<Missing> missing;
  for (const auto& [shape, group] : groups) {
    Entry& entry = EntryOf(shape);
    for (size_t bucket = 0; bucket <= BucketOf(group.max_rows); ++bucket) {
      if (entry.choices[bucket].has_value()) continue;
      const Missing product = {shape, &group, bucket};
      const auto found = known.find(TableKey(shape, bucket));
      if (found != known.end() && Serves(found->second, entry, product.rows())) {
        entry.choices[bucket] = found->second;
      } else {
        missing.push_back(product);
      }
    }
  }
  // Few rows first: should time run out, decoding has its algorithms.
  std::stable_sort(missing.begin(), missing.end(),
                   [](const Missing& a, const Missing& b) { return a.bucket < b.bucket; });
  return missing;
}

std::vector<ProductChoice> TunedProducts::Candidates(Entry& entry, const Missing& missing,
                                                     const void* x) const {
  const auto [n, k, out] = missing.shape;
  const int64_t rows = missing.rows();
  std::vector<ProductChoice> candidates;
  if (entry.cublas != nullptr) {
    for (const CublasAlgorithm& algorithm :
         entry.cublas->Candidates(rows, rows > kManyRows ? 4 : 16)) {
      ProductChoice& choice = candidates.emplace_back();
      choice.kind = Kind::kCublas;
      choice.algorithm = algorithm;
    }
  }
  if (GemvTakes(type_, x, rows, missing.group->weights[0], k)) {
    for (int32_t variant = 0; variant < kGemvVariants; ++variant) {
      ProductChoice& choice = candidates.emplace_back();
      choice.kind = Kind::kGemv;
      choice.variant = variant;
    }
  }
  return candidates;
}

absl::StatusOr<ProductChoice> TunedProducts::Fastest(Timer& timer, const Missing& missing) {
  Entry& entry = EntryOf(missing.shape);
  const auto [n, k, out] = missing.shape;
  const std::vector<const void*>& weights = missing.group->weights;
  Timer::Task task;
  task.launches = missing.rows() > kManyRows ? 2 : timer.LaunchesFor(n * k * SizeOf(type_));
  task.repeats = missing.rows() > kManyRows ? 3 : 5;
  ProductChoice best;  // the plain kernel, where nothing else runs
  for (ProductChoice& candidate : Candidates(entry, missing, timer.x())) {
    task.give_up_above = 2 * best.microseconds;  // a first replay may well be slow
    ASSIGN_OR_RETURN(const std::optional<double> microseconds, timer.Time(task, [&](int launch) {
      const void* w = weights[static_cast<size_t>(launch) % weights.size()];
      return RunChoice(timer.stream(), candidate, entry, timer.x(), missing.rows(), w,
                       missing.shape, timer.y());
    }));
    if (!microseconds.has_value()) continue;
    candidate.microseconds = *microseconds;
    if (best.kind == Kind::kPlain || *microseconds < best.microseconds) best = candidate;
  }
  return best;
}

absl::StatusOr<std::unique_ptr<Timer>> TunedProducts::MakeTimer(
    cudaStream_t stream, const std::vector<Missing>& missing) const {
  int64_t x_elements = 1;
  int64_t y_bytes = 1;
  for (const Missing& product : missing) {
    const auto [n, k, out] = product.shape;
    x_elements = std::max(x_elements, product.rows() * k);
    y_bytes = std::max(y_bytes, product.rows() * n * SizeOf(out));
  }
  return Timer::Make(stream, type_, x_elements, y_bytes);
}

absl::StatusOr<ProductTable> TunedProducts::TimeAll(cudaStream_t stream,
                                                    std::vector<Missing> missing) {
  absl::StatusOr<std::unique_ptr<Timer>> timer = MakeTimer(stream, missing);
  if (!timer.ok() && timer.status().code() == absl::StatusCode::kResourceExhausted) {
    LogWarning("{}; products of more than {} rows are left to the library's guess",
               Message(timer.status()), kManyRows);
    std::erase_if(missing, [](const Missing& product) { return product.rows() > kManyRows; });
    timer = MakeTimer(stream, missing);
  }
  if (!timer.ok()) return std::move(timer).status();
  const absl::Time give_up = MonotonicNow() + kPatience;
  ProductTable timed;
  for (const Missing& product : missing) {
    if (MonotonicNow() > give_up) {
      LogWarning("timing products took more than {} s: {} of {} are left to the library's guess",
                 absl::ToInt64Seconds(kPatience), missing.size() - timed.size(), missing.size());
      break;
    }
    ASSIGN_OR_RETURN(const ProductChoice choice, Fastest(**timer, product));
    EntryOf(product.shape).choices[product.bucket] = choice;
    timed[TableKey(product.shape, product.bucket)] = choice;
  }
  return timed;
}

absl::Status TunedProducts::Tune(cudaStream_t stream, absl::Span<const Shape> shapes) {
  RETURN_IF_ERROR(TakeWorkspace());
  std::map<ShapeKey, Group> groups;
  for (const Shape& shape : shapes) {
    if (shape.n == 0 || shape.k == 0 || shape.max_rows == 0) continue;
    Group& group = groups[{shape.n, shape.k, shape.out}];
    group.weights.push_back(shape.weight);
    group.max_rows = std::max(group.max_rows, shape.max_rows);
  }
  ASSIGN_OR_RETURN(const TableFile file,
                   TableFile::ForThisGpu(options_.cache_directory, library_->version()));
  absl::StatusOr<ProductTable> known = file.Read();
  if (!known.ok()) {
    LogWarning("{} is of no use and will be written anew: {}", file.path(),
               Message(known.status()));
    known = ProductTable();
  }
  const std::vector<Missing> missing = TakeKnown(groups, *known);
  if (missing.empty()) return absl::OkStatus();
  const absl::Time begin = MonotonicNow();
  absl::StatusOr<ProductTable> timed = TimeAll(stream, missing);
  if (!timed.ok()) return Annotate(timed.status(), "timing products");
  LogInfo("timed {} products of {} shapes in {:.1f} s{}", timed->size(), groups.size(),
          absl::ToDoubleSeconds(MonotonicNow() - begin),
          file.path().empty() ? "" : ", kept in " + file.path());
  file.Add(*timed);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Products>> Products::Make(Element type, const Options& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<CublasLibrary> library, CublasLibrary::Open());
  return std::make_unique<TunedProducts>(type, options, std::move(library));
}

}  // namespace polyreme::cuda
