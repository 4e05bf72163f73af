// The parts of module megatron_alum._data; module.cpp puts them together.
#pragma once

#include <pybind11/pybind11.h>

namespace megatron_alum::data {

void bind_word_table(pybind11::module_& m);  // word_bindings.cpp

}  // namespace megatron_alum::data
