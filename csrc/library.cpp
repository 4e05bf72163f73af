// Schemas of the fused ops (torch.ops.megatron_alum.*); the text here is the contract, the code is found by path:
// ops/{rows,tokens,attention}.cpp build the tasks, ops/cpu and ops/cuda run them. Autograd, fake kernels and the public
// functions are in Python (megatron_alum/ops). `first_column` and `valid_columns` place a vocabulary shard: see
// ops/rows.h.
#include <torch/library.h>

#include "common/large_pages.h"
#include "ops/cpu/kernels.h"

// Read by megatron_alum/ops/dispatch.py before the library is loaded.
extern "C" __attribute__((visibility("default"), used)) const char megatron_alum_build[] =
    "megatron_alum_build:" MEGATRON_ALUM_BUILD;

TORCH_LIBRARY(megatron_alum, m) {
  m.def("instruction_set() -> str", [] { return std::string(cpu_kernels().name); });

  // Row ops. Everywhere: no adversarial logits = the MLM loss alone; records [N, 6] of one shard, 7 with labels.
  m.def("row_statistics(Tensor clean, Tensor? adv, Tensor? labels, int first_column, int valid_columns, bool one_sided) -> Tensor");
  // [R, N, 6 or 7] -> [N, 6 or 7].
  m.def("merge_statistics(Tensor records, bool one_sided) -> Tensor");
  // (MLM loss [N], divergence [N]) from merged records; differentiable in the logits (Python: ops/rows.py).
  m.def(
      "row_losses(Tensor clean, Tensor? adv, Tensor records, Tensor? labels, int first_column, int valid_columns, "
      "bool one_sided, bool detach_targets, bool overwrite) -> (Tensor, Tensor)");
  // Gradients from records that are final, or, for rows of one shard, records and gradients in one pass over the logits:
  // (the new records or an empty tensor, to clean, to adv); a gradient that is not needed is an empty tensor.
  m.def(
      "row_gradients(Tensor clean, Tensor? adv, Tensor? records, Tensor? labels, Tensor? mlm_weight, Tensor kl_weight, "
      "int first_column, int valid_columns, bool one_sided, bool detach_targets, bool need_clean, bool need_adv) "
      "-> (Tensor, Tensor, Tensor)");
  // The same, written over the logits that need them. Returns the new records or an empty tensor.
  m.def(
      "row_gradients_(Tensor(a!) clean, Tensor(b!)? adv, Tensor? records, Tensor? labels, Tensor? mlm_weight, "
      "Tensor kl_weight, int first_column, int valid_columns, bool one_sided, bool detach_targets, bool need_clean, "
      "bool need_adv) -> Tensor");
  // values *= factor, by a kernel that reads the factor on its device and stops if it is 1.
  m.def("scale_(Tensor(a!) values, Tensor factor) -> ()");

  // (x + delta', delta', sums [6]). Without delta it is noise [T, num_channels] or of x's shape, from one sample index
  // and one position per token. Without x: (empty, delta', zeros).
  m.def(
      "perturb(Tensor? x, Tensor? delta, Tensor? sample_index, Tensor? position, float std, int seed, int iteration, "
      "int num_channels, Tensor? grad, float step_size, float epsilon, int projection, Tensor? mask, ScalarType out_dtype) "
      "-> (Tensor, Tensor, Tensor)");

  // x with elements dropped with probability threshold / 2^16 and the rest scaled up. CPU only.
  m.def("dropout(Tensor x, Tensor seed, int threshold) -> Tensor");
  // softmax(q k^T / sqrt(D)) v of each sequence [T, heads, D], its weights dropped so; zeros behind the sequences. The
  // mask of sequence i and head h is that of dropout with word i * heads + h of splitmix64(seed). CPU only.
  m.def("attention(Tensor query, Tensor key, Tensor value, int[] lengths, Tensor seed, int threshold) -> Tensor");
  m.def(
      "attention_gradients(Tensor gradient, Tensor query, Tensor key, Tensor value, Tensor out, int[] lengths, "
      "Tensor seed, int threshold) -> (Tensor, Tensor, Tensor)");
  // Affects only the time: common/large_pages.h.
  m.def("prefer_large_pages(Tensor(a!) fresh) -> ()", [](at::Tensor fresh) { prefer_large_pages(fresh); });
}
