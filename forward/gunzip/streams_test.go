package gunzip

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/bits"
	"math/rand/v2"
)

// bitWriter writes a DEFLATE stream by hand, RFC 1951, 3.1.1.
type bitWriter struct {
	b    []byte
	free uint // bits of the last byte
}

// bits appends the n low bits of v, the lowest first.
func (w *bitWriter) bits(v uint, n int) *bitWriter {
	for i := range n {
		if w.free == 0 {
			w.b, w.free = append(w.b, 0), 8
		}
		w.b[len(w.b)-1] |= byte(v>>i&1) << (8 - w.free)
		w.free--
	}
	return w
}

// code appends a prefix code, its highest bit first.
func (w *bitWriter) code(c prefix) *bitWriter {
	return w.bits(uint(bits.Reverse16(c.code)>>(16-c.n)), int(c.n))
}

// stored appends a stored block.
func (w *bitWriter) stored(final uint, p string) *bitWriter {
	w.bits(final, 1).bits(0, 2)
	w.free = 0
	w.b = binary.LittleEndian.AppendUint16(w.b, uint16(len(p)))
	w.b = binary.LittleEndian.AppendUint16(w.b, ^uint16(len(p)))
	w.b = append(w.b, p...)
	return w
}

type prefix struct {
	code uint16
	n    uint8
}

// prefixes are the codes of these lengths, RFC 1951, 3.2.2.
func prefixes(lengths []uint8) []prefix {
	codes := make([]prefix, len(lengths))
	code := uint16(0)
	for n := uint8(1); n <= 15; n++ {
		code <<= 1
		for i, l := range lengths {
			if l == n {
				codes[i] = prefix{code, n}
				code++
			}
		}
	}
	return codes
}

// codes are those of one block.
type codes struct{ lit, dist []prefix }

func fixed() codes {
	var lit [288]uint8
	for i := range lit {
		switch {
		case i < 144:
			lit[i] = 8
		case i < 256:
			lit[i] = 9
		case i < 280:
			lit[i] = 7
		default:
			lit[i] = 8
		}
	}
	return codes{prefixes(lit[:]), prefixes(bytes.Repeat([]byte{5}, 32))}
}

// fixedBlock begins a block with the fixed codes.
func (w *bitWriter) fixedBlock(final uint) codes {
	w.bits(final, 1).bits(1, 2)
	return fixed()
}

// dynamicBlock begins a block with codes of these lengths, each length written as
// itself in 4 bits.
func (w *bitWriter) dynamicBlock(final uint, lit, dist []uint8) codes {
	w.bits(final, 1).bits(2, 2).bits(uint(len(lit)-257), 5).bits(uint(len(dist)-1), 5).bits(15, 4)
	for _, symbol := range order {
		w.bits(map[bool]uint{true: 4}[symbol < 16], 3)
	}
	for _, n := range append(append([]uint8{}, lit...), dist...) {
		w.code(prefix{uint16(n), 4})
	}
	return codes{prefixes(lit), prefixes(dist)}
}

func (w *bitWriter) literals(c codes, s string) *bitWriter {
	for _, b := range []byte(s) {
		w.code(c.lit[b])
	}
	return w
}

func (w *bitWriter) end(c codes) *bitWriter { return w.code(c.lit[endSymbol]) }

// match appends a length and a distance, by the tables of RFC 1951, 3.2.5.
func (w *bitWriter) match(c codes, length, distance int) *bitWriter {
	symbol, extra, n := lengthSymbol(length)
	w.code(c.lit[symbol]).bits(extra, n)
	symbol, extra, n = distSymbol(distance)
	return w.code(c.dist[symbol]).bits(extra, n)
}

func lengthSymbol(length int) (symbol int, extra uint, n int) {
	for i, least := range []int{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258} {
		if length >= least {
			symbol, extra = 257+i, uint(length-least)
		}
	}
	if symbol >= 265 && symbol < 285 {
		n = (symbol - 261) / 4
	}
	return symbol, extra, n
}

func distSymbol(distance int) (symbol int, extra uint, n int) {
	for i, least := range []int{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577} {
		if distance >= least {
			symbol, extra = i, uint(distance-least)
		}
	}
	if symbol >= 4 {
		n = symbol/2 - 1
	}
	return symbol, extra, n
}

// plainHeader is a header without anything optional.
const plainHeader = "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"

// member puts header and trailer around a stream.
func member(stream []byte, text string) []byte {
	p := append([]byte(plainHeader), stream...)
	p = binary.LittleEndian.AppendUint32(p, crc32.ChecksumIEEE([]byte(text)))
	return binary.LittleEndian.AppendUint32(p, uint32(len(text)))
}

// randomLengths is a complete code for n of the symbols, or fewer if they would not
// fit: a tree whose leaves are split at random, deep ones as readily as others.
func randomLengths(v *rand.Rand, symbols, n int, must ...int) []uint8 {
	depths := []uint8{0}
	for len(depths) < n {
		i := v.IntN(len(depths))
		if v.IntN(2) == 0 {
			i = len(depths) - 1 // so that some codes are as long as can be
		}
		for depths[i] == maxCodeLen {
			i = v.IntN(len(depths))
		}
		depths[i]++
		depths = append(depths, depths[i])
	}
	lengths := make([]uint8, symbols)
	v.Shuffle(len(depths), func(i, j int) { depths[i], depths[j] = depths[j], depths[i] })
	at := v.Perm(symbols)
	for _, symbol := range must {
		lengths[symbol], depths = depths[0], depths[1:]
	}
	for _, symbol := range at {
		if len(depths) > 0 && lengths[symbol] == 0 {
			lengths[symbol], depths = depths[0], depths[1:]
		}
	}
	return lengths
}

// randomStream is a stream of blocks of all types with about size bytes of text:
// matches of all lengths at all distances, among them the longest at the farthest.
func randomStream(v *rand.Rand, size int) (stream []byte, text string) {
	w := &bitWriter{}
	var out []byte
	for len(out) < size {
		if v.IntN(6) == 0 {
			p := make([]byte, v.IntN(1<<v.IntN(17)))
			for i := range p {
				p[i] = byte(v.Uint32())
			}
			w.stored(0, string(p))
			out = append(out, p...)
			continue
		}
		var c codes
		if v.IntN(4) == 0 {
			c = w.fixedBlock(0)
		} else {
			c = w.dynamicBlock(0, randomLengths(v, numLit, 60+v.IntN(numLit-60), endSymbol, 257, 285), randomLengths(v, numDist, 2+v.IntN(numDist-2)))
		}
		for range v.IntN(1 << v.IntN(15)) {
			if v.IntN(3) > 0 || len(out) == 0 {
				if b := byte(v.Uint32()); c.lit[b].n > 0 {
					w.code(c.lit[b])
					out = append(out, b)
				}
				continue
			}
			length := 3 + v.IntN(256)
			distance := 1 + v.IntN(min(len(out), 1<<v.IntN(16)))
			switch v.IntN(8) {
			case 0:
				length = 258
			case 1:
				distance = min(len(out), history)
			case 2:
				length, distance = 258, min(len(out), history)
			}
			l, _, _ := lengthSymbol(length)
			d, _, _ := distSymbol(distance)
			if c.lit[l].n == 0 || c.dist[d].n == 0 {
				continue
			}
			w.match(c, length, distance)
			for range length {
				out = append(out, out[len(out)-distance])
			}
		}
		w.end(c)
	}
	w.end(w.fixedBlock(1))
	return w.b, string(out)
}
