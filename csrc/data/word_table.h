// Token ids of sentences, word by word: known words from a table, plain ASCII words of a BERT tokenizer by WordPiece here.
//
// Used by megatron_alum/data/tokenizers/word_cache.py, which explains why words can be handled one by one and learns
// the missing ones from the tokenizers library. Its tests compare every id with that library.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "byte_map.h"

namespace megatron_alum::data {

// BERT's WordPiece on printable ASCII: runs of letters and digits, every other character alone, longest match first.
class AsciiWordPiece {
 public:
  AsciiWordPiece(uint32_t unknown, size_t max_run_chars, bool lower)
      : unknown_(unknown), max_run_chars_(max_run_chars), lower_(lower) {}

  // `continuation`: the entry stands inside a word (its ## is left out of `text`).
  void add_entry(std::string_view text, uint32_t id, bool continuation) {
    (continuation ? inner_ : first_).set(text, id);
    max_entry_chars_ = text.size() > max_entry_chars_ ? text.size() : max_entry_chars_;
  }

  // Appends the ids of `word`; false, with nothing appended, when it has a character that is not printable ASCII.
  bool append(std::string_view word, std::vector<uint32_t>& ids) const;

 private:
  void append_run(std::string_view run, std::vector<uint32_t>& ids) const;

  ByteMap first_, inner_;
  uint32_t unknown_;
  size_t max_run_chars_, max_entry_chars_ = 0;
  bool lower_;
};

class WordTable {
 public:
  // `prefixed`: a word after a space is looked up with that space (byte-level vocabularies tell the two apart).
  explicit WordTable(bool prefixed) : prefixed_(prefixed) {}

  void use_wordpiece(AsciiWordPiece wordpiece) { wordpiece_.assign(1, std::move(wordpiece)); }

  // Appends the ids of `sentence`; false when it has unknown words, which go to `missing`, or words that are not
  // separated by exactly one space.
  bool append(std::string_view sentence, std::vector<uint32_t>& ids, std::vector<std::string_view>& missing) const;

  void learn(std::string_view word, const std::vector<uint32_t>& ids);

  size_t size() const { return words_.size(); }
  size_t num_bytes() const { return words_.num_bytes() + 4 * (ids_.size() + ends_.size()); }
  void clear();

 private:
  bool prefixed_;
  std::vector<AsciiWordPiece> wordpiece_;  // one or none
  ByteMap words_;                          // word -> its number
  std::vector<uint32_t> ids_, ends_;       // ids of word w: [ends_[w - 1], ends_[w])
};

}  // namespace megatron_alum::data
