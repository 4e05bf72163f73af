// Module megatron_alum._data: the bindings of the sampler, used through megatron_alum/data/sampling/native.py only, and those of
// word_bindings.cpp.
//
// Arrays come in as numpy views of mapped files and are never copied; the objects keep them alive. The global
// interpreter lock is released while rows are walked and batches are written.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>

#include "rows.h"
#include "sampler.h"

namespace py = pybind11;

namespace megatron_alum::data {

void bind_word_table(py::module_& m);  // word_bindings.cpp

namespace {

constexpr int64_t kPartDocuments = 4096;

// First byte of a one-dimensional array without gaps whose elements have `itemsize` bytes, aligned or not.
const uint8_t* bytes_of(const py::array& array, py::ssize_t itemsize, const char* name) {
  if (array.ndim() != 1 || array.itemsize() != itemsize || (array.size() > 1 && array.strides(0) != itemsize)) {
    throw std::invalid_argument(std::string(name) + " must be a contiguous one-dimensional array of " +
                                std::to_string(itemsize) + "-byte elements.");
  }
  return static_cast<const uint8_t*>(array.data());
}

// Start of a C-contiguous output array with room for `size` elements.
template <typename T>
T* output(py::array_t<T, py::array::c_style>& array, py::ssize_t size, const char* name) {
  if (array.size() < size) {
    throw std::invalid_argument(std::string(name) + " must have room for " + std::to_string(size) + " elements, but has " +
                                std::to_string(array.size()) + " instead.");
  }
  return array.mutable_data();
}

// The value of an enum that has three, by its place among their names.
template <typename Enum>
Enum by_name(const char* setting, const char* const (&names)[3], const std::string& name) {
  const auto found = std::find(std::begin(names), std::end(names), name);
  if (found != std::end(names)) return static_cast<Enum>(found - names);
  throw std::invalid_argument(std::string(setting) + " must be " + names[0] + ", " + names[1] + " or " + names[2] +
                              ", but is " + name + " instead.");
}

Objective objective_of(const std::string& name) {
  return by_name<Objective>("objective", {"nsp", "sop", "none"}, name);
}

using Integers = py::array_t<int64_t, py::array::c_style>;

// Sentences together with the arrays they point into.
struct SentenceTable {
  py::array lengths, offsets;
  Integers bounds;
  Sentences view;

  SentenceTable(py::array lengths_in, py::array offsets_in, Integers bounds_in, int64_t first, int64_t last,
                int token_bytes)
      : lengths(std::move(lengths_in)), offsets(std::move(offsets_in)), bounds(std::move(bounds_in)) {
    if (first < 0 || last < first || last >= bounds.size() || (token_bytes != 2 && token_bytes != 4)) {
      throw std::invalid_argument("the documents must lie in the shard and its tokens have 2 or 4 bytes.");
    }
    view = {bytes_of(lengths, 4, "lengths"), bytes_of(offsets, 8, "offsets"), bounds.data(), first, last,
            token_bytes == 2 ? 1 : 2};
  }
};

std::vector<std::vector<Row>> walk_parts(const Sentences& sentences, const WalkSettings& walk, int num_threads) {
  if (walk.objective == Objective::kNone) {  // packing runs through all documents; it draws nothing and is quick
    std::vector<std::vector<Row>> parts(1);
    append_full_sentences(sentences, walk.max_tokens, parts[0]);
    return parts;
  }
  const int64_t num_documents = sentences.last - sentences.first;
  const int num_parts = static_cast<int>((num_documents + kPartDocuments - 1) / kPartDocuments);
  std::vector<std::vector<Row>> parts(num_parts);
  std::atomic<int> next{0};
  const auto work = [&] {
    for (int part; (part = next++) < num_parts;) {
      const int64_t begin = sentences.first + part * kPartDocuments;
      const int64_t end = std::min(begin + kPartDocuments, sentences.last);
      for (int64_t document = begin; document < end; ++document) append_pairs(sentences, walk, document, parts[part]);
    }
  };
  std::vector<std::thread> helpers;
  for (int i = 1; i < std::min(num_threads, num_parts); ++i) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
  return parts;
}

// All rows of an epoch in document order, as bytes: [rows * 24].
py::array_t<uint8_t> walk_epoch(const SentenceTable& table, const std::string& objective, int64_t max_tokens,
                                uint64_t short_threshold, uint64_t seed, uint32_t dataset, uint32_t epoch,
                                int num_threads) {
  const WalkSettings walk{objective_of(objective), max_tokens, short_threshold, seed, dataset, epoch};
  if (walk.objective == Objective::kNextSentence && table.view.last - table.view.first < 2) {
    throw std::invalid_argument("next-sentence prediction must have at least 2 documents.");
  }
  std::vector<std::vector<Row>> parts;
  {
    const py::gil_scoped_release unlocked;
    parts = walk_parts(table.view, walk, num_threads);
  }
  size_t num_rows = 0;
  for (const auto& part : parts) num_rows += part.size();
  py::array_t<uint8_t> rows(static_cast<py::ssize_t>(num_rows * sizeof(Row)));
  uint8_t* out = rows.mutable_data();
  for (auto& part : parts) {
    std::memcpy(out, part.data(), part.size() * sizeof(Row));
    out += part.size() * sizeof(Row);
    std::vector<Row>().swap(part);  // the copy must not double the peak
  }
  return rows;
}

// A Sampler whose arrays are Python's; the bindings below keep them alive as long as it.
class BoundSampler {
 public:
  BoundSampler(const std::string& objective, int seq_length, MaskSettings mask, Vocabulary vocabulary,
               std::vector<int16_t> blend_shard, std::vector<int32_t> blend_rank, std::vector<int64_t> blend_counts)
      : seq_length_(seq_length),
        sampler_({objective_of(objective), seq_length, std::move(mask), std::move(vocabulary),
                  Blend{std::move(blend_shard), std::move(blend_rank), std::move(blend_counts)}}) {}

  void add_shard(const py::array& tokens, const SentenceTable& table) {
    const int token_bytes = 1 << table.view.token_shift;
    sampler_.add_shard({bytes_of(tokens, token_bytes, "tokens"), tokens.size(), table.view, {}});
  }

  void add_epoch(int shard, const py::array& rows, int64_t first_sample, uint64_t seed, uint32_t domain) {
    const uint8_t* data = bytes_of(rows, sizeof(Row), "rows");
    const Permutation order(rows.size(), seed, domain);
    sampler_.add_epoch(shard, {reinterpret_cast<const Row*>(data), first_sample, first_sample + rows.size(), order});
  }

  int shard_to_extend(const Integers& samples) const {
    return sampler_.shard_to_extend(samples.data(), static_cast<int>(samples.size()));
  }

  // (T, N)
  std::pair<int64_t, int64_t> fill(const Integers& samples, int64_t multiple, Integers tokens, Integers token_types,
                                   Integers position, Integers sequence,
                                   py::array_t<int32_t, py::array::c_style> cu_seqlens, Integers masked_positions,
                                   Integers masked_labels, Integers masked_counts, Integers nsp_labels) {
    if (multiple < 1) throw std::invalid_argument("multiple must be at least 1.");
    const py::ssize_t num = samples.size(), room = num * seq_length_;
    const py::ssize_t with_tail = (room + multiple - 1) / multiple * multiple;
    const BatchBuffers out{output(tokens, with_tail, "tokens"),
                           output(token_types, with_tail, "token_types"),
                           output(position, with_tail, "position"),
                           output(sequence, with_tail, "sequence"),
                           output(cu_seqlens, num + 1, "cu_seqlens"),
                           output(masked_positions, room, "masked_positions"),
                           output(masked_labels, room, "masked_labels"),
                           output(masked_counts, num, "masked_counts"),
                           output(nsp_labels, num, "nsp_labels")};
    const int64_t* indices = samples.data();
    const py::gil_scoped_release unlocked;
    const BatchExtent extent = sampler_.fill(indices, static_cast<int>(num), multiple, out);
    return {extent.num_tokens, extent.num_masked};
  }

  // ([samples] tokens, [samples] masked tokens)
  std::pair<Integers, Integers> measure(const Integers& samples) const {
    Integers lengths(samples.size()), masked_counts(samples.size());
    const int64_t* indices = samples.data();
    int64_t *lengths_out = lengths.mutable_data(), *masked_out = masked_counts.mutable_data();
    {
      const py::gil_scoped_release unlocked;
      sampler_.measure(indices, static_cast<int>(samples.size()), lengths_out, masked_out);
    }
    return {lengths, masked_counts};
  }

 private:
  int seq_length_;
  Sampler sampler_;
};

}  // namespace
}  // namespace megatron_alum::data

PYBIND11_MODULE(_data, m) {
  using namespace megatron_alum::data;
  m.doc() = "Sentence-pair sampler and masker over memory-mapped shards, and a word table; see csrc/data.";
  bind_word_table(m);

  py::class_<SentenceTable>(m, "SentenceTable")
      .def(py::init<py::array, py::array, Integers, int64_t, int64_t, int>(), py::kw_only(), py::arg("lengths"),
           py::arg("offsets"), py::arg("bounds"), py::arg("first"), py::arg("last"), py::arg("token_bytes"));

  py::class_<MaskSettings>(m, "MaskSettings")
      .def(py::init([](const std::string& masking, std::vector<uint64_t> ngram_thresholds, std::vector<double> rates,
                       int64_t train_samples, uint64_t seed, uint32_t split, uint32_t masked_below,
                       uint32_t kept_below) {
             return MaskSettings{by_name<Masking>("masking", {"token", "whole_word", "ngram"}, masking),
                                 std::move(ngram_thresholds), std::move(rates), train_samples, seed, split,
                                 masked_below, kept_below};
           }),
           py::kw_only(), py::arg("masking"), py::arg("ngram_thresholds"), py::arg("rates"), py::arg("train_samples"),
           py::arg("seed"), py::arg("split"), py::arg("masked_below"), py::arg("kept_below"));

  py::class_<Vocabulary>(m, "Vocabulary")
      .def(py::init<int64_t, int64_t, int64_t, int64_t, int, int64_t, std::vector<int32_t>, std::vector<uint8_t>>(),
           py::kw_only(), py::arg("cls"), py::arg("sep"), py::arg("mask"), py::arg("pad"), py::arg("pair_separators"),
           py::arg("second_type"), py::arg("regular"), py::arg("word_start"));

  m.def("walk_epoch", &walk_epoch, py::arg("sentences"), py::kw_only(), py::arg("objective"), py::arg("max_tokens"),
        py::arg("short_threshold"), py::arg("seed"), py::arg("dataset"), py::arg("epoch"), py::arg("num_threads"));

  py::class_<BoundSampler>(m, "Sampler")
      .def(py::init<const std::string&, int, MaskSettings, Vocabulary, std::vector<int16_t>, std::vector<int32_t>,
                    std::vector<int64_t>>(),
           py::kw_only(), py::arg("objective"), py::arg("seq_length"), py::arg("mask"), py::arg("vocabulary"),
           py::arg("blend_shard"), py::arg("blend_rank"), py::arg("blend_counts"))
      .def("add_shard", &BoundSampler::add_shard, py::arg("tokens"), py::arg("sentences"), py::keep_alive<1, 2>(),
           py::keep_alive<1, 3>())
      .def("add_epoch", &BoundSampler::add_epoch, py::arg("shard"), py::arg("rows"), py::kw_only(),
           py::arg("first_sample"), py::arg("seed"), py::arg("domain"), py::keep_alive<1, 3>())
      .def("shard_to_extend", &BoundSampler::shard_to_extend, py::arg("samples"))
      .def("measure", &BoundSampler::measure, py::arg("samples"))
      .def("fill", &BoundSampler::fill, py::arg("samples"), py::kw_only(), py::arg("multiple"),
           py::arg("tokens").noconvert(), py::arg("token_types").noconvert(), py::arg("position").noconvert(),
           py::arg("sequence").noconvert(), py::arg("cu_seqlens").noconvert(), py::arg("masked_positions").noconvert(),
           py::arg("masked_labels").noconvert(), py::arg("masked_counts").noconvert(),
           py::arg("nsp_labels").noconvert());
}
