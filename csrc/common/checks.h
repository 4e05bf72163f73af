// What the glue of all ops needs: checks of tensors passed from Python, in the project's error form (what must be, what
// is instead), and the launch on a GPU.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#ifdef MEGATRON_ALUM_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#endif

#include "ops/rows.h"

// On a GPU queues `launch(stream)`, a generic lambda (a build for the CPU has no launches to link); false on the CPU.
template <typename Launch>
bool launched(const at::Device& device, [[maybe_unused]] const Launch& launch) {
#ifdef MEGATRON_ALUM_CUDA
  if (device.is_cuda()) {
    const c10::DeviceGuard guard(device);
    C10_CUDA_CHECK(static_cast<cudaError_t>(launch(static_cast<void*>(c10::cuda::getCurrentCUDAStream().stream()))));
    return true;
  }
#endif
  TORCH_CHECK_VALUE(device.is_cpu(), "the tensors must be on a device with a kernel, but are on ", device, ".");
  return false;
}

inline int element_of(const at::Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return kFloat32;
    case at::kBFloat16: return kBFloat16;
    case at::kHalf: return kFloat16;
    default:
      TORCH_CHECK_VALUE(false, "`", name, "` must be float32, bfloat16 or float16, but is ", tensor.scalar_type(),
                        " instead.");
  }
}

inline void check_like(const at::Tensor& tensor, const at::Tensor& model, const char* name) {
  TORCH_CHECK_VALUE(tensor.sizes() == model.sizes() && tensor.device() == model.device(), "`", name, "` must be ",
                    model.sizes(), " on ", model.device(), ", but is ", tensor.sizes(), " on ", tensor.device(),
                    " instead.");
}

// Numbers of a type, dense, with these sizes, on this device, as the kernels read them from `*pointer`, which the
// result keeps alive.
template <typename Number>
at::Tensor dense(const at::Tensor& tensor, at::IntArrayRef sizes, const at::Device& device, const char* name,
                 const Number** pointer) {
  constexpr at::ScalarType type = c10::CppTypeToScalarType<Number>::value;
  TORCH_CHECK_VALUE(tensor.sizes() == sizes && tensor.scalar_type() == type && tensor.device() == device, "`", name,
                    "` must be ", type, " ", sizes, " on ", device, ", but is ", tensor.scalar_type(), " ",
                    tensor.sizes(), " on ", tensor.device(), " instead.");
  at::Tensor read = tensor.contiguous();
  *pointer = read.const_data_ptr<Number>();
  return read;
}
