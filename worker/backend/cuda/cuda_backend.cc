#include "worker/backend/cuda/cuda_backend.h"

#include <utility>

#include "parallel/base/log.h"
#include "parallel/comm/nccl_communicator.h"
#include "worker/backend/cuda/attention.h"
#include "worker/backend/cuda/cuda_device.h"
#include "worker/backend/cuda/cuda_ops.h"
#include "worker/backend/cuda/cuda_packer.h"
#include "worker/backend/cuda/products.h"

namespace polyreme::cuda {
namespace {

class CudaBackend final : public backend::Backend {
 public:
  // factory: the device's arenas come from it as soon as communicators are asked for.
  CudaBackend(const backend::DeviceKind& kind, std::unique_ptr<comm::NcclFactory> factory,
              std::unique_ptr<CudaDevice> device, std::unique_ptr<weights::WeightPacker> packer,
              std::unique_ptr<ops::Ops> ops)
      : kind_(kind),
        factory_(std::move(factory)),
        device_(std::move(device)),
        packer_(std::move(packer)),
        ops_(std::move(ops)) {}

  std::string_view name() const override { return "cuda"; }
  backend::DeviceKind kind() const override { return kind_; }
  Device& device() override { return *device_; }
  ops::Ops& ops() override { return *ops_; }
  weights::WeightPacker& packer() override { return *packer_; }
  comm::CommunicatorFactory* communicators() override {
    // Who asks has peers, perhaps: then arenas must be memory that windows can be made of.
    device_->SetArenaAllocator(
        [factory = factory_.get()](int64_t bytes) { return factory->AllocateArena(bytes); });
    return factory_.get();
  }

 private:
  const backend::DeviceKind kind_;
  // Each outlives what comes after it.
  const std::unique_ptr<comm::NcclFactory> factory_;
  const std::unique_ptr<CudaDevice> device_;
  const std::unique_ptr<weights::WeightPacker> packer_;
  const std::unique_ptr<ops::Ops> ops_;
};

Element TypeOf(DType dtype) {
  if (dtype == DType::kF16) return Element::kF16;
  return dtype == DType::kBF16 ? Element::kBF16 : Element::kF32;
}

}  // namespace

absl::StatusOr<std::unique_ptr<backend::Backend>> MakeCudaBackend(
    const backend::BackendOptions& options) {
  if (!IsFloat(options.dtype)) {
    return InvalidArgument("expected float32, float16 or bfloat16 on a GPU, got {}",
                           NameOf(options.dtype));
  }
  ASSIGN_OR_RETURN(
      std::unique_ptr<CudaDevice> device,
      CudaDevice::Make({.index = options.device_index, .record_steps = !options.enforce_eager}));
  const Element type = TypeOf(options.dtype);
  ASSIGN_OR_RETURN(std::unique_ptr<Products> products,
                   Products::Make(type, {.cache_directory = options.cache_directory}));
  ASSIGN_OR_RETURN(std::unique_ptr<Attention> attention,
                   Attention::Make({.choice = options.attention,
                                    .type = type,
                                    .compute_capability = device->compute_capability(),
                                    .num_multiprocessors = device->num_multiprocessors()}));
  ASSIGN_OR_RETURN(
      std::unique_ptr<weights::WeightPacker> packer,
      MakeCudaPacker(options.device_index, options.dtype,
                     [gpu = device.get()](int64_t bytes) { return gpu->Allocate(bytes); }));
  ASSIGN_OR_RETURN(std::unique_ptr<comm::NcclFactory> factory,
                   comm::MakeNcclFactory(options.device_index));
  LogInfo("GPU {}: {}, {}, attention: {}", options.device_index, device->name(),
          NameOf(options.dtype), attention->Describe());
  const AttentionSetup& setup = attention->setup();
  const backend::DeviceKind kind{.gpu = true,
                                 .activations = options.dtype,
                                 .attention = setup.choice,
                                 .compute_capability = setup.compute_capability,
                                 .num_multiprocessors = setup.num_multiprocessors,
                                 .have_fa2 = setup.have_fa2,
                                 .have_hopper = setup.have_hopper};
  auto ops =
      std::make_unique<CudaOps>(*device, options.dtype, std::move(products), std::move(attention));
  return std::make_unique<CudaBackend>(kind, std::move(factory), std::move(device), std::move(packer),
                                       std::move(ops));
}

}  // namespace polyreme::cuda
