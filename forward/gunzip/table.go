package gunzip

import "math/bits"

// A code of DEFLATE is decoded by a table: the next bits of the stream, as many as
// the table is wide, are the index of an entry. Codes longer than that go on in a
// subtable, which is in the same array behind the table. An entry is 32 bits:
//
//	literals      1ccc cccc  bbbb bbbb  aaaa aaaa  llll llll   first byte a, then b
//	length        0mmm mm0v  vvvv vvvv  0000 kkkk  llll llll
//	distance      vvvv vvvv  vvvv vvvv  0000 kkkk  llll llll
//	subtable      0sss ssss  ssss ssss  1000 kkkk  llll llll
//	end of block                        1100 0000  llll llll
//	invalid                             1010 0000  llll llll
//
// l is how many bits are consumed: those of the code and its extra bits, or those of
// the index of the table that leads to the subtable. c is the number of literals, 1
// or 2. k is the bits of the code alone, or those of the index of the subtable. v is
// the least length or distance, m the mask of the extra bits, s where the subtable
// begins.
const (
	literal     = 1 << 31
	exceptional = 1 << 15
	endOfBlock  = 1 << 14
	invalid     = 1 << 13

	countShift = 24
	valueShift = 16
	maskShift  = 26
	kShift     = 8
	perBit     = 1<<kShift | 1 // what one more bit of the code adds to l and k
)

// Numbers of RFC 1951, 3.2.5 to 3.2.7. Of the 288 and 32 symbols the last two never
// occur in a stream.
const (
	maxCodeLen = 15
	numLit     = 286
	numDist    = 30
	numPre     = 19
	endSymbol  = 256
)

// Widths of the tables. A subtable of 2^k entries is as deep as the longest of its
// codes, so that it has at least k+1 of them. At most 4 bits are left of a code
// behind litBits, which makes 16/5 entries for a symbol and 286*16/5 < 1024; at most 7
// behind distBits, 16 entries for a symbol and 30*16 < 512.
const (
	litBits  = 11
	distBits = 8
	preBits  = 7 // the longest code of code lengths
	litSize  = 1<<litBits + 1024
	distSize = 1<<distBits + 512
)

// symbols are the entries of each symbol but for the bits of its code.
type symbols struct {
	lit  [288]uint32
	dist [32]uint32
	pre  [numPre]uint32
}

var symbolsOf = func() (s symbols) {
	for i := range 256 {
		s.lit[i] = literal | 1<<countShift | uint32(i)<<kShift
	}
	s.lit[endSymbol] = exceptional | endOfBlock
	base := uint32(3)
	for i := range uint32(28) {
		extra := uint32(0)
		if i >= 8 {
			extra = i/4 - 1
		}
		s.lit[257+i] = base<<valueShift | (1<<extra-1)<<maskShift | extra
		base += 1 << extra
	}
	s.lit[285] = 258 << valueShift
	s.lit[286], s.lit[287] = exceptional|invalid, exceptional|invalid
	base = 1
	for i := range uint32(numDist) {
		extra := uint32(0)
		if i >= 4 {
			extra = i/2 - 1
		}
		s.dist[i] = base<<valueShift | extra
		base += 1 << extra
	}
	s.dist[30], s.dist[31] = exceptional|invalid, exceptional|invalid
	for i := range uint32(numPre) {
		s.pre[i] = i << valueShift
	}
	return s
}()

// build fills the table of a code: used are the symbols that occur in it, in
// ascending order, lengths how long their codes are, at most maxCodeLen. It is false
// for a set of lengths that is no code: over-subscribed, or incomplete. Like zlib and
// compress/flate it takes the two incomplete ones that are used where nothing need be
// told apart: no symbol at all, and one whose code has 1 bit.
func build(table []uint32, width uint, used []uint16, lengths []uint8, symbols []uint32) bool {
	var count, next [maxCodeLen + 1]uint16
	for _, symbol := range used {
		count[lengths[symbol]&maxCodeLen]++
	}
	space, from := 0, uint16(0)
	for n := 1; n <= maxCodeLen; n++ {
		next[n] = from
		from += count[n]
		space += int(count[n]) << (maxCodeLen - n)
	}
	if space != 1<<maxCodeLen {
		if len(used) > 1 || len(used) == 1 && count[1] != 1 {
			return false
		}
		for i := range table[:1<<width] {
			table[i] = exceptional | invalid | 1
			if len(used) == 1 && i%2 == 0 {
				table[i] = withCode(symbols[used[0]], 1)
			}
		}
		return true
	}
	var sorted [numLit + 2]uint16 // symbols by the lengths of their codes
	for _, symbol := range used {
		n := lengths[symbol] & maxCodeLen
		sorted[next[n]] = symbol
		next[n]++
	}
	// Codes come in the order of their lengths, their bits reversed. The table begins
	// as wide as the shortest code and is doubled for each bit more.
	n := uint(1)
	for count[n] == 0 {
		n++
	}
	code, rest := uint(0), sorted[:from]
	size := uint(1) << min(n, width)
	for ; n <= width; n++ {
		for range count[n] {
			table[code] = withCode(symbols[rest[0]], n)
			rest = rest[1:]
			if len(rest) == 0 {
				for ; size < 1<<width; size *= 2 {
					copy(table[size:2*size], table[:size])
				}
				return true
			}
			code = following(code, n)
		}
		if n < width {
			copy(table[size:2*size], table[:size])
			size *= 2
		}
	}
	start, end, prefix := uint(0), uint(1)<<width, ^uint(0)
	for ; ; n++ {
		for left := count[n]; left > 0; left-- {
			if code&(1<<width-1) != prefix {
				prefix = code & (1<<width - 1)
				start = end
				// As deep as it takes for the codes that come to fill it.
				depth := n - width
				for used := int(left); used < 1<<depth; {
					depth++
					used = used<<1 + int(count[width+depth])
				}
				end += 1 << depth
				table[prefix] = exceptional | uint32(start)<<valueShift | uint32(depth)<<kShift | uint32(width)
			}
			e := withCode(symbols[rest[0]], n-width)
			for at := start + code>>width; at < end; at += 1 << (n - width) {
				table[at] = e
			}
			rest = rest[1:]
			if len(rest) == 0 {
				return true
			}
			code = following(code, n)
		}
	}
}

// withCode is the entry of a symbol whose code is n bits long, or the rest of it is.
func withCode(symbol uint32, n uint) uint32 {
	if symbol&(literal|exceptional) != 0 {
		return symbol + uint32(n)
	}
	return symbol + uint32(n)*perBit
}

// following is the code after this one of n bits, which is not the last, its bits
// reversed.
func following(code, n uint) uint {
	bit := uint(1) << (bits.Len(code^(1<<n-1)) - 1)
	return code&(bit-1) | bit
}

// pair puts two literals into an entry where both codes fit into the index.
func pair(table *[litSize]uint32) {
	for i := uint32(1<<litBits - 1); i < 1<<litBits; i-- {
		e := table[i]
		n := e & 0xff
		if e&literal == 0 || n >= litBits {
			continue
		}
		f := table[i>>n]
		if m := n + f&0xff; f&literal != 0 && f>>countShift == literal>>countShift|1 && m <= litBits {
			table[i] = literal | 2<<countShift | f&0xff00<<8 | e&0xff00 | m
		}
	}
}

// fixedTables are those of the codes of RFC 1951, 3.2.6.
var fixedTables = func() (t struct {
	lit  [1 << litBits]uint32
	dist [1 << distBits]uint32
}) {
	var used [288]uint16
	var lengths [288]uint8
	for i := range lengths {
		used[i] = uint16(i)
		switch {
		case i < 144:
			lengths[i] = 8
		case i < 256:
			lengths[i] = 9
		case i < 280:
			lengths[i] = 7
		default:
			lengths[i] = 8
		}
	}
	build(t.lit[:], litBits, used[:], lengths[:], symbolsOf.lit[:])
	for i := range 32 {
		lengths[i] = 5
	}
	build(t.dist[:], distBits, used[:32], lengths[:], symbolsOf.dist[:])
	return t
}()
