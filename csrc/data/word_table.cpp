// Ids of words from a table or by WordPiece; see word_table.h.
#include "word_table.h"

#include <algorithm>

namespace megatron_alum::data {
namespace {

inline bool is_letter_or_digit(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

inline char lowered(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c; }

}  // namespace

bool AsciiWordPiece::append(std::string_view word, std::vector<uint32_t>& ids) const {
  for (char c : word) {
    if (c < '!' || c > '~') return false;
  }
  std::string copy;
  if (lower_ && std::any_of(word.begin(), word.end(), [](char c) { return c >= 'A' && c <= 'Z'; })) {
    copy.resize(word.size());
    std::transform(word.begin(), word.end(), copy.begin(), lowered);
    word = copy;
  }
  for (size_t begin = 0, end; begin < word.size(); begin = end) {
    end = begin + 1;
    if (is_letter_or_digit(word[begin])) {
      while (end < word.size() && is_letter_or_digit(word[end])) ++end;
    }
    append_run(word.substr(begin, end - begin), ids);
  }
  return true;
}

void AsciiWordPiece::append_run(std::string_view run, std::vector<uint32_t>& ids) const {
  const size_t before = ids.size();
  for (size_t begin = 0; begin < run.size();) {
    const ByteMap& entries = begin == 0 ? first_ : inner_;
    size_t length = run.size() > max_run_chars_ ? 0 : std::min(run.size() - begin, max_entry_chars_);
    uint32_t id = ByteMap::kAbsent;
    for (; length > 0; --length) {
      id = entries.find(run.substr(begin, length));
      if (id != ByteMap::kAbsent) break;
    }
    if (length == 0) {  // some part has no entry, or the run is too long: it is unknown as a whole
      ids.resize(before);
      ids.push_back(unknown_);
      return;
    }
    ids.push_back(id);
    begin += length;
  }
}

bool WordTable::append(std::string_view sentence, std::vector<uint32_t>& ids,
                       std::vector<std::string_view>& missing) const {
  const size_t num_missing = missing.size();
  for (size_t begin = 0, end; begin <= sentence.size(); begin = end + 1) {
    end = std::min(sentence.find(' ', begin), sentence.size());
    if (end == begin) {
      missing.resize(num_missing);
      return false;
    }
    if (!wordpiece_.empty() && wordpiece_[0].append(sentence.substr(begin, end - begin), ids)) continue;
    const size_t key_begin = prefixed_ && begin > 0 ? begin - 1 : begin;
    const std::string_view key = sentence.substr(key_begin, end - key_begin);
    const uint32_t word = words_.find(key);
    if (word == ByteMap::kAbsent) {
      missing.push_back(key);
    } else {
      ids.insert(ids.end(), ids_.begin() + (word ? ends_[word - 1] : 0), ids_.begin() + ends_[word]);
    }
  }
  return missing.size() == num_missing;
}

void WordTable::learn(std::string_view word, const std::vector<uint32_t>& ids) {
  words_.set(word, static_cast<uint32_t>(ends_.size()));
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  ends_.push_back(static_cast<uint32_t>(ids_.size()));
}

void WordTable::clear() {
  words_ = ByteMap();
  ids_ = std::vector<uint32_t>();
  ends_ = std::vector<uint32_t>();
}

}  // namespace megatron_alum::data
