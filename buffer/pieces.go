package buffer

// pieces reads forward in memory that is in pieces.
type pieces struct {
	first []byte
	rest  [][]byte
}

// settle makes first begin with what comes next.
func (v *pieces) settle() {
	for len(v.first) == 0 && len(v.rest) > 0 {
		v.first, v.rest = v.rest[0], v.rest[1:]
	}
}

// peek returns the next n bytes, or fewer at the end: as they are in memory, or
// copied together if they are in several pieces.
func (v *pieces) peek(n int64) []byte {
	v.settle()
	if n <= int64(len(v.first)) || len(v.rest) == 0 {
		return v.first[:min(n, int64(len(v.first)))]
	}
	ahead := *v
	p := make([]byte, 0, n) // rare: a piece is much longer than what is looked at
	for n > 0 && len(ahead.first) > 0 {
		part := ahead.first[:min(n, int64(len(ahead.first)))]
		p = append(p, part...)
		n -= int64(len(part))
		ahead.skip(int64(len(part)))
	}
	return p
}

// skip passes over n bytes.
func (v *pieces) skip(n int64) {
	for n > 0 && len(v.first) > 0 {
		part := min(n, int64(len(v.first)))
		v.first = v.first[part:]
		n -= part
		v.settle()
	}
}

// take appends the next n bytes to dst, piece by piece as they are in memory, at
// least one piece.
func (v *pieces) take(dst [][]byte, n int64) [][]byte {
	for {
		part := min(n, int64(len(v.first)))
		dst = append(dst, v.first[:part:part])
		v.skip(part)
		if n -= part; n == 0 || len(v.first) == 0 {
			return dst
		}
	}
}
