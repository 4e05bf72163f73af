// A hash table from byte strings to numbers: the memory behind the words and the vocabulary of word_table.h.
// Keys are stored one after another in one block; a slot holds the hash, so a key is compared about once per look-up.
// Open addressing, at most half full. Keys are never removed.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace megatron_alum::data {

class ByteMap {
 public:
  static constexpr uint32_t kAbsent = UINT32_MAX;

  ByteMap() : slots_(kFirstSlots) {}

  // The value of `key`, or kAbsent.
  uint32_t find(std::string_view key) const {
    const Slot& slot = slots_[place(key, hash(key))];
    return slot.length == kEmpty ? kAbsent : slot.value;
  }

  // Sets the value of a key. A key of 4 GiB or more cannot be held: texts are far shorter.
  void set(std::string_view key, uint32_t value) {
    if (2 * (num_keys_ + 1) > slots_.size()) grow();
    const uint32_t code = hash(key);
    Slot& slot = slots_[place(key, code)];
    if (slot.length == kEmpty) {
      slot = {code, static_cast<uint32_t>(key.size()), keys_.size(), value};
      keys_.append(key);
      ++num_keys_;
    }
    slot.value = value;
  }

  size_t size() const { return num_keys_; }
  size_t num_bytes() const { return slots_.size() * sizeof(Slot) + keys_.size(); }

 private:
  static constexpr uint32_t kEmpty = UINT32_MAX;
  static constexpr size_t kFirstSlots = 1024;

  struct Slot {
    uint32_t hash = 0, length = kEmpty;
    size_t begin = 0;  // of the key in keys_
    uint32_t value = 0;
  };

  // Eight bytes per step, multiplied and folded; the high half of a product depends on every bit before it.
  static uint32_t hash(std::string_view key) {
    constexpr uint64_t kFactor = 0x9E3779B97F4A7C15u;  // 2^64 / golden ratio
    uint64_t state = key.size() * kFactor, word;
    size_t i = 0;
    for (; i + 8 <= key.size(); i += 8) {
      std::memcpy(&word, key.data() + i, 8);
      state = (state ^ word) * kFactor;
      state ^= state >> 32;
    }
    for (word = 0; i < key.size(); ++i) word = word << 8 | static_cast<uint8_t>(key[i]);
    return static_cast<uint32_t>((state ^ word) * kFactor >> 32);
  }

  // Slot of `key`, or the empty one where it would go.
  size_t place(std::string_view key, uint32_t code) const {
    const size_t mask = slots_.size() - 1;
    for (size_t i = code & mask;; i = (i + 1) & mask) {
      const Slot& slot = slots_[i];
      if (slot.length == kEmpty) return i;
      if (slot.hash == code && slot.length == key.size() &&
          std::memcmp(keys_.data() + slot.begin, key.data(), key.size()) == 0) {
        return i;
      }
    }
  }

  void grow() {
    std::vector<Slot> old(2 * slots_.size());
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.length != kEmpty) slots_[place({keys_.data() + slot.begin, slot.length}, slot.hash)] = slot;
    }
  }

  std::vector<Slot> slots_;
  std::string keys_;
  size_t num_keys_ = 0;
};

}  // namespace megatron_alum::data
