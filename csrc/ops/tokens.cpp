// The token ops: checks the tensors, builds the TokenTask, passes it to the device's kernel, returns tensors. The
// kernels are reached through ops/cpu/kernels.h and in ops/cuda/token_kernel.cu.
#include "ops/tokens.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <tuple>

#include "common/checks.h"
#include "common/large_pages.h"

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

std::tuple<Tensor, Tensor, Tensor> perturb(const OptionalTensor& x_any, const OptionalTensor& delta_any,
                                           const OptionalTensor& sample_index, const OptionalTensor& position, double std,
                                           int64_t seed, int64_t iteration, int64_t num_channels,
                                           const OptionalTensor& grad_any, double step_size, double epsilon,
                                           int64_t projection, const OptionalTensor& mask_any, at::ScalarType out_dtype) {
  TORCH_CHECK_VALUE(delta_any.has_value() || (sample_index.has_value() && position.has_value()),
                    "`delta`, or the noise's `sample_index` and `position`, must be given, but are not.");
  const auto fresh = [](at::IntArrayRef sizes, const at::TensorOptions& options) {
    return prefer_large_pages(at::empty(sizes, options));
  };
  const auto options = (delta_any.has_value() ? *delta_any : *sample_index).options().dtype(at::kFloat);
  Tensor moved = x_any.has_value()       ? fresh(x_any->sizes(), options)
                 : delta_any.has_value() ? fresh(delta_any->sizes(), options)
                                         : fresh({sample_index->size(0), num_channels}, options);
  TORCH_CHECK_VALUE(moved.dim() > 0, "the perturbation must have a dimension of channels, but has none.");
  TORCH_CHECK_VALUE(kClamp <= projection && projection <= kNormalizedGradient,
                    "`projection` must be 0, 1 or 2, but is ", projection, " instead.");
  TokenTask task{};
  task.channels = moved.size(-1);
  task.tokens = c10::multiply_integers(moved.sizes().slice(0, moved.dim() - 1));
  task.step = {static_cast<float>(step_size), static_cast<float>(epsilon), static_cast<int>(projection)};
  // The tensor as the kernels read it; kept alive until they are queued.
  const auto given = [&](const OptionalTensor& tensor, const char* name, const void** pointer, int* element) {
    if (!tensor.has_value()) return Tensor();
    check_like(*tensor, moved, name);
    const Tensor read = tensor->contiguous();
    *pointer = read.const_data_ptr();
    *element = element_of(read, name);
    return read;
  };
  const Tensor x = given(x_any, "x", &task.x, &task.x_element);
  const Tensor delta = given(delta_any, "delta", &task.delta, &task.delta_element);
  const Tensor grad = given(grad_any, "grad", &task.grad, &task.grad_element);
  Tensor samples, positions, mask;
  if (!delta_any.has_value()) {
    samples = dense(*sample_index, {task.tokens}, moved.device(), "sample_index", &task.sample_index);
    positions = dense(*position, {task.tokens}, moved.device(), "position", &task.position);
    task.seed = static_cast<uint32_t>(seed);
    task.iteration = static_cast<uint32_t>(iteration);
    task.noise_std = static_cast<float>(std);
  }
  if (mask_any.has_value()) mask = dense(mask_any->flatten(), {task.tokens}, moved.device(), "mask", &task.mask);
  task.delta_out = moved.mutable_data_ptr<float>();
  Tensor x_adv = at::empty({0}, options.dtype(out_dtype)), token_sums = at::zeros({0, kTokenSums}, options);
  if (x_any.has_value()) {
    x_adv = fresh(moved.sizes(), x_adv.options());
    task.x_adv = x_adv.mutable_data_ptr();
    task.out_element = element_of(x_adv, "out_dtype");
    token_sums = at::empty({task.tokens, kTokenSums}, options);
    task.token_sums = token_sums.mutable_data_ptr<float>();
  }
  const auto launch = [&](auto stream) { return launch_tokens(task, stream); };
  if (moved.numel() > 0 && !launched(moved.device(), launch)) run_tokens_cpu(task);
  return {x_adv, moved, token_sums.sum(0)};
}

}  // namespace

TORCH_LIBRARY_IMPL(megatron_alum, CPU, m) { m.impl("perturb", perturb); }
#ifdef MEGATRON_ALUM_CUDA
TORCH_LIBRARY_IMPL(megatron_alum, CUDA, m) { m.impl("perturb", perturb); }
#endif
