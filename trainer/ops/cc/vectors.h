// Vectors of ONERANK_LANES floats: 16 are AVX-512, 8 AVX2, 4 any processor. Included by kernels.cc alone, inside its
// unnamed namespace.

constexpr int kLanes = ONERANK_LANES;
constexpr float kLog2E = 1.44269504f;

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVector __attribute__((vector_size(4 * kLanes)));
typedef float UnalignedVector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vector Load(const float* from) { return (Vector)*reinterpret_cast<const UnalignedVector*>(from); }

inline void Store(float* to, Vector x) { *reinterpret_cast<UnalignedVector*>(to) = (UnalignedVector)x; }

inline Vector Splat(float x) { return x - Vector{}; }

inline Vector Max(Vector a, Vector b) {
#if ONERANK_LANES == 16
  return (Vector)_mm512_max_ps((__m512)a, (__m512)b);
#elif ONERANK_LANES == 8
  return (Vector)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

template <class N>
inline N Least(N a, N b) {
  return b < a ? b : a;
}

template <class N>
inline N Most(N a, N b) {
  return a < b ? b : a;
}

inline int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

struct BFloat16 {
  uint16_t bits;
};

inline Vector LoadFloats(const float* from) { return Load(from); }

inline Vector LoadFloats(const BFloat16* from) {
  typedef uint16_t Half __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
  typedef uint16_t AlignedHalf __attribute__((vector_size(2 * kLanes)));
  const AlignedHalf bits = (AlignedHalf)*reinterpret_cast<const Half*>(from);
  return (Vector)(__builtin_convertvector(bits, IntVector) << 16);
}

inline void StoreFloats(Vector x, float* to) { Store(to, x); }

inline void StoreFloats(Vector x, BFloat16* to) {  // to the nearest, ties to even
  for (int lane = 0; lane < kLanes; ++lane) {
    const float value = x[lane];
    uint32_t bits;
    memcpy(&bits, &value, 4);
    to[lane].bits = value != value ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
}

inline float LargestLane(Vector x) {
#if ONERANK_LANES == 16
  return _mm512_reduce_max_ps((__m512)x);
#else
  float largest = x[0];
  for (int lane = 1; lane < kLanes; ++lane) largest = x[lane] > largest ? x[lane] : largest;
  return largest;
#endif
}

inline float SumOfLanes(Vector x) {
#if ONERANK_LANES == 16
  return _mm512_reduce_add_ps((__m512)x);
#else
  float sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += x[lane];
  return sum;
#endif
}

inline IntVector Count() {
  IntVector count;
  for (int lane = 0; lane < kLanes; ++lane) count[lane] = lane;
  return count;
}

// 2^x for x up to 126, with a relative error below 2e-7 (the minimax polynomial of degree 5 has 7.5e-8). What is below
// 2^-126 becomes 0, or at most 2^-126.
inline Vector Exp2(Vector x) {
#if ONERANK_LANES == 16
  const __m512 whole = _mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Vector part = x - (Vector)whole;
#else
  const Vector shift = Splat(12582912.f);  // 1.5 * 2^23: what is added to it loses its fraction
  x = Max(x, Splat(-126.f));
  const Vector shifted = x + shift;
  const Vector part = x - (shifted - shift);
#endif
  Vector power = Splat(1.327647144e-03f);
  power = power * part + 9.675541568e-03f;
  power = power * part + 5.550713277e-02f;
  power = power * part + 2.402211972e-01f;
  power = power * part + 6.931469671e-01f;
  power = power * part + 1.000000072e+00f;
#if ONERANK_LANES == 16
  return (Vector)_mm512_scalef_ps((__m512)power, whole);
#else
  const IntVector exponent = (IntVector)shifted - (IntVector)shift;
  return (Vector)((IntVector)power + (exponent << 23));
#endif
}

// The lanes of two vectors in turn, from their first (`half` = 0) or their second halves (`half` = 1).
template <int half>
inline Vector Interleave(Vector a, Vector b) {
#ifdef __clang__
  Vector result;
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = (lane % 2 ? b : a)[half * kLanes / 2 + lane / 2];
  return result;
#else
  IntVector source;
  for (int lane = 0; lane < kLanes; ++lane) source[lane] = (lane % 2 ? kLanes : 0) + half * kLanes / 2 + lane / 2;
  return __builtin_shuffle(a, b, source);
#endif
}

// Turns a square of kLanes rows over: to[d][j] = from[j][d].
inline void Transpose(const float* from, int64_t from_row, float* to, int64_t to_row) {
  Vector rows[2][kLanes];
  for (int j = 0; j < kLanes; ++j) rows[0][j] = Load(from + j * from_row);
  int now = 0;
#pragma GCC unroll 4
  for (int width = 1; width < kLanes; width *= 2, now = 1 - now) {
#pragma GCC unroll 8
    for (int j = 0; j < kLanes / 2; ++j) {
      rows[1 - now][2 * j] = Interleave<0>(rows[now][j], rows[now][j + kLanes / 2]);
      rows[1 - now][2 * j + 1] = Interleave<1>(rows[now][j], rows[now][j + kLanes / 2]);
    }
  }
  for (int d = 0; d < kLanes; ++d) Store(to + d * to_row, rows[now][d]);
}

// One tile of a matrix product: c[r][n] (+)= sum_i a(r, i) b[i][n], with kRows x kVectors vectors of c in registers and
// a(r, i) at a[r * kRow + i * kStep].
template <int kRows, int kVectors, int kRow, int kStep, bool kAdd>
__attribute__((noinline)) void MultiplyTile(const float* a, const float* b, int64_t b_row, int inner, float* c,
                                            int64_t c_row) {
  Vector sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int n = 0; n < kVectors; ++n) sum[r][n] = kAdd ? Load(c + r * c_row + n * kLanes) : Vector{};
  }
  for (int i = 0; i < inner; ++i, a += kStep, b += b_row) {
    Vector row[kVectors];
#pragma GCC unroll 16
    for (int n = 0; n < kVectors; ++n) row[n] = Load(b + n * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vector factor = Splat(a[r * kRow]);
#pragma GCC unroll 16
      for (int n = 0; n < kVectors; ++n) sum[r][n] += factor * row[n];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int n = 0; n < kVectors; ++n) Store(c + r * c_row + n * kLanes, sum[r][n]);
  }
}

// What of a matrix product is not known to be zero, or not needed: `columns` vectors, and [begin, end) of the inner axis.
struct Extent {
  int columns, begin, end;
};

// A matrix product of rows in fours: c (+)= a b. `extent(first, last)` says what of it rows [first, last) need.
template <int kRows, int kVectors, int kRow, int kStep, bool kAdd, class ExtentOfRows>
inline void Multiply(const float* a, int rows, const float* b, int64_t b_row, float* c, int64_t c_row,
                     ExtentOfRows extent) {
  for (int r = 0; r < rows;) {
    const bool whole = r + kRows <= rows;
    const int last = whole ? r + kRows : r + 4;
    const Extent e = extent(r, last);
    const float* left = a + r * kRow + e.begin * kStep;
    const int inner = e.end - e.begin;
    for (int n = 0; n < e.columns;) {
      const float* right = b + e.begin * b_row + n * kLanes;
      float* to = c + r * c_row + n * kLanes;
      const bool wide = n + kVectors <= e.columns;
      if (whole && wide) {
        MultiplyTile<kRows, kVectors, kRow, kStep, kAdd>(left, right, b_row, inner, to, c_row);
      } else if (whole) {
        MultiplyTile<kRows, 1, kRow, kStep, kAdd>(left, right, b_row, inner, to, c_row);
      } else if (wide) {
        MultiplyTile<4, kVectors, kRow, kStep, kAdd>(left, right, b_row, inner, to, c_row);
      } else {
        MultiplyTile<4, 1, kRow, kStep, kAdd>(left, right, b_row, inner, to, c_row);
      }
      n += wide ? kVectors : 1;
    }
    r = last;
  }
}
