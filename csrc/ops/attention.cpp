// Dropout, and attention within sequences with dropout of its weights: checks and, for attention, the arithmetic. CPU only.
//
// torch has no CPU kernel for attention of sequences that are stored back to back. Here each sequence and head is a task,
// small enough that its scores stay in a core's cache; torch's threads take one after the other, longest first. Nothing is
// padded, so the results for a sequence are the same to the bit whatever else is in the batch. Nothing of L x L is kept for
// backward, which forms the weights again (a sixth of its products).
//
// With P the weights, M the mask (0 or 1 / keep) and G the gradient of the output O = (M P) V, the gradient of the scores
// is P (M G V^T - d), d the row sums of M P G V^T, which equal those of G O. Python twin:
// megatron_alum/reference/attention.py.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/large_pages.h"
#include "ops/dropout.h"

namespace {

using at::IntArrayRef;
using at::Tensor;

uint64_t seed_of(const Tensor& seed, int64_t threshold) {
  TORCH_CHECK_VALUE(0 <= threshold && threshold < kDropoutLevels, "`threshold` must be in [0, ", kDropoutLevels,
                    "), but is ", threshold, " instead.");
  TORCH_CHECK_VALUE(seed.dim() == 0 && seed.scalar_type() == at::kLong && seed.is_cpu(),
                    "`seed` must be one int64 on the CPU, but is ", seed.scalar_type(), " ", seed.sizes(), " on ",
                    seed.device(), " instead.");
  return static_cast<uint64_t>(seed.item<int64_t>());
}

void drop(const Tensor& x, const Tensor& out, uint64_t seed, int64_t threshold) {
  DropoutTask task{};
  task.x = x.const_data_ptr();
  task.out = out.mutable_data_ptr();
  task.elements = x.numel();
  task.seed = seed;
  task.threshold = static_cast<uint32_t>(threshold);
  task.scale = static_cast<float>(static_cast<double>(kDropoutLevels) / static_cast<double>(kDropoutLevels - threshold));
  task.element = element_of(x, "x");
  run_dropout_cpu(task);
}

Tensor dropout(const Tensor& x_any, const Tensor& seed, int64_t threshold) {
  const Tensor x = x_any.contiguous(), out = prefer_large_pages(at::empty(x.sizes(), x.options()));
  drop(x, out, seed_of(seed, threshold), threshold);
  return out;
}

struct Attention {
  Tensor query, key, value;  // [T, heads, D]
  IntArrayRef lengths;
  uint64_t seed;
  double scale;

  Attention(const Tensor& q, const Tensor& k, const Tensor& v, IntArrayRef lengths, const Tensor& seed, int64_t threshold)
      : query(q), key(k), value(v), lengths(lengths) {
    TORCH_CHECK_VALUE(q.dim() == 3, "`query` must be [T, heads, D], but is ", q.sizes(), " instead.");
    check_like(k, q, "key");
    check_like(v, q, "value");
    const bool positive = std::all_of(lengths.begin(), lengths.end(), [](int64_t length) { return length > 0; });
    TORCH_CHECK_VALUE(positive && tokens() <= q.size(0), "`lengths` must be positive and add up to at most ", q.size(0),
                      " tokens, but is ", lengths, " instead.");
    this->seed = seed_of(seed, threshold);
    scale = 1.0 / std::sqrt(static_cast<double>(q.size(2)));
  }

  int64_t tokens() const { return std::accumulate(lengths.begin(), lengths.end(), int64_t{0}); }

  // [T, heads, D] for results: zeros behind the sequences.
  Tensor empty() const {
    Tensor fresh = at::empty(query.sizes(), query.options());
    fresh.narrow(0, tokens(), query.size(0) - tokens()).zero_();
    return fresh;
  }

  // Calls work(seed of the mask, rows, square) for each sequence and head: rows(tensor) is its part [L, D] of a tensor,
  // square(i) the i-th of so many [L, L] in memory of its thread, for scores and weights. What work calls stays on its
  // thread: at::parallel_for does not divide work further within itself.
  template <typename Work>
  void each(int64_t squares, const Work& work) const {
    const int64_t heads = query.size(1), count = static_cast<int64_t>(lengths.size());
    if (count == 0) return;
    std::vector<int64_t> starts(count, 0), order(count);
    std::partial_sum(lengths.begin(), lengths.end() - 1, starts.begin() + 1);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
    const int64_t longest = lengths[order.front()];
    std::atomic<int64_t> next{0};
    at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
      const at::AutoDispatchBelowADInplaceOrView guard;
      const Tensor scratch = at::empty({squares, longest * longest}, query.options());
      for (int64_t task; (task = next++) < count * heads;) {
        const int64_t sequence = order[task / heads], head = task % heads, length = lengths[sequence];
        const auto rows = [&](const Tensor& x) {  // one operation instead of narrow and select: tasks are small
          const int64_t first = x.storage_offset() + starts[sequence] * x.stride(0) + head * x.stride(1);
          return x.as_strided({length, x.size(2)}, {x.stride(0), x.stride(2)}, first);
        };
        const auto square = [&](int64_t i) {
          return scratch.as_strided({length, length}, {length, 1}, i * scratch.size(1));
        };
        work(splitmix64(seed, static_cast<uint64_t>(sequence * heads + head)), rows, square);
      }
    });
  }

  // weights = softmax(scale q k^T).
  template <typename Rows>
  void weigh(Tensor weights, const Rows& rows) const {
    at::addmm_out(weights, weights, rows(query), rows(key).t(), 0.0, scale);
    at::_softmax_out(weights, weights, -1, false);
  }
};

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value, IntArrayRef lengths, const Tensor& seed,
                 int64_t threshold) {
  const Attention call(query, key, value, lengths, seed, threshold);
  const Tensor out = call.empty();
  call.each(1, [&](uint64_t mask, const auto& rows, const auto& square) {
    Tensor weights = square(0), to = rows(out);
    call.weigh(weights, rows);
    if (threshold > 0) drop(weights, weights, mask, threshold);
    at::mm_out(to, weights, rows(value));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> attention_gradients(const Tensor& gradient, const Tensor& query, const Tensor& key,
                                                       const Tensor& value, const Tensor& out, IntArrayRef lengths,
                                                       const Tensor& seed, int64_t threshold) {
  const Attention call(query, key, value, lengths, seed, threshold);
  check_like(gradient, query, "gradient");
  check_like(out, query, "out");
  const Tensor to_query = call.empty(), to_key = call.empty(), to_value = call.empty();
  const Tensor sums = (gradient * out).sum(-1, true);
  call.each(3, [&](uint64_t mask, const auto& rows, const auto& square) {
    Tensor weights = square(0), dropped = weights, scores = square(1);
    Tensor to_q = rows(to_query), to_k = rows(to_key), to_v = rows(to_value);
    call.weigh(weights, rows);
    if (threshold > 0) drop(weights, dropped = square(2), mask, threshold);
    at::mm_out(to_v, dropped.t(), rows(gradient));
    at::mm_out(scores, rows(gradient), rows(value).t());
    scores.mul_(dropped).addcmul_(weights, rows(sums), -1.0);
    at::addmm_out(to_q, to_q, scores, rows(key), 0.0, call.scale);
    at::addmm_out(to_k, to_k, scores.t(), rows(query), 0.0, call.scale);
  });
  return {to_query, to_key, to_value};
}

}  // namespace

TORCH_LIBRARY_IMPL(megatron_alum, CPU, m) {
  m.impl("dropout", dropout);
  m.impl("attention", attention);
  m.impl("attention_gradients", attention_gradients);
}
