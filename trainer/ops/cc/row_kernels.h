// The kernels of operations on rows. Included by kernels.cc alone, inside its unnamed namespace.

// One pass over a row, vector by vector: at(place, size), of `size` floats.
template <class At>
inline void AlongRow(int64_t width, At at) {
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) at(d, kLanes);
  if (d < width) at(d, static_cast<int>(width - d));
}

// The first `size` numbers, and zeros.
template <class T>
inline Vector LoadSome(const T* from, int size) {
  if (size == kLanes) return LoadFloats(from);
  T some[kLanes] = {};
  for (int i = 0; i < size; ++i) some[i] = from[i];
  return LoadFloats(some);
}

template <class T>
inline void StoreSome(Vector x, T* to, int size) {
  if (size == kLanes) return StoreFloats(x, to);
  T some[kLanes];
  StoreFloats(x, some);
  for (int i = 0; i < size; ++i) to[i] = some[i];
}

inline void AddTo(Vector x, float* sum) { Store(sum, Load(sum) + x); }

// Calls row(index) for the rows of a chunk.
template <class Row>
inline void AlongChunk(const Rows& rows, int64_t chunk, Row row) {
  const int64_t first = chunk * rows.chunk, last = Least(rows.rows, first + rows.chunk);
  for (int64_t index = first; index < last; ++index) row(index);
}

// The sums of a chunk, cleared.
inline float* StartSums(const Rows& rows, float* sums, int64_t chunk) {
  sums += chunk * rows.sums;
  memset(sums, 0, sizeof(float) * rows.sums);
  return sums;
}

// === GELU ===

// The share p of a standard normal variable below z. log2(p / (1 - p)) / z is an even function, here a polynomial of z^2
// that was fitted on |z| <= 6 so that z p is off by less than 1e-7; beyond, p or 1 - p is below 1e-9.
inline Vector ShareBelow(Vector z) {
  z = Max(z, Splat(-6.f));
  z = -Max(-z, Splat(-6.f));
  const Vector square = z * z;
  Vector odds = Splat(7.604251451e-09f);
  odds = odds - square * 4.009839336e-11f;
  odds = odds * square - 4.392889821e-07f;
  odds = odds * square + 1.204763339e-05f;
  odds = odds * square - 1.627377205e-04f;
  odds = odds * square - 8.619805885e-05f;
  odds = odds * square + 1.048268825e-01f;
  odds = odds * square + 2.302211761e+00f;
  return 1.f / (1.f + Exp2(-z * odds));
}

// The density of a standard normal variable at z.
inline Vector Density(Vector z) { return 0.398942280f * Exp2(Max(z * z * (-0.5f * kLog2E), Splat(-126.f))); }

template <class T>
void GeluForwardChunk(const Gelu& a, int64_t chunk) {
  AlongChunk(a, chunk, [&a](int64_t row) {
    const T* x = static_cast<const T*>(a.x) + row * a.width;
    T* out = static_cast<T*>(a.out) + row * a.width;
    AlongRow(a.width, [&](int64_t d, int size) {
      const Vector z = LoadSome(x + d, size) + LoadSome(a.bias + d, size);
      // Below -6 it is nothing but for rounding, however far. (In this order, NaN stays NaN.)
      StoreSome(Max(Splat(-6.f), z) * ShareBelow(z), out + d, size);
    });
  });
}

template <class T>
void GeluBackwardChunk(const Gelu& a, const RowsGradient& g, int64_t chunk) {
  float* grad_bias = StartSums(a, g.grad_first, chunk);
  AlongChunk(a, chunk, [&](int64_t row) {
    const T* x = static_cast<const T*>(a.x) + row * a.width;
    const T* grad_out = static_cast<const T*>(g.grad_out) + row * a.width;
    T* grad_x = static_cast<T*>(g.grad_x) + row * a.width;
    AlongRow(a.width, [&](int64_t d, int size) {
      const Vector z = LoadSome(x + d, size) + LoadSome(a.bias + d, size);
      const Vector grad = LoadSome(grad_out + d, size) * (ShareBelow(z) + z * Density(z));
      StoreSome(grad, grad_x + d, size);
      AddTo(grad, grad_bias + d);
    });
  });
}

// === Layer norm ===

struct Moments {
  float mean, scale;  // scale = 1 / sqrt(variance + epsilon)
};

template <class T>
inline Moments MomentsOf(const Norm& a, const T* x) {
  Vector sum{};
  AlongRow(a.width, [&](int64_t d, int size) { sum += LoadSome(x + d, size); });
  const float mean = SumOfLanes(sum) / a.width;
  Vector squares{};
  AlongRow(a.width, [&](int64_t d, int size) {
    Vector off = LoadSome(x + d, size) - mean;
    if (size < kLanes) off = Count() < size ? off : Vector{};
    squares += off * off;
  });
  return {mean, 1 / __builtin_sqrtf(SumOfLanes(squares) / a.width + a.epsilon)};
}

template <class T>
void NormForwardChunk(const Norm& a, int64_t chunk) {
  AlongChunk(a, chunk, [&a](int64_t row) {
    const T* x = static_cast<const T*>(a.x) + row * a.width;
    T* out = static_cast<T*>(a.out) + row * a.width;
    const Moments moments = MomentsOf(a, x);
    AlongRow(a.width, [&](int64_t d, int size) {
      const Vector normed = (LoadSome(x + d, size) - moments.mean) * moments.scale;
      StoreSome(normed * LoadSome(a.gamma + d, size) + LoadSome(a.beta + d, size), out + d, size);
    });
  });
}

template <class T>
void NormBackwardChunk(const Norm& a, const RowsGradient& g, int64_t chunk) {
  float *grad_gamma = StartSums(a, g.grad_first, chunk), *grad_beta = StartSums(a, g.grad_second, chunk);
  AlongChunk(a, chunk, [&](int64_t row) {
    const T* x = static_cast<const T*>(a.x) + row * a.width;
    const T* grad_out = static_cast<const T*>(g.grad_out) + row * a.width;
    T* grad_x = static_cast<T*>(g.grad_x) + row * a.width;
    const Moments moments = MomentsOf(a, x);
    Vector slopes{}, products{};  // of the normed row: its gradient, and this times itself
    AlongRow(a.width, [&](int64_t d, int size) {
      const Vector grad = LoadSome(grad_out + d, size), slope = grad * LoadSome(a.gamma + d, size);
      const Vector normed = (LoadSome(x + d, size) - moments.mean) * moments.scale;
      slopes += slope;
      products += slope * normed;
      AddTo(grad * normed, grad_gamma + d);
      AddTo(grad, grad_beta + d);
    });
    const float slope_mean = SumOfLanes(slopes) / a.width, product_mean = SumOfLanes(products) / a.width;
    AlongRow(a.width, [&](int64_t d, int size) {
      const Vector slope = LoadSome(grad_out + d, size) * LoadSome(a.gamma + d, size);
      const Vector normed = (LoadSome(x + d, size) - moments.mean) * moments.scale;
      StoreSome(moments.scale * (slope - slope_mean - normed * product_mean), grad_x + d, size);
    });
  });
}

void GeluForward(const Gelu& a, int64_t begin, int64_t end) {
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    a.bfloat16 ? GeluForwardChunk<BFloat16>(a, chunk) : GeluForwardChunk<float>(a, chunk);
  }
}

void GeluBackward(const Gelu& a, const RowsGradient& g, int64_t begin, int64_t end) {
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    a.bfloat16 ? GeluBackwardChunk<BFloat16>(a, g, chunk) : GeluBackwardChunk<float>(a, g, chunk);
  }
}

void NormForward(const Norm& a, int64_t begin, int64_t end) {
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    a.bfloat16 ? NormForwardChunk<BFloat16>(a, chunk) : NormForwardChunk<float>(a, chunk);
  }
}

void NormBackward(const Norm& a, const RowsGradient& g, int64_t begin, int64_t end) {
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    a.bfloat16 ? NormBackwardChunk<BFloat16>(a, g, chunk) : NormBackwardChunk<float>(a, g, chunk);
  }
}
