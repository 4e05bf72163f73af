// Python binding of the word table: used through megatron_alum/data/tokenizers/word_cache.py only.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>
#include <utility>

#include "word_table.h"

namespace py = pybind11;

namespace megatron_alum::data {

namespace {

// The UTF-8 form that Python keeps with the string; it lives as long as `text`.
std::string_view utf8_of(py::handle text) {
  Py_ssize_t size;
  const char* bytes = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
  if (bytes == nullptr) throw py::error_already_set();
  return {bytes, static_cast<size_t>(size)};
}

// A word table that packs ids as uint16 or int32.
class PackingTable : public WordTable {
 public:
  PackingTable(bool prefixed, int token_bytes) : WordTable(prefixed), token_bytes_(token_bytes) {
    if (token_bytes != 2 && token_bytes != 4) throw std::invalid_argument("token_bytes must be 2 or 4.");
  }

  void use_wordpiece(const std::map<std::string, uint32_t>& vocabulary, const std::string& prefix, uint32_t unknown,
                     size_t max_run_chars, bool lower) {
    AsciiWordPiece wordpiece(unknown, max_run_chars, lower);
    for (const auto& [entry, id] : vocabulary) {
      const bool inner = entry.size() > prefix.size() && entry.compare(0, prefix.size(), prefix) == 0;
      // "##s" also stands for itself, but no run of letters and digits begins with the prefix
      wordpiece.add_entry(std::string_view(entry).substr(inner ? prefix.size() : 0), id, inner);
    }
    WordTable::use_wordpiece(std::move(wordpiece));
  }

  // (packed ids of each sentence, None where a word is missing or spaces are irregular; the missing words, each once)
  std::pair<py::list, py::list> encode(const py::list& sentences) const {
    py::list packed(sentences.size()), words;
    std::vector<uint32_t> ids;
    std::vector<std::string_view> missing;
    for (size_t i = 0; i < sentences.size(); ++i) {
      ids.clear();
      const py::handle sentence = PyList_GET_ITEM(sentences.ptr(), i);
      const bool whole = append(utf8_of(sentence), ids, missing);
      packed[i] = whole ? py::object(pack(ids)) : py::object(py::none());
    }
    ByteMap seen;
    for (const std::string_view word : missing) {
      if (seen.find(word) != ByteMap::kAbsent) continue;
      seen.set(word, 0);
      words.append(py::str(word.data(), word.size()));
    }
    return {packed, words};
  }

  void learn(const py::list& words, const std::vector<std::vector<uint32_t>>& ids) {
    if (words.size() != ids.size()) throw std::invalid_argument("each word must have its ids.");
    for (size_t i = 0; i < ids.size(); ++i) WordTable::learn(utf8_of(words[i]), ids[i]);
  }

 private:
  py::bytes pack(const std::vector<uint32_t>& ids) const {
    if (token_bytes_ == 4) return py::bytes(reinterpret_cast<const char*>(ids.data()), 4 * ids.size());
    const std::vector<uint16_t> narrow(ids.begin(), ids.end());
    return py::bytes(reinterpret_cast<const char*>(narrow.data()), 2 * narrow.size());
  }

  int token_bytes_;
};

}  // namespace

void bind_word_table(py::module_& m) {
  py::class_<PackingTable>(m, "WordTable")
      .def(py::init<bool, int>(), py::kw_only(), py::arg("prefixed"), py::arg("token_bytes"))
      .def("use_wordpiece", &PackingTable::use_wordpiece, py::arg("vocabulary"), py::kw_only(), py::arg("prefix"),
           py::arg("unknown"), py::arg("max_run_chars"), py::arg("lower"))
      .def("encode", &PackingTable::encode, py::arg("sentences"))
      .def("learn", &PackingTable::learn, py::arg("words"), py::arg("ids"))
      .def("clear", &PackingTable::clear)
      .def("__len__", &PackingTable::size)
      .def_property_readonly("num_bytes", &PackingTable::num_bytes);
}

}  // namespace megatron_alum::data
