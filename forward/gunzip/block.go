package gunzip

import (
	"encoding/binary"
	"errors"
	"io"
)

// What can be wrong with a stream, RFC 1951.
var (
	errCut      = io.ErrUnexpectedEOF
	errType     = errors.New("a block of type 3, which does not exist")
	errStored   = errors.New("a stored block whose length and its complement differ")
	errNumbers  = errors.New("a block with more symbols than there are")
	errCode     = errors.New("a block whose code lengths are no prefix code")
	errRepeat   = errors.New("a block that repeats code lengths before the first or beyond the last")
	errSymbol   = errors.New("a symbol that does not exist")
	errDistance = errors.New("a match that begins before the data")
)

// refill makes at least 56 bits of what is left of the input, if there are that many.
func (r *Reader) refill() {
	if r.pos <= len(r.in)-8 {
		r.bits |= binary.LittleEndian.Uint64(r.in[r.pos:]) << (r.have & 63)
		r.pos += int((63 - r.have) >> 3)
		r.have |= 56
		r.bits &= 1<<r.have - 1
		return
	}
	for r.have < 56 && r.pos < len(r.in) {
		r.bits |= uint64(r.in[r.pos]) << r.have
		r.pos++
		r.have += 8
	}
}

// unread gives whole bytes that are in bits back to the input.
func (r *Reader) unread() {
	r.pos -= int(r.have >> 3)
	r.have &= 7
	r.bits &= 1<<r.have - 1
}

// take consumes n bits, of which there are enough.
func (r *Reader) take(n uint) uint {
	v := uint(r.bits & (1<<n - 1))
	r.bits >>= n
	r.have -= n
	return v
}

// block reads the header of a block.
func (r *Reader) block() error {
	r.refill()
	if r.have < 3 {
		return errCut
	}
	r.final = r.take(1) == 1
	switch r.take(2) {
	case 0:
		r.take(r.have & 7) // the rest of the byte
		r.unread()
		if len(r.in)-r.pos < 4 {
			return errCut
		}
		n := binary.LittleEndian.Uint16(r.in[r.pos:])
		if n != ^binary.LittleEndian.Uint16(r.in[r.pos+2:]) {
			return errStored
		}
		r.pos += 4
		r.stored = int(n)
		r.step = inStored
	case 1:
		r.fixedCodes()
		r.step = inCodes
	case 2:
		r.fixed = false
		if err := r.dynamicCodes(); err != nil {
			return err
		}
		r.step = inCodes
	default:
		return errType
	}
	return nil
}

// store copies from a stored block.
func (r *Reader) store() error {
	n := min(r.stored, full+1-r.out)
	if n > len(r.in)-r.pos {
		return errCut
	}
	copy(r.window[r.out:], r.in[r.pos:r.pos+n])
	r.out += n
	r.pos += n
	r.stored -= n
	if r.stored == 0 {
		r.step = inBlocks
	}
	return nil
}

// fixedCodes takes the tables of RFC 1951, 3.2.6. Go's writers end each stream with an
// empty block that has these codes.
func (r *Reader) fixedCodes() {
	if !r.fixed {
		copy(r.lit[:], fixedTables.lit[:])
		copy(r.dist[:], fixedTables.dist[:])
		r.fixed = true
	}
}

// order is that of the lengths of the code of code lengths.
var order = [numPre]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamicCodes reads the codes of a block, RFC 1951, 3.2.7.
func (r *Reader) dynamicCodes() error {
	r.refill()
	if r.have < 14 {
		return errCut
	}
	lits, dists, pres := 257+r.take(5), 1+r.take(5), 4+r.take(4)
	if lits > numLit || dists > numDist {
		return errNumbers
	}
	var used [numLit + numDist]uint16
	n := 0
	var lengths [numLit + numDist]uint8
	for _, symbol := range order[:pres] {
		if r.have < 3 {
			if r.refill(); r.have < 3 {
				return errCut
			}
		}
		lengths[symbol] = uint8(r.take(3))
	}
	for symbol, length := range lengths[:numPre] {
		if length > 0 {
			used[n] = uint16(symbol)
			n++
		}
	}
	pre := r.lit[:1<<preBits] // whose time comes later
	if !build(pre, preBits, used[:n], lengths[:], symbolsOf.pre[:]) {
		return errCode
	}
	n = 0
	last := uint8(0)
	for i, all := uint(0), lits+dists; i < all; {
		if r.have < preBits+7 {
			r.refill()
		}
		e := pre[r.bits&(1<<preBits-1)]
		if e&0xff > uint32(r.have) {
			return errCut
		}
		r.take(uint(e & 0xff))
		if e&invalid != 0 {
			return errSymbol
		}
		times, extra := uint(1), uint(0)
		switch symbol := uint8(e >> valueShift); symbol {
		default:
			last = symbol
		case 16:
			if i == 0 {
				return errRepeat
			}
			times, extra = 3, 2
		case 17:
			last, times, extra = 0, 3, 3
		case 18:
			last, times, extra = 0, 11, 7
		}
		if r.have < extra {
			return errCut
		}
		times += r.take(extra)
		if times > all-i {
			return errRepeat
		}
		if last == 0 {
			i += times
			continue
		}
		for range times {
			lengths[i] = last
			used[n] = uint16(i)
			n++
			i++
		}
	}
	at := n
	for at > 0 && used[at-1] >= uint16(lits) {
		at--
		used[at] -= uint16(lits)
	}
	if !build(r.lit[:], litBits, used[:at], lengths[:], symbolsOf.lit[:]) || !build(r.dist[:], distBits, used[at:n], lengths[lits:], symbolsOf.dist[:]) {
		return errCode
	}
	if len(r.in)-r.pos > pairFrom && (r.coded == 0 || r.pos-r.coded > pairFrom/4) {
		pair(&r.lit)
	}
	r.coded = r.pos
	return nil
}

// pairFrom is how many bytes must be left of the input for pairs of literals to be
// worth looking for; the block before must not have been much shorter either, or one
// could make us look for them all the time.
const pairFrom = 4096
