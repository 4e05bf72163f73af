// The token ops: checks the tensors, builds the TokenTask, hands it to the device's kernel, returns tensors. The kernels are found
// through ops/cpu/kernels.h and in ops/cuda/token_kernel.cu.
#include "ops/tokens.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <tuple>

#include "common/checks.h"
#include "common/large_pages.h"
#ifdef MEGATRON_ALUM_CUDA
#include <c10/cuda/CUDAStream.h>
#endif

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct Noise {
  Tensor sample_index, position;
  double deviation;
  int64_t seed, iteration;
};

struct Step {
  double step_size, epsilon;
  int64_t projection;
};

void run(const TokenTask& task, const at::Device& device) {
  if (task.tokens == 0 || task.channels == 0) return;
#ifdef MEGATRON_ALUM_CUDA
  const c10::OptionalDeviceGuard guard(device);
  if (device.is_cuda()) {
    const int error = launch_tokens(task, c10::cuda::getCurrentCUDAStream().stream());
    TORCH_CHECK(error == 0, "the CUDA kernel could not be launched: ", launch_error_text(error));
    return;
  }
#endif
  TORCH_CHECK_VALUE(device.is_cpu(), "the tensors must be on a device with a kernel, but are on ", device, ".");
  run_tokens_cpu(task);
}

TokenTask task_of(at::IntArrayRef sizes, const Step& step) {
  TORCH_CHECK_VALUE(!sizes.empty(), "the perturbation must have a dimension of channels, but has none.");
  TORCH_CHECK_VALUE(kClamp <= step.projection && step.projection <= kNormalizedGradient,
                    "`projection` must be 0, 1 or 2, but is ", step.projection, " instead.");
  TokenTask task{};
  task.channels = sizes.back();
  task.tokens = c10::multiply_integers(sizes.slice(0, sizes.size() - 1));
  task.step = {static_cast<float>(step.step_size), static_cast<float>(step.epsilon), static_cast<int>(step.projection)};
  return task;
}

void add_noise(TokenTask& task, const Noise& noise, const at::Device& device) {
  check_vector(noise.sample_index, at::kLong, task.tokens, device, "sample_index");
  check_vector(noise.position, at::kLong, task.tokens, device, "position");
  TORCH_CHECK_VALUE(noise.sample_index.is_contiguous() && noise.position.is_contiguous(),
                    "`sample_index` and `position` must be contiguous.");
  task.sample_index = noise.sample_index.const_data_ptr<int64_t>();
  task.position = noise.position.const_data_ptr<int64_t>();
  task.seed = static_cast<uint32_t>(noise.seed);
  task.iteration = static_cast<uint32_t>(noise.iteration);
  task.noise_std = static_cast<float>(noise.deviation);
}

Tensor gaussian_noise(const Tensor& sample_index, const Tensor& position, int64_t num_channels, double std, int64_t seed,
                      int64_t iteration) {
  const Tensor samples = sample_index.contiguous(), positions = position.contiguous();
  Tensor noise = at::empty({sample_index.size(0), num_channels}, sample_index.options().dtype(at::kFloat));
  TokenTask task = task_of(noise.sizes(), {0.0, 0.0, kClamp});
  add_noise(task, {samples, positions, std, seed, iteration}, sample_index.device());
  task.delta_out = noise.mutable_data_ptr<float>();
  run(task, noise.device());
  return noise;
}

Tensor ascend_and_project(const Tensor& delta_any, const Tensor& grad_any, double step_size, double epsilon,
                          int64_t projection) {
  check_like(grad_any, delta_any, "grad");
  const Tensor delta = delta_any.contiguous(), grad = grad_any.contiguous();
  Tensor result = at::empty(delta.sizes(), delta.options().dtype(at::kFloat));
  TokenTask task = task_of(delta.sizes(), {step_size, epsilon, projection});
  task.delta = delta.const_data_ptr();
  task.delta_element = element_of(delta, "delta");
  task.grad = grad.const_data_ptr();
  task.grad_element = element_of(grad, "grad");
  task.delta_out = result.mutable_data_ptr<float>();
  run(task, delta.device());
  return result;
}

// Completes a task whose delta or noise is already set; `x`, `grad` and `mask` are contiguous.
std::tuple<Tensor, Tensor, Tensor> perturbed(TokenTask& task, const Tensor& x, const OptionalTensor& grad_any,
                                             const OptionalTensor& mask_any, at::ScalarType out_dtype) {
  Tensor grad, mask;
  if (grad_any.has_value()) {
    check_like(*grad_any, x, "grad");
    grad = grad_any->contiguous();
    task.grad = grad.const_data_ptr();
    task.grad_element = element_of(grad, "grad");
  }
  if (mask_any.has_value()) {
    mask = mask_any->contiguous().view(-1);
    check_vector(mask, at::kBool, task.tokens, x.device(), "mask");
    task.mask = mask.const_data_ptr<bool>();
  }
  Tensor x_adv = at::empty(x.sizes(), x.options().dtype(out_dtype));
  Tensor moved = at::empty(x.sizes(), x.options().dtype(at::kFloat));
  prefer_large_pages(x_adv);
  prefer_large_pages(moved);
  Tensor token_sums = at::empty({task.tokens, kTokenSums}, x.options().dtype(at::kFloat));
  task.x = x.const_data_ptr();
  task.x_element = element_of(x, "x");
  task.x_adv = x_adv.mutable_data_ptr();
  task.out_element = element_of(x_adv, "out_dtype");
  task.delta_out = moved.mutable_data_ptr<float>();
  task.token_sums = token_sums.mutable_data_ptr<float>();
  run(task, x.device());
  return {x_adv, moved, token_sums.sum(0)};
}

std::tuple<Tensor, Tensor, Tensor> perturb(const Tensor& x_any, const Tensor& delta_any, const OptionalTensor& grad,
                                           double step_size, double epsilon, int64_t projection,
                                           const OptionalTensor& mask, at::ScalarType out_dtype) {
  check_like(delta_any, x_any, "delta");
  const Tensor x = x_any.contiguous(), delta = delta_any.contiguous();
  TokenTask task = task_of(x.sizes(), {step_size, epsilon, projection});
  task.delta = delta.const_data_ptr();
  task.delta_element = element_of(delta, "delta");
  return perturbed(task, x, grad, mask, out_dtype);
}

std::tuple<Tensor, Tensor, Tensor> perturb_noise(const Tensor& x_any, const Tensor& sample_index, const Tensor& position,
                                                 double std, int64_t seed, int64_t iteration,
                                                 const OptionalTensor& grad, double step_size, double epsilon,
                                                 int64_t projection, const OptionalTensor& mask,
                                                 at::ScalarType out_dtype) {
  const Tensor x = x_any.contiguous(), samples = sample_index.contiguous(), positions = position.contiguous();
  TokenTask task = task_of(x.sizes(), {step_size, epsilon, projection});
  add_noise(task, {samples, positions, std, seed, iteration}, x.device());
  return perturbed(task, x, grad, mask, out_dtype);
}

void register_all(torch::Library& m) {
  m.impl("gaussian_noise", gaussian_noise);
  m.impl("ascend_and_project", ascend_and_project);
  m.impl("perturb", perturb);
  m.impl("perturb_noise", perturb_noise);
}

}  // namespace

TORCH_LIBRARY_IMPL(megatron_alum, CPU, m) { register_all(m); }
#ifdef MEGATRON_ALUM_CUDA
TORCH_LIBRARY_IMPL(megatron_alum, CUDA, m) { register_all(m); }
#endif
