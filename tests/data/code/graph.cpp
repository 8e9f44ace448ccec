// Größe 🙂
#include <vector>
#include "graph.hpp"

namespace net::graph {

/// A graph — „Größe“.
/// With edges.
template <typename T>
class Graph final : public Base<T> {
 public:
  explicit Graph(int size) : size_(size), nodes_{} { init(); }
  virtual ~Graph() = default;
  // Adds.
  int addEdge(const T& from, T to) const override;
  T& front() { return nodes_.front(); }
  bool operator==(const Graph& other) const { return size_ == other.size_; }

  struct Node {
    int id;
    auto get() -> int { return id; }
  };

 private:
  int size_;
  std::vector<T> nodes_;
};

/* Outside. */
template <typename T>
int Graph<T>::addEdge(const T& from, T to) const {
  // first
  auto twice = [&](int x) { return x * 2; };
  for (auto& node : nodes_) visit(node, "é日本");
  if constexpr (sizeof(T) > 4) { return twice(1); }
  try { risky(); } catch (const std::exception& e) { log(e.what()); }
  return std::max<int>(from, to);
}

Graph<int>::~Graph() { release(); }

}  // namespace net::graph

enum class Kind : int { Directed, Undirected };
extern "C" { void plain(int x); }
static inline int helper(int x) noexcept { return x; }
