// The kernels of structured attention. Included by kernels.cc alone, inside its unnamed namespace.
//
// Per head of a request, the keys and values that tiles of queries read are packed first: rows of floats without the
// masked ones, and panels of transposed keys. So padding costs nothing, and all loops below run over dense arrays. In
// packed order a query reads the keys [0, context) and an interval [low, high) of its own group.

constexpr float kLn2 = 0.693147181f;
constexpr float kHidden = -1e30f;  // the score of a key that is not read
constexpr float kLowest = -1e20f;  // the first running maximum: above what is hidden, so that this weighs nothing

constexpr int kPanel = 48;                  // keys of a panel
constexpr int kBlock = 8 * kPanel;          // keys whose scores the forward pass holds at once
constexpr int kStride = kMaxDepth + 16;     // floats between rows of queries; no power of 2, which would strain the cache
constexpr int kForwardRows = 24;            // queries of a tile
constexpr int kBackwardRows = 60;
static_assert(kPanel % kLanes == 0 && kForwardRows % 12 == 0 && kBackwardRows % 12 == 0, "tiles are cut evenly");

// Tiles of matrix products: as many sums as there are registers for, which hide the latency of a multiplication.
constexpr int kScoreRows = kLanes == 16 ? 8 : 4, kScoreVectors = 3;
constexpr int kValueRows = kLanes == 16 ? 12 : 4, kValueVectors = 2;
static_assert(kScoreRows % 4 == 0 && kValueRows % 4 == 0, "what is left of rows in fours is fours");

// Memory for floats, aligned to a line of the cache, freed at the end.
class Buffer {
 public:
  explicit Buffer(int64_t floats)
      : data_(static_cast<float*>(aligned_alloc(64, static_cast<size_t>(RoundUp(4 * floats + 64, 64))))) {
    if (data_ == nullptr) abort();
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { free(data_); }
  float* get() const { return data_; }

 private:
  float* data_;
};

// One head of a request: where its rows are, and their width. `kDepth` is the depth where it is known, for loops of
// known length; else 0.
template <class Number, int kDepth>
struct Head {
  using T = Number;

  Head(const Attention& a, int64_t index)
      : a(a),
        index(index),
        mask(a.mask + index / a.heads * a.tokens),
        context_mask(a.context_mask + index / a.heads * a.context),
        scale(kLog2E / __builtin_sqrtf(static_cast<float>(a.depth))),
        bias(a.bias[index % a.heads] * kLog2E) {}

  int64_t depth() const { return kDepth > 0 ? kDepth : a.depth; }
  int64_t width() const { return RoundUp(depth(), kLanes); }

  // Row i of n rows a head.
  template <class U>
  U* Row(U* tensor, int64_t n, int64_t i) const {
    return tensor + (index * n + i) * depth();
  }
  const T* Row(const void* tensor, int64_t n, int64_t i) const { return Row(static_cast<const T*>(tensor), n, i); }
  T* Row(void* tensor, int64_t n, int64_t i) const { return Row(static_cast<T*>(tensor), n, i); }

  // A row as floats, with zeros up to the width.
  void Read(const T* row, float scaled, float* to) const {
    int64_t d = 0;
    for (; d + kLanes <= depth(); d += kLanes) Store(to + d, scaled * LoadFloats(row + d));
    if (depth() % kLanes == 0) return;
    T rest[kLanes] = {};
    for (int64_t i = d; i < depth(); ++i) rest[i - d] = row[i];
    Store(to + d, scaled * LoadFloats(rest));
  }
  void Write(const float* row, float scaled, T* to) const {
    int64_t d = 0;
    for (; d + kLanes <= depth(); d += kLanes) StoreFloats(scaled * Load(row + d), to + d);
    if (depth() % kLanes == 0) return;
    T rest[kLanes];
    StoreFloats(scaled * Load(row + d), rest);
    for (int64_t i = d; i < depth(); ++i) to[i] = rest[i - d];
  }
  void WriteZeros(T* to) const { memset(to, 0, sizeof(T) * depth()); }
  void Clear(float* row) const {
    for (int64_t d = 0; d < width(); d += kLanes) Store(row + d, Vector{});
  }

  // Has a row brought to the cache that is to be read, or written, soon. It may lie behind the last: nothing is accessed.
  template <bool kWrite>
  void Fetch(const void* tensor, int64_t n, int64_t i) const {
    const auto row = reinterpret_cast<const char*>(Row(tensor, n, i));
    const int64_t size = depth() * sizeof(T);
    for (int64_t at = 0; at < size; at += 64) __builtin_prefetch(row + at, kWrite, 2);
  }

  float Dot(const float* one, const float* other) const {
    Vector sum{};
    for (int64_t d = 0; d < width(); d += kLanes) sum += Load(one + d) * Load(other + d);
    return SumOfLanes(sum);
  }
  void Add(const float* row, float factor, float* to) const {  // to += factor * row
    for (int64_t d = 0; d < width(); d += kLanes) Store(to + d, Load(to + d) + factor * Load(row + d));
  }
  void Scale(float factor, float* row) const {
    for (int64_t d = 0; d < width(); d += kLanes) Store(row + d, factor * Load(row + d));
  }

  const Attention& a;
  const int64_t index;
  const bool *const mask, *const context_mask;
  const float scale, bias;  // for scores of base 2
};

// The packed keys and values of a head: its context, and the list too unless tokens read their group's first alone.
class Keys {
 public:
  Keys(const Attention& a, bool transpose_values)
      : most_(a.context + (a.reads == Reads::kFirst ? 0 : a.tokens)),
        width_(RoundUp(a.depth, kLanes)),
        size_(RoundUp(most_, kPanel) * width_),
        floats_(size_ * (transpose_values ? 4 : 3)),
        places_(a.tokens + 1),
        keys(floats_.get()),
        values(keys + size_),
        key_panels(values + size_),
        value_panels(transpose_values ? key_panels + size_ : nullptr),
        place(reinterpret_cast<int32_t*>(places_.get())) {}

  template <class H>
  void Pack(const H& head) {
    const Attention& a = head.a;
    int32_t n = 0;
    for (int64_t i = 0; i < a.context; ++i) {
      if (head.context_mask[i]) {
        head.Read(head.Row(a.context_k, a.context, i), 1, keys + n * width_);
        head.Read(head.Row(a.context_v, a.context, i), 1, values + n * width_);
        ++n;
      }
    }
    context = n;
    if (a.reads != Reads::kFirst) {
      for (int64_t i = 0; i < a.tokens; ++i) {
        place[i] = n;
        if (head.mask[i]) {
          head.Read(head.Row(a.k, a.tokens, i), 1, keys + n * width_);
          head.Read(head.Row(a.v, a.tokens, i), 1, values + n * width_);
          ++n;
        }
      }
      place[a.tokens] = n;
    }
    const int64_t padded = RoundUp(n, kPanel);
    memset(keys + n * width_, 0, sizeof(float) * (padded - n) * width_);
    memset(values + n * width_, 0, sizeof(float) * (padded - n) * width_);
    Turn(keys, padded, key_panels);
    if (value_panels != nullptr) Turn(values, padded, value_panels);
  }

  int64_t size() const { return size_; }

 private:
  void Turn(const float* rows, int64_t n, float* panels) const {
    for (int64_t i = 0; i < n; i += kLanes) {
      float* panel = panels + i / kPanel * kPanel * width_ + i % kPanel;
      for (int64_t d = 0; d < width_; d += kLanes) Transpose(rows + i * width_ + d, width_, panel + d * kPanel, kPanel);
    }
  }

  const int64_t most_, width_, size_;
  const Buffer floats_, places_;

 public:
  float *const keys, *const values;               // rows of `width`
  float *const key_panels, *const value_panels;   // kPanel rows turned over: [width, kPanel] each
  int32_t* const place;                           // of a token of the list, [tokens + 1]: the packed keys before it
  int32_t context = 0;                            // the packed keys of the context
};

// Up to kRows queries that are no padding, and what each may read of the packed keys.
template <int kRows>
struct Tile {
  int n = 0, rows = 0;  // `rows` is n rounded up to four
  int64_t query[kRows], token[kRows];
  int32_t low[kRows], high[kRows];
  int32_t prefix[kRows];  // the keys before it are all read
  int32_t reach[kRows];   // the end of the last key that is read; never less than for the query before
  int32_t context;
  struct Stretch {
    int64_t begin, end;
  } stretches[2];  // packed keys that some query reads; from the beginning of a panel on

  // Takes the next queries from *query on; `skip` is told those of padding.
  template <class H, class Skip>
  void Take(const H& head, const Keys& keys, int64_t* next, int64_t last, Skip skip) {
    const Attention& a = head.a;
    const int64_t before = a.tokens - a.queries;
    context = keys.context;
    for (n = 0; n < kRows && *next < last; ++*next) {
      const int64_t i = before + *next;
      if (!head.mask[i]) {
        skip(*next);
        continue;
      }
      const int64_t group = i / a.group_size * a.group_size;
      query[n] = *next;
      token[n] = i;
      low[n] = high[n] = 0;
      if (a.reads != Reads::kFirst) {
        low[n] = keys.place[group];
        high[n] = a.reads == Reads::kBefore ? keys.place[i] + 1 : keys.place[group + a.group_size];
      }
      prefix[n] = low[n] <= context ? Most(context, high[n]) : context;
      reach[n] = Most(context, high[n]);
      ++n;
    }
    rows = static_cast<int>(RoundUp(n, 4));
    for (int r = n; r < rows; ++r) reach[r] = reach[n - 1];
    const int64_t begin = n == 0 ? 0 : low[0] / kPanel * kPanel;
    const int64_t end = n == 0 ? 0 : reach[n - 1];
    const bool apart = begin >= context;
    stretches[0] = {0, apart ? context : end};
    stretches[1] = {begin, apart ? end : begin};
  }

  // How many of the keys [first, first + most) the queries before `row` reach.
  int Reached(int row, int64_t first, int most) const {
    const int64_t keys = reach[row - 1] - first;
    return keys <= 0 ? 0 : static_cast<int>(Least<int64_t>(keys, most));
  }

  // The first query that reaches beyond a key; n if none does.
  int FirstBeyond(int64_t key) const {
    int r = 0;
    for (int end = n; r < end;) {
      const int middle = (r + end) / 2;
      if (reach[middle] > key) {
        end = middle;
      } else {
        r = middle + 1;
      }
    }
    return r;
  }

  // Hides the scores of keys [first, first + kLanes * vectors) that query r may not read.
  void Hide(int r, int64_t first, int vectors, float* scores) const {
    const int64_t seen = prefix[r] - first;
    if (seen >= vectors * kLanes) return;
    const int32_t key = static_cast<int32_t>(first);
    for (int v = seen > 0 ? static_cast<int>(seen / kLanes) : 0; v < vectors; ++v) {
      const IntVector place = Count() + (key + v * kLanes);
      const IntVector read = (place < context) | ((place >= low[r]) & (place < high[r]));
      Store(scores + v * kLanes, read ? Load(scores + v * kLanes) : Splat(kHidden));
    }
  }
};

inline int Vectors(int floats) { return (floats + kLanes - 1) / kLanes; }

// The products that attention is made of. Panels, keys and rows of them begin at the packed key `first`; `most` keys are
// looked at, and of these only those that queries reach.

// scores[rows, most] = queries[rows, width] panel[width, most]
template <class Tiles>
inline void MultiplyScores(const Tiles& tile, const float* queries, const float* panel, int64_t width, int64_t first,
                           int most, float* scores, int64_t scores_row) {
  Multiply<kScoreRows, kScoreVectors, kStride, 1, false>(
      queries, tile.rows, panel, kPanel, scores, scores_row, [&](int, int last) {
        return Extent{Vectors(tile.Reached(last, first, most)), 0, static_cast<int>(width)};
      });
}

// sums[rows, width] += weights[rows, most] values[most, width]
template <int kWeightsRow, class Tiles>
inline void AddWeighted(const Tiles& tile, const float* weights, const float* values, int64_t width, int64_t first, int most,
                        float* sums) {
  Multiply<kValueRows, kValueVectors, kWeightsRow, 1, true>(
      weights, tile.rows, values, width, sums, kStride, [&](int, int last) {
        return Extent{static_cast<int>(width / kLanes), 0, tile.Reached(last, first, most)};
      });
}

// sums[most, width] += weights[rows, most]^T queries[rows, width]
template <class Tiles>
inline void AddTransposed(const Tiles& tile, const float* weights, const float* queries, int64_t width, int64_t first,
                          int most, float* sums) {
  Multiply<kValueRows, kValueVectors, 1, kPanel, true>(
      weights, static_cast<int>(RoundUp(most, 4)), queries, kStride, sums, width, [&](int key, int) {
        return Extent{static_cast<int>(width / kLanes), tile.FirstBeyond(first + key), tile.n};
      });
}

// The keys and values of a group's first token and of one of its tokens, read outside of the panels where that is all a
// token reads of its group.
template <class H>
class Own {
 public:
  explicit Own(const H& head) : head_(head) {}

  // Reads those of a token; `first` is -1 where the token is its group's first, or this one is masked.
  void Read(int64_t token) {
    const Attention& a = head_.a;
    const int64_t group = token / a.group_size * a.group_size;
    is_first = token == group;
    head_.Read(head_.Row(a.k, a.tokens, token), 1, key);
    head_.Read(head_.Row(a.v, a.tokens, token), 1, value);
    reads_first = !is_first && head_.mask[group];
    if (reads_first && group != first) {
      head_.Read(head_.Row(a.k, a.tokens, group), 1, first_key);
      head_.Read(head_.Row(a.v, a.tokens, group), 1, first_value);
      first = group;
    }
  }

  float Score(const float* query) const { return head_.Dot(query, key) + (is_first ? head_.bias : 0); }
  float FirstScore(const float* query) const { return head_.Dot(query, first_key) + head_.bias; }

  bool is_first = false, reads_first = false;
  int64_t first = -1;  // whose rows `first_key` and `first_value` are
  float key[kMaxDepth], value[kMaxDepth], first_key[kMaxDepth], first_value[kMaxDepth];

 private:
  const H& head_;
};

// Fetches what the next tile, or where a list is packed the next head, reads in place of query r.
template <class H, class Tiles>
inline void FetchNext(const H& head, const Tiles& tile, int r) {
  const Attention& a = head.a;
  const int64_t token = tile.token[r] + (a.reads == Reads::kFirst ? tile.n : a.tokens);
  head.template Fetch<false>(a.k, a.tokens, token);
  head.template Fetch<false>(a.v, a.tokens, token);
  head.template Fetch<false>(a.q, a.queries, tile.query[r] + tile.n);
}

inline float Exp2OfOne(float x) { return Exp2(Splat(x))[0]; }

// === Forward: a softmax that goes along the keys, block by block ===

template <class H>
void ForwardTile(const H& head, const Keys& keys, const Tile<kForwardRows>& tile, float* q, float* out, float* scores) {
  const Attention& a = head.a;
  const int64_t width = head.width();
  float top[kForwardRows];   // the running maximum of a query's scores
  Vector sum[kForwardRows];  // the running sum of its exponentials, in lanes
  Own<H> own(head);
  for (int r = 0; r < tile.rows; ++r) {
    float *query = q + r * kStride, *read = out + r * kStride;
    head.Clear(read);
    top[r] = kLowest;
    sum[r] = Vector{};
    if (r >= tile.n) {
      head.Clear(query);
      continue;
    }
    head.Read(head.Row(a.q, a.queries, tile.query[r]), head.scale, query);
    if (a.reads == Reads::kFirst) {
      own.Read(tile.token[r]);
      const float score = own.Score(query), first = own.reads_first ? own.FirstScore(query) : kHidden;
      top[r] = Most(score, first);
      const float weight = Exp2OfOne(score - top[r]), first_weight = Exp2OfOne(first - top[r]);
      head.Add(own.value, weight, read);
      if (own.reads_first) head.Add(own.first_value, first_weight, read);
      sum[r][0] = weight + (own.reads_first ? first_weight : 0);
    }
  }
  for (const auto& stretch : tile.stretches) {
    for (int64_t begin = stretch.begin; begin < stretch.end; begin += kBlock) {
      const int inner = static_cast<int>(Least<int64_t>(kBlock, stretch.end - begin));
      for (int panel = 0; panel < inner; panel += kPanel) {
        MultiplyScores(tile, q, keys.key_panels + (begin + panel) * width, width, begin + panel, Least(kPanel, inner - panel),
                       scores + panel, kBlock);
      }
      for (int r = 0; r < tile.n; ++r) {
        if (begin == 0) {
          FetchNext(head, tile, r);
          head.template Fetch<true>(a.out, a.queries, tile.query[r]);
        }
        float* row = scores + r * kBlock;
        const int vectors = Vectors(tile.Reached(r + 1, begin, inner));
        tile.Hide(r, begin, vectors, row);
        Vector largest = Splat(kHidden);
        for (int n = 0; n < vectors; ++n) largest = Max(largest, Load(row + n * kLanes));
        const float peak = LargestLane(largest);
        if (peak > top[r]) {
          if (top[r] > kLowest) {
            const float factor = Exp2OfOne(top[r] - peak);
            sum[r] *= factor;
            head.Scale(factor, out + r * kStride);
          }
          top[r] = peak;
        }
      }
      for (int r = 0; r < tile.n; ++r) {  // apart from the loop above, which waits for a maximum in each turn
        float* row = scores + r * kBlock;
        const int vectors = Vectors(tile.Reached(r + 1, begin, inner));
        for (int n = 0; n < vectors; ++n) {
          const Vector weight = Exp2(Load(row + n * kLanes) - top[r]);
          Store(row + n * kLanes, weight);
          sum[r] += weight;
        }
        for (int n = vectors; n < Vectors(inner); ++n) Store(row + n * kLanes, Vector{});
      }
      AddWeighted<kBlock>(tile, scores, keys.values + begin * width, width, begin, inner, out);
    }
  }
  for (int r = 0; r < tile.n; ++r) {
    const float total = SumOfLanes(sum[r]);
    head.Write(out + r * kStride, 1 / total, head.Row(a.out, a.queries, tile.query[r]));
    *(a.lse + head.index * a.queries + tile.query[r]) = top[r] + __builtin_log2f(total);
  }
}

template <class H>
void ForwardUnits(const Attention& a, int64_t chunks, int64_t begin, int64_t end) {
  Keys keys(a, false);
  const Buffer rows((2 * kStride + kBlock) * kForwardRows);
  float *q = rows.get(), *out = q + kStride * kForwardRows, *scores = out + kStride * kForwardRows;
  int64_t packed = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const H head(a, unit / chunks);
    if (head.index != packed) keys.Pack(head);
    packed = head.index;
    int64_t next = a.queries * (unit % chunks) / chunks;
    const int64_t last = a.queries * (unit % chunks + 1) / chunks;
    while (next < last) {
      Tile<kForwardRows> tile;
      tile.Take(head, keys, &next, last, [&head, &a](int64_t query) {
        head.WriteZeros(head.Row(a.out, a.queries, query));
        a.lse[head.index * a.queries + query] = 0;
      });
      if (tile.n > 0) ForwardTile(head, keys, tile, q, out, scores);
    }
  }
}

// === Backward: scores again, from the forward pass's log-sum-exp ===

// Sums of gradients of the first token of a group, which several tokens read; written when the next group begins.
template <class H>
class OwnGradient {
 public:
  OwnGradient(const H& head, const AttentionGradient& g) : head_(head), g_(g), own_(head) {}
  ~OwnGradient() {
    Finish();
    g_.grad_bias[head_.index] = bias_ * kLn2;
  }

  // The part of a query in the gradients of its own and its group's first token, and theirs in the query's.
  void Add(int64_t token, const float* query, const float* grad, float delta, float lse, float* grad_query) {
    const Attention& a = head_.a;
    const int64_t group = token / a.group_size * a.group_size;
    if (group != group_) Start(group);
    own_.Read(token);
    const float weight = Exp2OfOne(own_.Score(query) - lse);
    const float slope = weight * (head_.Dot(grad, own_.value) - delta);
    head_.Add(own_.key, slope, grad_query);
    if (own_.is_first) {
      AddToFirst(query, grad, weight, slope);
      return;
    }
    float row[kMaxDepth] = {};
    head_.Add(query, slope * kLn2, row);
    head_.Write(row, 1, head_.Row(g_.grad_k, a.tokens, token));
    memset(row, 0, sizeof(row));
    head_.Add(grad, weight, row);
    head_.Write(row, 1, head_.Row(g_.grad_v, a.tokens, token));
    if (own_.reads_first) {
      const float first_weight = Exp2OfOne(own_.FirstScore(query) - lse);
      const float first_slope = first_weight * (head_.Dot(grad, own_.first_value) - delta);
      head_.Add(own_.first_key, first_slope, grad_query);
      AddToFirst(query, grad, first_weight, first_slope);
    }
  }

 private:
  void AddToFirst(const float* query, const float* grad, float weight, float slope) {
    head_.Add(query, slope * kLn2, first_key_);
    head_.Add(grad, weight, first_value_);
    bias_ += slope / kLn2;
  }
  void Start(int64_t group) {
    Finish();
    group_ = group;
    memset(first_key_, 0, sizeof(first_key_));
    memset(first_value_, 0, sizeof(first_value_));
  }
  void Finish() {
    if (group_ < 0 || !head_.mask[group_]) return;
    head_.Write(first_key_, 1, head_.Row(g_.grad_k, head_.a.tokens, group_));
    head_.Write(first_value_, 1, head_.Row(g_.grad_v, head_.a.tokens, group_));
  }

  const H& head_;
  const AttentionGradient& g_;
  Own<H> own_;
  int64_t group_ = -1;
  float bias_ = 0;
  float first_key_[kMaxDepth], first_value_[kMaxDepth];
};

struct BackwardRows {
  explicit BackwardRows(int64_t rows)
      : floats((3 * kStride + 2 * kPanel) * rows),
        q(floats.get()),
        grad(q + kStride * rows),
        grad_q(grad + kStride * rows),
        weights(grad_q + kStride * rows),
        slopes(weights + kPanel * rows) {}
  const Buffer floats;
  float *const q, *const grad, *const grad_q, *const weights, *const slopes;
};

template <class H>
void BackwardTile(const H& head, const AttentionGradient& g, const Keys& keys, const Tile<kBackwardRows>& tile,
                  const BackwardRows& rows, OwnGradient<H>* own, float* grad_keys, float* grad_values) {
  const Attention& a = head.a;
  const int64_t width = head.width();
  float lse[kBackwardRows], delta[kBackwardRows];
  for (int r = 0; r < tile.rows; ++r) {
    float *q = rows.q + r * kStride, *grad = rows.grad + r * kStride, *grad_q = rows.grad_q + r * kStride;
    if (r >= tile.n) {
      head.Clear(q);
      head.Clear(grad);
      head.Clear(grad_q);
      continue;
    }
    head.Read(head.Row(static_cast<const void*>(a.out), a.queries, tile.query[r]), 1, q);  // only for delta
    head.Read(head.Row(g.grad_out, a.queries, tile.query[r]), 1, grad);
    delta[r] = head.Dot(q, grad);
    lse[r] = a.lse[head.index * a.queries + tile.query[r]];
    head.Read(head.Row(a.q, a.queries, tile.query[r]), head.scale, q);
    head.Clear(grad_q);
    if (a.reads == Reads::kFirst) own->Add(tile.token[r], q, grad, delta[r], lse[r], grad_q);
  }
  for (const auto& stretch : tile.stretches) {
    for (int64_t begin = stretch.begin; begin < stretch.end; begin += kPanel) {
      const int inner = static_cast<int>(Least<int64_t>(kPanel, stretch.end - begin));
      const int64_t at = begin * width;
      MultiplyScores(tile, rows.q, keys.key_panels + at, width, begin, inner, rows.weights, kPanel);
      MultiplyScores(tile, rows.grad, keys.value_panels + at, width, begin, inner, rows.slopes, kPanel);
      for (int r = 0; r < tile.n; ++r) {
        if (begin == 0) {
          FetchNext(head, tile, r);
          head.template Fetch<false>(a.out, a.queries, tile.query[r] + tile.n);
          head.template Fetch<false>(g.grad_out, a.queries, tile.query[r] + tile.n);
          head.template Fetch<true>(g.grad_q, a.queries, tile.query[r]);
          head.template Fetch<true>(g.grad_k, a.tokens, tile.token[r]);
          head.template Fetch<true>(g.grad_v, a.tokens, tile.token[r]);
        }
        float *weights = rows.weights + r * kPanel, *slopes = rows.slopes + r * kPanel;
        const int vectors = Vectors(tile.Reached(r + 1, begin, inner));
        tile.Hide(r, begin, vectors, weights);
        for (int n = 0; n < vectors; ++n) {
          const Vector weight = Exp2(Load(weights + n * kLanes) - lse[r]);
          Store(weights + n * kLanes, weight);
          Store(slopes + n * kLanes, weight * (Load(slopes + n * kLanes) - delta[r]));
        }
        for (int n = vectors; n < Vectors(inner); ++n) {
          Store(weights + n * kLanes, Vector{});
          Store(slopes + n * kLanes, Vector{});
        }
      }
      AddTransposed(tile, rows.weights, rows.grad, width, begin, inner, grad_values + at);
      AddTransposed(tile, rows.slopes, rows.q, width, begin, inner, grad_keys + at);
      AddWeighted<kPanel>(tile, rows.slopes, keys.keys + at, width, begin, inner, rows.grad_q);
    }
  }
  const float scale = head.scale * kLn2;
  for (int r = 0; r < tile.n; ++r) {
    head.Write(rows.grad_q + r * kStride, scale, head.Row(g.grad_q, a.queries, tile.query[r]));
  }
}

// The gradients of packed keys and values to where these came from; masked ones get zeros. Queries were scaled for scores
// of base 2: ln 2 takes that back.
template <class H>
void Unpack(const H& head, const float* grad_keys, const float* grad_values, const AttentionGradient& g) {
  const Attention& a = head.a;
  int64_t n = 0;
  const auto put = [&](bool there, typename H::T* grad_k, typename H::T* grad_v) {
    if (there) {
      head.Write(grad_keys + n * head.width(), kLn2, grad_k);
      head.Write(grad_values + n * head.width(), 1, grad_v);
      ++n;
    } else {
      head.WriteZeros(grad_k);
      head.WriteZeros(grad_v);
    }
  };
  for (int64_t i = 0; i < a.context; ++i) {
    put(head.context_mask[i], head.Row(g.grad_context_k, a.context, i), head.Row(g.grad_context_v, a.context, i));
  }
  if (a.reads == Reads::kFirst) return;
  for (int64_t i = 0; i < a.tokens; ++i) {
    put(head.mask[i], head.Row(g.grad_k, a.tokens, i), head.Row(g.grad_v, a.tokens, i));
  }
}

template <class H>
void BackwardUnits(const Attention& a, const AttentionGradient& g, int64_t begin, int64_t end) {
  Keys keys(a, true);
  const Buffer grads(2 * keys.size());
  float *grad_keys = grads.get(), *grad_values = grad_keys + keys.size();
  const BackwardRows rows(kBackwardRows);
  for (int64_t unit = begin; unit < end; ++unit) {
    const H head(a, unit);
    keys.Pack(head);
    memset(grad_keys, 0, sizeof(float) * 2 * keys.size());
    if (a.reads == Reads::kFirst) {
      for (int64_t i = 0; i < a.tokens; ++i) {
        if (head.mask[i]) continue;
        head.WriteZeros(head.Row(g.grad_k, a.tokens, i));
        head.WriteZeros(head.Row(g.grad_v, a.tokens, i));
      }
    }
    OwnGradient<H> own(head, g);
    int64_t next = 0;
    while (next < a.queries) {
      Tile<kBackwardRows> tile;
      tile.Take(head, keys, &next, a.queries,
                [&head, &a, &g](int64_t query) { head.WriteZeros(head.Row(g.grad_q, a.queries, query)); });
      if (tile.n > 0) BackwardTile(head, g, keys, tile, rows, &own, grad_keys, grad_values);
    }
    Unpack(head, grad_keys, grad_values, g);
  }
}

void AttentionForward(const Attention& a, int64_t chunks, int64_t begin, int64_t end) {
  if (a.bfloat16) return ForwardUnits<Head<BFloat16, 0>>(a, chunks, begin, end);
  if (a.depth == 32) return ForwardUnits<Head<float, 32>>(a, chunks, begin, end);
  if (a.depth == 64) return ForwardUnits<Head<float, 64>>(a, chunks, begin, end);
  return ForwardUnits<Head<float, 0>>(a, chunks, begin, end);
}

void AttentionBackward(const Attention& a, const AttentionGradient& g, int64_t begin, int64_t end) {
  if (a.bfloat16) return BackwardUnits<Head<BFloat16, 0>>(a, g, begin, end);
  if (a.depth == 32) return BackwardUnits<Head<float, 32>>(a, g, begin, end);
  if (a.depth == 64) return BackwardUnits<Head<float, 64>>(a, g, begin, end);
  return BackwardUnits<Head<float, 0>>(a, g, begin, end);
}
