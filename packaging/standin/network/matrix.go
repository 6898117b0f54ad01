package network

// The functions of this file are kept from the race detector: they touch nothing but their arguments, and a hundred
// million watched additions make tests take minutes.

// matmulT adds a·bᵀ to c. a is m×k, b is n×k and c is m×n, all in row-major order.
//
// Four rows of a meet two rows of b at a time: eight sums stay in registers and every loaded element is used
// two or four times, which is what makes it fast without vector instructions.
//
//go:norace
func matmulT(c, a, b []float32, m, n, k int) {
	i := 0
	for ; i+4 <= m; i += 4 {
		a0, a1, a2, a3 := a[i*k:][:k], a[(i+1)*k:][:k], a[(i+2)*k:][:k], a[(i+3)*k:][:k]
		j := 0
		for ; j+2 <= n; j += 2 {
			b0, b1 := b[j*k:][:k], b[(j+1)*k:][:k]
			var s00, s01, s10, s11, s20, s21, s30, s31 float32
			for p, x := range b0 {
				y := b1[p]
				v0, v1, v2, v3 := a0[p], a1[p], a2[p], a3[p]
				s00 += v0 * x
				s01 += v0 * y
				s10 += v1 * x
				s11 += v1 * y
				s20 += v2 * x
				s21 += v2 * y
				s30 += v3 * x
				s31 += v3 * y
			}
			c0, c1, c2, c3 := c[i*n+j:][:2], c[(i+1)*n+j:][:2], c[(i+2)*n+j:][:2], c[(i+3)*n+j:][:2]
			c0[0] += s00
			c0[1] += s01
			c1[0] += s10
			c1[1] += s11
			c2[0] += s20
			c2[1] += s21
			c3[0] += s30
			c3[1] += s31
		}
		for ; j < n; j++ {
			b0 := b[j*k:][:k]
			c[i*n+j] += dot(a0, b0)
			c[(i+1)*n+j] += dot(a1, b0)
			c[(i+2)*n+j] += dot(a2, b0)
			c[(i+3)*n+j] += dot(a3, b0)
		}
	}
	for ; i < m; i++ {
		for j := range n {
			c[i*n+j] += dot(a[i*k:][:k], b[j*k:][:k])
		}
	}
}

// dot is the inner product, in four interleaved sums so that additions need not wait for each other.
//
//go:norace
func dot(a, b []float32) float32 {
	var s0, s1, s2, s3 float32
	for len(a) >= 4 && len(b) >= 4 {
		s0 += a[0] * b[0]
		s1 += a[1] * b[1]
		s2 += a[2] * b[2]
		s3 += a[3] * b[3]
		a, b = a[4:], b[4:]
	}
	for p := range min(len(a), len(b)) {
		s0 += a[p] * b[p]
	}
	return s0 + s1 + s2 + s3
}

// transpose writes the m×n matrix a as n×m into t.
//
//go:norace
func transpose(t, a []float32, m, n int) {
	for i := range m {
		for j, x := range a[i*n:][:n] {
			t[j*m+i] = x
		}
	}
}
