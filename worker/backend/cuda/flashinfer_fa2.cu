// FlashInfer's FA2 path. A unit of its own: its types clash with those of the Hopper path.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <exception>
#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/attention/scheduler.cuh>
#include <vector>

#include "worker/backend/cuda/flashinfer.h"

namespace polyreme::cuda {
namespace {

namespace fi = flashinfer;
using Variant = fi::DefaultAttention</*use_custom_mask=*/false, /*use_sliding_window=*/false,
                                     /*use_logits_soft_cap=*/false, /*use_alibi=*/false>;

template <class T, uint32_t kTile, int kD>
cudaError_t Launch(cudaStream_t stream, fi::BatchPrefillPagedParams<T, T, T, int32_t>& params,
                   T* partial_values, float* partial_weights) {
  return fi::BatchPrefillWithPagedKVCacheDispatched<kTile, kD, kD, fi::PosEncodingMode::kNone,
                                                    /*USE_FP16_QK_REDUCTION=*/false,
                                                    fi::MaskMode::kCausal, Variant>(
      params, partial_values, partial_weights, /*enable_pdl=*/false, stream);
}

template <class T, int kD>
FlashInferStatus Run(cudaStream_t stream, const FlashInferRows& rows,
                     const FlashInferTensors& tensors, const Fa2Workspace& workspace,
                     const fi::PrefillPlanInfo& plan) {
  const Heads& heads = tensors.heads;
  const int64_t token_stride = static_cast<int64_t>(heads.kv_heads) * kD;
  const int64_t strides[3] = {rows.tokens_per_block * token_stride, token_stride, kD};
  const fi::paged_kv_t<T, int32_t> pool(
      heads.kv_heads, rows.tokens_per_block, kD, rows.num_rows, fi::QKVLayout::kNHD,
      static_cast<T*>(tensors.pool.keys), static_cast<T*>(tensors.pool.values), strides,
      const_cast<int32_t*>(rows.device_pages), const_cast<int32_t*>(rows.device_page_begins),
      const_cast<int32_t*>(rows.device_last_page_lengths));
  fi::BatchPrefillPagedParams<T, T, T, int32_t> params(
      static_cast<T*>(const_cast<void*>(tensors.qkv)), pool, /*maybe_custom_mask=*/nullptr,
      const_cast<int32_t*>(rows.device_token_begins), /*maybe_mask_indptr=*/nullptr,
      /*maybe_q_rope_offset=*/nullptr, static_cast<T*>(tensors.y), /*lse=*/nullptr,
      /*maybe_alibi_slopes=*/nullptr, heads.query_heads,
      /*q_stride_n=*/static_cast<int32_t>(heads.columns()), /*q_stride_h=*/kD, /*window_left=*/-1,
      /*logits_soft_cap=*/0.0f, tensors.scale, /*rope_scale=*/1.0f, /*rope_theta=*/1e4f);
  const auto ints = [&](int64_t offset) {
    return fi::GetPtrFromBaseOffset<int32_t>(workspace.ints, offset);
  };
  params.request_indices = ints(plan.request_indices_offset);
  params.qo_tile_indices = ints(plan.qo_tile_indices_offset);
  params.kv_tile_indices = ints(plan.kv_tile_indices_offset);
  params.o_indptr = ints(plan.o_indptr_offset);
  params.kv_chunk_size_ptr = ints(plan.kv_chunk_size_ptr_offset);
  T* partial_values = nullptr;
  float* partial_weights = nullptr;
  if (plan.split_kv) {
    params.merge_indptr = ints(plan.merge_indptr_offset);
    partial_values = fi::GetPtrFromBaseOffset<T>(workspace.floats, plan.v_offset);
    partial_weights = fi::GetPtrFromBaseOffset<float>(workspace.floats, plan.s_offset);
  }
  params.padded_batch_size = static_cast<uint32_t>(plan.padded_batch_size);
  params.max_total_num_rows = static_cast<uint32_t>(plan.total_num_rows);
  try {
    switch (plan.cta_tile_q) {
      case 16:
        return {Launch<T, 16, kD>(stream, params, partial_values, partial_weights), ""};
      case 64:
        return {Launch<T, 64, kD>(stream, params, partial_values, partial_weights), ""};
      case 128:
        return {Launch<T, 128, kD>(stream, params, partial_values, partial_weights), ""};
      default:
        return {cudaSuccess,
                "FlashInfer planned tiles of " + std::to_string(plan.cta_tile_q) + " query rows"};
    }
  } catch (const std::exception& e) {
    return {cudaSuccess, e.what()};
  }
}

}  // namespace

FlashInferStatus PlanFa2(cudaStream_t stream, const FlashInferRows& rows, const Heads& heads,
                         const Fa2Workspace& workspace, Fa2Plan* plan) {
  fi::PrefillPlanInfo info;
  try {
    const cudaError_t error = fi::PrefillPlan<int32_t>(
        workspace.floats, workspace.float_bytes, workspace.ints, workspace.host_ints,
        workspace.int_bytes, info, const_cast<int32_t*>(rows.token_begins),
        const_cast<int32_t*>(rows.page_begins), rows.token_begins[rows.num_rows], rows.num_rows,
        heads.query_heads, heads.kv_heads, heads.head_dim, heads.head_dim, rows.tokens_per_block,
        /*enable_cuda_graph=*/false, /*sizeof_dtype_o=*/2, /*window_left=*/-1,
        /*fixed_split_size=*/-1, /*disable_split_kv=*/false, /*num_colocated_ctas=*/0, stream);
    if (error != cudaSuccess) return {error, ""};
  } catch (const std::exception& e) {
    return {cudaSuccess, e.what()};
  }
  const std::vector<int64_t> values = info.ToVector();
  if (values.size() != 15) return {cudaSuccess, "FlashInfer's plan is not that of version 0.6.8"};
  for (size_t i = 0; i < values.size(); ++i) plan->values[i] = values[i];
  return {};
}

FlashInferStatus RunFa2(cudaStream_t stream, const FlashInferRows& rows,
                        const FlashInferTensors& tensors, const Fa2Workspace& workspace,
                        const Fa2Plan& plan) {
  fi::PrefillPlanInfo info;
  info.FromVector(std::vector<int64_t>(plan.values, plan.values + 15));
  const bool bf16 = tensors.type == Element::kBF16;
  if (tensors.heads.head_dim == 128) {
    return bf16 ? Run<__nv_bfloat16, 128>(stream, rows, tensors, workspace, info)
                : Run<__half, 128>(stream, rows, tensors, workspace, info);
  }
  return bf16 ? Run<__nv_bfloat16, 64>(stream, rows, tensors, workspace, info)
              : Run<__half, 64>(stream, rows, tensors, workspace, info);
}

}  // namespace polyreme::cuda
